//! What can go wrong between us and a registry, told so that a person knows whose fault it is.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use oci_spec::image::Digest;

use crate::credentials::CredentialError;
use crate::repository::{InvalidName, Repository};

/// The most characters of a registry's own words that we repeat.
const MAX_REASON_LEN: usize = 256;

/// What a request was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The manifest of this tag or digest.
    Manifest(String),
    /// The blob with this digest.
    Blob(Digest),
    /// A new upload whose digest is not known yet.
    Upload,
}

/// An object in a repository, and the host that was asked for it; or an object in a layout on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The object.
    pub object: Object,
    /// The repository as the user named it; `None` for a layout.
    pub repository: Option<Repository>,
    /// The host that was really asked: the registry, a mirror of it, or where either redirected to. The directory of a
    /// layout.
    pub host: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Object::Manifest(name) => write!(f, "manifest {name}")?,
            Object::Blob(digest) => write!(f, "blob {digest}")?,
            Object::Upload => f.write_str("upload")?,
        }
        match &self.repository {
            None => write!(f, " in {}", self.host),
            Some(repository) if self.host == repository.host() => write!(f, " in {repository}"),
            Some(repository) => write!(f, " in {repository} at {}", self.host),
        }
    }
}

/// A registry's own error code and message, cut to a bounded length and without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// Such as `MANIFEST_UNKNOWN`; may be empty.
    pub code: String,
    /// May be empty.
    pub message: String,
}

impl Reason {
    /// Reads the error body of the distribution-spec. Anything else, an HTML page say, tells nothing.
    pub(crate) fn parse(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            errors: Vec<Entry>,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            #[serde(default)]
            code: Option<String>,
            #[serde(default)]
            message: Option<String>,
        }
        let Ok(Body { errors }) = serde_json::from_slice(body) else { return Self::default() };
        let Some(first) = errors.into_iter().next() else { return Self::default() };
        Self {
            code: clean(&first.code.unwrap_or_default()),
            message: clean(&first.message.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        Ok(())
    }
}

/// A stranger's text, fit for a terminal and a log: bounded, control characters replaced.
pub(crate) fn clean(text: &str) -> String {
    let clean = |c: char| if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) { ' ' } else { c };
    text.chars().take(MAX_REASON_LEN).map(clean).collect::<String>().trim().to_owned()
}

/// Why no token could be had. Shared, because all requests that waited for one attempt get its answer.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The realm is not `https`, and the registry itself is not plain HTTP.
    #[error("token service {realm:?} is not https")]
    RealmRefused {
        /// The realm as the registry named it, bounded.
        realm: String,
    },
    /// The credentials could not be read.
    #[error("credentials for {host}")]
    Credentials {
        /// The host they are for.
        host: String,
        /// Why.
        source: CredentialError,
    },
    /// The registry wants a user name and a password, and there are none.
    #[error("no credentials for {host}")]
    Missing {
        /// The host that wants them.
        host: String,
    },
    /// The token service refused, or failed, with this status.
    #[error("token service {host} answered {status}{reason}")]
    Refused {
        /// The token service.
        host: String,
        /// Its answer.
        status: StatusCode,
        /// Its words.
        reason: Reason,
    },
    /// The token service could not be reached, or broke off.
    #[error("token service {host}")]
    Unreachable {
        /// The token service.
        host: String,
        /// What broke.
        source: reqwest::Error,
    },
    /// The token service did not answer in time.
    #[error("token service {host} did not answer within {} s", after.as_secs())]
    Stalled {
        /// The token service.
        host: String,
        /// How long we waited.
        after: Duration,
    },
    /// The answer is not a token.
    #[error("token service {host} sent no usable token")]
    Unreadable {
        /// The token service.
        host: String,
    },
}

/// Why an operation on a registry or a layout did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry (or a host it redirected to) answered with an error status.
    #[error("{place}: {status}{reason}")]
    Refused {
        /// What was asked, where.
        place: Box<Place>,
        /// The answer.
        status: StatusCode,
        /// The registry's own words.
        reason: Reason,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// No token for this request.
    #[error("authorize {place}")]
    Token {
        /// What was asked, where.
        place: Box<Place>,
        /// Why there is none.
        source: Arc<TokenError>,
    },
    /// Connecting, sending or receiving failed.
    #[error("{place}")]
    Transport {
        /// What was asked, where.
        place: Box<Place>,
        /// What broke. Carries no URL: those may hold signatures.
        source: reqwest::Error,
    },
    /// No byte moved for too long.
    #[error("{place}: no byte within {} s", idle.as_secs())]
    Stalled {
        /// What was asked, where.
        place: Box<Place>,
        /// The limit that was hit.
        idle: Duration,
    },
    /// The registry sent the whole blob although a range was asked. Nothing of it was read.
    #[error("{place}: range was ignored")]
    RangeIgnored {
        /// What was asked, where.
        place: Box<Place>,
    },
    /// The registry sent another range than was asked. Nothing of it was read.
    #[error("{place}: asked for bytes {}-{}, got {answered:?}", asked.start, asked.end - 1)]
    WrongRange {
        /// What was asked, where.
        place: Box<Place>,
        /// The range in bytes, not empty.
        asked: Range<u64>,
        /// The `Content-Range` of the answer, bounded.
        answered: String,
    },
    /// A body ended before its promised end.
    #[error("{place}: body ended after {received} of {expected} bytes")]
    Short {
        /// What was asked, where.
        place: Box<Place>,
        /// Bytes that were due.
        expected: u64,
        /// Bytes that came.
        received: u64,
    },
    /// A body went on past its promised end.
    #[error("{place}: body is longer than {expected} bytes")]
    Long {
        /// What was asked, where.
        place: Box<Place>,
        /// Bytes that were due.
        expected: u64,
    },
    /// An object is larger than we accept.
    #[error("{place}: larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was asked, where.
        place: Box<Place>,
        /// The limit in bytes.
        limit: u64,
    },
    /// Received bytes do not match their digest.
    #[error("{place}: bytes have digest {actual}, expected {expected}")]
    DigestMismatch {
        /// What was asked, where.
        place: Box<Place>,
        /// The digest that was due.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A redirect we do not follow.
    #[error("{place}: redirect refused, {why}")]
    Redirect {
        /// What was asked, where.
        place: Box<Place>,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The registry broke the protocol.
    #[error("{place}: {what}")]
    Protocol {
        /// What was asked, where.
        place: Box<Place>,
        /// How.
        what: &'static str,
    },
    /// A streamed upload was used wrongly: its bytes are not as many as announced.
    #[error("{place}: {written} bytes written, {announced} announced")]
    UploadLen {
        /// What was asked, where.
        place: Box<Place>,
        /// Bytes written.
        written: u64,
        /// Bytes announced at the start.
        announced: u64,
    },
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A destination that cannot be written to.
    #[error("destination {text:?}: {why}")]
    Destination {
        /// The text as given, bounded.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A configuration file (`hosts.toml`, a CA bundle) cannot be used.
    #[error("{path}: {detail}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The HTTP client could not be set up.
    #[error("set up TLS")]
    Setup {
        /// Why.
        source: reqwest::Error,
    },
    /// An OCI layout on disk could not be read or written.
    #[error("{path}")]
    Disk {
        /// The file or directory.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An OCI layout on disk does not have what was asked for.
    #[error("{object} is not in the layout {path}")]
    NotInLayout {
        /// What was asked for.
        object: String,
        /// The layout's directory.
        path: String,
    },
    /// An OCI layout on disk is damaged, or no layout.
    #[error("{path}: {detail}")]
    Layout {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, .. } => is_transient_status(*status),
            Self::Transport { source, .. } => !source.is_builder(),
            Self::Stalled { .. } | Self::Short { .. } => true,
            Self::Token { source, .. } => match &**source {
                TokenError::Refused { status, .. } => is_transient_status(*status),
                TokenError::Unreachable { .. } | TokenError::Stalled { .. } => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// The status with which the registry refused, if it answered at all.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long the registry asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether other credentials may help.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        let denied = |status: StatusCode| matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match self {
            Self::Refused { status, .. } => denied(*status),
            Self::Token { source, .. } => match &**source {
                TokenError::Missing { .. } | TokenError::Credentials { .. } => true,
                TokenError::Refused { status, .. } => denied(*status),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the object does not exist there. Some registries hide what we may not see this way.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(*status, StatusCode::NOT_FOUND | StatusCode::GONE),
            Self::NotInLayout { .. } => true,
            _ => false,
        }
    }

    /// What the user can do about it, where we know.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { place, .. } | Self::Token { place, .. } if self.is_unauthorized() => {
                let repository = place.repository.as_ref()?;
                Some(format!(
                    "check access to {repository}; log in with `docker login {}`",
                    repository.host()
                ))
            }
            Self::Refused { status, .. } if *status == StatusCode::PAYLOAD_TOO_LARGE => {
                Some("the registry, or a proxy before it, limits the size of a layer".into())
            }
            Self::Transport { place, source } if source.is_connect() => Some(format!(
                "check that {} is reachable and speaks TLS with a certificate this machine trusts; \
                 plain HTTP must be allowed by name",
                place.host
            )),
            Self::RangeIgnored { place } => {
                Some(format!("{} does not serve byte ranges; reads fall back to whole blobs", place.host))
            }
            Self::Setup { .. } => {
                Some("install the system's CA certificates (package ca-certificates)".into())
            }
            _ => None,
        }
    }
}

/// Statuses that a wait may cure: timeouts, rate limits and a server's own faults (but 501, which stays).
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY)
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Box<Place> {
        let repository = Repository::new("example.com", "a/b").ok();
        Box::new(Place { object: Object::Manifest("v1".into()), repository, host: "mirror:5000".into() })
    }

    #[test]
    fn a_failure_tells_what_where_and_why() {
        let reason = Reason::parse(br#"{"errors":[{"code":"DENIED","message":"no \u001b[31m pull"}]}"#);
        let error = RegistryError::Refused {
            place: place(),
            status: StatusCode::FORBIDDEN,
            reason,
            retry_after: None,
        };
        let text = "manifest v1 in example.com/a/b at mirror:5000: 403 Forbidden: DENIED: no  [31m pull";
        assert_eq!(error.to_string(), text);
        assert!(error.is_unauthorized() && !error.is_transient() && !error.is_not_found());
        assert!(error.hint().unwrap().contains("docker login example.com"));
    }

    #[test]
    fn statuses_are_sorted() {
        let refused = |status: u16| RegistryError::Refused {
            place: place(),
            status: StatusCode::from_u16(status).unwrap(),
            reason: Reason::default(),
            retry_after: None,
        };
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(refused(status).is_transient(), "{status}");
        }
        for status in [400, 401, 403, 404, 416, 501] {
            assert!(!refused(status).is_transient(), "{status}");
        }
        assert!(refused(404).is_not_found() && refused(410).is_not_found());
    }

    proptest! {
        #[test]
        fn reasons_are_bounded_and_clean(code in "\\PC{0,10}", message in any::<String>()) {
            let body = serde_json::json!({"errors": [{"code": code, "message": message.repeat(20)}]});
            let reason = Reason::parse(body.to_string().as_bytes());
            prop_assert!(reason.message.chars().count() <= MAX_REASON_LEN);
            prop_assert!(!reason.to_string().contains(char::is_control));
        }

        #[test]
        fn any_error_body_is_survived(body in any::<Vec<u8>>()) {
            Reason::parse(&body);
        }
    }
}
