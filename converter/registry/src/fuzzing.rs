//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};

use crate::challenge::{Challenge, scopes};
use crate::content_range::ContentRange;
use crate::destination::Name;
use crate::docker_config::{self, Config, Lookup};
use crate::hosts::{self, HostsFile};
use crate::repository::ManifestName;
use crate::{Credential, Manifest, Reason, Repository, layout, retry, token};

/// A `Bearer` challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Where the token service is, as the registry says.
    pub realm: String,
    /// Its name for the registry.
    pub service: Option<String>,
    /// What the token is to allow, as the registry says.
    pub scope: Option<String>,
    /// What we would ask for.
    pub scopes: Vec<String>,
    /// Whether we would ask there at all, the registry being reached over TLS.
    pub is_asked: bool,
}

/// The challenge that is answered; `Some(None)` is `Basic`.
#[must_use]
pub fn challenge(headers: &[&str]) -> Option<Option<Bearer>> {
    Some(match Challenge::choose(headers.iter().copied())? {
        Challenge::Basic => None,
        Challenge::Bearer { realm, service, scope } => Some(Bearer {
            scopes: scopes(scope.as_deref(), "repository:a/b:pull", Some("repository:c:pull")),
            is_asked: token::check_realm(&realm, false).is_ok(),
            realm,
            service,
            scope,
        }),
    })
}

/// A satisfied range and the whole length, unless that is `*`.
#[must_use]
pub fn content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    ContentRange::parse(header).map(|found| (found.range, found.complete))
}

/// How long an answer wants us to wait.
#[must_use]
pub fn retry_after(header: &[u8]) -> Option<Duration> {
    let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_bytes(header).ok()?)]);
    retry::retry_after(&headers, SystemTime::UNIX_EPOCH)
}

/// The addresses in a `hosts.toml`.
///
/// # Errors
/// What a user would read.
pub fn hosts(text: &str) -> Result<Vec<String>, String> {
    let file = HostsFile::parse(Path::new("/etc/hosts.toml"), text).map_err(|error| error.to_string())?;
    Ok(file.mirrors.into_iter().chain(file.server).map(|entry| entry.url).collect())
}

/// Where the `hosts.toml` of a registry may be, below `dir`.
#[must_use]
pub fn hosts_files(dir: &Path, host: &str) -> Vec<std::path::PathBuf> {
    hosts::candidates(dir, host)
}

/// What a Docker configuration has for a repository, helpers left out.
///
/// # Errors
/// What a user would read.
pub fn docker_config(text: &[u8], host: &str, repository: &str) -> Result<Option<Credential>, String> {
    let config = Config::parse(Path::new("config.json"), text).map_err(|error| error.to_string())?;
    Ok(match config.lookup(host, repository) {
        Lookup::Known(credential) => credential,
        Lookup::Helper { .. } => None,
    })
}

/// What a credential helper printed.
#[must_use]
pub fn helper_answer(output: &[u8]) -> Option<Option<Credential>> {
    docker_config::parse_helper(output)
}

/// A name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// `None` in a layout.
    pub repository: Option<Repository>,
    /// The layout's directory.
    pub dir: Option<String>,
    /// The tag.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<String>,
}

/// Reads `oci:DIR[:TAG][@DIGEST]` or a registry reference.
#[must_use]
pub fn image_name(text: &str) -> Option<ImageName> {
    Some(match Name::parse(text).ok()? {
        Name::Registry { repository, tag, digest } => {
            ImageName { repository: Some(repository), dir: None, tag, digest }
        }
        Name::Layout { dir, tag, digest } => ImageName { repository: None, dir: Some(dir), tag, digest },
    })
}

/// Whether `text` may stand for a manifest in a URL.
#[must_use]
pub fn is_manifest_name(text: &str) -> bool {
    ManifestName::parse(text).is_ok()
}

/// A manifest of these bytes.
#[must_use]
pub fn manifest(bytes: &[u8], label: &str) -> Manifest {
    Manifest::new(Bytes::copy_from_slice(bytes), label)
}

/// Tags and digests in the `index.json` of a layout.
#[must_use]
pub fn layout_index(bytes: &[u8]) -> Option<Vec<(Option<String>, Option<String>)>> {
    let index = serde_json::from_slice(bytes).ok()?;
    let text = |text: Option<&str>| text.map(str::to_owned);
    Some(layout::entries(&index).map(|e| (text(layout::tag_of(e)), text(e["digest"].as_str()))).collect())
}

/// A registry's own words for an error.
#[must_use]
pub fn reason(body: &[u8]) -> Reason {
    Reason::parse(body)
}

/// How long the token in a token service's answer lives.
#[must_use]
pub fn token_life(body: &[u8]) -> Option<Duration> {
    token::parse_token(body).map(|(_, life)| life)
}
