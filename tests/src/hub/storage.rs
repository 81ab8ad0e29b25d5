//! Bodies of files: from the hub itself, and from the storage on an origin of its own.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{Call, State, text, with_headers, with_status};

/// Bytes read from disk at once.
const CHUNK_LEN: usize = 1 << 20;

/// The address of a content in the storage, signed as a real one is.
pub(super) fn address(state: &State, sha256: &str, path: &str) -> String {
    let name: String = path.bytes().map(|b| format!("%{b:02X}")).collect();
    format!("{}/lfs/{sha256}?File={name}&Signature={}", state.storage_url, signature(sha256))
}

fn signature(sha256: &str) -> String {
    hex::encode(Sha256::digest(format!("stand-in storage {sha256}")))
}

/// Serves the storage's origin.
pub(super) async fn answer(state: Arc<State>, call: Call) -> Response {
    state.log.note(&call.path, None);
    let cookie = state.refuses_cookies && call.header("cookie").is_some();
    if call.header("authorization").is_some() || cookie {
        state.log.note_leak();
        return text(StatusCode::BAD_REQUEST, "credentials have no place here");
    }
    let [kind, sha256] = call.segments.as_slice() else { return text(StatusCode::NOT_FOUND, "") };
    if kind != "lfs" || call.param("Signature") != signature(sha256) {
        return text(StatusCode::FORBIDDEN, "the address is not signed");
    }
    let Some(place) = state.hashes.place(sha256) else { return text(StatusCode::NOT_FOUND, "") };
    let served = body(&state, &call, &place, call.param("File"), true).await;
    let response = served.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()));
    with_headers(response, [("x-linked-etag", format!("\"{sha256}\"").as_str())])
}

/// The file at `place`, known as `path`, or the asked part of it if `ranges` are honoured.
pub(super) async fn body(
    state: &Arc<State>,
    call: &Call,
    place: &Path,
    path: &str,
    ranges: bool,
) -> Result<Response> {
    let mut file = tokio::fs::File::open(place).await?;
    let len = file.metadata().await?.len();
    let asked = if ranges { call.header("range") } else { None };
    let range = match asked.map(|text| parse_range(text, len)) {
        None => 0..len,
        Some(Some(range)) => range,
        Some(None) => {
            let unsatisfied = format!("bytes */{len}");
            return Ok(with_headers(
                text(StatusCode::RANGE_NOT_SATISFIABLE, ""),
                [("content-range", unsatisfied.as_str())],
            ));
        }
    };
    let total = (range.end - range.start).to_string();
    let mut response = Response::new(Body::empty());
    if call.method != Method::HEAD {
        file.seek(SeekFrom::Start(range.start)).await?;
        let reader = ReaderStream::with_capacity(file.take(range.end - range.start), CHUNK_LEN);
        response = Response::new(spoiled(state, path, range.start, reader));
    }
    if ranges {
        response = with_headers(response, [("accept-ranges", "bytes")]);
    }
    if asked.is_some() {
        let exact = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        let status = if state.faults().parts_as_200 { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        response = with_status(with_headers(response, [("content-range", exact.as_str())]), status);
    }
    Ok(with_headers(response, [("content-length", total.as_str())]))
}

/// The bytes, counted, and with the faults that are due for the file at `path`.
fn spoiled(
    state: &Arc<State>,
    path: &str,
    start: u64,
    bytes: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Body {
    let (flip, cut) = {
        let mut faults = state.faults();
        (faults.flip.get(path).copied(), faults.cut_once.remove(path))
    };
    let (state, path) = (state.clone(), path.to_owned());
    let bytes = stream::unfold((Box::pin(bytes), start, cut), move |(mut bytes, at, left)| {
        let (state, path) = (state.clone(), path.clone());
        async move {
            let fault = || std::io::Error::other("cut off on purpose");
            if left == Some(0) {
                return Some((Err(fault()), (bytes, at, None)));
            }
            let chunk: Bytes = match bytes.next().await? {
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(error), (bytes, at, left))),
            };
            let len =
                left.map_or(chunk.len(), |left| chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let mut chunk = chunk.slice(..len);
            if let Some(offset) = flip.filter(|offset| (at..at + len as u64).contains(offset)) {
                let mut spoiled = BytesMut::from(chunk.as_ref());
                spoiled[usize::try_from(offset - at).expect("within a chunk")] ^= 0xff;
                chunk = spoiled.freeze();
            }
            state.log.note_bytes(&path, len as u64);
            Some((Ok(chunk), (bytes, at + len as u64, left.map(|left| left - len as u64))))
        }
    });
    Body::from_stream(bytes)
}

/// The one range of `bytes=FIRST-[LAST]` or `bytes=-SUFFIX`, half-open; `None` if it cannot be satisfied.
fn parse_range(text: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => len.saturating_sub(suffix.parse().ok()?)..len,
        (first, "") => first.parse().ok()?..len,
        (first, last) => first.parse().ok()?..len.min(last.parse::<u64>().ok()?.saturating_add(1)),
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        for (text, expected) in [
            ("bytes=0-", Some(0..10)),
            ("bytes=3-5", Some(3..6)),
            ("bytes=3-99", Some(3..10)),
            ("bytes=-4", Some(6..10)),
            ("bytes=-99", Some(0..10)),
            ("bytes=10-", None),
            ("bytes=5-3", None),
            ("bytes=-0", None),
            ("bytes=a-b", None),
            ("items=0-1", None),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
    }
}
