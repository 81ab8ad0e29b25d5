//! One open content: its file, its bits, and how a piece gets from a buffer to a durable bit.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::UNIX_EPOCH;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::process::{Gid, Uid};
use towline_artifact::{ContentId, PIECE_LEN, PieceIndex, PieceTable, VerifiedPiece};

use crate::bits::{self, AtomicBits};
use crate::checkpoint::Queue;
use crate::content::Commit;
use crate::disk::{self, Root};
use crate::error::{StoreError, doing};
use crate::format::{self, State};
use crate::slot::{Slot, lock};
use crate::writeback;

#[derive(Debug)]
pub(crate) struct Opened {
    table: Arc<PieceTable>,
    root: Arc<Root>,
    slot: Arc<Slot>,
    queue: Arc<Queue>,
    /// Read and write until sealed, read only after.
    file: RwLock<Arc<File>>,
    have: AtomicBits,
    missing: AtomicU32,
    have_bytes: AtomicU64,
    /// Bytes of pieces that are there and not durable.
    dirty_bytes: AtomicU64,
    /// Counts the times that pieces were taken back. Changes under the writers' lock, before any bit is cleared. What
    /// was written or read across a change may be lost, or a hole.
    failed_syncs: AtomicU64,
    sealed: AtomicBool,
    log: Mutex<Log>,
    /// Pieces that somebody is writing.
    writers: Mutex<HashSet<u32>>,
    writer_left: Condvar,
}

/// What is durable. The lock makes checkpoints of one content take turns.
#[derive(Debug)]
struct Log {
    durable: Vec<u64>,
    /// A state file with `durable` was written, so the piece table is durable too.
    recorded: bool,
    /// The content's files are gone, or going.
    removed: bool,
    /// The last checkpoint failed; the next failure is not news.
    failing: bool,
}

/// The right to write one piece, given back when dropped.
struct Claim<'a> {
    opened: &'a Opened,
    index: PieceIndex,
    failed_syncs: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.opened.writers).remove(&self.index.0);
        self.opened.writer_left.notify_all();
    }
}

/// What an open found on disk.
pub(crate) struct Found {
    pub(crate) file: File,
    /// What the state file says; none before the first checkpoint.
    pub(crate) state: Option<State>,
    /// Pieces that were read back and verified just now.
    pub(crate) recovered: Vec<u32>,
}

impl Opened {
    pub(crate) fn new(
        table: Arc<PieceTable>,
        root: Arc<Root>,
        slot: Arc<Slot>,
        queue: Arc<Queue>,
        found: Found,
    ) -> Self {
        let count = table.piece_count();
        let recorded = found.state.is_some();
        let sealed = found.state.as_ref().is_some_and(|state| state.sealed);
        let durable = found.state.map_or_else(|| vec![0; bits::words_for(count)], |state| state.durable);
        let have = AtomicBits::from_words(durable.clone(), count);
        let recovered_bytes =
            found.recovered.iter().filter(|index| have.set(**index)).map(|index| len_of(&table, *index));
        let dirty_bytes = recovered_bytes.sum();
        let there = (0..count).filter(|index| have.get(*index));
        let (pieces, bytes) =
            there.fold((0, 0), |(pieces, bytes), index| (pieces + 1, bytes + len_of(&table, index)));
        Self {
            root,
            slot,
            queue,
            file: RwLock::new(Arc::new(found.file)),
            have,
            missing: AtomicU32::new(count - pieces),
            have_bytes: AtomicU64::new(bytes),
            dirty_bytes: AtomicU64::new(dirty_bytes),
            failed_syncs: AtomicU64::new(0),
            sealed: AtomicBool::new(sealed),
            log: Mutex::new(Log { durable, recorded, removed: false, failing: false }),
            writers: Mutex::default(),
            writer_left: Condvar::new(),
            table,
        }
    }

    pub(crate) fn id(&self) -> ContentId {
        self.table.content()
    }

    pub(crate) fn table(&self) -> &Arc<PieceTable> {
        &self.table
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn have(&self) -> &AtomicBits {
        &self.have
    }

    pub(crate) fn missing(&self) -> u32 {
        self.missing.load(Ordering::Acquire)
    }

    pub(crate) fn have_bytes(&self) -> u64 {
        self.have_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Acquire)
    }

    fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(Ordering::SeqCst)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fills a non-empty `buf` from `offset`; the range lies within the file.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let (content, len) = (self.id(), buf.len() as u64);
        let (first, last) = (PieceIndex::containing(offset), PieceIndex::containing(offset + len - 1));
        loop {
            let failed_syncs = self.failed_syncs();
            if let Some(piece) = (first.0..=last.0).find(|piece| !self.have.get(*piece)) {
                return Err(StoreError::Missing { content, piece: PieceIndex(piece) });
            }
            let read = self.file().read_exact_at(buf, offset);
            if failed_syncs != self.failed_syncs() {
                // A piece may have become a hole between the look at its bit and the read.
                continue;
            }
            return read.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => StoreError::Truncated { content },
                _ => doing("read", format_args!("{len} bytes at {offset} of content {content}"))(error),
            });
        }
    }

    /// Whether the last piece is there: no other length has it, so the content's length is right.
    pub(crate) fn len_is_proven(&self) -> bool {
        self.table.piece_count().checked_sub(1).is_none_or(|last| self.have.get(last))
    }

    pub(crate) fn commit(self: &Arc<Self>, piece: &VerifiedPiece) -> Result<Commit, StoreError> {
        let index = piece.index();
        if !self.owns(piece) {
            return Err(StoreError::WrongPiece { content: self.id(), found: piece.content(), piece: index });
        }
        if self.have.get(index.0) {
            return Ok(Commit::AlreadyHad);
        }
        let Some(mut claim) = self.claim(index) else { return Ok(Commit::AlreadyHad) };
        let (before, complete) = loop {
            self.write(piece)?;
            if let Some(published) = self.publish(&mut claim, piece.bytes().len() as u64) {
                break published;
            }
        };
        drop(claim);
        let len = piece.bytes().len() as u64;
        writeback::start(&self.file(), index.offset(), len);
        self.root.counters.committed_pieces.fetch_add(1, Ordering::Relaxed);
        self.root.counters.committed_bytes.fetch_add(len, Ordering::Relaxed);
        self.queue.grew(self, before, before + len);
        Ok(Commit::New { complete })
    }

    /// Same id, and a place and length that this content's table has: a table that claims another length verifies
    /// pieces too, all but the last.
    fn owns(&self, piece: &VerifiedPiece) -> bool {
        piece.content() == self.id()
            && piece.index().0 < self.table.piece_count()
            && piece.bytes().len() as u64 == len_of(&self.table, piece.index().0)
    }

    /// Waits until nobody else writes the piece; none if it is there then.
    fn claim(&self, index: PieceIndex) -> Option<Claim<'_>> {
        let mut writers = lock(&self.writers);
        loop {
            if self.have.get(index.0) {
                return None;
            }
            if writers.insert(index.0) {
                return Some(Claim { opened: self, index, failed_syncs: self.failed_syncs() });
            }
            writers = self.writer_left.wait(writers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, piece: &VerifiedPiece) -> Result<(), StoreError> {
        let (index, file) = (piece.index(), self.file());
        file.write_all_at(piece.bytes(), index.offset()).map_err(|error| {
            // A full disk gets back what it gave to half a piece.
            self.empty(index.0);
            doing("write", format_args!("piece {index} of content {}", self.id()))(error)
        })
    }

    /// Makes a hole of a piece that does not count, dropping its pages and its blocks. Best effort: where there are
    /// no holes, at least the pages go.
    fn empty(&self, index: u32) {
        let (file, offset, len) = (self.file(), PieceIndex(index).offset(), len_of(&self.table, index));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&*file, hole, offset, len).is_err() {
            let _ = rustix::fs::fadvise(&*file, offset, NonZeroU64::new(len), Advice::DontNeed);
        }
    }

    /// Sets the piece's bit, unless a sync failed since the claim was made: then the bytes must be written again.
    /// Returns the dirty bytes before, and whether this was the last missing piece.
    fn publish(&self, claim: &mut Claim<'_>, len: u64) -> Option<(u64, bool)> {
        let _writers = lock(&self.writers);
        let failed_syncs = self.failed_syncs();
        if failed_syncs != claim.failed_syncs {
            claim.failed_syncs = failed_syncs;
            self.empty(claim.index.0);
            return None;
        }
        assert!(self.have.set(claim.index.0), "a claimed piece has one writer");
        self.have_bytes.fetch_add(len, Ordering::AcqRel);
        // After the bit: a checkpoint that counts these bytes as done has the bit in its copy.
        let before = self.dirty_bytes.fetch_add(len, Ordering::AcqRel);
        Some((before, self.missing.fetch_sub(1, Ordering::AcqRel) == 1))
    }

    pub(crate) fn checkpoint(&self) -> Result<(), StoreError> {
        let mut log = lock(&self.log);
        let counted = self.dirty_bytes();
        if log.removed || self.is_sealed() || counted == 0 {
            self.queue.settle(self);
            return Ok(());
        }
        let bits = self.have.snapshot();
        let result = self.sync_data(&log).and_then(|()| self.record(&mut log, bits, false));
        self.after_checkpoint(&mut log, &result);
        if result.is_ok() {
            self.dirty_bytes.fetch_sub(counted, Ordering::AcqRel);
        }
        self.queue.settle(self);
        result
    }

    fn after_checkpoint(&self, log: &mut Log, result: &Result<(), StoreError>) {
        let counters = &self.root.counters;
        match result {
            Ok(()) => {
                counters.checkpoints.fetch_add(1, Ordering::Relaxed);
                log.failing = false;
            }
            Err(error) => {
                counters.checkpoint_failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut log.failing, true) {
                    tracing::warn!(content = %self.id(), error = error as &dyn std::error::Error, "checkpoint failed");
                }
            }
        }
    }

    fn sync_data(&self, log: &Log) -> Result<(), StoreError> {
        self.file().sync_data().map_err(|error| {
            self.take_back(&log.durable);
            doing("sync", format_args!("data of content {}", self.id()))(error)
        })
    }

    /// After a failed sync: pieces that are not durable are missing again (see the crate's "What survives a crash").
    fn take_back(&self, durable: &[u64]) {
        let writers = lock(&self.writers);
        self.failed_syncs.fetch_add(1, Ordering::SeqCst);
        let gone = self.have.retain(durable);
        // Measured on ext4 (Linux 6.18): after a write-back error, pages that stay cached over extents that were never
        // converted can be written again and synced without error, and read as zeros later. Holes start afresh.
        gone.iter().for_each(|index| self.empty(*index));
        let bytes = gone.iter().map(|index| len_of(&self.table, *index)).sum();
        self.missing.fetch_add(gone.len() as u32, Ordering::AcqRel);
        self.have_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.dirty_bytes.store(0, Ordering::Release);
        drop(writers);
        self.root.counters.taken_back_pieces.fetch_add(gone.len() as u64, Ordering::Relaxed);
    }

    /// Replaces the state file. The data of the pieces in `bits` is durable already.
    fn record(&self, log: &mut Log, bits: Vec<u64>, sealed: bool) -> Result<(), StoreError> {
        let id = self.id();
        if !log.recorded {
            let pieces = self.root.pieces(id);
            File::open(&pieces).and_then(|file| file.sync_all()).map_err(doing("sync", pieces.display()))?;
        }
        let state = State { file_len: self.table.file_len(), sealed, durable: bits };
        disk::replace(&self.root.state(id), &format::encode_state(id, &state))?;
        disk::sync_dir(&self.root.shard_of(id))?;
        log.durable = state.durable;
        log.recorded = true;
        Ok(())
    }

    pub(crate) fn seal(&self) -> Result<(), StoreError> {
        let mut log = lock(&self.log);
        if self.is_sealed() {
            return Ok(());
        }
        if log.removed {
            return Err(StoreError::NotSealed { content: self.id() });
        }
        let missing = self.missing();
        if missing > 0 {
            return Err(StoreError::Incomplete { content: self.id(), missing });
        }
        let result = self.sync_and_seal(&mut log);
        self.after_checkpoint(&mut log, &result);
        if result.is_ok() {
            self.dirty_bytes.store(0, Ordering::Release);
            self.slot.set_sealed();
            self.sealed.store(true, Ordering::Release);
        }
        self.queue.settle(self);
        result
    }

    /// No commit can be writing: every piece is there.
    fn sync_and_seal(&self, log: &mut Log) -> Result<(), StoreError> {
        let path = self.root.data(self.id());
        let bits = self.have.snapshot();
        make_canonical(&self.file(), 0o644).map_err(doing("seal", path.display()))?;
        // All of the file, not only its data: mode, owner and time are what every model sees.
        self.file().sync_all().map_err(|error| {
            self.take_back(&log.durable);
            doing("sync", path.display())(error)
        })?;
        let read_only = open_data(&path, true).map_err(doing("open", path.display()))?;
        self.record(log, bits, true)?;
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read_only);
        Ok(())
    }

    /// Stops checkpoints for good before the files go; waits for a running one.
    pub(crate) fn abandon(&self) {
        lock(&self.log).removed = true;
        self.queue.forget(self.id());
    }

    /// Queues what an open recovered.
    pub(crate) fn enqueue_recovered(self: &Arc<Self>) {
        let dirty = self.dirty_bytes();
        if dirty > 0 {
            self.queue.grew(self, 0, dirty);
        }
    }
}

/// Length in bytes of piece `index`, which the table has.
pub(crate) fn len_of(table: &PieceTable, index: u32) -> u64 {
    PIECE_LEN.min(table.file_len() - PieceIndex(index).offset())
}

/// Opens a content's data; a symbolic link in its place is refused.
pub(crate) fn open_data(path: &std::path::Path, read_only: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// Gives a file the owner, time and mode that it has in every image, so that one inode serves all of them.
pub(crate) fn make_canonical(file: &File, mode: u32) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(file, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_times(fs::FileTimes::new().set_modified(UNIX_EPOCH))
}
