//! What can go wrong, by what a caller would do about it. `status` gives each its gRPC code.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::filter::FilterError;
use crate::idmap::IdMapError;
use crate::models::Refusal;

/// Text from a stranger, shown quoted and cut to 200 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl Shown {
    /// Characters of a key that an error repeats: enough for a key of an unpack with its chain id.
    const MAX_CHARS: usize = 200;

    pub(crate) fn new(text: &str) -> Self {
        match text.char_indices().nth(Self::MAX_CHARS) {
            None => Self(text.to_owned()),
            Some((end, _)) => Self(format!("{}…", &text[..end])),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Why a call of the service fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("snapshot {0} does not exist")]
    NotFound(Shown),
    #[error("snapshot {0} already exists")]
    AlreadyExists(Shown),
    #[error("parent snapshot {0} does not exist")]
    ParentNotFound(Shown),
    #[error("parent snapshot {0} is not committed")]
    ParentNotCommitted(Shown),
    #[error("new parent snapshot {0} is not committed")]
    NewParentNotCommitted(Shown),
    #[error("snapshot {0} has a parent already")]
    ParentFixed(Shown),
    #[error("snapshot {0} is not active")]
    NotActive(Shown),
    #[error("snapshot {0} is committed and has no mounts")]
    NoMounts(Shown),
    #[error("cannot remove snapshot {0}: it has children")]
    HasChildren(Shown),
    #[error("field {0} of a snapshot cannot be updated")]
    FieldFixed(Shown),
    #[error("{what} is {found}, over the limit of {limit}")]
    TooLarge { what: &'static str, found: usize, limit: usize },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} are at their limit of {limit}")]
    Exhausted { what: &'static str, limit: usize },
    #[error("read filter")]
    Filter(#[source] FilterError),
    #[error("read user namespace labels")]
    IdMap(#[source] IdMapError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("metadata of snapshots")]
    Storage(#[from] StorageError),
    #[error("{operation} {}", path.display())]
    Disk { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the operation broke off")]
    BrokeOff(#[source] tokio::task::JoinError),
}

impl SnapshotError {
    /// For `map_err` on I/O: what was done to what.
    pub(crate) fn disk<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { operation, path, source: source.into() }
    }
}

/// The metadata cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database, or the disk below it, fails.
    #[error("database")]
    Database(#[source] Box<redb::Error>),
    /// Written by a newer version of this program.
    #[error("format {found} is newer than {known}")]
    NewerFormat {
        /// The format number found.
        found: u64,
        /// The newest format number this program reads.
        known: u64,
    },
    /// A row is not what was written.
    #[error("row {name:?} is damaged: {reason}")]
    Damaged {
        /// Name of the snapshot.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl<E: Into<redb::Error>> From<E> for StorageError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// Why the snapshotter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The root directory cannot be used in mount options.
    #[error("root {} is not an absolute UTF-8 path free of commas, colons, quotes and backslashes", path.display())]
    UnusablePath {
        /// The configured root.
        path: PathBuf,
    },
    /// A directory under the root cannot be made or read.
    #[error("{operation} {}", path.display())]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// overlayfs cannot work on this file system.
    #[error("file system of {} does not report file types in directories (xfs needs ftype=1)", path.display())]
    NoFileTypes {
        /// The configured root.
        path: PathBuf,
    },
    /// `remap_ids` is on, but the kernel is older than 5.19.
    #[error("kernel {release} has no id-mapped overlay layers, which remap_ids needs (5.19)")]
    NoIdMappedMounts {
        /// The running kernel.
        release: String,
    },
    /// The metadata cannot be read.
    #[error("open metadata {}", path.display())]
    Metadata {
        /// The database file.
        path: PathBuf,
        /// How it failed.
        source: StorageError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_errors_are_cut_and_quoted() {
        assert_eq!(Shown::new("a\nb").to_string(), r#""a\nb""#);
        let long = "ü".repeat(Shown::MAX_CHARS + 1);
        assert_eq!(Shown::new(&long).to_string().chars().count(), Shown::MAX_CHARS + 3);
        let exact = "ü".repeat(Shown::MAX_CHARS);
        assert_eq!(Shown::new(&exact).to_string(), format!("{exact:?}"));
    }
}
