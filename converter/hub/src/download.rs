//! One file as a stream that mends itself: after a fault it asks for the rest, from the byte it has reached.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header;
use reqwest::Url;

use crate::error::HubError;
use crate::http::{Answer, Ask, Body, Http, Reply};
use crate::range::{self, Unusable, judge};
use crate::retry::Backoff;
use crate::source::ByteStream;

/// Bytes after which earlier faults are forgiven: enough that a file of any size needs a bounded number of requests.
const PROGRESS: u64 = 8 << 20;

/// Hugging Face refuses to send more than this many bytes for one request without a range (the constant
/// `MAX_HTTP_DOWNLOAD_SIZE` of its client).
const MAX_WHOLE_LEN: u64 = 50_000_000_000;

/// Length in bytes of the ranges that longer files are read in.
const SPAN: u64 = 16 << 30;

/// Turns an error answer to a request for a file into an error.
pub(crate) type Refuse = Arc<dyn Fn(&Reply) -> HubError + Send + Sync>;

/// What to read.
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) path: String,
    /// Length in bytes of the whole file.
    pub(crate) size: u64,
    pub(crate) pinned: Option<(String, String)>,
    pub(crate) refuse: Refuse,
}

struct Download {
    http: Http,
    target: Target,
    /// First byte not yet handed on.
    at: u64,
    open: Option<Part>,
    /// Attempts left until there is progress.
    backoff: Backoff,
    /// Where `at` must get for earlier faults to be forgiven.
    forgiven_at: u64,
}

/// A body being read.
struct Part {
    body: Body,
    /// Bytes to drop first: the answer began at the file's start although more was asked for.
    skip: u64,
    /// End of the part within the file.
    end: u64,
}

/// Streams the bytes `[from, size)` of the target; `from` beyond the end gives nothing.
///
/// The first request is made before this returns, so that a refusal shows at once.
pub(crate) async fn open(http: Http, target: Target, from: u64) -> Result<ByteStream, HubError> {
    let open = if from < target.size { Some(request(&http, &target, from).await?) } else { None };
    let download =
        Download { http, target, at: from, open, backoff: Backoff::new(), forgiven_at: from + PROGRESS };
    Ok(Box::pin(stream::try_unfold(download, |mut download| async move {
        Ok(download.next().await?.map(|bytes| (bytes, download)))
    })))
}

/// The part to ask for next: all that is left, but at most [`SPAN`] of a file no hub sends whole.
fn next_range(at: u64, size: u64) -> Range<u64> {
    if size > MAX_WHOLE_LEN { at..size.min(at.saturating_add(SPAN)) } else { at..size }
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, HubError> {
        while self.at < self.target.size {
            let mut part = match self.open.take() {
                Some(part) => part,
                // `Http` repeats requests by itself: what fails here has failed for good.
                None => request(&self.http, &self.target, self.at).await?,
            };
            match self.read(&mut part).await {
                Ok(bytes) => {
                    if self.at < part.end {
                        self.open = Some(part);
                    }
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                Err(fault) if fault.is_transient() => self.pause(fault).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The next bytes of `part`; empty when all that arrived was to be dropped.
    async fn read(&mut self, part: &mut Part) -> Result<Bytes, HubError> {
        let Some(mut bytes) = part.body.next().await? else {
            let (path, expected) = (self.target.path.clone(), part.end);
            return Err(HubError::CutShort { path, expected, found: self.at });
        };
        let skipped = bytes.split_to(usize::try_from(part.skip).unwrap_or(usize::MAX).min(bytes.len()));
        part.skip -= skipped.len() as u64;
        if bytes.len() as u64 > part.end - self.at {
            let (path, expected) = (self.target.path.clone(), self.target.size);
            return Err(HubError::WrongLength { path, expected, found: expected + 1 });
        }
        self.at += bytes.len() as u64;
        if self.at >= self.forgiven_at {
            (self.backoff, self.forgiven_at) = (Backoff::new(), self.at + PROGRESS);
        }
        Ok(bytes)
    }

    /// Waits before the rest is asked for, or gives up.
    async fn pause(&mut self, fault: HubError) -> Result<(), HubError> {
        tracing::debug!(offset = self.at, attempt = self.backoff.attempts(), error = %fault, "download broke off");
        let Some(wait) = self.backoff.next_wait(None) else {
            let (path, count) = (self.target.path.clone(), self.backoff.attempts());
            return Err(HubError::BrokenOff { path, count, at: self.at, source: Box::new(fault) });
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

async fn request(http: &Http, target: &Target, at: u64) -> Result<Part, HubError> {
    let range = next_range(at, target.size);
    let whole = range == (0..target.size);
    let ask = Ask {
        url: target.url.clone(),
        range: (!whole).then(|| range.clone()),
        pinned: target.pinned.clone(),
    };
    let accept = |answer: &Answer| accept(answer, &range, target);
    let (body, kind) = http.open(&ask, accept, |reply| (target.refuse)(reply)).await?;
    Ok(match kind {
        range::Body::Part => Part { body, skip: 0, end: range.end },
        range::Body::Whole => Part { body, skip: at, end: target.size },
    })
}

fn accept(answer: &Answer, asked: &Range<u64>, target: &Target) -> Result<range::Body, HubError> {
    let encoding = answer.header(header::CONTENT_ENCODING).unwrap_or("identity");
    if !encoding.eq_ignore_ascii_case("identity") {
        let problem = format!("a body in the encoding {encoding:?}, which was not asked for");
        return Err(HubError::Unexpected {
            url: answer.url.clone(),
            problem: crate::error::quoted(&problem),
        });
    }
    let content_range = answer.header(header::CONTENT_RANGE);
    judge(answer.status(), content_range, answer.content_length(), asked, target.size).map_err(|problem| {
        match problem {
            // Another file than the listed one: asking again brings the same.
            Unusable::WholeLength(found) => {
                HubError::WrongLength { path: target.path.clone(), expected: target.size, found }
            }
            problem => HubError::BadRange { url: answer.url.clone(), problem: problem.to_string() },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_nobody_sends_whole_are_cut() {
        assert_eq!(next_range(0, 5), 0..5);
        assert_eq!(next_range(0, MAX_WHOLE_LEN), 0..MAX_WHOLE_LEN);
        let size = MAX_WHOLE_LEN + 1;
        let (mut at, mut parts) = (0, 0);
        while at < size {
            let range = next_range(at, size);
            assert!(range.start == at && range.end > at && range.end - at <= SPAN);
            (at, parts) = (range.end, parts + 1);
        }
        assert_eq!((at, parts), (size, 3));
    }
}
