//! What a mount shows: the seam between the kernel and whoever has the files.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use crate::{Errno, ReadReply};

/// Number of a file or directory within one mount. Never given to anything else while the mount lives, and the same
/// after the daemon restarts: the kernel remembers it. 0 is not a number.
pub type Ino = u64;

/// The root directory, which holds one directory per model tree.
pub const ROOT: Ino = 1;

/// What an inode is. Model trees hold nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory, mode 0755.
    Directory,
    /// A regular file, mode 0644, or 0755 if executable.
    File,
}

/// What `stat` says. Everything else is canonical: owner 0:0, all times 0, blocks from the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Length in bytes; never changes for a file.
    pub size: u64,
    /// Whether a file has mode 0755 instead of 0644. No meaning for directories.
    pub executable: bool,
    /// Number of hard links.
    pub links: u32,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode the name leads to.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// The name: not empty, no `/`, no NUL, at most 255 bytes.
    pub name: String,
}

/// What [`Tree::open`] gives.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// The whole file if all of it is durable and verified: plain bytes from offset 0, open for reading. The kernel may
    /// then read it without us, so it must never change again.
    pub sealed: Option<Arc<File>>,
}

/// Space and files, as `statfs` reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// Bytes of it that are free.
    pub free_bytes: u64,
    /// How many files there are.
    pub files: u64,
}

/// The files and directories of a mount.
///
/// Methods are called from the session threads, several at once, and must not wait for anything but memory and local
/// disk, nor touch the mount itself (see the crate's documentation). A panic in one becomes `EIO` for that request.
///
/// Everything below a directory of the root is immutable: the kernel keeps names, attributes and bytes for as long as it
/// likes. Only the names in the root may come and go; see [`Mount::forget_entry`](crate::Mount::forget_entry).
pub trait Tree: Send + Sync + 'static {
    /// The attributes of `name` in the directory `parent`.
    ///
    /// # Errors
    /// `ENOENT` if there is no such name (the kernel does not remember that), `ENOTDIR` if `parent` is a file.
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, Errno>;

    /// The attributes of `ino`; of an open file also after its name is gone.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode any more.
    fn attr(&self, ino: Ino) -> Result<Attr, Errno>;

    /// The names in the directory `ino`, sorted by name, without `.` and `..` (added by this crate): a snapshot, which a
    /// listing in progress keeps.
    ///
    /// # Errors
    /// `ENOTDIR` if `ino` is a file, `ESTALE` if there is no such inode any more.
    fn entries(&self, ino: Ino) -> Result<Arc<[DirEntry]>, Errno>;

    /// Somebody opens the file `ino` for reading.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `ESTALE` if there is no such inode any more; others reach the opener as they are.
    fn open(&self, ino: Ino) -> Result<Opened, Errno>;

    /// An open of `ino` has ended, mappings included. Called once for every [`Tree::open`] that succeeded, at the latest
    /// when the session ends.
    fn released(&self, ino: Ino);

    /// Reads `len` bytes at `offset`. Never asked for bytes past the end, and never for none.
    ///
    /// Must not wait for the network: either answer at once, or keep `reply` and answer later from any thread. Exactly
    /// `len` bytes have to be given.
    ///
    /// Every read has to be answered some time, with an error if need be. A process that waits for buffered bytes or in
    /// a page fault can be killed meanwhile; one that waits for an `O_DIRECT` read cannot, because the kernel does not
    /// give up a request that was taken.
    fn read(&self, ino: Ino, offset: u64, len: u32, reply: ReadReply);

    /// What `df` shows.
    fn statfs(&self) -> StatFs;
}
