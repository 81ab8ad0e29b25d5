//! Manifests, ranges, mirrors, and servers that do wrong.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use towline_registry::{Client, ClientOptions, Digest, MAX_MANIFEST_LEN, RegistryError};

use crate::server::{Reply, Server, client, impatient, options};

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

/// SHA-256 of `{}`.
const EMPTY_OBJECT: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

async fn read_range(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Result<Vec<u8>, RegistryError> {
    let server = Server::start(move |request| {
        assert_eq!(request.header("range"), "bytes=5-9");
        assert_eq!(request.header("accept-encoding"), "identity");
        reply()
    });
    let mut body = impatient().blob_range(&server.repository(), &digest(), 5..10).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn exactly_the_range_is_accepted() {
    for status in [206, 200] {
        for total in ["20", "*"] {
            let range = format!("bytes 5-9/{total}");
            let plain = range.clone();
            let bytes = read_range(move || Reply::new(status, &[("content-range", &plain)], b"56789")).await;
            assert_eq!(bytes.unwrap(), b"56789");
            let bytes =
                read_range(move || Reply::chunked(status, &[("content-range", &range)], b"56789")).await;
            assert_eq!(bytes.unwrap(), b"56789");
        }
    }
}

#[tokio::test]
async fn a_whole_blob_is_not_a_range() {
    let result = read_range(|| Reply::new(200, &[], &[7; 4096])).await;
    assert!(matches!(result, Err(RegistryError::RangeIgnored { .. })), "{result:?}");
    let result = read_range(|| Reply::new(200, &[], b"56789")).await;
    assert!(matches!(result, Err(RegistryError::RangeIgnored { .. })), "it does not begin at 0: {result:?}");
}

#[tokio::test]
async fn a_whole_blob_is_the_range_of_all_its_bytes() {
    let server = Server::start(|_| Reply::new(200, &[], b"01234"));
    let body = client().blob_range(&server.repository(), &digest(), 0..5).await.unwrap();
    assert_eq!(body.size(), 5);
    let result = client().blob_range(&server.repository(), &digest(), 0..4).await;
    assert!(matches!(result, Err(RegistryError::RangeIgnored { .. })));
}

#[tokio::test]
async fn another_range_is_refused() {
    for range in ["bytes 0-4/20", "bytes 5-8/20", "bytes 5-10/20", "bytes */20", "5-9/20", "bytes 5-9/7"] {
        let result = read_range(move || Reply::new(206, &[("content-range", range)], b"56789")).await;
        assert!(matches!(result, Err(RegistryError::WrongRange { .. })), "{range}: {result:?}");
    }
    let range = ("content-range", "bytes 5-9/20");
    let result = read_range(move || Reply::new(206, &[range], b"567890")).await;
    assert!(matches!(result, Err(RegistryError::WrongRange { .. })), "length differs: {result:?}");
    let result = read_range(|| Reply::new(206, &[], b"56789")).await;
    assert!(matches!(result, Err(RegistryError::Protocol { .. })), "{result:?}");
    let result = read_range(move || Reply::new(206, &[range, ("content-encoding", "gzip")], b"56789")).await;
    assert!(matches!(result, Err(RegistryError::Protocol { .. })), "{result:?}");
    let result = read_range(|| Reply::new(416, &[], b"")).await;
    assert!(matches!(result, Err(RegistryError::Refused { .. })), "{result:?}");
}

#[tokio::test]
async fn short_long_and_silent_bodies_fail() {
    let range = ("content-range", "bytes 5-9/20");
    let short = read_range(move || Reply::chunked(206, &[range], b"5678")).await;
    assert!(matches!(short, Err(RegistryError::Short { expected: 5, received: 4, .. })), "{short:?}");
    let cut =
        read_range(move || Reply::new(206, &[range, ("content-length", "5")], b"5678")).await.unwrap_err();
    assert!(cut.is_transient(), "{cut:?}");
    let long = read_range(move || Reply::chunked(206, &[range], b"567890")).await;
    assert!(matches!(long, Err(RegistryError::Long { expected: 5, .. })), "{long:?}");
    let silent =
        read_range(move || Reply::new(206, &[range, ("content-length", "5")], b"5678").then_hang()).await;
    assert!(matches!(silent, Err(RegistryError::Stalled { .. })), "{silent:?}");
    let mute = read_range(|| Reply::drop().then_hang()).await;
    assert!(matches!(mute, Err(RegistryError::Stalled { .. })), "{mute:?}");
}

#[tokio::test]
async fn an_empty_range_asks_nobody() {
    let server = Server::start(|_| Reply::drop());
    let mut body = client().blob_range(&server.repository(), &digest(), 7..7).await.unwrap();
    assert!(body.chunk().await.is_none());
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn manifests_are_checked() {
    let server = Server::start(|_| Reply::new(200, &[("docker-content-digest", EMPTY_OBJECT)], b"{}"));
    let manifest = client().manifest(&server.repository(), EMPTY_OBJECT).await.unwrap();
    assert_eq!(manifest.digest.to_string(), EMPTY_OBJECT);
    client().manifest(&server.repository(), "v1").await.unwrap();
    let other = client().manifest(&server.repository(), digest().as_ref()).await;
    assert!(matches!(other, Err(RegistryError::DigestMismatch { .. })), "{other:?}");

    let lying = Server::start(|_| Reply::new(200, &[("docker-content-digest", EMPTY_OBJECT)], b"{ }"));
    let lie = client().manifest(&lying.repository(), "v1").await;
    assert!(matches!(lie, Err(RegistryError::DigestMismatch { .. })), "{lie:?}");

    let blob = client().blob_verified(&server.repository(), &EMPTY_OBJECT.parse().unwrap(), 2).await;
    assert_eq!(blob.unwrap(), b"{}");
    let wrong = client().blob_verified(&server.repository(), &digest(), 2).await;
    assert!(matches!(wrong, Err(RegistryError::DigestMismatch { .. })), "{wrong:?}");
    let large = client().blob_verified(&server.repository(), &digest(), 1).await;
    assert!(matches!(large, Err(RegistryError::TooLarge { limit: 1, .. })), "{large:?}");
}

#[tokio::test]
async fn a_manifest_names_its_own_type() {
    let body = br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
    let server = Server::start(|_| Reply::new(200, &[("content-type", "text/plain")], body));
    let manifest = client().manifest(&server.repository(), "v1").await.unwrap();
    assert_eq!(manifest.media_type, "application/vnd.oci.image.index.v1+json");
}

#[tokio::test]
async fn an_oversized_manifest_is_not_read() {
    let body = vec![b' '; MAX_MANIFEST_LEN as usize + 1];
    for chunked in [true, false] {
        let body = body.clone();
        let server = Server::start(move |_| {
            if chunked { Reply::chunked(200, &[], &body) } else { Reply::new(200, &[], &body) }
        });
        let result = client().manifest(&server.repository(), "v1").await;
        assert!(matches!(result, Err(RegistryError::TooLarge { .. })), "{result:?}");
    }
}

/// Answers with the replies in order, then with the last one again and again.
fn in_order(replies: Vec<fn() -> Reply>) -> Server {
    let next = AtomicUsize::new(0);
    Server::start(move |_| replies[next.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1)]())
}

#[tokio::test]
async fn transient_faults_are_repeated_and_others_not() {
    let ok: fn() -> Reply = || Reply::new(200, &[], b"{}");
    for fault in [
        (|| Reply::new(503, &[], b"")) as fn() -> Reply,
        || Reply::new(429, &[("retry-after", "0")], b""),
        Reply::drop,
        || Reply::new(200, &[("content-length", "9")], b"{}"),
    ] {
        let server = in_order(vec![fault, fault, ok]);
        client().manifest(&server.repository(), "v1").await.unwrap();
        assert_eq!(server.requests().len(), 3);
        let server = in_order(vec![fault]);
        let error = client().manifest(&server.repository(), "v1").await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(server.requests().len(), 3);
    }
    let server = in_order(vec![|| Reply::new(404, &[], b"")]);
    assert!(client().manifest(&server.repository(), "v1").await.unwrap_err().is_not_found());
    assert_eq!(server.requests().len(), 1);
    assert_eq!(client().blob_len(&server.repository(), &digest()).await.unwrap(), None);
}

#[tokio::test]
async fn a_registry_that_wants_a_long_pause_ends_the_request() {
    let server = in_order(vec![|| Reply::new(429, &[("retry-after", "3600")], b"")]);
    let start = Instant::now();
    assert!(client().manifest(&server.repository(), "v1").await.unwrap_err().is_transient());
    assert_eq!(server.requests().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(60));
}

fn with_hosts(host: &str, text: &str) -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(host)).unwrap();
    std::fs::write(dir.path().join(host).join("hosts.toml"), text).unwrap();
    let hosts_dir = Some(dir.path().to_owned());
    (Client::new(ClientOptions { hosts_dir, ..options() }).unwrap(), dir)
}

#[tokio::test]
async fn mirrors_are_asked_first_and_passed_over() {
    let server = Server::start(|_| Reply::new(200, &[], b"{}"));
    let mirror = Server::start(|request| match request.target.contains("known") {
        true => Reply::new(200, &[], b"{ }"),
        false => Reply::new(404, &[], b""),
    });
    let text = format!(
        "server = 'http://{}'\n[host.'http://{}/sub']\ncapabilities = ['pull', 'resolve']\n",
        server.addr, mirror.addr
    );
    let (client, _dir) = with_hosts("registry.example.com", &text);
    let repository = "registry.example.com/a/b".parse().unwrap();
    assert_eq!(client.manifest(&repository, "known").await.unwrap().bytes, "{ }");
    assert_eq!(client.manifest(&repository, "other").await.unwrap().bytes, "{}");
    assert_eq!(mirror.requests()[0].target, "/sub/v2/a/b/manifests/known?ns=registry.example.com");
    assert_eq!(server.count("other"), 1);
    client.push_manifest(&repository, "known", "x/y", "{}".into()).await.unwrap();
    assert!(mirror.requests().iter().all(|r| r.method == "GET"), "a mirror that may not take pushes got one");
}

#[tokio::test]
async fn a_dead_mirror_rests() {
    let server = Server::start(|_| Reply::new(200, &[], b"{}"));
    let mirror = Server::start(|_| Reply::drop());
    let text = format!("server = 'http://{}'\n[host.'http://{}']\n", server.addr, mirror.addr);
    let (client, _dir) = with_hosts("registry.example.com", &text);
    let repository = "registry.example.com/a/b".parse().unwrap();
    for _ in 0..3 {
        client.manifest(&repository, "v1").await.unwrap();
    }
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn an_unverified_mirror_is_an_error() {
    let (client, _dir) = with_hosts("registry.example.com", "[host.'https://m']\nskip_verify = true\n");
    let error = client.manifest(&"registry.example.com/a".parse().unwrap(), "v1").await.unwrap_err();
    assert!(error.to_string().contains("skip_verify"), "{error}");
}
