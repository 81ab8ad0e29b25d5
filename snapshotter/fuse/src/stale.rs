//! What a crashed predecessor left at the mount point: a mount whose connection is gone, on which every call fails with
//! `ENOTCONN`.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FsWord, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::mount::MountError;

/// How long a mount that is there may take to answer `statfs`. Ours answers in microseconds; one whose connection is
/// held but not served never does.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Most stale mounts cleared from one directory. A daemon that crashed and mounted over its own remains leaves one each.
const MAX_STALE_MOUNTS: u32 = 64;

/// `FUSE_SUPER_MAGIC`, include/uapi/linux/magic.h.
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;

enum State {
    Free,
    Stale,
    Occupied,
}

/// Detaches dead FUSE mounts from `dir`, and says how many there were.
///
/// # Errors
/// [`MountError::Occupied`] if a FUSE mount is there that is alive or has somebody holding its connection;
/// [`MountError::Detach`] if a dead one cannot be detached.
pub(crate) fn clear(dir: &Path) -> Result<u32, MountError> {
    for cleared in 0..MAX_STALE_MOUNTS {
        match probe(dir) {
            State::Free => return Ok(cleared),
            State::Occupied => return Err(MountError::Occupied { dir: dir.to_owned() }),
            State::Stale => {
                tracing::warn!(dir = %dir.display(), "detaching a mount whose daemon is gone");
                rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                    .map_err(|errno| MountError::Detach { dir: dir.to_owned(), source: errno.into() })?;
            }
        }
    }
    Err(MountError::Occupied { dir: dir.to_owned() })
}

fn probe(dir: &Path) -> State {
    // DONT_SYNC: answered from what the kernel knows, whatever state a FUSE mount there is in.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(CWD, dir, flags, StatxFlags::TYPE) {
        Ok(stat) if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => return State::Free,
        // A mount of some kind, or a kernel whose statx knows less.
        Ok(_) | Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::NOSYS) => {}
        // Not there, or not ours to see: mounting will say so better.
        Err(_) => return State::Free,
    }
    match statfs_within(dir.to_owned(), PROBE_DEADLINE) {
        Some(Ok(magic)) if magic == FUSE_SUPER_MAGIC => State::Occupied,
        Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => State::Stale,
        Some(_) => State::Free,
        None => State::Occupied,
    }
}

/// `statfs` in a thread of its own, which is left behind if the call does not come back.
fn statfs_within(dir: std::path::PathBuf, deadline: Duration) -> Option<Result<FsWord, Errno>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let probe = move || {
        // Nobody listens any more after the deadline.
        let _late = answer.send(rustix::fs::statfs(&dir).map(|stat| stat.f_type));
    };
    let started: io::Result<_> = thread::Builder::new().name("mount-probe".to_owned()).spawn(probe);
    started.ok()?;
    answered.recv_timeout(deadline).ok()
}
