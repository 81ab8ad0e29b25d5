//! What both destinations promise, on a real registry and on disk, and whether other tools agree.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::Digest as _;
use towline_registry::{
    Client, ClientOptions, Destination, Digest, ImageSource, PlainHttp, RegistryError, Repository,
};

use crate::server::{client, options};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn digest(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes))).parse().unwrap()
}

fn noise(len: usize, seed: u64) -> Bytes {
    (0..len as u64).map(|i| ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A registry of its own, gone with its directory when the test ends.
struct Registry {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Option<Self> {
        Self::start_with(tempfile::tempdir().unwrap(), "")
    }

    /// `None`, and a word why, when the program is not installed. `http` is added to that part of the configuration.
    fn start_with(dir: tempfile::TempDir, http: &str) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{http}",
            dir.path().display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            println!("SKIPPED: docker-registry is not installed");
            return None;
        };
        let registry = Self { child, host, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    fn destination(&self, client: &Client, path: &str) -> Destination {
        Destination::parse(&format!("{}/{path}:v1", self.host), client).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn read(source: &ImageSource, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
    let mut body = source.blob(digest).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// The promises of a destination, whatever it is.
async fn check(destination: &Destination) {
    let source = destination.source();
    assert!(source.manifest("v1").await.unwrap_err().is_not_found());
    let small = noise(1000, 1);
    let small_digest = digest(&small);
    assert!(!destination.has_blob(&small_digest).await.unwrap());
    assert!(source.blob(&small_digest).await.unwrap_err().is_not_found());
    for _ in 0..2 {
        destination.put_blob(&small_digest, small.clone()).await.unwrap();
        assert!(destination.has_blob(&small_digest).await.unwrap());
    }
    let wrong = destination.put_blob(&digest(b"other"), small.clone()).await;
    assert!(matches!(wrong, Err(RegistryError::DigestMismatch { .. })), "{wrong:?}");
    destination.put_blob(&digest(b""), Bytes::new()).await.unwrap();

    for (len, announced) in [(0, Some(0)), (1, None), (20 << 20, Some(20 << 20)), ((9 << 20) + 1, None)] {
        let blob = noise(len, 2);
        let blob_digest = digest(&blob);
        let mut writer = destination.start_blob(announced).await.unwrap();
        for piece in blob.chunks(3 << 20) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        writer.commit(&blob_digest).await.unwrap();
        assert_eq!(source.blob_len(&blob_digest).await.unwrap(), Some(len as u64));
        assert_eq!(read(&source, &blob_digest).await.unwrap(), blob, "{len} bytes");
        assert_eq!(source.blob_verified(&blob_digest, len as u64).await.unwrap(), blob);
        let (start, end) = (len / 3, len - len / 5);
        let mut body = source.blob_range(&blob_digest, start as u64..end as u64).await.unwrap();
        let mut range = Vec::new();
        while let Some(chunk) = body.chunk().await {
            range.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(range, blob[start..end], "range of {len} bytes");
        if len > 0 {
            assert!(source.blob_verified(&blob_digest, len as u64 - 1).await.is_err(), "more than the limit");
            assert!(
                source.blob_range(&blob_digest, len as u64..len as u64 + 1).await.is_err(),
                "past the end"
            );
        }
    }

    let lost = noise(2 << 20, 3);
    let mut writer = destination.start_blob(None).await.unwrap();
    writer.write(lost.clone()).await.unwrap();
    assert!(writer.commit(&digest(b"not it")).await.is_err());
    let mut writer = destination.start_blob(Some(lost.len() as u64)).await.unwrap();
    writer.write(lost.slice(..9)).await.unwrap();
    assert!(matches!(writer.commit(&digest(&lost)).await, Err(RegistryError::UploadLen { .. })));
    let mut writer = destination.start_blob(None).await.unwrap();
    writer.write(lost.clone()).await.unwrap();
    writer.abort().await;
    let mut writer = destination.start_blob(None).await.unwrap();
    writer.write(lost.clone()).await.unwrap();
    drop(writer);
    for gone in [digest(&lost), digest(b"not it")] {
        assert!(!destination.has_blob(&gone).await.unwrap());
    }
}

/// Writes a small, complete image: an index with one manifest. Returns the index's digest.
async fn write_image(destination: &Destination, note: &str) -> Digest {
    let layer = Bytes::from(vec![0; 1024]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Labels": {"note": note}},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer).to_string()]},
    });
    let config = Bytes::from(config.to_string());
    let descriptor = |media_type: &str, bytes: &Bytes| serde_json::json!({"mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len()});
    for blob in [&layer, &config] {
        destination.put_blob(&digest(blob), blob.clone()).await.unwrap();
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = Bytes::from(manifest.to_string());
    let wrong = destination.put_manifest(MANIFEST, manifest.clone(), &digest(b"other")).await;
    assert!(matches!(wrong, Err(RegistryError::DigestMismatch { .. })), "{wrong:?}");
    destination.put_manifest(MANIFEST, manifest.clone(), &digest(&manifest)).await.unwrap();
    let mut child = descriptor(MANIFEST, &manifest);
    child["platform"] = serde_json::json!({"architecture": "amd64", "os": "linux"});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]});
    let index = Bytes::from(index.to_string());
    let published = destination.publish(index.clone(), INDEX).await.unwrap();
    assert_eq!(published, digest(&index));
    let source = destination.source();
    for name in [destination.tag(), published.as_ref()] {
        let read = source.manifest(name).await.unwrap();
        assert_eq!(
            (read.digest, read.media_type.as_str(), read.bytes),
            (published.clone(), INDEX, index.clone())
        );
    }
    assert_eq!(source.manifest(digest(&manifest).as_ref()).await.unwrap().bytes, manifest);
    published
}

#[tokio::test]
async fn a_registry_keeps_the_promises() {
    let Some(registry) = Registry::start() else { return };
    let client = client();
    let destination = registry.destination(&client, "models/a");
    check(&destination).await;
    let first = write_image(&destination, "one").await;
    let second = write_image(&destination, "two").await;
    assert_ne!(first, second, "the tag moved");

    let from = Repository::new(&registry.host, "models/a").unwrap();
    let other = registry.destination(&client, "models/b");
    let blob = digest(&noise(1000, 1));
    assert!(!other.has_blob(&blob).await.unwrap());
    assert!(other.mount_blob(&blob, &from).await.unwrap());
    assert!(other.has_blob(&blob).await.unwrap());
    assert!(!other.mount_blob(&digest(b"nowhere"), &from).await.unwrap());
    let elsewhere = Repository::new("example.com", "models/a").unwrap();
    assert!(!other.mount_blob(&blob, &elsewhere).await.unwrap());
}

#[tokio::test]
async fn a_layout_keeps_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let at = |tag: &str| format!("oci:{}:{tag}", dir.path().join("image").display());
    let destination = Destination::parse(&at("v1"), &client()).unwrap();
    check(&destination).await;
    let one = write_image(&destination, "one").await;
    let two = write_image(&Destination::parse(&at("v2"), &client()).unwrap(), "two").await;
    let source = destination.source();
    assert_eq!(source.manifest("v1").await.unwrap().digest, one, "the other tag stays");
    let three = write_image(&destination, "three").await;
    assert_eq!(source.manifest("v1").await.unwrap().digest, three);
    assert_eq!(source.manifest("v2").await.unwrap().digest, two);
    let ingest = dir.path().join("image/.towline-ingest");
    let deadline = Instant::now() + Duration::from_secs(20);
    // A dropped writer cleans up in its own thread.
    while std::fs::read_dir(&ingest).unwrap().any(|entry| entry.unwrap().file_name() != "lock") {
        assert!(Instant::now() < deadline, "temporary files stay");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn a_damaged_layout_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("oci:{}:v1", dir.path().display());
    let destination = Destination::parse(&text, &client()).unwrap();
    let blob = Bytes::from_static(b"blob");
    destination.put_blob(&digest(&blob), blob.clone()).await.unwrap();
    let path = dir.path().join("blobs/sha256").join(digest(&blob).digest());
    std::fs::write(path, b"BLOB").unwrap();
    let result = destination.source().blob_verified(&digest(&blob), 9).await;
    assert!(matches!(result, Err(RegistryError::DigestMismatch { .. })), "{result:?}");
    write_image(&destination, "x").await;
    std::fs::write(dir.path().join("index.json"), b"{").unwrap();
    let result = destination.publish("{}".into(), INDEX).await;
    assert!(matches!(result, Err(RegistryError::Layout { .. })), "{result:?}");
    std::fs::write(dir.path().join("oci-layout"), br#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let result = destination.source().manifest("v1").await;
    assert!(matches!(result, Err(RegistryError::Layout { .. })), "{result:?}");

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("thesis.tex"), b"").unwrap();
    let destination = Destination::parse(&format!("oci:{}", foreign.path().display()), &client()).unwrap();
    assert!(
        destination.put_blob(&digest(&blob), blob).await.is_err(),
        "a directory of other things was written to"
    );
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn writers_of_one_layout_keep_each_others_tags() {
    // Many layouts, because the first moments of one are where writers meet.
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let layout = towline_registry::Layout::at(dir.path().join("image"));
        let publish = |n: u32| {
            let layout = layout.clone();
            async move { layout.publish(&format!("v{n}"), INDEX, format!("{{\"n\":{n}}}").into()).await.unwrap() }
        };
        let digests = futures_util::future::join_all((0..16).map(publish)).await;
        for (n, digest) in digests.iter().enumerate() {
            assert_eq!(layout.manifest(&format!("v{n}")).await.unwrap().digest, *digest);
        }
    }
}

fn skopeo(args: &[&str]) -> Option<Vec<u8>> {
    let Ok(output) = Command::new("skopeo").arg("--insecure-policy").args(args).output() else {
        println!("SKIPPED: skopeo is not installed");
        return None;
    };
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[tokio::test]
async fn other_tools_read_what_we_write_and_we_what_they_write() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| Path::join(dir.path(), name).display().to_string();
    let client = client();
    let ours = format!("oci:{}:v1", path("ours"));
    let index = write_image(&Destination::parse(&ours, &client).unwrap(), "layout").await;
    let Some(raw) = skopeo(&["inspect", "--raw", &ours]) else { return };
    assert_eq!(digest(&raw), index, "{}", String::from_utf8_lossy(&raw));
    let copied = format!("{}/copied:v1", registry.host);
    let docker = format!("docker://{copied}");
    // Without this skopeo compresses what it pushes, and every digest changes.
    let keep = "--preserve-digests";
    skopeo(&["copy", "--all", keep, "--dest-tls-verify=false", &ours, &docker]);
    let (source, name) = ImageSource::parse(&copied, &client).unwrap();
    assert_eq!(source.manifest(&name).await.unwrap().digest, index);

    let pushed = registry.destination(&client, "pushed");
    let index = write_image(&pushed, "registry").await;
    let docker = format!("docker://{pushed}");
    let inspected =
        skopeo(&["inspect", "--tls-verify=false", "--override-os=linux", "--override-arch=amd64", &docker]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.unwrap()).unwrap();
    assert_eq!(inspected["Labels"]["note"], "registry");
    let theirs = format!("oci:{}:v1", path("theirs"));
    skopeo(&["copy", "--all", keep, "--src-tls-verify=false", &docker, &theirs]);
    let (source, name) = ImageSource::parse(&theirs, &client).unwrap();
    assert_eq!(source.manifest(&name).await.unwrap().digest, index);
}

/// An authority, and a certificate by it for 127.0.0.1 with its key, in `dir`; `false` without the program.
fn certificates(dir: &Path) -> bool {
    let config = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=CA:TRUE\n\
        [leaf]\nbasicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n";
    std::fs::write(dir.join("openssl.cnf"), config).unwrap();
    let make = |extra: &[&str]| {
        let common =
            "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        let output = Command::new("openssl").current_dir(dir).args(common.split(' ')).args(extra).output();
        let Ok(output) = output else { return false };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        true
    };
    make(&["-extensions", "ca", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"])
        && make(&[
            "-extensions",
            "leaf",
            "-subj",
            "/CN=test server",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-keyout",
            "leaf.key",
            "-out",
            "leaf.pem",
        ])
}

#[tokio::test]
async fn certificates_are_checked_and_authorities_can_be_added() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        println!("SKIPPED: openssl is not installed");
        return;
    }
    let root = dir.path().to_owned();
    let file = |name: &str| root.join(name).display().to_string();
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", file("leaf.pem"), file("leaf.key"));
    let Some(registry) = Registry::start_with(dir, &tls) else { return };
    let never = || ClientOptions { plain_http: PlainHttp::Never, ..options() };

    let stranger = Client::new(never()).unwrap();
    let error = registry.destination(&stranger, "a").has_blob(&digest(b"x")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Transport { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("certificate"));

    let trusting = Client::new(ClientOptions { extra_roots: vec![root.join("ca.pem")], ..never() }).unwrap();
    write_image(&registry.destination(&trusting, "a"), "tls").await;

    let hosts = root.join("hosts").join("models.example.com");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = 'https://{}'\nca = '../../ca.pem'\n", registry.host);
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let by_file = Client::new(ClientOptions { hosts_dir: Some(root.join("hosts")), ..never() }).unwrap();
    let (source, name) = ImageSource::parse("models.example.com/a:v1", &by_file).unwrap();
    source.manifest(&name).await.unwrap();

    let missing = ClientOptions { extra_roots: vec![root.join("leaf.key")], ..never() };
    assert!(
        matches!(Client::new(missing), Err(RegistryError::Config { .. })),
        "a key was taken for an authority"
    );
}
