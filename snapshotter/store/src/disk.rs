//! The store's directory: where things lie, who may use it, and writes that a power cut leaves whole or undone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use towline_artifact::ContentId;

use crate::error::{StoreError, doing, quoted};
use crate::format::Damage;

/// What the `version` file says.
const LAYOUT: &str = "towline-store 1\n";

/// More damaged contents than this are not kept for inspection; the oldest go first.
const MAX_QUARANTINED: usize = 16;

/// What the store counted since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) committed_pieces: AtomicU64,
    pub(crate) committed_bytes: AtomicU64,
    pub(crate) recovered_pieces: AtomicU64,
    pub(crate) rejected_pieces: AtomicU64,
    pub(crate) taken_back_pieces: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) checkpoint_failures: AtomicU64,
    pub(crate) quarantined: AtomicU64,
}

/// The directory, locked. Everything that can still write to it holds this, so the lock goes last.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    pub(crate) counters: Counters,
    _lock: Lock,
}

impl Root {
    /// Creates or opens the directory and locks it. Also tells whether the last use ended with [`Root::mark_clean`];
    /// that mark is durably gone when this returns.
    pub(crate) fn open(path: &Path) -> Result<(Self, bool), StoreError> {
        private_dir().recursive(true).create(path).map_err(doing("create", path.display()))?;
        refuse_foreign(path)?;
        let lock = lock(path)?;
        let root = Self { path: path.to_path_buf(), counters: Counters::default(), _lock: lock };
        root.check_version()?;
        for dir in ["content", "trees", "quarantine"] {
            ensure_dir(&path.join(dir))?;
        }
        // All shards at once: no content has to make its own directory durable.
        for shard in 0..=u8::MAX {
            ensure_dir(&root.shard(shard))?;
        }
        sync_dir(&path.join("content"))?;
        let clean = path.join("clean");
        let was_clean = remove_file(&clean)?;
        sync_dir(path)?;
        Ok((root, was_clean))
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let file = self.path.join("version");
        match read_at_most(&file, 4096) {
            Ok(bytes) if bytes == LAYOUT.as_bytes() => Ok(()),
            Ok(bytes) => Err(StoreError::Version {
                root: self.path.clone(),
                found: quoted(String::from_utf8_lossy(&bytes).trim_end()),
                known: LAYOUT.trim_end(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace(&file, LAYOUT.as_bytes())?;
                sync_dir(&self.path)
            }
            Err(error) => Err(doing("read", file.display())(error)),
        }
    }

    pub(crate) fn shard(&self, first_byte: u8) -> PathBuf {
        self.path.join("content").join(hex::encode([first_byte]))
    }

    pub(crate) fn shard_of(&self, id: ContentId) -> PathBuf {
        self.shard(id.0[0])
    }

    pub(crate) fn data(&self, id: ContentId) -> PathBuf {
        self.shard_of(id).join(id.to_string())
    }

    pub(crate) fn pieces(&self, id: ContentId) -> PathBuf {
        self.shard_of(id).join(format!("{id}.pieces"))
    }

    pub(crate) fn state(&self, id: ContentId) -> PathBuf {
        self.shard_of(id).join(format!("{id}.state"))
    }

    pub(crate) fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    /// Bytes that an ordinary user could still write.
    pub(crate) fn free_bytes(&self) -> Result<u64, StoreError> {
        let stat =
            rustix::fs::statvfs(&self.path).map_err(doing("ask free space of", self.path.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Removes a content's files. Returns the bytes of disk its data had.
    pub(crate) fn delete(&self, id: ContentId) -> Result<u64, StoreError> {
        let data = self.data(id);
        let freed = match fs::symlink_metadata(&data) {
            // Another name, in a tree, keeps the bytes.
            Ok(meta) if meta.nlink() > 1 => 0,
            Ok(meta) => disk_bytes(&meta),
            Err(_) => 0,
        };
        let had_state = remove_file(&self.state(id))?;
        remove_file(&self.pieces(id))?;
        if had_state {
            // The state is durably gone before the data can be: a later content of this id starts without bits.
            sync_dir(&self.shard_of(id))?;
        }
        remove_file(&data)?;
        Ok(freed)
    }

    /// Moves a damaged content's files aside.
    pub(crate) fn quarantine(&self, id: ContentId, damage: &Damage) -> Result<(), StoreError> {
        let dir = self.path.join("quarantine");
        let place =
            (0..=MAX_QUARANTINED).map(|n| dir.join(format!("{id}.{n}"))).find(|place| is_absent(place));
        let place = place.unwrap_or_else(|| dir.join(format!("{id}.0")));
        remove_dir_all(&place)?;
        private_dir().create(&place).map_err(doing("create", place.display()))?;
        for (from, name) in [(self.state(id), "state"), (self.pieces(id), "pieces"), (self.data(id), "data")]
        {
            match fs::rename(&from, place.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(doing("quarantine", from.display())(error));
                }
                _ => {}
            }
        }
        sync_dir(&self.shard_of(id))?;
        sync_dir(&dir)?;
        self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(content = %id, error = damage as &dyn std::error::Error, "damaged content moved aside");
        self.trim_quarantine(MAX_QUARANTINED)
    }

    /// Removes the oldest quarantined contents until at most `keep` are left.
    pub(crate) fn trim_quarantine(&self, keep: usize) -> Result<(), StoreError> {
        let mut places = self.quarantined()?;
        places.sort_by_key(|(path, meta)| (meta.mtime(), meta.mtime_nsec(), path.clone()));
        let surplus = places.len().saturating_sub(keep);
        places[..surplus].iter().try_for_each(|(path, _)| remove_dir_all(path))
    }

    /// Bytes of disk that quarantined contents have.
    pub(crate) fn quarantine_bytes(&self) -> u64 {
        own_bytes_below(&self.path.join("quarantine"))
    }

    fn quarantined(&self) -> Result<Vec<(PathBuf, fs::Metadata)>, StoreError> {
        let dir = self.path.join("quarantine");
        let entries = fs::read_dir(&dir).map_err(doing("list", dir.display()))?;
        Ok(entries.flatten().filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))).collect())
    }

    /// Leaves the mark of an orderly end.
    pub(crate) fn mark_clean(&self) -> Result<(), StoreError> {
        replace(&self.path.join("clean"), b"")?;
        sync_dir(&self.path)
    }
}

/// Bytes of disk below `path` that only `path` has: files with other names elsewhere are counted there.
pub(crate) fn own_bytes_below(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += own_bytes_below(&entry.path()),
            Ok(meta) if meta.is_file() && meta.nlink() == 1 => bytes += disk_bytes(&meta),
            _ => {}
        }
    }
    bytes
}

/// Bytes of disk that a file has; `st_blocks` counts in 512 bytes whatever the file system.
pub(crate) fn disk_bytes(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// A directory with files but without a version is somebody else's.
fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let mut foreign = false;
    for entry in fs::read_dir(path).map_err(doing("list", path.display()))? {
        let name = entry.map_err(doing("list", path.display()))?.file_name();
        match name.to_str() {
            Some("version") => return Ok(()),
            // Made by a first open that did not get further, and by mkfs.
            Some("lock" | "version.tmp" | "lost+found") => {}
            _ => foreign = true,
        }
    }
    if foreign { Err(StoreError::NotAStore { root: path.to_path_buf() }) } else { Ok(()) }
}

/// The store is this process's until it is dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a process that another thread is just starting has a copy of the descriptor
    /// until it becomes its program, and a lock lasts as long as any copy (flock(2)). Unlocking ends it for all.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(root: &Path) -> Result<Lock, StoreError> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(&path)
        .map_err(doing("open", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked { root: root.to_path_buf() }),
        Err(errno) => Err(doing("lock", path.display())(errno)),
    }
}

/// Contents may be private models: only the daemon's user enters the directory by path.
fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn ensure_dir(path: &Path) -> Result<(), StoreError> {
    match private_dir().create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(doing("create", path.display())(error))
        }
        _ => Ok(()),
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(doing("sync", path.display()))
}

/// Writes a file whole under a temporary name, makes it durable and gives it its name. The name is durable after
/// [`sync_dir`] of its directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_then_rename(path, bytes, true)
}

/// As [`replace`], but nothing is durable until the file is synced.
pub(crate) fn replace_later_durable(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_then_rename(path, bytes, false)
}

fn write_then_rename(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // On a full disk the remains would hold the space that a retry needs.
        let _ = fs::remove_file(&temporary);
        doing("write", path.display())(error)
    })
}

/// Reads a file of at most `limit` bytes; a longer one is cut at `limit + 1`, which no format accepts.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Removes a file; false if there was none.
pub(crate) fn remove_file(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(doing("remove", path.display())(error)),
    }
}

/// Removes a directory and what is in it, if there is one.
pub(crate) fn remove_dir_all(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(doing("remove", path.display())(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_though_a_child_still_has_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(StoreError::Locked { .. })));
        let inherited = held.0.try_clone().unwrap();
        drop(held);
        lock(dir.path()).expect("free");
        drop(inherited);
    }
}
