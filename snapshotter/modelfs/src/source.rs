//! Where pieces come from: the seam between reads and networks.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use towline_artifact::{ContentId, PieceTable};

/// The bytes of a run of pieces, in order, in portions of any size.
pub type PieceStream = Pin<Box<dyn Stream<Item = Result<Bytes, FetchError>> + Send>>;

/// Something that can be asked for bytes of a content: the origin, peers, a mirror.
///
/// What it yields is unverified; the engine checks every piece.
pub trait PieceSource: Send + Sync + 'static {
    /// Asks for `bytes` of the file, half-open and not empty. The stream may end early; that is an error of its own.
    fn fetch<'a>(
        &'a self,
        table: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>>;

    /// Tells that bytes of `content` from this source did not match their digest.
    fn corrupt(&self, content: ContentId);
}

/// Why pieces could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody is known who has the content.
    #[error("no source is known for content {content}")]
    NoSource {
        /// The content.
        content: ContentId,
    },
    /// The source was asked and failed.
    #[error("{message}")]
    Source {
        /// What was attempted on what, and why it failed.
        message: String,
        /// What that means for the next attempt.
        fault: Fault,
        /// How long the source asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The source sent fewer bytes than were asked for.
    #[error("source ended {missing} bytes early")]
    Short {
        /// Bytes that did not come.
        missing: u64,
    },
    /// A piece did not match its digest.
    #[error(transparent)]
    Corrupt(#[from] towline_artifact::Corrupt),
}

/// What a source's failure means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has too much to do (429, 503).
    Throttled,
    /// It refuses this node's credentials (401, 403).
    Denied,
    /// It does not have the content (404, 410).
    Gone,
    /// Anything else: no connection, silence, an answer that is none.
    Broken,
}

impl FetchError {
    /// A failure of no particular kind.
    #[must_use]
    pub fn broken(message: String) -> Self {
        Self::Source { message, fault: Fault::Broken, retry_after: None }
    }

    /// What it means for the next attempt.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Source { fault, .. } => *fault,
            Self::NoSource { .. } => Fault::Gone,
            Self::Short { .. } | Self::Corrupt(_) => Fault::Broken,
        }
    }

    /// How long the source asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Source { retry_after, .. } => *retry_after,
            Self::NoSource { .. } | Self::Short { .. } | Self::Corrupt(_) => None,
        }
    }
}
