//! `towline convert` into a registry that writes down what it is asked, and may fail in the middle.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::Digest;

use crate::run::{PIECE, Place};

/// Limit of a body in bytes; above every layer here.
const MAX_BODY: usize = 64 << 20;

#[derive(Default)]
struct Registry {
    /// What was written, in order: `blob`, `child` (a manifest by digest) or `tag`.
    written: Vec<&'static str>,
    blobs: Vec<String>,
    /// Uploads in progress by number.
    uploads: Vec<Vec<u8>>,
    /// Streamed bodies that are still to be refused.
    faults: usize,
}

type Shared = Arc<Mutex<Registry>>;

async fn start(faults: usize) -> (String, Shared) {
    let registry = Arc::new(Mutex::new(Registry { faults, ..Registry::default() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = listener.local_addr().expect("an address").to_string();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&registry));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (host, registry)
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix("/v2/models/tiny/").unwrap_or_default().to_owned();
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&body)));
    let mut registry = shared.lock().expect("no handler panics");
    let reply = |status: StatusCode, headers: &[(&str, String)]| {
        let builder = headers
            .iter()
            .fold(Response::builder().status(status), |b, (name, value)| b.header(*name, value));
        builder.body(Body::empty()).expect("a response")
    };
    match (&parts.method, path.as_str()) {
        (&Method::HEAD, path) => {
            let known =
                path.strip_prefix("blobs/").is_some_and(|digest| registry.blobs.iter().any(|d| d == digest));
            if known {
                reply(StatusCode::OK, &[("content-length", "0".into())])
            } else {
                StatusCode::NOT_FOUND.into_response()
            }
        }
        (&Method::POST, "blobs/uploads/") => {
            registry.uploads.push(Vec::new());
            let location = format!("/v2/models/tiny/blobs/uploads/{}", registry.uploads.len() - 1);
            reply(StatusCode::ACCEPTED, &[("location", location)])
        }
        (&Method::PATCH, path) => {
            if registry.faults > 0 {
                registry.faults -= 1;
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            let n: usize = path.rsplit('/').next().and_then(|n| n.parse().ok()).expect("an upload");
            registry.uploads[n].extend(&body);
            let range = format!("0-{}", registry.uploads[n].len().saturating_sub(1));
            reply(StatusCode::ACCEPTED, &[("location", format!("/v2/models/tiny/{path}")), ("range", range)])
        }
        (&Method::PUT, path) if path.starts_with("blobs/uploads/") => {
            let n: usize = path.rsplit('/').next().and_then(|n| n.parse().ok()).expect("an upload");
            let all = [registry.uploads[n].as_slice(), &body].concat();
            let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&all)));
            let query = parts.uri.query().unwrap_or_default().replace("%3A", ":");
            assert!(query.contains(&digest), "{query} is not {digest}");
            registry.blobs.push(digest.clone());
            registry.written.push("blob");
            reply(StatusCode::CREATED, &[("docker-content-digest", digest)])
        }
        (&Method::PUT, path) => {
            let is_child = path == format!("manifests/{digest}");
            registry.written.push(if is_child { "child" } else { "tag" });
            reply(StatusCode::CREATED, &[("docker-content-digest", digest)])
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn the_tag_is_written_last() {
    let (host, registry) = start(0).await;
    let place = Place::new();
    place.write_model("model");
    let image = format!("{host}/models/tiny:v1");
    let report = place.run(&["convert", "--output", "json", "dir:model", &image]).await.json();
    assert_eq!(report["reference"], format!("{host}/models/tiny@{}", report["digest"].as_str().unwrap()));
    let written = registry.lock().unwrap().written.clone();
    // Two weight layers, the base layer, three configurations; three manifests; the index.
    assert_eq!(written, [&["blob"; 6][..], &["child"; 3], &["tag"]].concat());
}

#[tokio::test]
async fn a_layer_is_begun_again_after_a_passing_fault() {
    let (host, registry) = start(1).await;
    let place = Place::new();
    place.write("model/model.safetensors", &vec![7; PIECE + 1]);
    let image = format!("{host}/models/tiny:v1");
    let run = place.run(&["convert", "--output", "json", "dir:model", &image]).await;
    let report = run.json();
    assert!(run.stderr.contains("begins again"), "{}", run.stderr);
    assert_eq!(report["transferred"]["hub_bytes"], 2 * (PIECE + 1));
    assert_eq!(registry.lock().unwrap().written.last(), Some(&"tag"));
}

#[tokio::test]
async fn a_registry_that_keeps_failing_gets_no_tag() {
    let (host, registry) = start(usize::MAX).await;
    let place = Place::new();
    place.write("model/model.safetensors", &vec![7; PIECE + 1]);
    let run = place.run(&["convert", "dir:model", &format!("{host}/models/tiny:v1")]).await;
    run.fails(1, &["write layer 1 (model.safetensors): ", "503"]);
    assert!(registry.lock().unwrap().written.is_empty());
}
