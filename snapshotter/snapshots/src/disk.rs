//! The directories of snapshots: `<root>/snapshots/<id>/{fs,work}`.
//!
//! A directory appears by rename from `new-<id>`, synced, before metadata names it, and disappears some time after
//! metadata stopped naming it. Ids are never used twice, so a leftover is never taken for a new snapshot.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::{Dir, FileType};

use crate::error::{OpenError, SnapshotError};
use crate::record::{Kind, Usage};
use crate::{mounts, usage};

/// Prefix of directories that are being made.
const NEW_PREFIX: &str = "new-";

/// User and group id of a directory.
pub(crate) type Owner = (u32, u32);

/// The directories of all snapshots.
#[derive(Debug)]
pub(crate) struct Disk {
    snapshots: PathBuf,
    /// Ids whose directory exists, or is being made, while metadata does not name it yet.
    in_flight: Mutex<BTreeSet<u64>>,
}

/// Keeps Cleanup away from a directory until metadata names it.
#[derive(Debug)]
pub(crate) struct InFlight<'a> {
    disk: &'a Disk,
    id: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.disk.lock().remove(&self.id);
    }
}

impl Disk {
    /// Makes `root` and what it needs, and checks that overlayfs can live there.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let snapshots = root.join("snapshots");
        if mounts::overlay_path(snapshots.clone()).is_err() {
            return Err(OpenError::UnusablePath { path: root.to_owned() });
        }
        for dir in [root, &snapshots] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(open_error("make directory", dir))?;
        }
        let probed = reports_file_types(&snapshots).map_err(open_error("read directory", &snapshots))?;
        if !probed {
            return Err(OpenError::NoFileTypes { path: root.to_owned() });
        }
        Ok(Self { snapshots, in_flight: Mutex::default() })
    }

    /// One above the highest id that has a directory; 0 for none.
    pub(crate) fn id_floor(&self) -> Result<u64, OpenError> {
        let ids = self.list().map_err(open_error("read directory", &self.snapshots))?;
        Ok(ids.into_iter().map(|(_, id)| id.saturating_add(1)).max().unwrap_or(0))
    }

    /// The upper directory of snapshot `id`, its content.
    pub(crate) fn upper(&self, id: u64) -> String {
        self.part(id, "fs")
    }

    /// The work directory that overlayfs wants beside an upper directory.
    pub(crate) fn work(&self, id: u64) -> String {
        self.part(id, "work")
    }

    fn part(&self, id: u64, part: &str) -> String {
        format!("{}/{id}/{part}", self.snapshots.to_str().expect("open checked the path"))
    }

    /// Owner of the upper directory of snapshot `id`.
    pub(crate) fn owner(&self, id: u64) -> Result<Owner, SnapshotError> {
        let path = PathBuf::from(self.upper(id));
        let stat = fs::symlink_metadata(&path).map_err(SnapshotError::disk("stat parent", &path))?;
        Ok((stat.uid(), stat.gid()))
    }

    /// Usage of the upper directory of snapshot `id`; none if `deadline` passed first.
    pub(crate) fn measure(&self, id: u64, deadline: Option<Instant>) -> Result<Option<Usage>, SnapshotError> {
        let path = PathBuf::from(self.upper(id));
        usage::measure(&path, deadline).map_err(SnapshotError::disk("measure", &path))
    }

    /// Makes the directories of a new snapshot, durably. The guard is dropped once metadata names it.
    ///
    /// `fs` has mode 0755 whatever the parent's mode is, like containerd's own overlay snapshotter, and belongs to
    /// `owner`. Only active snapshots have a work directory.
    pub(crate) fn create(
        &self,
        id: u64,
        kind: Kind,
        owner: Option<Owner>,
    ) -> Result<InFlight<'_>, SnapshotError> {
        self.lock().insert(id);
        let guard = InFlight { disk: self, id };
        let temporary = self.snapshots.join(format!("{NEW_PREFIX}{id}"));
        let done = self.fill(&temporary, kind, owner).and_then(|()| {
            let path = self.snapshots.join(id.to_string());
            fs::rename(&temporary, &path)?;
            sync_dir(&self.snapshots)
        });
        if let Err(error) = done {
            let _ = fs::remove_dir_all(&temporary);
            return Err(SnapshotError::disk("make directory", &temporary)(error));
        }
        Ok(guard)
    }

    fn fill(&self, dir: &Path, kind: Kind, owner: Option<Owner>) -> io::Result<()> {
        make_dir(dir, 0o700)?;
        let upper = dir.join("fs");
        make_dir(&upper, 0o755)?;
        if let Some((uid, gid)) = owner {
            chown(&upper, Some(uid), Some(gid))?;
        }
        if kind == Kind::Active {
            make_dir(&dir.join("work"), 0o711)?;
        }
        sync_dir(dir)
    }

    /// Deletes the directories of snapshot `id`.
    pub(crate) fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        self.remove_name(&id.to_string())
    }

    fn remove_name(&self, name: &str) -> Result<(), SnapshotError> {
        let path = self.snapshots.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotError::disk("remove directory", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes every directory of ours that `known` does not name. Failures are logged and left for the next time.
    ///
    /// `known` is asked after the directories were listed and the ones in flight noted: an id that is in neither set
    /// then has been removed, or never came to be.
    pub(crate) fn sweep(&self, known: impl FnOnce() -> HashSet<u64>) -> Result<(), SnapshotError> {
        let found = self.list().map_err(SnapshotError::disk("read directory", &self.snapshots))?;
        let in_flight = self.lock().clone();
        let known = known();
        for (name, id) in found {
            let is_new = name.starts_with(NEW_PREFIX);
            if in_flight.contains(&id) || (known.contains(&id) && !is_new) {
                continue;
            }
            if let Err(error) = self.remove_name(&name) {
                tracing::warn!(error = &error as &dyn std::error::Error, "leftover directory stays");
            }
        }
        Ok(())
    }

    /// Names and ids of our directories; anything else that lies there is not ours to touch.
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.snapshots)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let digits = name.strip_prefix(NEW_PREFIX).unwrap_or(&name);
            let Ok(id) = digits.parse::<u64>() else { continue };
            if id.to_string() == digits {
                found.push((name, id));
            }
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the mode explicitly: the process's umask must not decide what containers may read.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn open_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Disk { operation, path, source }
}

/// Whether directory listings tell files from directories; overlayfs cannot work without (`d_type` in readdir(3)).
fn reports_file_types(dir: &Path) -> io::Result<bool> {
    let probe = dir.join("probe");
    fs::create_dir(&probe)
        .or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
    let mut reported = true;
    for entry in Dir::read_from(File::open(dir)?)? {
        reported &= entry?.file_type() != FileType::Unknown;
    }
    fs::remove_dir(&probe)?;
    Ok(reported)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(disk: &Disk) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&disk.snapshots)
            .expect("read")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn directories_appear_whole_and_leftovers_go() {
        let root = tempfile::tempdir().expect("temp dir");
        let disk = Disk::open(root.path()).expect("open");
        assert_eq!(disk.id_floor().expect("floor"), 0);
        let flying = disk.create(7, Kind::Active, None).expect("create");
        drop(disk.create(8, Kind::View, None).expect("create"));
        drop(disk.create(9, Kind::Active, None).expect("create"));
        let mode = |path: String| fs::metadata(path).expect("stat").mode() & 0o7777;
        assert_eq!((mode(disk.upper(7)), mode(disk.work(7))), (0o755, 0o711));
        assert!(fs::metadata(disk.work(8)).is_err(), "a view has no work directory");
        for leftover in ["new-3", "12", "foreign", "007", "new-x"] {
            fs::create_dir_all(disk.snapshots.join(leftover).join("fs")).expect("mkdir");
        }
        assert_eq!(disk.id_floor().expect("floor"), 13);
        disk.sweep(|| HashSet::from([8])).expect("sweep");
        assert_eq!(names(&disk), ["007", "7", "8", "foreign", "new-x"]);
        drop(flying);
        disk.sweep(HashSet::new).expect("sweep");
        assert_eq!(names(&disk), ["007", "foreign", "new-x"]);
    }

    #[test]
    fn a_root_that_breaks_mount_options_is_refused() {
        let root = tempfile::tempdir().expect("temp dir");
        for name in ["a,b", "a:b"] {
            let result = Disk::open(&root.path().join(name));
            assert!(matches!(result, Err(OpenError::UnusablePath { .. })), "{name}");
        }
        assert!(matches!(Disk::open(Path::new("relative")), Err(OpenError::UnusablePath { .. })));
    }
}
