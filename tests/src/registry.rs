//! A real registry (CNCF distribution) on loopback, with a fresh directory and an account of what it served.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::image::Layout;
use crate::process::Daemon;
use crate::scratch::Scratch;

/// A registry of the run. It ends with the value.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    addr: SocketAddr,
}

/// What a registry has served, from its access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// GETs of blobs that were answered with content (200 or 206).
    pub blob_gets: u64,
    /// Bytes of blob content sent, what a client that left early did not take not included.
    pub blob_bytes: u64,
    /// GETs and HEADs of manifests.
    pub manifest_requests: u64,
}

/// A place in the access log, to count from.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Registry {
    /// Starts a registry named `name` in the run. Its directory is below the run's.
    ///
    /// # Errors
    /// Where `docker-registry` is missing or does not start.
    pub async fn start(scratch: &Scratch, name: &str) -> Result<Self> {
        let dir = scratch.subdir(name)?;
        let config = dir.join("config.json");
        // Every valid JSON text is valid YAML, which the registry reads.
        let settings = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info", "accesslog": { "disabled": false } },
            "storage": { "filesystem": { "rootdirectory": dir.join("data") }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0", "secret": "one registry, nothing to share" },
        });
        fs::write(&config, settings.to_string()).with_context(|| format!("write {}", config.display()))?;
        let mut daemon =
            Daemon::spawn(scratch, name, Command::new("docker-registry").arg("serve").arg(&config))?;
        let log = daemon.log().to_path_buf();
        let addr = daemon.ready(Duration::from_secs(10), async || Ok(listening(&read(&log)?))).await?;
        Ok(Self { daemon, addr })
    }

    /// Where it listens; also the host part of references to its images.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The present end of the access log.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(read(self.daemon.log())?.len()))
    }

    /// What it has served since `mark`. A request counts when it is finished.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn served_since(&self, mark: Mark) -> Result<Served> {
        let log = read(self.daemon.log())?;
        Ok(count(log.get(mark.0..).unwrap_or_default()))
    }

    /// Copies an image into the registry, digests preserved, and returns its reference.
    ///
    /// # Errors
    /// Where `skopeo` is missing or fails, with what it said.
    pub async fn push(&self, image: &Layout, name: &str) -> Result<String> {
        let reference = format!("{}/{name}", self.addr);
        // Without --preserve-digests skopeo compresses uncompressed layers.
        let output = tokio::process::Command::new("skopeo")
            .args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "--insecure-policy"])
            .arg(format!("oci:{}:{}", image.dir.display(), image.tag))
            .arg(format!("docker://{reference}"))
            .output()
            .await
            .context("run skopeo")?;
        if !output.status.success() {
            bail!("push {reference}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(reference)
    }

    /// The file that holds a blob, to damage it for a test.
    ///
    /// # Errors
    /// Where `digest` does not start with `sha256:`.
    pub fn blob_path(&self, scratch: &Scratch, name: &str, digest: &str) -> Result<PathBuf> {
        let hex =
            digest.strip_prefix("sha256:").with_context(|| format!("{digest:?} is not a SHA-256 digest"))?;
        let below = Path::new("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        Ok(scratch.path().join(name).join(below))
    }

    /// Stops it for good; its address then refuses connections.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.daemon.kill()
    }
}

fn read(log: &Path) -> Result<String> {
    let bytes = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The address in the registry's line `listening on 127.0.0.1:1234`.
fn listening(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("msg=\"listening on ")?;
    rest.split('"').next()?.parse().ok()
}

/// Adds up an access log in the combined format.
fn count(log: &str) -> Served {
    let mut served = Served::default();
    for line in log.lines() {
        let mut quoted = line.split('"').skip(1);
        let (Some(request), Some(answer)) = (quoted.next(), quoted.next()) else { continue };
        let mut request = request.split(' ');
        let (Some(method), Some(path)) = (request.next(), request.next()) else { continue };
        let mut answer = answer.split_whitespace();
        let (Some(status), Some(bytes)) = (answer.next(), answer.next()) else { continue };
        if path.contains("/manifests/") && matches!(method, "GET" | "HEAD") {
            served.manifest_requests += 1;
        } else if path.contains("/blobs/sha256:") && method == "GET" && matches!(status, "200" | "206") {
            served.blob_gets += 1;
            served.blob_bytes += bytes.parse::<u64>().unwrap_or(0);
        }
    }
    served
}

#[cfg(test)]
mod tests {
    use super::{Served, count, listening};

    #[test]
    fn the_address_is_in_the_log() {
        let log = "time=x level=info msg=\"listening on 127.0.0.1:35737\" go.version=go1.19.8\n";
        assert_eq!(listening(log), Some("127.0.0.1:35737".parse().expect("an address")));
        assert_eq!(listening("msg=\"listening on 127.0"), None);
    }

    #[test]
    fn only_blob_content_is_counted() {
        let log = r#"127.0.0.1 - - [22/Nov/2026:12:00:00 +0000] "HEAD /v2/m/manifests/v1 HTTP/1.1" 200 500 "" "c"
127.0.0.1 - - [22/Nov/2026:12:00:00 +0000] "GET /v2/m/blobs/sha256:aa HTTP/1.1" 200 1000 "" "c"
127.0.0.1 - - [22/Nov/2026:12:00:00 +0000] "GET /v2/m/blobs/sha256:aa HTTP/1.1" 206 24 "" "c"
127.0.0.1 - - [22/Nov/2026:12:00:00 +0000] "GET /v2/m/blobs/sha256:bb HTTP/1.1" 404 157 "" "c"
127.0.0.1 - - [22/Nov/2026:12:00:00 +0000] "HEAD /v2/m/blobs/sha256:aa HTTP/1.1" 200 1000 "" "c"
time="2026" level=info msg="something \"GET\" else"
"#;
        assert_eq!(count(log), Served { blob_gets: 2, blob_bytes: 1024, manifest_requests: 1 });
    }
}
