//! Directory listings: what an open directory shows, and what an offset into it means.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::FileHandle;

use crate::{DirEntry, Ino, Kind, ROOT};

/// Listings in progress: the snapshot each open directory shows, so that offsets stay right while names come and go.
#[derive(Default)]
pub(crate) struct Listings {
    by_handle: Mutex<HashMap<u64, Arc<[DirEntry]>>>,
    last_handle: AtomicU64,
}

impl Listings {
    pub(crate) fn add(&self, entries: Arc<[DirEntry]>) -> u64 {
        let handle = self.last_handle.fetch_add(1, Relaxed) + 1;
        self.lock().insert(handle, entries);
        handle
    }

    pub(crate) fn get(&self, handle: FileHandle) -> Option<Arc<[DirEntry]>> {
        self.lock().get(&handle.0).cloned()
    }

    pub(crate) fn remove(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<[DirEntry]>>> {
        self.by_handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed<'a> {
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
    pub(crate) name: &'a str,
}

/// The rest of a listing: each entry with the offset that continues after it. Offset 0 is the beginning, and entry `n`
/// (with `.` and `..` first) continues at `n + 1`, so that an offset means the same however the listing was cut.
///
/// `..` always has the number of the root: a tree does not know parents, and the kernel takes them from its own tree of
/// names; only who reads `d_ino` of `..` below a model's first level sees it.
pub(crate) fn from_offset(
    ino: Ino,
    entries: &[DirEntry],
    offset: u64,
) -> impl Iterator<Item = (u64, Listed<'_>)> {
    let dots = [(ino, "."), (ROOT, "..")];
    let dots = dots.into_iter().map(|(ino, name)| Listed { ino, kind: Kind::Directory, name });
    let named = entries.iter().map(|entry| Listed { ino: entry.ino, kind: entry.kind, name: &entry.name });
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    (1..).zip(dots.chain(named)).skip(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(entries: &[DirEntry], offset: u64) -> Vec<(u64, &str)> {
        from_offset(9, entries, offset).map(|(next, entry)| (next, entry.name)).collect()
    }

    #[test]
    fn a_listing_continues_where_its_offset_says() {
        let entry = |ino, name: &str| DirEntry { ino, kind: Kind::File, name: name.to_owned() };
        let entries = [entry(2, "a"), entry(3, "b")];
        let all = [(1, "."), (2, ".."), (3, "a"), (4, "b")];
        for (cut, _) in all.iter().enumerate() {
            assert_eq!(names(&entries, cut as u64), all[cut..]);
        }
        assert_eq!(names(&entries, 4), []);
        assert_eq!(names(&entries, u64::MAX), []);
        assert_eq!(names(&[], 0), all[..2]);
    }
}
