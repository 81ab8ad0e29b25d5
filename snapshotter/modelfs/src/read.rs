//! What a read yields.

use std::time::Duration;

use bytes::Bytes;
use towline_store::StoreError;

/// Bytes of a file, all of them verified.
#[derive(Debug)]
pub enum ReadBytes {
    /// A part of a verified piece or block that is in memory.
    Memory(Bytes),
    /// A copy.
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for ReadBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
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
