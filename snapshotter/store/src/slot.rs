//! What the store remembers of each content on disk, open or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use towline_artifact::ContentId;

use crate::content::Content;
use crate::opened::Opened;

/// A content that is on disk, or about to be.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: ContentId,
    /// Length in bytes that its files say; proven once the last piece is there.
    pub(crate) len: u64,
    sealed: AtomicBool,
    gate: Mutex<Gate>,
    live: Mutex<Live>,
}

/// Whoever holds the gate may open, link, remove or replace the content's files.
#[derive(Debug)]
pub(crate) struct Gate {
    /// The slot left the map: look the id up again.
    pub(crate) dead: bool,
    /// The files exist.
    pub(crate) on_disk: bool,
    /// Every piece with data has a durable bit, for the last use ended in order and this is the first since.
    pub(crate) settled: bool,
    /// What an unclean end left beyond the state was looked at, or there was no unclean end.
    pub(crate) swept: bool,
}

#[derive(Debug, Default)]
struct Live {
    handle: Weak<Content>,
    opened: Weak<Opened>,
}

impl Slot {
    pub(crate) fn new(id: ContentId, len: u64, sealed: bool, gate: Gate) -> Self {
        Self { id, len, sealed: AtomicBool::new(sealed), gate: Mutex::new(gate), live: Mutex::default() }
    }

    pub(crate) fn gate(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }

    /// The gate, unless somebody is at it.
    pub(crate) fn try_gate(&self) -> Option<MutexGuard<'_, Gate>> {
        match self.gate.try_lock() {
            Ok(gate) => Some(gate),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn handle(&self) -> Option<Arc<Content>> {
        lock(&self.live).handle.upgrade()
    }

    /// The open file, which outlives the handle until its last pieces are durable.
    pub(crate) fn opened(&self) -> Option<Arc<Opened>> {
        lock(&self.live).opened.upgrade()
    }

    /// Only under the gate: two handles for one content must not come to be.
    pub(crate) fn set_live(&self, handle: &Arc<Content>, opened: &Arc<Opened>) {
        *lock(&self.live) = Live { handle: Arc::downgrade(handle), opened: Arc::downgrade(opened) };
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }
}

/// Locks whatever happened to the last holder: each critical section here leaves its data whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
