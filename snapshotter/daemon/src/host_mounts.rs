//! Models mounted at directories of this host, for whoever asks the control API.
//!
//! A mount is recorded before it is made and is in the record until it is taken away, so that the next start makes it
//! again. What is at a directory is judged by the kernel's table alone: a mount is ours if the record names its
//! directory and it shows the directory of that model, whose name is a SHA-256.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::Code;

use crate::catalog::KnownModel;
use crate::error::Problem;
use crate::mountinfo::{Mounted, mounted};
use crate::needs::{HeldMount, Pin};
use crate::node::{Node, tree_name};
use crate::volumes;

/// Mounts of one node.
const MAX_MOUNTS: usize = 1024;
/// `PATH_MAX`, include/uapi/linux/limits.h, with its NUL.
const MAX_PATH_LEN: usize = 4095;
/// File system type of the daemon's own mount.
const FUSE: &str = "fuse.towline";

/// The mounts of a node.
pub(crate) struct HostMounts {
    node: Arc<Node>,
    /// One is made or taken away at a time. Held across disk and system calls, before everything else.
    one_at_a_time: Mutex<()>,
}

/// What is at the directory of a recorded mount.
enum There {
    Nothing,
    Ours(Mounted),
    Stranger,
}

impl HostMounts {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, one_at_a_time: Mutex::default() }
    }

    /// Mounts the tree of a model at `directory`. Does nothing if it is mounted there.
    pub(crate) fn mount(&self, pin: &Pin, reference: &str, directory: &str) -> Result<(), Problem> {
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = checked(directory)?;
        let directory = dir.to_str().ok_or_else(|| unusable(directory, "not UTF-8"))?.to_owned();
        let config = &self.node.config;
        let own =
            [&config.root, &config.run_dir].map(|own| own.canonicalize().unwrap_or_else(|_| own.clone()));
        if own.iter().any(|own| dir.starts_with(own) || own.starts_with(&dir)) {
            return Err(unusable(&directory, "it holds what the daemon needs itself"));
        }
        let recorded = self.recorded(&directory);
        match &recorded {
            Some(other) if other.as_ref().is_none_or(|other| other.slot != pin.slot) => {
                let text = format!("another model is mounted at {directory}");
                return Err(Problem::new(Code::AlreadyExists, text)
                    .hint(format!("take it away with `towline unmount {directory}`")));
            }
            Some(_) => {
                if let There::Ours(_) = there(&dir, pin)? {
                    return Ok(());
                }
            }
            None => {}
        }
        if recorded.is_none() && self.count() >= MAX_MOUNTS {
            let text = format!("{MAX_MOUNTS} directories of this node have models mounted already");
            return Err(Problem::new(Code::ResourceExhausted, text));
        }
        let held = HeldMount { directory: directory.clone(), reference: reference.to_owned() };
        self.node.catalog.change_holds(|known, holds| {
            if known.is_some_and(|known| known.slot == pin.slot) && recorded.is_none() {
                holds.mounts.push(held.clone());
            }
            Ok::<_, Problem>(())
        })?;
        self.make(pin, &dir).inspect_err(|_| {
            if recorded.is_none()
                && let Err(error) = self.forget(&directory)
            {
                tracing::error!(directory, %error, "mount that was not made stays recorded");
            }
        })?;
        tracing::info!(image = reference, directory, model = %pin.model.base, "model is mounted");
        Ok(())
    }

    /// Takes away a mount that is recorded, unless it is in use.
    pub(crate) fn unmount(&self, directory: &str) -> Result<(), Problem> {
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = self.recorded(directory) else {
            let text = format!("nothing that towline mounted is at {directory:?}");
            return Err(Problem::new(Code::NotFound, text)
                .hint("`towline status --output json` lists the mounts of each model"));
        };
        // Of a model that cannot be read nothing is known but the directory; it is for root to unmount.
        if let Some(known) = known {
            match there(Path::new(directory), &known)? {
                There::Nothing => {}
                There::Ours(_) => detach(directory, UnmountFlags::empty())?,
                There::Stranger => {
                    let text = format!("something else was mounted over {directory}");
                    return Err(Problem::new(Code::FailedPrecondition, text).hint("unmount that first"));
                }
            }
        }
        self.forget(directory)?;
        tracing::info!(directory, "model is unmounted");
        Ok(())
    }

    /// Makes the recorded mounts again after a start. One that cannot be made is told, and stays recorded.
    pub(crate) fn restore(&self) {
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        for known in self.node.catalog.models() {
            for HeldMount { directory, reference } in known.needs.holds().mounts {
                match self.restore_one(&known, &directory) {
                    Ok(()) => tracing::info!(image = reference, directory, "model is mounted again"),
                    Err(problem) => tracing::error!(
                        image = reference, directory, error = %problem,
                        "model is not mounted again; `towline mount` or `towline unmount` settles it"
                    ),
                }
            }
        }
    }

    fn restore_one(&self, known: &KnownModel, directory: &str) -> Result<(), Problem> {
        let dir = Path::new(directory);
        if let There::Ours(mounted) = there(dir, known)? {
            // A plain directory outlives daemons. What a daemon served died with it: this one has the store's lock, so
            // there is no other that could serve it.
            if mounted.fs_type != FUSE {
                return Ok(());
            }
            detach(directory, UnmountFlags::DETACH)?;
        }
        self.make(known, dir)
    }

    /// Mounts at a directory that must be empty and no mount point.
    fn make(&self, known: &KnownModel, dir: &Path) -> Result<(), Problem> {
        let shown = dir.display().to_string();
        if mounted(dir).map_err(|error| failed("read the table of mounts", &error))?.is_some() {
            return Err(unusable(&shown, "something is mounted there"));
        }
        let parent = dir.parent().ok_or_else(|| unusable(&shown, "it is the root"))?;
        let name = dir.file_name().ok_or_else(|| unusable(&shown, "it has no name"))?;
        // From here on by descriptors: whoever owns a directory above cannot have another one mounted over.
        let parent = open(rustix::fs::CWD, parent).map_err(|errno| unusable(&shown, &errno.to_string()))?;
        let target = open(&parent, Path::new(name)).map_err(|errno| unusable(&shown, &errno.to_string()))?;
        let mut entries = std::fs::read_dir(by_descriptor(&target))
            .map_err(|error| unusable(&shown, &error.to_string()))?;
        if entries.next().is_some() {
            return Err(unusable(&shown, "it is not empty"));
        }
        let source = self.source(known)?;
        rustix::mount::mount_bind(&source, by_descriptor(&target))
            .map_err(|errno| failed(&format!("mount {} at {shown}", source.display()), &errno.into()))?;
        self.restrict(&parent, Path::new(name)).inspect_err(|_| {
            // Nobody was told of it yet; the error that matters is the one that led here.
            let _ignored = rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        })
    }

    /// Makes the new mount read-only. On a host with SELinux it stays as it is: there it is a FUSE mount, which refuses
    /// every change itself, and whose answer to a relabel (`docker -v DIR:/m:z`) must be `ENOTSUP`, not `EROFS`.
    fn restrict(&self, parent: &OwnedFd, name: &Path) -> Result<(), Problem> {
        if self.node.relabels {
            return Ok(());
        }
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let read_only = |errno: Errno| failed("make the mount read-only", &errno.into());
        let mounted = open(parent, name).map_err(read_only)?;
        rustix::mount::mount_remount(by_descriptor(&mounted), flags, c"").map_err(read_only)
    }

    /// The directory to show: the plain one of a model that is whole, else the one in the FUSE mount.
    fn source(&self, known: &KnownModel) -> Result<PathBuf, Problem> {
        if !self.node.relabels && known.sealed_tree.get().is_none() {
            // After a start the contents may not be open yet, and the watch may not have been here.
            self.node.open_contents_of(known);
            if known.is_sealed()
                && let Err(error) = self.node.complete(known)
            {
                tracing::warn!(error = format!("{error:#}"), "complete model is mounted through FUSE");
            }
        }
        volumes::directory(&self.node, known, known.chains.len() - 1)
            .ok_or_else(|| Problem::new(Code::Unavailable, "the FUSE mount is not being served"))
    }

    /// The model whose mount at `directory` is recorded; the inner `None` is one that cannot be read.
    fn recorded(&self, directory: &str) -> Option<Option<Arc<KnownModel>>> {
        let has = |mount: &HeldMount| mount.directory == directory;
        let models = self.node.catalog.models();
        if let Some(known) = models.into_iter().find(|known| known.needs.holds().mounts.iter().any(has)) {
            return Some(Some(known));
        }
        self.node.catalog.unreadable_holds().iter().any(|holds| holds.mounts.iter().any(has)).then_some(None)
    }

    fn count(&self) -> usize {
        self.node.catalog.models().iter().map(|known| known.needs.holds().mounts.len()).sum()
    }

    fn forget(&self, directory: &str) -> Result<usize, Problem> {
        self.node.catalog.change_holds(|_, holds| {
            holds.mounts.retain(|mount| mount.directory != directory);
            Ok(())
        })
    }
}

fn there(dir: &Path, known: &KnownModel) -> Result<There, Problem> {
    let mounted = mounted(dir).map_err(|error| failed("read the table of mounts", &error))?;
    Ok(match mounted {
        None => There::Nothing,
        Some(mounted) if mounted.shows(&tree_name(known)) => There::Ours(mounted),
        Some(_) => There::Stranger,
    })
}

/// An existing directory by an absolute path, without symbolic links.
fn checked(directory: &str) -> Result<PathBuf, Problem> {
    if directory.len() > MAX_PATH_LEN || directory.contains('\0') {
        return Err(Problem::new(Code::InvalidArgument, "the directory's path is too long or has a NUL"));
    }
    if !directory.starts_with('/') {
        return Err(unusable(directory, "the path is not absolute"));
    }
    match std::fs::canonicalize(directory) {
        Ok(dir) if dir.is_dir() => Ok(dir),
        Ok(_) => Err(unusable(directory, "it is no directory")),
        Err(error) => {
            let problem = unusable(directory, &error.to_string());
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            Err(if is_missing {
                problem.hint(format!("make it first: mkdir -p {directory}"))
            } else {
                problem
            })
        }
    }
}

fn open(dir: impl std::os::fd::AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

fn by_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn detach(directory: &str, flags: UnmountFlags) -> Result<(), Problem> {
    rustix::mount::unmount(directory, flags | UnmountFlags::NOFOLLOW).map_err(|errno| match errno {
        Errno::BUSY => Problem::new(Code::FailedPrecondition, format!("{directory} is in use"))
            .hint(format!("end what uses it: `fuser -vm {directory}` names it")),
        errno => failed(&format!("unmount {directory}"), &errno.into()),
    })
}

fn unusable(directory: &str, why: &str) -> Problem {
    let text = format!("nothing can be mounted at {directory:?}: {why}");
    Problem::new(Code::InvalidArgument, text)
}

fn failed(what: &str, error: &std::io::Error) -> Problem {
    Problem::new(Code::Internal, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;
