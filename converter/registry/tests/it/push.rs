//! Uploads to registries that refuse, and that lose answers.

use bytes::Bytes;
use towline_registry::{Digest, RegistryError};

use crate::server::{Reply, Server, client, impatient};

/// SHA-256 of `{}`.
const EMPTY_OBJECT: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn empty_object() -> Digest {
    EMPTY_OBJECT.parse().unwrap()
}

#[tokio::test]
async fn an_early_refusal_is_told_and_nothing_is_sent_again() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::new(202, &[("location", "/up?state=1")], b""),
        _ => Reply::new(413, &[], br#"{"errors":[{"code":"SIZE_INVALID","message":"too big"}]}"#),
    });
    let len = 64 << 20;
    let mut upload = client().start_upload(&server.repository(), Some(len)).await.unwrap();
    let mut result = Ok(());
    for _ in 0..64 {
        result = upload.write(Bytes::from(vec![0; 1 << 20])).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        result = upload.commit(&empty_object()).await;
    }
    let error = result.unwrap_err();
    let told = matches!(&error, RegistryError::Refused { status, .. } if status.as_u16() == 413);
    // A registry that closes at once may reset the connection before its answer is read.
    assert!(told || matches!(error, RegistryError::Transport { .. }), "{error:?}");
    assert_eq!(server.requests().iter().filter(|r| r.method == "PATCH").count(), 1);
}

#[tokio::test]
async fn a_registry_that_takes_nothing_stalls_the_writer_not_forever() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::new(202, &[("location", "/up")], b""),
        // A request larger than the sockets' buffers; its body is never read.
        _ => loop {
            std::thread::park();
        },
    });
    let mut upload = impatient().start_upload(&server.repository(), Some(1 << 30)).await.unwrap();
    let error = loop {
        if let Err(error) = upload.write(Bytes::from(vec![0; 4 << 20])).await {
            break error;
        }
    };
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error:?}");
}

#[tokio::test]
async fn lengths_are_held_to() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::new(202, &[("location", "/up")], b""),
        _ => Reply::new(202, &[], b""),
    });
    let mut upload = client().start_upload(&server.repository(), Some(3)).await.unwrap();
    let error = upload.write("1234".into()).await.unwrap_err();
    assert!(matches!(error, RegistryError::UploadLen { written: 4, announced: 3, .. }), "{error:?}");
    let mut upload = client().start_upload(&server.repository(), Some(3)).await.unwrap();
    upload.write("12".into()).await.unwrap();
    let error = upload.commit(&empty_object()).await.unwrap_err();
    assert!(matches!(error, RegistryError::UploadLen { written: 2, announced: 3, .. }), "{error:?}");
    assert!(server.requests().iter().all(|r| r.method != "PUT"));
}

#[tokio::test]
async fn a_lost_answer_to_the_last_request_is_recovered() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Reply::new(202, &[("location", "/up")], b""),
        "PATCH" => Reply::new(202, &[("location", "/up?state=2")], b""),
        "HEAD" => Reply::new(200, &[("content-length", "2")], b""),
        _ => Reply::new(404, &[], b""),
    });
    let mut upload = client().start_upload(&server.repository(), Some(2)).await.unwrap();
    upload.write("{}".into()).await.unwrap();
    upload.commit(&empty_object()).await.unwrap();
    let requests = server.requests();
    let put = requests.iter().find(|r| r.method == "PUT").unwrap();
    assert_eq!(put.target, format!("/up?state=2&digest={}", EMPTY_OBJECT.replace(':', "%3A")));
    let patch = requests.iter().find(|r| r.method == "PATCH").unwrap();
    assert_eq!((patch.header("content-length"), patch.body.as_slice()), ("2", b"{}".as_slice()));
}

#[tokio::test]
async fn wrong_digests_are_caught_on_both_sides() {
    let server = Server::start(|_| Reply::new(201, &[("docker-content-digest", EMPTY_OBJECT)], b""));
    let repository = server.repository();
    let result = client().push_manifest(&repository, EMPTY_OBJECT, "x/y", "{ }".into()).await;
    assert!(matches!(result, Err(RegistryError::DigestMismatch { .. })), "{result:?}");
    let result = client().push_blob(&repository, &empty_object(), "{ }".into()).await;
    assert!(matches!(result, Err(RegistryError::DigestMismatch { .. })), "{result:?}");
    assert!(server.requests().is_empty());
    let result = client().push_manifest(&repository, "v1", "x/y", "{ }".into()).await;
    assert!(
        matches!(result, Err(RegistryError::DigestMismatch { .. })),
        "the registry took other bytes: {result:?}"
    );
}
