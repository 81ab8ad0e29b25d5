//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
pub use reqwest::Url;
use serde_json::Value;

use crate::error::{HubError, SafeUrl};
use crate::http::{Http, Reply};
use crate::listing::{FileHash, Listing, RemoteFile};
use crate::source::read_hash;
use crate::source_ref::{HubKind, RepoKind};
use crate::{HubSettings, huggingface, modelscope, paths, range, retry};

/// Never asked: the targets bring the answers.
static MODELSCOPE: LazyLock<modelscope::Repo> = LazyLock::new(|| {
    let settings = HubSettings::from_env(|_| None).expect("the default addresses are addresses");
    let http = Http::new(HubKind::ModelScope, settings.modelscope).expect("a client without any setting");
    modelscope::Repo { http, kind: RepoKind::Model, id: "org/name".into(), revision: "master".into() }
});

/// The files in one page of a Hugging Face listing.
///
/// # Errors
/// What a user would read.
pub fn huggingface_page(body: &[u8]) -> Result<Vec<RemoteFile>, String> {
    let reply = reply(200, body);
    let rows: Vec<huggingface::Row> = reply.json().map_err(|error| error.to_string())?;
    let files = rows.into_iter().filter_map(|row| huggingface::file(row).transpose());
    let files = files.collect::<Result<_, _>>().map_err(|problem| reply.unexpected(problem).to_string())?;
    checked(HubKind::HuggingFace, files)
}

/// The licence in a model card.
#[must_use]
pub fn huggingface_licence(card: &[u8]) -> Option<String> {
    huggingface::licence(&serde_json::from_slice::<Value>(card).ok()?)
}

/// The files with a length in one page of a ModelScope listing.
///
/// # Errors
/// What a user would read.
pub fn modelscope_page(status: u16, body: &[u8]) -> Result<Vec<RemoteFile>, String> {
    let reply = reply(status, body);
    let data = MODELSCOPE.data(&reply, "org/name", false).map_err(|error| error.to_string())?;
    let rows = modelscope::rows(&reply, data).map_err(|error| error.to_string())?;
    let file = |row: modelscope::Row| {
        Some(RemoteFile {
            size: row.size?,
            executable: row.mode.as_ref().is_some_and(modelscope::is_executable),
            hash: FileHash::Sha256(read_hash(row.sha256.as_deref()?)?),
            path: row.path,
        })
    };
    let files = rows.into_iter().filter(|row| !row.is_directory()).filter_map(file).collect();
    checked(HubKind::ModelScope, files)
}

/// The date of the first of a branch's commits.
#[must_use]
pub fn modelscope_date(body: &[u8]) -> Option<String> {
    let reply = reply(200, body);
    let data = MODELSCOPE.data(&reply, "org/name", true).ok()?;
    modelscope::commits(&reply, data).ok()?.into_iter().next()?.committed_date.and_then(modelscope::date)
}

fn reply(status: u16, body: &[u8]) -> Reply {
    let url = SafeUrl::new(&Url::parse("https://hub.example/api").expect("a constant"));
    Reply { url, status, headers: HeaderMap::new(), body: body.to_vec(), elsewhere: false }
}

fn checked(hub: HubKind, files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, String> {
    let text = String::new;
    let listing = Listing {
        hub,
        kind: RepoKind::Model,
        repo: text(),
        revision: text(),
        commit: text(),
        created: None,
        licence: None,
        url: text(),
        files,
    };
    listing.check().map(|listing| listing.files).map_err(|error: HubError| error.to_string())
}

/// Whether these may be the paths of a listing.
#[must_use]
pub fn are_paths(paths: &[&str]) -> bool {
    paths::check_paths(paths.iter().copied()).is_ok()
}

/// Whether an answer is exactly the part that was asked for.
#[must_use]
pub fn is_part(
    status: u16,
    content_range: &str,
    content_length: Option<u64>,
    asked: &Range<u64>,
    size: u64,
) -> bool {
    range::judge(status, Some(content_range), content_length, asked, size) == Ok(range::Body::Part)
}

/// The length of the whole file that a `Content-Range` claims.
#[must_use]
pub fn total_of(content_range: &str) -> Option<u64> {
    range::total_of(content_range)
}

/// The target with `rel="next"` of a `Link` header.
#[must_use]
pub fn link_next(header: &str) -> Option<&str> {
    huggingface::link_next(header)
}

/// A hub's date with whole seconds.
#[must_use]
pub fn seconds(date: &str) -> Option<String> {
    huggingface::seconds(date)
}

/// How long an answer with these headers wants us to wait.
#[must_use]
pub fn asked_wait(rate_limit: Option<&str>, retry_after: Option<&str>) -> Option<Duration> {
    retry::asked_wait(rate_limit, retry_after, SystemTime::UNIX_EPOCH)
}

/// Where a redirect leads, and whether a token goes along.
#[must_use]
pub fn next_hop(endpoint: &Url, from: &Url, location: &str) -> Option<(Url, bool)> {
    crate::http::next_hop(endpoint, from, location, true).ok()
}
