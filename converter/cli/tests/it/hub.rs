//! A Hugging Face of one repository, `acme/tiny`, whose files can be served other than listed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::run::PIECE;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a file is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Served {
    #[default]
    AsListed,
    /// One bit of the last byte is wrong.
    Flipped,
    /// One byte more than listed.
    Longer,
    /// A megabyte, and then silence.
    Stalled,
}

/// What the hub has.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) lies: BTreeMap<String, Served>,
}

/// A hub on loopback, until the test's runtime ends.
pub(crate) struct Hub {
    pub(crate) url: String,
    served: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Shared {
    repository: Arc<Repository>,
    served: Arc<AtomicU64>,
}

impl Hub {
    pub(crate) async fn start(repository: Repository) -> Self {
        let served = Arc::new(AtomicU64::new(0));
        let shared = Shared { repository: Arc::new(repository), served: Arc::clone(&served) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, served }
    }

    /// Bytes of files sent so far.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

async fn answer(State(shared): State<Shared>, uri: Uri) -> Response {
    let path = uri.path();
    let repository = &shared.repository;
    if ["main", COMMIT].iter().any(|revision| path == format!("/api/models/acme/tiny/revision/{revision}")) {
        let card = json!({"license": "apache-2.0"});
        return Json(json!({"id": "acme/tiny", "sha": COMMIT, "cardData": card})).into_response();
    }
    if path == format!("/api/models/acme/tiny/commits/{COMMIT}") {
        return Json(json!([{"id": COMMIT, "date": "2024-09-25T12:32:50.000Z"}])).into_response();
    }
    if path == format!("/api/models/acme/tiny/tree/{COMMIT}") {
        return Json(repository.files.iter().map(row).collect::<Vec<_>>()).into_response();
    }
    let file = path.strip_prefix(&format!("/acme/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = file.and_then(|name| repository.files.get_key_value(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    serve(bytes.clone(), repository.lies.get(name).copied().unwrap_or_default(), shared.served.clone())
}

fn row((path, bytes): (&String, &Vec<u8>)) -> Value {
    use sha2::Digest as _;
    let git = {
        use sha1::Digest as _;
        let mut hasher = sha1::Sha1::new();
        hasher.update(format!("blob {}\0", bytes.len()));
        hasher.update(bytes);
        hex::encode(hasher.finalize())
    };
    let mut row = json!({"type": "file", "path": path, "size": bytes.len(), "oid": git});
    if bytes.len() >= PIECE {
        row["lfs"] =
            json!({"oid": hex::encode(sha2::Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 130});
    }
    row
}

fn serve(mut bytes: Vec<u8>, how: Served, served: Arc<AtomicU64>) -> Response {
    match how {
        Served::AsListed | Served::Stalled => {}
        Served::Flipped => *bytes.last_mut().expect("a file with bytes") ^= 1,
        Served::Longer => bytes.push(0),
    }
    let len = bytes.len();
    let portions: Vec<Bytes> = bytes.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
    let keep = if how == Served::Stalled { 1 } else { portions.len() };
    let sent = stream::iter(portions).take(keep).inspect(move |bytes| {
        served.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    });
    let body = if how == Served::Stalled { sent.chain(stream::pending()).boxed() } else { sent.boxed() };
    let body = Body::from_stream(body.map(Ok::<_, std::convert::Infallible>));
    Response::builder().header("content-length", len).body(body).expect("a response")
}
