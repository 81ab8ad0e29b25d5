//! Mounting, tuning and, when asked, unmounting.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::filesystem::{Shared, TreeFs};
use crate::passthrough;
use crate::read_ahead::{self, DeviceNumber};
use crate::stats::Stats;
use crate::{Ino, PassthroughMode, Tree, stale};

const DEVICE: &str = "/dev/fuse";

/// Fewest background requests a mount may have under way: one reader's read-ahead window at 1 MiB each, four times over.
const MIN_BACKGROUND: u16 = 64;

/// Most session threads. They only copy; with more of them than this the lock of the queue is all they get.
const MAX_THREADS: usize = 64;

/// How a mount is set up.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// How many threads take requests and read what is local, 1 to 64. Default: one for each processor, at least 2 and
    /// at most 16.
    pub threads: usize,
    /// How far the kernel reads ahead of a reader, in KiB. Default 16384: see [`Mount::read_ahead_kb`].
    pub read_ahead_kb: u32,
    /// How many read-ahead requests may be under way at once, for all readers; at least 64. Further ones wait in the
    /// kernel, those for local bytes too, behind those that wait for the network. Default 1024: 16 MiB ahead of each of
    /// 64 readers.
    pub max_background: u16,
    /// Whether finished files may be read past the daemon where the kernel can. Default true.
    pub passthrough: bool,
    /// What `df` and `/proc/mounts` show as the source. Default `towline`.
    pub fs_name: String,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            threads: thread::available_parallelism().map_or(4, usize::from).clamp(2, 16),
            read_ahead_kb: 16384,
            max_background: 1024,
            passthrough: true,
            fs_name: "towline".to_owned(),
        }
    }
}

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// An option is out of its range.
    #[error("mount option {name} is {value}, allowed is {allowed}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// What it was given as.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The mount point cannot be used.
    #[error("use {dir} as a mount point")]
    Directory {
        /// The mount point.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A FUSE mount is there already, and it is alive or its connection is held by somebody.
    #[error("{dir} holds a live FUSE mount")]
    Occupied {
        /// The mount point.
        dir: PathBuf,
    },
    /// A dead mount of a predecessor cannot be detached.
    #[error("detach the dead mount on {dir}")]
    Detach {
        /// The mount point.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The FUSE device cannot be used.
    #[error("open {DEVICE}")]
    Device {
        /// What the system says.
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("mount a FUSE file system on {dir}")]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel and this process did not agree on the protocol, or the threads could not be started.
    #[error("start the FUSE session on {dir}")]
    Session {
        /// The mount point.
        dir: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Something else was mounted over the mount since.
    #[error("{dir} is covered by another mount")]
    Covered {
        /// The mount point.
        dir: PathBuf,
    },
    /// The kernel refused to unmount.
    #[error("unmount {dir}")]
    Unmount {
        /// The mount point.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What [`Mount::unmount`] left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing: the session has ended and its threads are joined.
    Ended,
    /// The mount point is free, but bind mounts or open files of it live on in other places. They are served by the
    /// session threads until the last of them is gone or the process ends.
    InUse,
}

/// A mounted file system and the threads that serve it.
///
/// Dropping it changes nothing that a pod could see: the mount stays and the session threads go on serving it until the
/// process ends. A daemon that stops, in whatever way, must not take mounts away; only [`Mount::unmount`] does. After
/// the process has ended, the mount answers `ENOTCONN` unless somebody else holds its descriptor.
#[derive(Debug)]
#[must_use = "a mount without its handle cannot be unmounted"]
pub struct Mount {
    dir: PathBuf,
    device_number: DeviceNumber,
    connection: OwnedFd,
    session: fuser::BackgroundSession,
    shared: Arc<Shared>,
    stale_detached: u32,
    read_ahead_kb: Option<u32>,
}

impl Mount {
    /// Mounts `tree` on the existing directory `dir` and starts serving it. Dead mounts that an earlier daemon left
    /// there are detached first. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// See [`MountError`]. Nothing is left mounted after an error.
    pub fn start(dir: &Path, tree: Arc<dyn Tree>, options: MountOptions) -> Result<Self, MountError> {
        check(&options)?;
        let stale_detached = stale::clear(dir)?;
        let dir =
            usable_directory(dir).map_err(|source| MountError::Directory { dir: dir.to_owned(), source })?;
        let device: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|source| MountError::Device { source })?
            .into();
        let connection = device.try_clone().map_err(|source| MountError::Device { source })?;
        mount(&dir, &device, &options.fs_name)
            .map_err(|source| MountError::Mount { dir: dir.clone(), source })?;

        let shared = Arc::new(Shared::new(&options));
        let served = serve(TreeFs::new(tree, Arc::clone(&shared), &options), device, options.threads)
            .and_then(|session| Ok((session, device_number(&dir)?)));
        let (session, device_number) = served.map_err(|source| {
            // Best effort: the error that matters is the one that led here.
            let _ignored = rustix::mount::unmount(&dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            MountError::Session { dir: dir.clone(), source }
        })?;
        warn_of_request_timeout();
        let read_ahead_kb = read_ahead::set(device_number, options.read_ahead_kb);
        tracing::info!(dir = %dir.display(), ?read_ahead_kb, threads = options.threads, "mounted");
        Ok(Self { dir, device_number, connection, session, shared, stale_detached, read_ahead_kb })
    }

    /// Where it is mounted, absolute and without symbolic links.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether finished files are read past the daemon, and if not, why.
    #[must_use]
    pub fn passthrough(&self) -> PassthroughMode {
        self.shared.gate.mode()
    }

    /// Finds out whether passthrough works for files of the file system that `scratch` is on (any readable regular
    /// file), without waiting for the first finished model, and returns the mode that is in use from now on.
    pub fn probe_passthrough(&self, scratch: &File) -> PassthroughMode {
        let _registered =
            self.shared.gate.register(|| passthrough::try_register(self.connection.as_fd(), scratch));
        self.passthrough()
    }

    /// The read-ahead in effect in KiB, `None` if it cannot be read. Another value than asked for means that `/sys` is
    /// not writable and that files which are still arriving are read with little parallelism.
    #[must_use]
    pub fn read_ahead_kb(&self) -> Option<u32> {
        self.read_ahead_kb
    }

    /// How many dead mounts of predecessors had to be detached from the mount point.
    #[must_use]
    pub fn stale_detached(&self) -> u32 {
        self.stale_detached
    }

    /// What the mount has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether requests are still being served: false once it was unmounted by somebody else or its connection aborted.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.session.guard.is_finished() && is_connected(&self.connection)
    }

    /// Makes the kernel forget the name `name` in the directory `parent`, because the model tree there went away. Open
    /// files and bind mounts of it stay as they are.
    ///
    /// Must not be called from a [`Tree`] method: it waits for lookups in that directory, which may be waiting for that
    /// very thread.
    pub fn forget_entry(&self, parent: Ino, name: &OsStr) {
        if let Err(error) = self.session.notifier().inval_entry(fuser::INodeNo(parent), name) {
            // The name's time to live ends it soon anyway.
            tracing::debug!(parent, name = ?name, %error, "entry not invalidated");
        }
    }

    /// Takes the mount away from `dir` and goes on serving it wherever else it is used, until the process ends: for a
    /// daemon that stops and cannot hand over.
    ///
    /// # Errors
    /// As [`Mount::unmount`].
    pub fn detach(&self) -> Result<(), MountError> {
        if !is_connected(&self.connection) {
            return Ok(());
        }
        let on_top = device_number(&self.dir);
        if on_top.is_ok_and(|on_top| on_top != self.device_number) {
            return Err(MountError::Covered { dir: self.dir.clone() });
        }
        rustix::mount::unmount(&self.dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| MountError::Unmount { dir: self.dir.clone(), source: errno.into() })
    }

    /// Takes the mount away: `dir` is free afterwards, whoever uses the mount in other places.
    ///
    /// # Errors
    /// [`MountError::Covered`] if something else is mounted on top, [`MountError::Unmount`] if the kernel refuses; the
    /// mount is then as before, but without this handle.
    pub fn unmount(self) -> Result<Unmounted, MountError> {
        self.detach()?;
        // The kernel ends the connection before umount returns, unless something still uses the file system.
        if is_connected(&self.connection) {
            tracing::info!(dir = %self.dir.display(), "unmounted, still in use elsewhere");
            return Ok(Unmounted::InUse);
        }
        if let Err(error) = self.session.join() {
            tracing::warn!(dir = %self.dir.display(), %error, "the session ended with an error");
        }
        tracing::info!(dir = %self.dir.display(), "unmounted");
        Ok(Unmounted::Ended)
    }
}

fn check(options: &MountOptions) -> Result<(), MountError> {
    let wrong = |name, value: String, allowed| Err(MountError::Option { name, value, allowed });
    if !(1..=MAX_THREADS).contains(&options.threads) {
        return wrong("threads", options.threads.to_string(), "1 to 64");
    }
    if options.max_background < MIN_BACKGROUND {
        return wrong("max_background", options.max_background.to_string(), "64 to 65535");
    }
    // Bounded by what sysfs takes as a number of pages; 1 GiB ahead of every reader is more than any node wants.
    if !(4..=1 << 20).contains(&options.read_ahead_kb) {
        return wrong("read_ahead_kb", options.read_ahead_kb.to_string(), "4 to 1048576");
    }
    if options.fs_name.is_empty() || options.fs_name.contains('\0') {
        return wrong("fs_name", options.fs_name.clone(), "a name without NUL");
    }
    Ok(())
}

fn usable_directory(dir: &Path) -> io::Result<PathBuf> {
    let dir = dir.canonicalize()?;
    if !dir.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    Ok(dir)
}

fn mount(dir: &Path, device: &OwnedFd, fs_name: &str) -> io::Result<()> {
    // The process that mounts is root: user_id and group_id are those of the owner of the mount, not of its files.
    let data = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let data = CString::new(data)?;
    rustix::mount::mount(
        fs_name,
        dir,
        "fuse.towline",
        MountFlags::NOSUID | MountFlags::NODEV,
        data.as_c_str(),
    )?;
    Ok(())
}

fn serve(filesystem: TreeFs, device: OwnedFd, threads: usize) -> io::Result<fuser::BackgroundSession> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads);
    // One descriptor for all threads: requests taken through a cloned one fail when it is closed, and a successor could
    // not ask for them again.
    config.clone_fd = false;
    config.acl = fuser::SessionACL::All;
    fuser::Session::from_fd(filesystem, device, fuser::SessionACL::All, config)?.spawn()
}

/// Device number of what is mounted at `dir`, without asking the file system itself.
fn device_number(dir: &Path) -> io::Result<DeviceNumber> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(CWD, dir, flags, StatxFlags::TYPE)?;
    Ok(DeviceNumber { major: stat.stx_dev_major, minor: stat.stx_dev_minor })
}

/// Whether the file system behind the descriptor is still mounted somewhere (`fuse_dev_poll` says `POLLERR` if not).
fn is_connected(connection: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(connection, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut polled, Some(&now)) {
        Ok(_) => !polled[0].revents().contains(PollFlags::ERR),
        Err(_) => true,
    }
}

/// Kernels from 6.14 can be told to abort a FUSE connection whose requests take too long: one slow fetch, and every
/// mount of the node is dead.
fn warn_of_request_timeout() {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}")).unwrap_or_default();
        if let Ok(seconds @ 1..) = text.trim().parse::<u32>() {
            tracing::warn!(sysctl = %format_args!("fs.fuse.{name}"), seconds,
                "the kernel aborts the whole mount if one request takes longer than this");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, change: impl FnOnce(&mut MountOptions)) {
        let mut options = MountOptions::default();
        change(&mut options);
        let error = check(&options).expect_err(name);
        assert!(matches!(error, MountError::Option { name: refused, .. } if refused == name), "{error}");
    }

    #[test]
    fn options_have_ranges() {
        check(&MountOptions::default()).unwrap();
        refused("threads", |options| options.threads = 0);
        refused("threads", |options| options.threads = 65);
        refused("max_background", |options| options.max_background = 63);
        refused("read_ahead_kb", |options| options.read_ahead_kb = 0);
        refused("fs_name", |options| options.fs_name = "a\0b".to_owned());
    }
}
