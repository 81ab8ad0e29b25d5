//! Pieces on disk: verified in, sealed when whole, recovered after a crash, evicted when space is short.
//!
//! The store owns one directory and is its only writer. It knows neither network nor FUSE and has no async code:
//! callers run it on a blocking pool. Nothing but a [`VerifiedPiece`](towline_artifact::VerifiedPiece) gets in.
//!
//! # Directory
//!
//! | path below the root | what it is |
//! |---|---|
//! | `version` | the text `towline-store 1` and a newline; any other text is refused |
//! | `lock` | empty; the process that uses the store holds an exclusive `flock` on it |
//! | `clean` | empty; present only after [`Store::close`], if no content still has an unclean end behind it; removed, durably, by the next [`Store::open`] |
//! | `content/XX/ID` | the file's plain bytes from offset 0, sparse until whole; `XX` are the first two digits of `ID` |
//! | `content/XX/ID.pieces` | the piece table; its modification time says when the content was last used |
//! | `content/XX/ID.state` | which pieces are durable, and whether the content is sealed; absent before the first checkpoint |
//! | `trees/NAME` | directories of hard links to sealed contents |
//! | `quarantine/ID.N` | `data`, `pieces` and `state` of contents that were found damaged, for a person to look at |
//!
//! Names that end in `.tmp` (in `trees/`: that start with `.tmp-`) are unfinished writes and are removed by the next
//! open. The byte layout of `ID.pieces` and `ID.state` is in the documentation of the private module `format`.
//!
//! # What survives a crash
//!
//! A piece counts in memory when its one `pwrite` has returned. A checkpoint copies the bits that are set, calls
//! `fdatasync` on the data and only then replaces `ID.state` (write, fsync, rename, fsync of the directory): a bit on
//! disk never covers bytes that a power cut could lose. Checkpoints run on a thread of the store and never hold up a
//! commit. Pieces written after the last checkpoint are found by `SEEK_DATA` when the content is next opened, and are
//! read back from the disk and verified before they count.
//!
//! Should `fdatasync` fail, Linux has dropped the dirty state of pages it could not write, and a later `fdatasync`
//! would succeed without them. The pieces since the last good checkpoint are therefore taken back: their ranges become
//! holes, they are missing again, and are fetched again. Reads that were under way look at the bits once more.
//!
//! # Locks
//!
//! In the order in which they may nest: a slot's gate (one per content: open, remove, link), a content's log (one
//! checkpoint at a time), a content's writers, the checkpoint queue, the map of slots. Readers take none of these.

mod bits;
mod checkpoint;
mod content;
mod disk;
mod error;
mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
mod opened;
mod recover;
mod slot;
mod store;
mod tree;
mod writeback;

pub use content::{Commit, Content};
pub use error::StoreError;
pub use store::{ContentInfo, EvictReport, Store, StoreOptions, StoreStats};
pub use tree::{TreeContent, TreeFile};
