//! Answers of an origin.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::super::network::ORIGIN;
use super::count::{Counter, Flight};
use super::image::{Blob, Image};
use super::{Faults, PORT, Refusal, USER};

/// Bytes handed to the kernel at a time: few steps per byte, and a count that is at most this far ahead.
const CHUNK_LEN: usize = 128 << 10;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) image: Image,
    pub(super) faults: Mutex<Faults>,
    pub(super) counter: Arc<Counter>,
    /// What every token request is answered with: new at each start, so that a search for it finds this run's.
    token: String,
}

impl Shared {
    pub(super) fn new(image: Image) -> Self {
        let token = format!("token-{:032x}", rand::random::<u128>());
        Self { image, faults: Mutex::default(), counter: Arc::default(), token }
    }

    /// The bearer token that nodes get.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    fn faults(&self) -> Faults {
        self.faults.lock().expect("no holder of this lock can panic").clone()
    }

    /// The answer to who may not pull, or nothing.
    fn challenge(&self, faults: &Faults, headers: &HeaderMap) -> Option<Response<Body>> {
        faults.password.as_ref()?;
        let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if sent == Some(&format!("Bearer {}", self.token)) {
            return None;
        }
        let realm = format!("Bearer realm=\"http://{ORIGIN}:{PORT}/token\",service=\"testbed\"");
        let mut answer = status(StatusCode::UNAUTHORIZED);
        answer.headers_mut().insert(WWW_AUTHENTICATE, realm.parse().ok()?);
        Some(answer)
    }
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    // axum's patterns cannot have a catch-all in the middle, as repositories would need.
    Router::new().route("/token", get(token)).route("/v2/{*rest}", get(answer)).with_state(shared)
}

#[derive(Deserialize)]
struct TokenQuery {
    service: Option<String>,
}

async fn token(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<TokenQuery>,
    headers: HeaderMap,
) -> Result<Json<serde_json::Value>, StatusCode> {
    let faults = shared.faults();
    let expected = BASE64_STANDARD.encode(format!("{USER}:{}", faults.password.unwrap_or_default()));
    let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if sent != Some(&format!("Basic {expected}")) || query.service.as_deref() != Some("testbed") {
        return Err(StatusCode::UNAUTHORIZED);
    }
    Ok(Json(json!({ "token": shared.token, "expires_in": 3600 })))
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let faults = shared.faults();
    if let Some(refused) = shared.challenge(&faults, &headers) {
        return refused;
    }
    if let Some((_, name)) = rest.split_once("/manifests/") {
        let Some((digest, blob)) = shared.image.manifest(name) else { return status(StatusCode::NOT_FOUND) };
        let mut answer = Response::new(Body::from(blob.bytes.clone()));
        let media_type = blob.media_type.as_deref().unwrap_or("application/octet-stream");
        for (key, value) in [("content-type", media_type), ("docker-content-digest", digest)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(key, value);
            }
        }
        return answer;
    }
    let blob = rest.split_once("/blobs/").and_then(|(_, digest)| shared.image.blob(digest));
    let Some(blob) = blob else { return status(StatusCode::NOT_FOUND) };
    if !blob.is_weights {
        return content(blob, range_of(&headers, blob.bytes.len()), None, None);
    }
    let (number, in_flight, flight) = shared.counter.begin(from.ip());
    if !faults.delay.is_zero() {
        tokio::time::sleep(faults.delay).await;
    }
    if let Some(refusal) = faults.refuse.as_ref().filter(|refusal| refusal.meets(from, in_flight)) {
        flight.faulty();
        return refusal.answer();
    }
    // Numbers count from 0, and the first request is answered as it should be.
    let turn = |every: Option<u64>| every.is_some_and(|every| number % every == every - 1);
    let mut range = range_of(&headers, blob.bytes.len());
    let spoilt = match () {
        () if turn(faults.flip_every) => Some(Spoilt::Flip),
        () if turn(faults.cut_every) => Some(Spoilt::Cut),
        () if turn(faults.whole_every) => {
            range = None;
            Some(Spoilt::Whole)
        }
        () => None,
    };
    if spoilt.is_some() {
        flight.faulty();
    }
    content(blob, range, spoilt, Some(flight))
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoilt {
    Flip,
    Cut,
    Whole,
}

impl Refusal {
    fn meets(&self, from: SocketAddr, in_flight: usize) -> bool {
        in_flight > self.above && (self.from.is_empty() || self.from.contains(&from.ip()))
    }

    fn answer(&self) -> Response<Body> {
        let mut answer =
            status(StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        if let Some(seconds) = self.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer
    }
}

/// A blob or a range of it.
fn content(
    blob: &Blob,
    range: Option<Range<usize>>,
    spoilt: Option<Spoilt>,
    flight: Option<Flight>,
) -> Response<Body> {
    let len = blob.bytes.len();
    let asked = range.clone().unwrap_or(0..len);
    let mut answer = Response::new(body(blob.bytes.slice(asked.clone()), spoilt, flight));
    let head = answer.headers_mut();
    head.insert(CONTENT_LENGTH, asked.len().into());
    head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let (Some(range), Ok(said)) = (range, format!("bytes {}-{}/{len}", asked.start, asked.end - 1).parse())
    {
        debug_assert!(!range.is_empty(), "range_of gives no empty range");
        head.insert(CONTENT_RANGE, said);
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    answer
}

/// The bytes in chunks, each counted when it goes, with what is wrong with them.
fn body(bytes: Bytes, spoilt: Option<Spoilt>, flight: Option<Flight>) -> Body {
    let middle = bytes.len() / 2;
    let chunks = stream::unfold((0_usize, flight), move |(at, flight)| {
        let bytes = bytes.clone();
        async move {
            if at >= bytes.len() {
                return None;
            }
            if spoilt == Some(Spoilt::Cut) && at >= middle {
                return Some((Err(io::Error::other("cut")), (bytes.len(), flight)));
            }
            let end = (at + CHUNK_LEN).min(bytes.len());
            let mut chunk = bytes.slice(at..end);
            if spoilt == Some(Spoilt::Flip) && (at..end).contains(&middle) {
                let mut turned = chunk.to_vec();
                turned[middle - at] ^= 1;
                chunk = turned.into();
            }
            if let Some(flight) = &flight {
                flight.sent(chunk.len());
            }
            Some((Ok(chunk), (end, flight)))
        }
    });
    Body::from_stream(chunks)
}

/// The one range that is asked for, if it lies in the blob; anything else is answered with the whole blob, as the
/// specification allows.
fn range_of(headers: &HeaderMap, len: usize) -> Option<Range<usize>> {
    let (first, last) = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let end = match last {
        "" => len,
        last => last.parse::<usize>().ok()?.checked_add(1)?.min(len),
    };
    (first < end).then_some(first..end)
}

fn status(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use axum::http::header::RANGE;
    use axum::http::{HeaderMap, HeaderValue};

    use super::range_of;

    #[track_caller]
    fn check(text: &'static str, expected: Option<std::ops::Range<usize>>) {
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(text))]);
        assert_eq!(range_of(&headers, 10), expected, "{text}");
    }

    #[test]
    fn one_range_inside_the_blob_counts() {
        check("bytes=0-0", Some(0..1));
        check("bytes=3-", Some(3..10));
        check("bytes=3-99", Some(3..10));
        check("bytes=10-11", None);
        check("bytes=4-3", None);
        check("bytes=-3", None);
        check("bytes=0-1,3-4", None);
        assert_eq!(range_of(&HeaderMap::new(), 10), None);
    }
}
