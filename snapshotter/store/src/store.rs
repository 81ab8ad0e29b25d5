//! The store as a whole: which contents there are, who has them open, and which must go.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use towline_artifact::{ContentId, PieceTable};

use crate::checkpoint::{Checkpointer, Queue};
use crate::content::Content;
use crate::disk::{self, Root, disk_bytes};
use crate::error::{StoreError, doing};
use crate::format;
use crate::opened::{Found, Opened};
use crate::recover::{self, Fault, Probe};
use crate::slot::{Gate, Slot, lock};

/// How a store runs.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A content with this many bytes that are not durable is checkpointed at once.
    pub checkpoint_bytes: u64,
    /// Contents with fewer are checkpointed this often.
    pub checkpoint_interval: Duration,
}

impl Default for StoreOptions {
    /// 256 MiB and 5 s: what an unclean stop leaves to verify again takes well under a second to read.
    fn default() -> Self {
        Self { checkpoint_bytes: 256 << 20, checkpoint_interval: Duration::from_secs(5) }
    }
}

/// A content in the store, open or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its id.
    pub id: ContentId,
    /// Length of the file in bytes.
    pub len: u64,
    /// Bytes of disk that its data has now.
    pub bytes_on_disk: u64,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Whether somebody has it open.
    pub open: bool,
    /// Whether a tree links to it.
    pub linked: bool,
    /// When it was last opened or closed, by the clock of the file system.
    pub last_used: SystemTime,
}

/// What the store holds, and what it did since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Contents on disk.
    pub contents: u64,
    /// Sealed contents.
    pub sealed_contents: u64,
    /// Contents that somebody has open.
    pub open_contents: u64,
    /// Bytes of disk that contents have.
    pub content_bytes: u64,
    /// Bytes of disk that trees have beyond their links: small files and executable copies.
    pub tree_bytes: u64,
    /// Bytes of disk that quarantined contents have.
    pub quarantine_bytes: u64,
    /// Bytes of pieces that are not durable yet.
    pub dirty_bytes: u64,
    /// Pieces committed.
    pub committed_pieces: u64,
    /// Bytes committed.
    pub committed_bytes: u64,
    /// Pieces beyond a checkpoint that were found whole after an unclean end.
    pub recovered_pieces: u64,
    /// Pieces beyond a checkpoint that were found broken after an unclean end, and do not count.
    pub rejected_pieces: u64,
    /// Pieces that a failed sync took back.
    pub taken_back_pieces: u64,
    /// Checkpoints and seals that succeeded.
    pub checkpoints: u64,
    /// Checkpoints and seals that failed.
    pub checkpoint_failures: u64,
    /// Contents that were found damaged and moved aside.
    pub quarantined: u64,
}

/// What an eviction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvictReport {
    /// Evicted contents, least recently used first.
    pub evicted: Vec<ContentId>,
    /// Bytes of disk that were freed, quarantined contents included.
    pub freed_bytes: u64,
    /// Bytes of disk that the store has after it.
    pub used_bytes: u64,
    /// Contents that were kept because they are open, linked or in use.
    pub kept: usize,
}

/// All contents of a node. Clones are the same store.
///
/// Dropping the last clone stops the checkpoint thread without a last checkpoint, as a crash would;
/// [`Store::close`] is the orderly end. Open contents keep the directory locked until they are dropped too.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: Arc<Root>,
    slots: Mutex<HashMap<ContentId, Arc<Slot>>>,
    queue: Arc<Queue>,
    checkpointer: Checkpointer,
    /// One tree is built or removed at a time.
    pub(crate) trees: Mutex<()>,
}

impl Store {
    /// Opens the store in directory `root`, or makes one there, and starts its checkpoint thread.
    ///
    /// A content that is damaged is moved aside and counted; it never keeps the store from opening.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::NotAStore`], [`StoreError::Version`], and the system's refusals.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let (root, was_clean) = Root::open(root)?;
        let slots = Mutex::new(scan(&root, was_clean)?);
        crate::tree::remove_unfinished(&root)?;
        let queue = Arc::new(Queue::new(options.checkpoint_bytes));
        let checkpointer = Checkpointer::start(Arc::clone(&queue), options.checkpoint_interval)
            .map_err(doing("start", "checkpoint thread"))?;
        let inner = Inner { root: Arc::new(root), slots, queue, checkpointer, trees: Mutex::new(()) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Opens the content of `table`, or creates it. While a handle lives, everybody gets that one.
    ///
    /// After an unclean end this reads pieces beyond the last checkpoint and verifies them, which takes as long as
    /// the disk needs for them. A content found damaged is moved aside and created anew.
    ///
    /// # Errors
    /// [`StoreError::LengthConflict`] when the id is stored with another length that is proven or open, and the
    /// system's refusals.
    pub fn content(&self, table: Arc<PieceTable>) -> Result<Arc<Content>, StoreError> {
        let (id, len) = (table.content(), table.file_len());
        loop {
            let slot = self.slot_or_new(id, len);
            if let Some(content) = slot.handle() {
                return check_len(content, len);
            }
            let mut gate = slot.gate();
            if gate.dead {
                continue;
            }
            if let Some(content) = slot.handle() {
                return check_len(content, len);
            }
            if slot.len != len {
                self.discard_unproven(&slot, &mut gate, len)?;
                continue;
            }
            let opened = match slot.opened() {
                Some(opened) => opened,
                None => self.open_files(&slot, &mut gate, table)?,
            };
            let content = Arc::new(Content::new(Arc::clone(&opened)));
            slot.set_live(&content, &opened);
            touch(&self.inner.root, id);
            return Ok(content);
        }
    }

    /// Opens a content that is on disk by its id alone; none if there is none.
    ///
    /// # Errors
    /// As [`Store::content`].
    pub fn get(&self, id: ContentId) -> Result<Option<Arc<Content>>, StoreError> {
        let Some(slot) = self.slot(id) else { return Ok(None) };
        if let Some(content) = slot.handle() {
            return Ok(Some(content));
        }
        match recover::read_table(&self.inner.root, id) {
            Ok(table) => self.content(Arc::new(table)).map(Some),
            Err(Fault::Refused(error)) => Err(error),
            Err(Fault::Damaged(damage)) => {
                let mut gate = slot.gate();
                // Whoever holds the files open does not need the damaged one; removal and re-creation look like this
                // from here, too.
                if !gate.dead && slot.opened().is_none() {
                    self.inner.root.quarantine(id, &damage)?;
                    self.bury(&slot, &mut gate);
                }
                Ok(None)
            }
        }
    }

    fn open_files(
        &self,
        slot: &Arc<Slot>,
        gate: &mut Gate,
        table: Arc<PieceTable>,
    ) -> Result<Arc<Opened>, StoreError> {
        let root = &self.inner.root;
        let found = if gate.on_disk {
            match recover::load(root, &table, gate.settled) {
                Ok(found) => found,
                Err(Fault::Refused(error)) => return Err(error),
                Err(Fault::Damaged(damage)) => {
                    root.quarantine(table.content(), &damage)?;
                    self.create(slot, gate, &table)?
                }
            }
        } else {
            self.create(slot, gate, &table)?
        };
        gate.on_disk = true;
        gate.settled = false;
        gate.swept = true;
        let (root, slot, queue) = (Arc::clone(root), Arc::clone(slot), Arc::clone(&self.inner.queue));
        let opened = Arc::new(Opened::new(table, root, slot, queue, found));
        opened.enqueue_recovered();
        Ok(opened)
    }

    /// Makes a content's files. The first checkpoint makes them durable; until then a power cut may undo them.
    fn create(&self, slot: &Arc<Slot>, gate: &mut Gate, table: &PieceTable) -> Result<Found, StoreError> {
        let root = &self.inner.root;
        let id = table.content();
        let path = root.data(id);
        let make = || {
            // Files that the start had to skip may be there: a state must not outlive its data.
            if disk::remove_file(&root.state(id))? {
                disk::sync_dir(&root.shard_of(id))?;
            }
            disk::replace_later_durable(&root.pieces(id), &format::encode_pieces(table))?;
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(doing("create", path.display()))?;
            file.set_len(table.file_len()).map_err(doing("set length of", path.display()))?;
            Ok(Found { file, state: None, recovered: Vec::new() })
        };
        make().inspect_err(|_| {
            // Nothing of it may stay, or the next attempt finds a half.
            let _ = root.delete(id);
            gate.on_disk = false;
            self.bury(slot, gate);
        })
    }

    /// A length that no piece proves gives way to another claim: it may be a lie, and its pieces are few or useless.
    fn discard_unproven(&self, slot: &Arc<Slot>, gate: &mut Gate, asked: u64) -> Result<(), StoreError> {
        let conflict = StoreError::LengthConflict { content: slot.id, stored: slot.len, asked };
        let opened = slot.opened();
        let proven = match &opened {
            Some(opened) => opened.len_is_proven(),
            None => {
                slot.is_sealed()
                    || match recover::read_state(&self.inner.root, slot.id) {
                        Ok(state) => state.is_some_and(|state| recover::len_is_proven(&state)),
                        Err(Fault::Refused(error)) => return Err(error),
                        Err(Fault::Damaged(_)) => false,
                    }
            }
        };
        if proven {
            return Err(conflict);
        }
        self.delete(slot, gate, opened.as_deref()).map(drop)
    }

    /// Stops the checkpoints of an open file, deletes the files and forgets the slot.
    fn delete(&self, slot: &Arc<Slot>, gate: &mut Gate, opened: Option<&Opened>) -> Result<u64, StoreError> {
        if let Some(opened) = opened {
            opened.abandon();
        }
        let freed = self.inner.root.delete(slot.id)?;
        self.bury(slot, gate);
        Ok(freed)
    }

    fn bury(&self, slot: &Arc<Slot>, gate: &mut Gate) {
        gate.dead = true;
        lock(&self.inner.slots).remove(&slot.id);
    }

    pub(crate) fn slot(&self, id: ContentId) -> Option<Arc<Slot>> {
        lock(&self.inner.slots).get(&id).cloned()
    }

    fn slot_or_new(&self, id: ContentId, len: u64) -> Arc<Slot> {
        let fresh =
            || Slot::new(id, len, false, Gate { dead: false, on_disk: false, settled: false, swept: true });
        Arc::clone(lock(&self.inner.slots).entry(id).or_insert_with(|| Arc::new(fresh())))
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.inner.slots).values().cloned().collect()
    }

    /// All contents on disk, least recently used first.
    #[must_use]
    pub fn contents(&self) -> Vec<ContentInfo> {
        let mut infos: Vec<ContentInfo> = self.slots().iter().filter_map(|slot| self.info(slot)).collect();
        infos.sort_by_key(|info| (info.last_used, info.id));
        infos
    }

    /// None for a content whose files are not there yet, or no more.
    fn info(&self, slot: &Slot) -> Option<ContentInfo> {
        let root = &self.inner.root;
        let data = fs::symlink_metadata(root.data(slot.id)).ok()?;
        let last_used = fs::symlink_metadata(root.pieces(slot.id)).ok()?.modified().ok()?;
        Some(ContentInfo {
            id: slot.id,
            len: slot.len,
            bytes_on_disk: disk_bytes(&data),
            sealed: slot.is_sealed(),
            open: slot.handle().is_some(),
            linked: data.nlink() > 1,
            last_used,
        })
    }

    /// Figures for people and metrics. Asks the file system about every content.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let (contents, root) = (self.contents(), &self.inner.root);
        let counters = &root.counters;
        let count = |pick: fn(&ContentInfo) -> bool| contents.iter().filter(|info| pick(info)).count() as u64;
        StoreStats {
            contents: contents.len() as u64,
            sealed_contents: count(|info| info.sealed),
            open_contents: count(|info| info.open),
            content_bytes: contents.iter().map(|info| info.bytes_on_disk).sum(),
            tree_bytes: disk::own_bytes_below(&root.trees()),
            quarantine_bytes: root.quarantine_bytes(),
            dirty_bytes: self.inner.queue.dirty().iter().map(|opened| opened.dirty_bytes()).sum(),
            committed_pieces: counters.committed_pieces.load(Ordering::Relaxed),
            committed_bytes: counters.committed_bytes.load(Ordering::Relaxed),
            recovered_pieces: counters.recovered_pieces.load(Ordering::Relaxed),
            rejected_pieces: counters.rejected_pieces.load(Ordering::Relaxed),
            taken_back_pieces: counters.taken_back_pieces.load(Ordering::Relaxed),
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            checkpoint_failures: counters.checkpoint_failures.load(Ordering::Relaxed),
            quarantined: counters.quarantined.load(Ordering::Relaxed),
        }
    }

    /// Bytes that the file system could still take.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it does not say.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.inner.root.free_bytes()
    }

    /// Frees disk until the store has at most `target_bytes`: quarantined contents first, then contents, least
    /// recently used first. Contents that are open, linked by a tree, or `in_use` stay, so the target may be missed.
    ///
    /// `in_use` is asked under the content's lock and must not call the store.
    pub fn evict(&self, target_bytes: u64, in_use: &dyn Fn(ContentId) -> bool) -> EvictReport {
        let root = &self.inner.root;
        let contents = self.contents();
        let content_bytes: u64 = contents.iter().map(|info| info.bytes_on_disk).sum();
        let quarantine_bytes = root.quarantine_bytes();
        let used_bytes = content_bytes + quarantine_bytes + disk::own_bytes_below(&root.trees());
        let mut report = EvictReport { used_bytes, ..EvictReport::default() };
        if used_bytes > target_bytes && quarantine_bytes > 0 {
            log_failure(root.trim_quarantine(0), "quarantine not emptied");
            report.free(quarantine_bytes - root.quarantine_bytes());
        }
        for info in contents {
            if report.used_bytes <= target_bytes {
                break;
            }
            match self.evict_one(&info, in_use) {
                Some(freed) => {
                    report.free(freed);
                    report.evicted.push(info.id);
                }
                None => report.kept += 1,
            }
        }
        report
    }

    fn evict_one(&self, info: &ContentInfo, in_use: &dyn Fn(ContentId) -> bool) -> Option<u64> {
        let slot = self.slot(info.id)?;
        let mut gate = slot.try_gate()?;
        if gate.dead || slot.handle().is_some() || self.info(&slot)?.linked || in_use(info.id) {
            return None;
        }
        let opened = slot.opened();
        match self.delete(&slot, &mut gate, opened.as_deref()) {
            Ok(freed) => Some(freed),
            Err(error) => {
                log_failure(Err(error), "content not evicted");
                None
            }
        }
    }

    /// Removes a content. Trees that link to it keep its bytes. Returns the bytes of disk freed; 0 for an unknown id.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while it is open; [`StoreError::Io`].
    pub fn remove(&self, id: ContentId) -> Result<u64, StoreError> {
        let Some(slot) = self.slot(id) else { return Ok(0) };
        let mut gate = slot.gate();
        if gate.dead {
            return Ok(0);
        }
        if slot.handle().is_some() {
            return Err(StoreError::InUse { content: id });
        }
        let opened = slot.opened();
        self.delete(&slot, &mut gate, opened.as_deref())
    }

    /// Makes every piece that is there now durable.
    ///
    /// # Errors
    /// The first failure; the other contents are checkpointed all the same.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.queue.checkpoint_all()
    }

    /// The orderly end: stops the checkpoint thread, makes everything durable and says so on disk.
    ///
    /// The next open then has nothing to verify. Pieces committed after this work as usual, but are durable only
    /// after a checkpoint that the caller asks for.
    ///
    /// # Errors
    /// As [`Store::checkpoint`]; the next open then treats this end as unclean.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.checkpointer.stop();
        self.checkpoint()?;
        // What an earlier unclean end left of contents that nobody opened since is still to be looked at.
        if self.slots().iter().all(|slot| slot.gate().swept) { self.inner.root.mark_clean() } else { Ok(()) }
    }
}

impl EvictReport {
    fn free(&mut self, bytes: u64) {
        self.freed_bytes += bytes;
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }
}

/// Takes stock of the directory: moves damaged contents aside, removes remains.
fn scan(root: &Root, was_clean: bool) -> Result<HashMap<ContentId, Arc<Slot>>, StoreError> {
    let (ids, remains) = recover::list(root)?;
    for path in remains {
        log_failure(disk::remove_file(&path).map(drop), "remains of a write not removed");
    }
    let mut slots = HashMap::new();
    for id in ids {
        match recover::probe(root, id) {
            Ok(Probe::Usable { len, sealed }) => {
                let gate = Gate { dead: false, on_disk: true, settled: was_clean, swept: was_clean };
                slots.insert(id, Arc::new(Slot::new(id, len, sealed, gate)));
            }
            Ok(Probe::Unfinished) => log_failure(root.delete(id).map(drop), "unfinished content not removed"),
            Err(Fault::Damaged(damage)) => {
                log_failure(root.quarantine(id, &damage), "damaged content not moved aside");
            }
            Err(Fault::Refused(error)) => log_failure(Err(error), "content skipped"),
        }
    }
    Ok(slots)
}

/// For work that one content must not stop: the failure is told, and the content stays as it is.
fn log_failure(result: Result<(), StoreError>, what: &'static str) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "{what}");
    }
}

fn check_len(content: Arc<Content>, asked: u64) -> Result<Arc<Content>, StoreError> {
    if content.len() == asked {
        return Ok(content);
    }
    Err(StoreError::LengthConflict { content: content.id(), stored: content.len(), asked })
}

/// Notes that a content is used now. The order of eviction is all that depends on it.
pub(crate) fn touch(root: &Root, id: ContentId) {
    let now = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
    };
    let _ = rustix::fs::utimensat(CWD, root.pieces(id), &now, AtFlags::SYMLINK_NOFOLLOW);
}
