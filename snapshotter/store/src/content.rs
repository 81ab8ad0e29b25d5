//! One content as its users see it.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::Advice;
use towline_artifact::{ContentId, PieceIndex, PieceTable, VerifiedPiece};

use crate::error::StoreError;
use crate::opened::Opened;
use crate::store::touch;

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// The piece was written and counts from now on.
    New {
        /// It was the last missing one.
        complete: bool,
    },
    /// The piece was there, or another caller wrote it meanwhile; nothing was written.
    AlreadyHad,
}

/// One file's bytes on disk, open.
///
/// All methods may be called from any thread. Those that read or write block on the disk. While a handle lives the
/// content is not evicted.
#[derive(Debug)]
pub struct Content {
    opened: Arc<Opened>,
}

impl Content {
    pub(crate) fn new(opened: Arc<Opened>) -> Self {
        Self { opened }
    }

    /// The content's id.
    #[must_use]
    pub fn id(&self) -> ContentId {
        self.opened.id()
    }

    /// The digests its pieces are verified with.
    #[must_use]
    pub fn table(&self) -> &Arc<PieceTable> {
        self.opened.table()
    }

    /// Length of the file in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
    pub fn len(&self) -> u64 {
        self.table().file_len()
    }

    /// Number of pieces; 0 for an empty file.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        self.table().piece_count()
    }

    /// Whether a piece is there. Takes no lock; false beyond the last piece.
    #[must_use]
    pub fn has(&self, index: PieceIndex) -> bool {
        self.opened.have().get(index.0)
    }

    /// The first missing piece at or after `from`.
    #[must_use]
    pub fn next_missing(&self, from: PieceIndex) -> Option<PieceIndex> {
        self.opened.have().next_clear(from.0).map(PieceIndex)
    }

    /// The missing pieces of a half-open range, ascending. A piece that arrives while the iterator runs may or may not
    /// be in it.
    pub fn missing(&self, range: Range<PieceIndex>) -> impl Iterator<Item = PieceIndex> + '_ {
        let mut from = range.start;
        std::iter::from_fn(move || {
            let next = self.next_missing(from).filter(|next| *next < range.end)?;
            from = PieceIndex(next.0 + 1);
            Some(next)
        })
    }

    /// A copy of the bits: piece i is there when bit i mod 64 (1 is the lowest) of word i / 64 is set.
    #[must_use]
    pub fn have_words(&self) -> Vec<u64> {
        self.opened.have().snapshot()
    }

    /// Bytes in the pieces that are there.
    #[must_use]
    pub fn bytes_have(&self) -> u64 {
        self.opened.have_bytes()
    }

    /// Whether every piece is there. An empty file is complete from the start.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.opened.missing() == 0
    }

    /// Whether [`Content::seal`] has succeeded, in this run or an earlier one. Never turns false again.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.opened.is_sealed()
    }

    /// Writes a piece with one `pwrite` and makes it visible. It is durable after the next checkpoint.
    ///
    /// Different pieces are written in parallel. Callers with the same piece wait for the first and get
    /// [`Commit::AlreadyHad`], or write it themselves if the first failed.
    ///
    /// # Errors
    /// [`StoreError::Full`] and [`StoreError::Io`] when the piece could not be written: it does not count then, and
    /// may be committed again. [`StoreError::WrongPiece`] for a piece of another content.
    pub fn commit(&self, piece: &VerifiedPiece) -> Result<Commit, StoreError> {
        self.opened.commit(piece)
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a piece of the range is not there, [`StoreError::OutOfRange`] beyond the end,
    /// [`StoreError::Truncated`] and [`StoreError::Io`] when the disk does not give them. `buf` is unspecified then.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let content = self.id();
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(StoreError::OutOfRange { content, offset, len });
        }
        if buf.is_empty() { Ok(()) } else { self.opened.read_at(offset, buf) }
    }

    /// Makes a complete content final: its data durable, owner 0:0 (when run as root), mode 0644, time 0, then the
    /// mark that says so, durable. After this the file may be linked and passed through. Does nothing a second time.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`]; [`StoreError::Full`] and [`StoreError::Io`] when the disk refuses. If it refused
    /// to sync, pieces may be missing again.
    pub fn seal(&self) -> Result<(), StoreError> {
        self.opened.seal()
    }

    /// A read-only descriptor of the sealed file; none before it is sealed.
    #[must_use]
    pub fn sealed_file(&self) -> Option<Arc<File>> {
        self.is_sealed().then(|| self.opened.file())
    }

    /// A descriptor of the file, if it holds the piece, to send it from its own offset on without a copy. A piece that is
    /// taken back meanwhile, because the disk refused to make it durable, reads as zeros.
    #[must_use]
    pub fn file_with(&self, index: PieceIndex) -> Option<Arc<File>> {
        self.has(index).then(|| self.opened.file())
    }

    /// Lets the kernel drop the page cache of a byte range, for bytes that another cache holds. Only whole pages that
    /// are already on disk go; a range beyond the end does nothing.
    pub fn advise_dontneed(&self, range: Range<u64>) {
        if let Some(len) = range.end.checked_sub(range.start).and_then(NonZeroU64::new) {
            // Advice: nothing depends on it.
            let _ = rustix::fs::fadvise(&*self.opened.file(), range.start, Some(len), Advice::DontNeed);
        }
    }

    /// Makes the pieces that are there now durable: syncs the data, then records the bits.
    ///
    /// # Errors
    /// [`StoreError::Full`] and [`StoreError::Io`]; if the data could not be synced, the pieces since the last
    /// checkpoint are missing again.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.opened.checkpoint()
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        touch(self.opened.root(), self.id());
    }
}
