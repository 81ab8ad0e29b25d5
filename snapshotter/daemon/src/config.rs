//! The configuration: one TOML file, parsed once into a checked type.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use towline_artifact::PIECE_LEN;
use towline_peer::MAX_NAME_LEN;

/// Everything the daemon can be told. Unknown keys are errors.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What must survive a reboot: metadata, pieces, layers of ordinary images.
    pub(crate) root: PathBuf,
    /// Sockets and the FUSE mount.
    pub(crate) run_dir: PathBuf,
    pub(crate) snapshotter: Snapshotter,
    pub(crate) control: Control,
    pub(crate) http: Http,
    pub(crate) fetch: Fetch,
    pub(crate) peers: Peers,
    pub(crate) registry: Registry,
    pub(crate) fuse: Fuse,
    pub(crate) log: Log,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Snapshotter {
    /// Where containerd finds the daemon; `snapshotter.sock` in `run_dir` by default.
    pub(crate) socket: Option<PathBuf>,
    /// Fail a pull whose image is a model of ours but cannot be served lazily.
    pub(crate) strict: bool,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Control {
    /// Where the `towline` command finds the daemon; `control.sock` in `run_dir` by default.
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Http {
    /// Address of `/metrics`, `/healthz` and `/readyz`; empty for none.
    pub(crate) listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7117".to_owned() }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Fetch {
    /// Requests under way at once.
    pub(crate) requests: usize,
    /// Bytes of one request.
    pub(crate) request_size: ByteSize,
    /// Bytes that are fetched ahead of a reader before anything else that nobody waits for.
    pub(crate) window: ByteSize,
    /// Verified pieces kept in memory for readers.
    pub(crate) memory: ByteSize,
    /// How long a read waits for its bytes before it fails with EIO.
    #[serde(with = "humantime_serde")]
    pub(crate) read_timeout: Duration,
    /// The longest silence of a registry within a request.
    #[serde(with = "humantime_serde")]
    pub(crate) idle_timeout: Duration,
    /// Fetch whole models in the background, not only what is read.
    pub(crate) fill: bool,
    /// How long after a pull the background fetch begins; a pod that opens a weight file starts it at once.
    #[serde(with = "humantime_serde")]
    pub(crate) fill_delay: Duration,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            requests: 16,
            request_size: ByteSize::mib(8),
            window: ByteSize::mib(128),
            memory: ByteSize::mib(256),
            read_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(30),
            fill: true,
            fill_delay: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Peers {
    /// File with the secret that all nodes of the cluster share. Without it the node has no peers and listens to nobody.
    pub(crate) cluster_key_file: Option<PathBuf>,
    /// Where control connections of peers are accepted.
    pub(crate) listen: SocketAddr,
    /// Where peers fetch pieces.
    pub(crate) bulk_listen: SocketAddr,
    /// IP address at which other nodes reach this one; by default the one they see it connect from.
    pub(crate) advertise: Option<IpAddr>,
    /// Where to find first peers: `IP:PORT`, `dns:NAME:PORT` or `kubernetes:NAMESPACE/SERVICE:PORT`.
    pub(crate) bootstrap: Vec<String>,
    /// Nodes of one zone have cheap links between them; `kubernetes` takes the zone from the node's label.
    pub(crate) zone: String,
    /// What people call this node; the host name by default.
    pub(crate) name: String,
    /// Share of the origin's work that this node does, relative to others; 0 for none. Its uplink in units of
    /// 100 Mb/s is a good choice where uplinks differ.
    pub(crate) weight: u16,
    /// Bytes a second that are sent to peers at most; what is above it is the pods'.
    pub(crate) upload_rate: Option<ByteSize>,
    /// Peers connected at once. Up to this many nodes every node knows every other.
    pub(crate) max_connections: usize,
    /// How pieces are found: `swarm`, or `owner-only` to compare with.
    pub(crate) strategy: Strategy,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    Swarm,
    OwnerOnly,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            cluster_key_file: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 7118)),
            bulk_listen: SocketAddr::from(([0, 0, 0, 0], 7119)),
            advertise: None,
            bootstrap: Vec::new(),
            zone: String::new(),
            name: String::new(),
            weight: 10,
            upload_rate: None,
            max_connections: 512,
            strategy: Strategy::Swarm,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    /// A docker `config.json` with credentials; `$DOCKER_CONFIG` or `~/.docker` by default.
    pub(crate) docker_config: Option<PathBuf>,
    /// containerd's `config_path`: mirrors and certificate authorities per registry.
    pub(crate) hosts_dir: Option<PathBuf>,
    /// Registries spoken to without TLS, besides those on loopback.
    pub(crate) plain_http: Vec<String>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            docker_config: None,
            hosts_dir: Some("/etc/containerd/certs.d".into()),
            plain_http: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Fuse {
    /// How far the kernel reads ahead in files that are not complete.
    pub(crate) read_ahead: ByteSize,
    /// Threads that answer reads of what is here; 0 for one per processor.
    pub(crate) threads: usize,
    /// Let the kernel read complete files without the daemon.
    pub(crate) passthrough: bool,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { read_ahead: ByteSize::mib(16), threads: 0, passthrough: true }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `error`, `warn`, `info`, `debug`, or directives such as `info,towline_modelfs=debug`.
    pub(crate) level: String,
    /// `text` or `json`.
    pub(crate) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/towline".into(),
            run_dir: "/run/towline".into(),
            snapshotter: Snapshotter::default(),
            control: Control::default(),
            http: Http::default(),
            fetch: Fetch::default(),
            peers: Peers::default(),
            registry: Registry::default(),
            fuse: Fuse::default(),
            log: Log::default(),
        }
    }
}

impl Config {
    /// Reads and checks `path`, or gives the defaults without one.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Self::default().checked() };
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str::<Self>(text)?.checked()
    }

    fn checked(self) -> anyhow::Result<Self> {
        for (key, path) in [("root", &self.root), ("run_dir", &self.run_dir)] {
            ensure!(path.is_absolute(), "{key} must be an absolute path, not {}", path.display());
        }
        let fetch = &self.fetch;
        ensure!(
            (2..=256).contains(&fetch.requests),
            "fetch.requests must be 2 to 256, not {}",
            fetch.requests
        );
        for (key, size, max) in [
            ("fetch.request_size", fetch.request_size, ByteSize::mib(64)),
            ("fetch.window", fetch.window, ByteSize::gib(1)),
        ] {
            if size.0 < PIECE_LEN || size > max {
                bail!("{key} must be between a piece of 2 MiB and {max}, not {size}");
            }
        }
        ensure!(
            fetch.memory.0 >= 4 * PIECE_LEN,
            "fetch.memory must be at least 16 MiB, not {}",
            fetch.memory
        );
        ensure!(!fetch.read_timeout.is_zero(), "fetch.read_timeout must not be zero");
        ensure!(!fetch.idle_timeout.is_zero(), "fetch.idle_timeout must not be zero");
        let peers = &self.peers;
        for source in &peers.bootstrap {
            source.parse::<towline_peer::Source>().with_context(|| format!("peers.bootstrap {source:?}"))?;
        }
        ensure!(
            (1..=4096).contains(&peers.max_connections),
            "peers.max_connections must be 1 to 4096, not {}",
            peers.max_connections
        );
        if let Some(rate) = peers.upload_rate {
            ensure!(
                rate >= ByteSize::mib(1),
                "peers.upload_rate must be at least 1MiB (a second), not {rate}"
            );
        }
        for (key, name) in [("peers.name", &peers.name), ("peers.zone", &peers.zone)] {
            ensure!(name.len() <= MAX_NAME_LEN, "{key} must have at most {MAX_NAME_LEN} bytes");
        }
        ensure!(self.fuse.threads <= 64, "fuse.threads must be at most 64, not {}", self.fuse.threads);
        ensure!(
            (ByteSize::kib(128)..=ByteSize::gib(1)).contains(&self.fuse.read_ahead),
            "fuse.read_ahead must be 128 KiB to 1 GiB, not {}",
            self.fuse.read_ahead
        );
        let level: Result<tracing_subscriber::EnvFilter, _> = self.log.level.parse();
        ensure!(level.is_ok(), "log.level must be a level or directives, not {:?}", self.log.level);
        if !self.http.listen.is_empty() {
            let parsed: Result<std::net::SocketAddr, _> = self.http.listen.parse();
            ensure!(parsed.is_ok(), "http.listen must be an address and a port, not {:?}", self.http.listen);
        }
        Ok(self)
    }

    pub(crate) fn snapshotter_socket(&self) -> PathBuf {
        self.snapshotter.socket.clone().unwrap_or_else(|| self.run_dir.join("snapshotter.sock"))
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.control.socket.clone().unwrap_or_else(|| self.run_dir.join("control.sock"))
    }

    pub(crate) fn mount_dir(&self) -> PathBuf {
        self.run_dir.join("models")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), &str>) {
        match (Config::parse(text), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => {
                let error = format!("{error:#}");
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
            (found, expected) => panic!("{text:?}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn values_have_units_and_unknown_keys_are_errors() {
        check("", Ok(()));
        check("root = '/x'\n[fetch]\nmemory = '1GiB'\nread_timeout = '2m'\nfill_delay = '0s'", Ok(()));
        check("rooot = '/x'", Err("rooot"));
        check("[fetch]\nwindows = '1MiB'", Err("windows"));
        check("root = 'x'", Err("absolute"));
        check("[fetch]\nrequests = 1", Err("2 to 256"));
        check("[fetch]\nrequest_size = '1MiB'", Err("2 MiB"));
        check("[fetch]\nread_timeout = '0s'", Err("must not be zero"));
        check("[fetch]\nread_timeout = 5", Err("read_timeout"));
        check("[http]\nlisten = 'localhost'", Err("http.listen"));
        check("[http]\nlisten = ''", Ok(()));
        check("[peers]\nbootstrap = ['10.0.0.1:7118', 'dns:peers.example.com:7118']\nzone = 'a'", Ok(()));
        check("[peers]\nbootstrap = ['peers.example.com']", Err("peers.bootstrap"));
        check("[peers]\nmax_connections = 0", Err("1 to 4096"));
        check("[peers]\nupload_rate = '10KiB'", Err("upload_rate"));
        check("[peers]\ncluster_key = 'secret'", Err("cluster_key"));
    }

    #[test]
    fn what_print_config_prints_is_read_back() {
        let config = Config::default();
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }
}
