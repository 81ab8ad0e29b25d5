//! Why an operation of the store did not happen.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use towline_artifact::{ContentId, PieceIndex};

/// Why an operation of the store did not happen. The store stays consistent and usable after each of them.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or a quota is full (`ENOSPC`, `EDQUOT`). Evicting may help; nothing of the operation counts.
    #[error("{op} {object}")]
    Full {
        /// What was attempted, a verb.
        op: &'static str,
        /// On what.
        object: String,
        /// The system's answer, with its errno.
        source: io::Error,
    },
    /// The system refused an operation for another reason.
    #[error("{op} {object}")]
    Io {
        /// What was attempted, a verb.
        op: &'static str,
        /// On what.
        object: String,
        /// The system's answer, with its errno.
        source: io::Error,
    },
    /// Another process, or another [`Store`](crate::Store) or open content of this one, uses the directory.
    #[error("store {} is in use", root.display())]
    Locked {
        /// The store's directory.
        root: PathBuf,
    },
    /// The directory has files but is no store; nothing in it was touched.
    #[error("directory {} is not empty and not a store", root.display())]
    NotAStore {
        /// The directory.
        root: PathBuf,
    },
    /// The store was written in a layout that this build does not know.
    #[error("store {} has layout {found:?}, this build knows {known:?}", root.display())]
    Version {
        /// The store's directory.
        root: PathBuf,
        /// What its version file says, shortened.
        found: String,
        /// What this build writes.
        known: &'static str,
    },
    /// A read covers a piece that is not there.
    #[error("piece {piece} of content {content} is not in the store")]
    Missing {
        /// The content read.
        content: ContentId,
        /// The first missing piece of the range.
        piece: PieceIndex,
    },
    /// A read reaches beyond the end of the content.
    #[error("{len} bytes at {offset} reach beyond the end of content {content}")]
    OutOfRange {
        /// The content read.
        content: ContentId,
        /// Offset of the read in bytes.
        offset: u64,
        /// Length of the read in bytes.
        len: u64,
    },
    /// The file on disk is shorter than the content: something other than the store changed it.
    #[error("file of content {content} was cut short by someone else")]
    Truncated {
        /// The content read.
        content: ContentId,
    },
    /// A piece was committed to a content that it does not belong to.
    #[error("piece {piece} of content {found} does not belong to content {content}")]
    WrongPiece {
        /// The content it was committed to.
        content: ContentId,
        /// The content it was verified for.
        found: ContentId,
        /// Its number there.
        piece: PieceIndex,
    },
    /// Two lengths are claimed for one content, and this one is wrong or cannot be decided now.
    ///
    /// A content's length is proven by its last piece. An unproven one gives way once it is no longer open.
    #[error("content {content} is stored with {stored} bytes, not {asked}")]
    LengthConflict {
        /// The content.
        content: ContentId,
        /// Length in bytes of what is stored.
        stored: u64,
        /// Length in bytes that was asked for.
        asked: u64,
    },
    /// A content cannot be sealed because pieces are missing.
    #[error("content {content} lacks {missing} pieces")]
    Incomplete {
        /// The content.
        content: ContentId,
        /// Number of missing pieces.
        missing: u32,
    },
    /// A tree names a content that is not sealed in this store.
    #[error("content {content} is not sealed")]
    NotSealed {
        /// The content.
        content: ContentId,
    },
    /// A content cannot be removed while it is open.
    #[error("content {content} is open")]
    InUse {
        /// The content.
        content: ContentId,
    },
    /// A tree's name is not 1 to 128 of `a-z 0-9 . _ -`, starting with a letter or digit.
    #[error("{name:?} is not a tree name")]
    TreeName {
        /// The name, shortened.
        name: String,
    },
    /// A path in a tree is absolute, empty, too long, steps outside, or is there twice.
    #[error("{path:?} is not a path for a tree")]
    TreePath {
        /// The path, shortened.
        path: String,
    },
}

/// The most characters of foreign text that an error repeats.
const MAX_QUOTED_CHARS: usize = 128;

/// Shortens foreign text for an error message.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED_CHARS).collect()
}

/// For `map_err`: names the operation and its object, and tells a full disk from other troubles.
pub(crate) fn doing<E: Into<io::Error>>(
    op: &'static str,
    object: impl Display,
) -> impl FnOnce(E) -> StoreError {
    move |error| {
        let source = error.into();
        let object = object.to_string();
        if is_full(&source) {
            StoreError::Full { op, object, source }
        } else {
            StoreError::Io { op, object, source }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno == Some(Errno::NOSPC.raw_os_error()) || errno == Some(Errno::DQUOT.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one_and_keeps_its_errno() {
        let full: StoreError = doing("write", "piece 1")(Errno::NOSPC);
        assert!(
            matches!(&full, StoreError::Full { source, .. } if source.raw_os_error() == Some(28)),
            "{full:?}"
        );
        assert_eq!(full.to_string(), "write piece 1");
        let broken: StoreError = doing("write", "piece 1")(Errno::IO);
        assert!(
            matches!(&broken, StoreError::Io { source, .. } if source.raw_os_error() == Some(5)),
            "{broken:?}"
        );
    }
}
