//! What can go wrong between a hub and us.

use std::fmt;

use crate::paths::PathError;
use crate::source_ref::HubKind;

/// Why a source could not be resolved or read.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub refused, for a reason that repeating will not change.
    #[error("{hub} refuses {subject}: {denial}{detail}", detail = Detail(message))]
    Denied {
        /// Who refused.
        hub: HubKind,
        /// What was asked for: a repository, a revision of it or a file in it.
        subject: String,
        /// Why.
        denial: Denial,
        /// The hub's own words, if it had any.
        message: String,
        /// Whether a token was sent along.
        with_token: bool,
    },
    /// The hub, or the storage behind it, answered with a status that is no content.
    #[error("{url} answered {status}{detail}", detail = Detail(message))]
    Status {
        /// What was asked.
        url: SafeUrl,
        /// HTTP status, or the code in ModelScope's answer.
        status: u64,
        /// The hub's own words, if it had any.
        message: String,
        /// Whether asking again later may help.
        transient: bool,
    },
    /// The connection could not be made or broke.
    #[error("{url} could not be read")]
    Transport {
        /// What was asked.
        url: SafeUrl,
        /// What the HTTP client says, without the address.
        source: reqwest::Error,
    },
    /// The hub was silent, or slower than anything useful, for too long.
    #[error("{url} sent too little for {seconds} s")]
    Stalled {
        /// What was asked.
        url: SafeUrl,
        /// How long we waited.
        seconds: u64,
    },
    /// An answer to a request for part of a file that holds something else.
    #[error("{url} gave no usable answer: {problem}")]
    BadRange {
        /// What was asked.
        url: SafeUrl,
        /// What is wrong with it.
        problem: String,
    },
    /// A body that ended early without the connection noticing.
    #[error("{path:?} ended at byte {found} of {expected}")]
    CutShort {
        /// Path of the file.
        path: String,
        /// Where the part should have ended.
        expected: u64,
        /// Where it did.
        found: u64,
    },
    /// The connection kept breaking.
    #[error("{path} broke off {count} times without progress, last at byte {at}")]
    BrokenOff {
        /// Path of the file.
        path: String,
        /// Attempts without progress.
        count: u32,
        /// Bytes that had arrived.
        at: u64,
        /// The last fault.
        source: Box<HubError>,
    },
    /// A redirect that must not be followed.
    #[error("{url} redirects {problem}")]
    Redirect {
        /// What was asked.
        url: SafeUrl,
        /// What is wrong with the new address.
        problem: &'static str,
    },
    /// An answer longer than anything honest.
    #[error("{url} answered more than {limit} bytes")]
    TooLong {
        /// What was asked.
        url: SafeUrl,
        /// Limit in bytes.
        limit: u64,
    },
    /// An answer that is not what the hub's interface promises.
    #[error("{url} answered something unexpected: {problem}")]
    Unexpected {
        /// What was asked.
        url: SafeUrl,
        /// What was found or missed.
        problem: String,
    },
    /// Some answer names another commit than the one the conversion is pinned to.
    #[error("{subject} changed during the conversion: pinned to commit {pinned}, the hub now names {found}")]
    CommitMoved {
        /// Repository.
        subject: String,
        /// The commit resolved first.
        pinned: String,
        /// What the hub named later.
        found: String,
    },
    /// The listing holds a path that no listing may hold.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The listing cannot be had in full.
    #[error("the listing of {directory:?} is cut off at {limit} entries")]
    CutOff {
        /// Directory in the repository, empty for its top.
        directory: String,
        /// The hub's limit.
        limit: usize,
    },
    /// The repository holds no file at that commit.
    #[error("{repo} holds no files at commit {commit}")]
    Empty {
        /// Repository or directory.
        repo: String,
        /// The commit.
        commit: String,
    },
    /// More or fewer bytes than listed.
    #[error("{path:?} has {found} bytes, {expected} are listed")]
    WrongLength {
        /// Path of the file.
        path: String,
        /// Listed length in bytes.
        expected: u64,
        /// Bytes found; one more than listed stands for "too many".
        found: u64,
    },
    /// Other bytes than listed.
    #[error("{path:?} hashes to {found}, {expected} is listed")]
    WrongHash {
        /// Path of the file.
        path: String,
        /// Listed hash in hex.
        expected: String,
        /// Hash of the bytes in hex.
        found: String,
    },
    /// A local file or directory could not be read.
    #[error("{operation} {path:?}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The HTTP client could not be set up.
    #[error("set up the HTTP client")]
    Client {
        /// What the HTTP client says.
        source: reqwest::Error,
    },
}

/// Why a hub refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// There is no such repository.
    #[error("no such repository")]
    NoRepository,
    /// The hub does not tell strangers which of the three it is.
    #[error("the repository is missing, private or gated")]
    Hidden,
    /// There is no such branch, tag or commit.
    #[error("no such revision")]
    NoRevision,
    /// There is no such file.
    #[error("no such file")]
    NoFile,
    /// Its terms must be accepted first.
    #[error("the repository is gated and its terms are not accepted")]
    Gated,
    /// The token is not valid.
    #[error("the token is not valid")]
    BadToken,
    /// The token is valid and not enough.
    #[error("access is not permitted")]
    Forbidden,
}

impl HubError {
    /// Whether the same request may succeed later without anybody changing anything. Waiting was already tried.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { transient, .. } => *transient,
            Self::Transport { source, .. } => !source.is_builder() && !is_certificate_error(source),
            Self::Stalled { .. } | Self::BadRange { .. } | Self::CutShort { .. } | Self::BrokenOff { .. } => {
                true
            }
            _ => false,
        }
    }

    /// What the user could do, if we know.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Denied { hub, denial, with_token, .. } => return denial_hint(*hub, *denial, *with_token),
            Self::Status { status: 429, .. } => {
                "the hub limits requests; wait, or use a token with a higher limit"
            }
            Self::CommitMoved { .. } => {
                "start again; name a commit instead of a branch to be independent of changes"
            }
            Self::Empty { .. } => "check the revision; ModelScope forgets old commits",
            Self::CutOff { .. } => "ModelScope cannot list larger directories; ask the author to split them",
            Self::WrongLength { .. } | Self::WrongHash { .. } => {
                "the file changed, or was damaged on its way; start again, and name the hub's own endpoint if it repeats"
            }
            Self::Path(error) if error.problem == crate::PathProblem::Link => {
                "copy the directory with its links resolved (cp -rL) and package the copy"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// Whether the connection failed because the server could not prove who it is, which no repeat changes.
fn is_certificate_error(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = next {
        // `io::Error` hides the error it wraps from `source`.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|e| e.downcast_ref()).or_else(|| error.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        next = error.source();
    }
    false
}

fn denial_hint(hub: HubKind, denial: Denial, with_token: bool) -> Option<String> {
    let variable = match hub {
        HubKind::HuggingFace => "HF_TOKEN",
        HubKind::ModelScope => "MODELSCOPE_API_TOKEN",
        HubKind::Directory => return None,
    };
    Some(match denial {
        Denial::NoRepository => "check the spelling of org/name".to_owned(),
        Denial::NoRevision => "check the branch, tag or commit after '@'".to_owned(),
        Denial::NoFile => return None,
        Denial::Hidden if with_token => {
            format!("check the spelling, and that the token in {variable} may read the repository")
        }
        Denial::Hidden => format!(
            "check the spelling; if it is private or gated, set {variable} to a token that may read it"
        ),
        Denial::Gated if with_token => {
            "accept the terms on the repository's web page with the token's account".to_owned()
        }
        Denial::Gated => format!("accept the terms on the repository's web page, then set {variable}"),
        Denial::BadToken => format!("renew the token in {variable}"),
        Denial::Forbidden if with_token => {
            format!("the token in {variable} lacks the right to read the repository")
        }
        Denial::Forbidden => format!("set {variable} to a token that may read the repository"),
    })
}

/// The hub's words, set off from ours; they are cut and escaped where they are taken in.
struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

/// A hub's own words as fit for a message: one line, no control characters, at most 300 characters.
pub(crate) fn quoted(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    line.trim_end().to_owned()
}

/// An address without what may be secret in it: no user, no password, no query (signed storage addresses carry their
/// permission there), no fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct SafeUrl(String);

impl SafeUrl {
    pub(crate) fn new(url: &reqwest::Url) -> Self {
        let mut shown = url.clone();
        // These two fail only for addresses that have no host, and then there is nothing to strip.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.set_query(None);
        shown.set_fragment(None);
        Self(shown.into())
    }
}

impl fmt::Display for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_secrets() {
        let url = "https://user:pw@cdn.example/a/b?Signature=xyz#frag".parse().expect("url");
        assert_eq!(SafeUrl::new(&url).to_string(), "https://cdn.example/a/b");
        assert_eq!(format!("{:?}", SafeUrl::new(&url)), "https://cdn.example/a/b");
    }

    #[test]
    fn denials_name_the_variable_to_set() {
        let denied = |hub, denial, with_token| HubError::Denied {
            hub,
            subject: "a/b".into(),
            denial,
            message: String::new(),
            with_token,
        };
        let hidden = denied(HubKind::HuggingFace, Denial::Hidden, false);
        assert_eq!(
            hidden.to_string(),
            "Hugging Face refuses a/b: the repository is missing, private or gated"
        );
        assert!(hidden.hint().is_some_and(|hint| hint.contains("set HF_TOKEN")));
        let gated = denied(HubKind::ModelScope, Denial::Gated, false);
        assert!(gated.hint().is_some_and(|hint| hint.contains("MODELSCOPE_API_TOKEN")));
    }

    #[test]
    fn quotes_are_one_short_line() {
        assert_eq!(quoted(" no\r\nway\u{1b} "), "no  way");
        assert_eq!(quoted(&"x".repeat(1000)).len(), 300);
    }
}
