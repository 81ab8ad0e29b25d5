//! What a read yields.

use std::ops::Range;
use std::time::Duration;

use towline_artifact::VerifiedPiece;
use towline_store::StoreError;

/// Bytes of a file, all of them verified.
#[derive(Debug)]
pub enum ReadBytes {
    /// A part of a piece that is in memory.
    Piece(VerifiedPiece, Range<usize>),
    /// A copy.
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for ReadBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Piece(piece, range) => &piece.bytes()[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Why a read yields nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes did not come in time.
    #[error("no verified bytes within {}", humantime(.waited))]
    TimedOut {
        /// How long the reader waited.
        waited: Duration,
    },
    /// The store has the bytes and cannot read them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon is stopping.
    #[error("daemon is stopping")]
    Stopping,
}

fn humantime(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
