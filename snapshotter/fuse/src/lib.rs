//! The kernel side of a model mount: FUSE, errno, passthrough.
//!
//! One [`Mount`] serves all models of a node: its root holds one directory per model tree, and those come and go while
//! it is mounted. Whoever implements [`Tree`] says what is in the directories and answers reads; this crate speaks to
//! the kernel and is the only one that knows `fuser`, mount options, I/O modes and errno numbers.
//!
//! - `filesystem` turns requests into [`Tree`] calls and refuses everything that would modify.
//! - `io_mode` decides, per inode, whether an open is cached or passes through to the finished file (pure).
//! - `passthrough` registers finished files with the kernel and remembers whether that works on this node.
//! - `mount` mounts, tunes (`read_ahead`), clears what a crashed predecessor left, and unmounts when asked.
//!
//! What survives: the mount lives as long as somebody holds its `/dev/fuse` descriptor. Files opened in passthrough
//! mode go on being readable without it.
//!
//! **Never touch the mount from its own session threads.** A [`Tree`] method that opens, stats or lists a path below
//! the mount point waits for a request that only a session thread can answer; with all of them waiting, every reader on
//! the node hangs. The same holds for [`Mount::forget_entry`], which may wait for a lookup in progress.

mod attr;
mod errno;
mod filesystem;
mod io_mode;
mod listing;
mod mount;
mod passthrough;
mod read_ahead;
mod reply;
mod stale;
mod stats;
mod tree;

pub use errno::Errno;
pub use mount::{Mount, MountError, MountOptions, Unmounted};
pub use passthrough::PassthroughMode;
pub use reply::ReadReply;
pub use stats::{Op, Stats};
pub use tree::{Attr, DirEntry, Ino, Kind, Opened, ROOT, StatFs, Tree};
