//! Redirects of blob reads: who sees our authorization, and how often the registry is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use towline_registry::{Digest, RegistryError};

use crate::server::{Reply, Request, Server, USER_HEADER, client, client_with, user};

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

fn range_reply(request: &Request) -> Reply {
    assert_eq!(request.header("range"), "bytes=0-4");
    Reply::new(206, &[("content-range", "bytes 0-4/9")], b"01234")
}

/// A registry that wants `user()` and redirects blobs to `target`.
fn registry(target: String) -> Server {
    Server::start(move |request| match request.header("authorization") {
        USER_HEADER => Reply::new(307, &[("location", &target)], b""),
        _ => Reply::new(401, &[("www-authenticate", "Basic realm=x")], b""),
    })
}

#[tokio::test]
async fn credentials_stay_with_the_registry_and_targets_are_reused() {
    let refuse = Arc::new(AtomicBool::new(false));
    let expired = refuse.clone();
    let cdn = Server::start(move |request| {
        assert!(request.header("authorization").is_empty(), "{request:?}");
        match expired.swap(false, Ordering::SeqCst) {
            true => Reply::new(403, &[], b""),
            false => range_reply(request),
        }
    });
    let server = registry(format!("http://{}/signed?x=secret", cdn.addr));
    let client = client_with(&server.host(), user());
    let (repository, digest) = (server.repository(), digest());
    let read = || client.blob_range(&repository, &digest, 0..5);
    for _ in 0..3 {
        read().await.unwrap();
    }
    assert_eq!(
        (server.requests().len(), cdn.requests().len()),
        (2, 3),
        "401 and redirect once, then straight on"
    );
    refuse.store(true, Ordering::SeqCst);
    read().await.unwrap();
    assert_eq!(
        (server.requests().len(), cdn.requests().len()),
        (3, 5),
        "the expired target was asked for anew"
    );
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_credentials() {
    let server = Server::start(|request| match (request.header("authorization"), request.target.as_str()) {
        (USER_HEADER, "/data") => range_reply(request),
        (USER_HEADER, _) => Reply::new(302, &[("location", "/data")], b""),
        _ => Reply::new(401, &[("www-authenticate", "Basic realm=x")], b""),
    });
    let client = client_with(&server.host(), user());
    client.blob_range(&server.repository(), &digest(), 0..5).await.unwrap();
}

#[tokio::test]
async fn loops_and_other_schemes_end() {
    let rounds = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let n = rounds.fetch_add(1, Ordering::SeqCst);
        Reply::new(307, &[("location", &format!("/again/{n}"))], b"")
    });
    let result = client().blob(&server.repository(), &digest()).await;
    assert!(matches!(result, Err(RegistryError::Redirect { .. })), "{result:?}");
    assert_eq!(server.requests().len(), 6);
    for target in ["file:///etc/passwd", "ftp://x/y", "http://me:pw@127.0.0.1/", "http://"] {
        let server = Server::start(move |_| Reply::new(307, &[("location", target)], b""));
        let result = client().blob(&server.repository(), &digest()).await;
        assert!(matches!(result, Err(RegistryError::Redirect { .. })), "{target}: {result:?}");
    }
    let server = Server::start(|_| Reply::new(307, &[("location", "/elsewhere")], b""));
    let result = client().push_manifest(&server.repository(), "v1", "x/y", "{}".into()).await;
    assert!(matches!(result, Err(RegistryError::Redirect { .. })), "a write was repeated: {result:?}");
}

#[tokio::test]
async fn an_error_of_a_target_shows_no_signature() {
    let cdn = Server::start(|_| Reply::new(500, &[], b""));
    let target = format!("http://{}/x?signature=hunter2", cdn.addr);
    let server = Server::start(move |_| Reply::new(307, &[("location", &target)], b""));
    let error = client().blob(&server.repository(), &digest()).await.unwrap_err();
    assert!(error.to_string().contains(&cdn.host()), "{error}");
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
}
