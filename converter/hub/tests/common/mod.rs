//! A scripted hub on the loopback: a test says how each request is answered and reads back what was asked.

#![allow(dead_code, reason = "every test binary uses another part")]
#![allow(unreachable_pub, reason = "a module of test binaries has no public face")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use towline_hub::{ByteStream, HashCheck, HubError, HubSettings, Listing, RemoteFile, Source};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub path: String,
    pub query: String,
    pub range: Option<(u64, Option<u64>)>,
    pub bearer: Option<String>,
    pub cookie: Option<String>,
    /// How often this path and query were asked before.
    pub before: usize,
}

impl Seen {
    /// A query parameter, decoded as far as these tests need it.
    pub fn param(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.into_iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.replace("%2F", "/").replace('+', " "))
    }
}

/// A server that runs until it is dropped.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let log = seen.clone();
        let router = Router::new().fallback(move |request: Request| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                let seen = note(&request, &log);
                answer(&seen)
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        Self { url, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("log").clone()
    }

    /// Requests whose path starts so.
    pub fn seen_at(&self, prefix: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.starts_with(prefix)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(request: &Request, log: &Mutex<Vec<Seen>>) -> Seen {
    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().expect("header").to_owned());
    let range = header("range").map(|text| {
        let (first, last) = text.strip_prefix("bytes=").expect("bytes").split_once('-').expect("range");
        (first.parse().expect("first"), last.parse().ok())
    });
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
    let mut log = log.lock().expect("log");
    let before = log.iter().filter(|seen| seen.path == path && seen.query == query).count();
    let (bearer, cookie) = (header("authorization"), header("cookie"));
    let seen = Seen { path, query, range, bearer, cookie, before };
    log.push(seen.clone());
    seen
}

pub fn json(text: impl Into<String>) -> Response {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(text.into()))
        .expect("response")
}

pub fn status(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::from(body.to_owned())).expect("response")
}

pub fn not_found() -> Response {
    status(404, &[], "not found")
}

/// The asked part of `data` as an honest server sends it.
pub fn part(seen: &Seen, data: &[u8]) -> Response {
    let Some((first, last)) = seen.range else {
        return Response::new(Body::from(data.to_vec()));
    };
    let end = last.map_or(data.len(), |last| data.len().min(last as usize + 1));
    let range = format!("bytes {first}-{}/{}", end - 1, data.len());
    let body = Body::from(data[first as usize..end].to_vec());
    Response::builder().status(206).header("content-range", range).body(body).expect("response")
}

/// As [`part`], but the connection breaks after `len` bytes of the body.
pub fn cut_part(seen: &Seen, data: &[u8], len: usize) -> Response {
    let whole = match seen.range {
        Some((first, _)) => &data[first as usize..],
        None => data,
    };
    let kept =
        stream::iter([Ok::<Bytes, std::io::Error>(Bytes::copy_from_slice(&whole[..len.min(whole.len())]))]);
    let fault = stream::once(async { Err(std::io::Error::other("cut")) });
    let (mut parts, _) = part(seen, data).into_parts();
    parts.headers.insert("content-length", whole.len().into());
    Response::from_parts(parts, Body::from_stream(kept.chain(fault)))
}

pub fn sha256(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

pub fn git_sha1(data: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", data.len()));
    hasher.update(data);
    hex::encode(hasher.finalize())
}

/// Bytes without a short period.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
}

/// A source at `hub` with the token `secret-token` for both hubs, or none.
pub fn source(text: &str, hub: &str, token: bool) -> Source {
    let settings = HubSettings::from_env(|name| match name {
        "HF_ENDPOINT" | "MODELSCOPE_ENDPOINT" => Some(hub.to_owned()),
        "HF_TOKEN" | "MODELSCOPE_API_TOKEN" if token => Some("secret-token".to_owned()),
        _ => None,
    });
    Source::connect(&text.parse().expect(text), &settings.expect("settings")).expect("client")
}

pub async fn collect(mut stream: ByteStream) -> Result<Vec<u8>, HubError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// Reads and verifies a whole file.
pub async fn download(source: &Source, listing: &Listing, file: &RemoteFile) -> Result<Vec<u8>, HubError> {
    let bytes = collect(source.open(listing, file, 0).await?).await?;
    let mut check = HashCheck::new(file);
    check.update(&bytes);
    let found = check.finish()?;
    assert_eq!(hex::encode(found), sha256(&bytes));
    Ok(bytes)
}
