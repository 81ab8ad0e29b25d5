//! What an answer says, before its body is read.

use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use reqwest::Response;

use crate::challenge::Challenge;
use crate::content_range::ContentRange;
use crate::error::{Place, Reason, RegistryError, clean};

/// The most bytes of an error answer that we read.
const MAX_ERROR_BODY_LEN: usize = 16 << 10;

/// How long we wait for the body of an error answer: it only makes the message better.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How an answer of 401 or 403 wants to be asked.
pub(crate) fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    Challenge::choose(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

/// Whether a successful answer is exactly the range: 206 or 200 with exactly its `Content-Range`.
///
/// A 200 without one is the whole blob; that is right only when the range is the whole blob.
pub(crate) fn check_range(
    response: &Response,
    asked: &Range<u64>,
    place: &Place,
) -> Result<(), RegistryError> {
    let place = || Box::new(place.clone());
    if response.headers().contains_key(CONTENT_ENCODING) {
        return Err(RegistryError::Protocol { place: place(), what: "the range is encoded" });
    }
    let len = asked.end - asked.start;
    let content_len = content_len(response);
    let Some(header) = response.headers().get(CONTENT_RANGE) else {
        if response.status() == StatusCode::OK && asked.start == 0 && content_len == Some(len) {
            return Ok(());
        }
        return Err(match response.status() {
            StatusCode::OK => RegistryError::RangeIgnored { place: place() },
            _ => RegistryError::Protocol { place: place(), what: "partial content without Content-Range" },
        });
    };
    let text = String::from_utf8_lossy(header.as_bytes());
    let right = ContentRange::parse(&text).is_some_and(|answered| answered.range == *asked);
    if !right || content_len.is_some_and(|content_len| content_len != len) {
        return Err(RegistryError::WrongRange {
            place: place(),
            asked: asked.clone(),
            answered: clean(&text),
        });
    }
    Ok(())
}

/// `Content-Length` as sent, also of an answer to HEAD.
pub(crate) fn content_len(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The registry's own words for an error, as far as they come quickly.
pub(crate) async fn read_reason(response: Response) -> Reason {
    let read = async {
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR_BODY_LEN {
                break;
            }
        }
        Reason::parse(&body)
    };
    tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await.unwrap_or_default()
}
