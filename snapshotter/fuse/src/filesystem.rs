//! Requests of the kernel turned into calls of the tree, and everything that would modify refused.
//!
//! The mount is deliberately not read-only as mounts go: with the `ro` flag the kernel itself would answer `EROFS` to
//! the kubelet asking for an SELinux relabel, and the kubelet tolerates only `ENOTSUP`.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fuser::{
    FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig, OpenFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
};

use crate::attr::{GENERATION, attr_ttl, entry_ttl, file_attr, file_type};
use crate::io_mode::{Granted, IoModes};
use crate::listing::{Listings, from_offset};
use crate::passthrough::Gate;
use crate::stats::{Counters, Op, Stats};
use crate::{DirEntry, Errno, Ino, MountOptions, ROOT, ReadReply, Tree};

/// Largest request in bytes: 1 MiB, 256 pages, which is what kernels allow by default (`fs.fuse.max_pages_limit`).
/// Larger ones were slower: 16 MiB requests reached a quarter of the throughput (measured on Linux 6.18).
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Block length `statfs` counts in, in bytes.
const STATFS_BLOCK_BYTES: u64 = 4096;

/// Longest file name, in bytes.
const NAME_MAX: u32 = 255;

/// Negotiated if the kernel has them.
const WANTED: &[InitFlags] = &[
    // Lookups and listings in one directory do not wait for one another.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // `ls -l` in one go, if the kernel sees that attributes are wanted.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // A large O_DIRECT read is cut into requests that run at once.
    InitFlags::FUSE_ASYNC_DIO,
    // A successor on the same descriptor may ask for requests this daemon took and did not answer.
    InitFlags::FUSE_HAS_RESEND,
    // Image volumes of pods with a user namespace are idmapped mounts. Needs default_permissions, which we have.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// What the session threads and the [`Mount`](crate::Mount) share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    pub(crate) gate: Gate,
    modes: Mutex<IoModes<fuser::BackingId>>,
}

impl Shared {
    pub(crate) fn new(options: &MountOptions) -> Self {
        Self { counters: Arc::default(), gate: Gate::new(options.passthrough), modes: Mutex::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        let files_open = self.modes().count();
        self.counters.snapshot(files_open)
    }

    fn modes(&self) -> MutexGuard<'_, IoModes<fuser::BackingId>> {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct TreeFs {
    tree: Arc<dyn Tree>,
    shared: Arc<Shared>,
    listings: Listings,
    max_background: u16,
}

impl TreeFs {
    pub(crate) fn new(tree: Arc<dyn Tree>, shared: Arc<Shared>, options: &MountOptions) -> Self {
        Self { tree, shared, listings: Listings::default(), max_background: options.max_background }
    }

    /// Runs one request. A panic ends it, not the session: the reply, dropped on the way, answers `EIO`.
    fn handle(&self, op: Op, request: impl FnOnce()) {
        self.shared.counters.count(op);
        if catch_unwind(AssertUnwindSafe(request)).is_err() {
            self.shared.counters.panics.fetch_add(1, Relaxed);
            tracing::error!(op = op.name(), "request handler panicked");
        }
    }

    fn refuse(&self, answer: impl FnOnce(fuser::Errno)) {
        self.shared.counters.count(Op::Modify);
        answer(fuser::Errno::EROFS);
    }

    /// `ENOSYS`: the kernel has a sensible answer of its own and, for all of these, does not ask again.
    fn leave_to_kernel(&self, answer: impl FnOnce(fuser::Errno)) {
        self.shared.counters.count(Op::Other);
        answer(fuser::Errno::ENOSYS);
    }

    fn open_file(&self, ino: Ino, flags: OpenFlags, reply: ReplyOpen) -> Result<(), (ReplyOpen, Errno)> {
        // O_TRUNC with O_RDONLY does not get here: the kernel makes it an open and a SETATTR, which is refused.
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return Err((reply, Errno::EROFS));
        }
        let opened = match self.tree.open(ino) {
            Ok(opened) => opened,
            Err(errno) => return Err((reply, errno)),
        };
        let counters = &self.shared.counters;
        let granted = self.shared.modes().open(ino, || {
            let sealed = opened.sealed.as_ref()?;
            let backing = self.shared.gate.register(|| reply.open_backing(sealed));
            if backing.is_none() {
                counters.passthrough_refusals.fetch_add(1, Relaxed);
            }
            backing
        });
        match granted {
            Granted::Passthrough(backing) => {
                counters.passthrough_opens.fetch_add(1, Relaxed);
                // Without KEEP_CACHE: what the FUSE inode cached while the file was arriving is dropped, so that memory
                // holds the bytes once.
                reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &backing);
            }
            Granted::Cached => {
                counters.cached_opens.fetch_add(1, Relaxed);
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
        }
        Ok(())
    }

    fn read_file(&self, ino: Ino, offset: u64, size: u32, reply: ReplyData) {
        let attr = match self.tree.attr(ino) {
            Ok(attr) => attr,
            Err(errno) => return reply.error(errno.to_fuser()),
        };
        let left = attr.size.saturating_sub(offset);
        let len = u32::try_from(left).map_or(size, |left| left.min(size));
        if len == 0 {
            return reply.data(&[]);
        }
        self.tree.read(ino, offset, len, ReadReply::new(reply, len, Arc::clone(&self.shared.counters)));
    }

    /// The snapshot an open directory shows; the present names for a handle that an earlier daemon gave out.
    fn listing(&self, ino: Ino, handle: FileHandle) -> Result<Arc<[DirEntry]>, Errno> {
        self.listings.get(handle).map_or_else(|| self.tree.entries(ino), Ok)
    }
}

impl Filesystem for TreeFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let limit = |what: &str, result: Result<_, _>| match result {
            Ok(_) => Ok(()),
            Err(nearest) => {
                Err(io::Error::other(format!("{what} is out of range, the nearest value is {nearest}")))
            }
        };
        limit("request length", config.set_max_write(MAX_REQUEST_BYTES))?;
        limit(
            "max_background",
            config.set_max_background(self.max_background).map(u32::from).map_err(u32::from),
        )?;
        for capability in WANTED {
            // Absent in an older kernel: each is an improvement, none a need.
            let _absent = config.add_capabilities(*capability);
        }
        if !self.shared.gate.is_off() {
            // Depth 1 leaves room for one overlayfs on top; at 2 the kernel refuses that mount.
            limit("stack depth", config.set_max_stack_depth(1))?;
            if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err() {
                self.shared.gate.turn_off("the kernel lacks FUSE passthrough (Linux 6.9 has it)");
            }
        }
        Ok(())
    }

    fn destroy(&mut self) {
        // The kernel sends no RELEASE for what was open when the connection ended.
        let left_open = self.shared.modes().drain();
        for ino in left_open {
            self.handle(Op::Release, || self.tree.released(ino));
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.handle(Op::Lookup, || match self.tree.lookup(parent.0, name) {
            Ok(attr) => {
                reply.entry_with_ttls(
                    &attr_ttl(attr.ino),
                    &entry_ttl(parent.0),
                    &file_attr(attr),
                    GENERATION,
                );
            }
            Err(errno) => reply.error(errno.to_fuser()),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.handle(Op::Getattr, || match self.tree.attr(ino.0) {
            Ok(attr) => reply.attr(&attr_ttl(ino.0), &file_attr(attr)),
            Err(errno) => reply.error(errno.to_fuser()),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.handle(Op::Open, || {
            if let Err((reply, errno)) = self.open_file(ino.0, flags, reply) {
                reply.error(errno.to_fuser());
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: ReplyData,
    ) {
        self.handle(Op::Read, || self.read_file(ino.0, offset, size, reply));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handle(Op::Release, || {
            let known = self.shared.modes().release(ino.0);
            reply.ok();
            if known {
                self.tree.released(ino.0);
            } else {
                tracing::warn!(op = "release", ino = ino.0, "released what was not open");
            }
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.handle(Op::Opendir, || match self.tree.entries(ino.0) {
            Ok(entries) => {
                let flags = if ino.0 == ROOT {
                    FopenFlags::empty()
                } else {
                    FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
                };
                reply.opened(FileHandle(self.listings.add(entries)), flags);
            }
            Err(errno) => reply.error(errno.to_fuser()),
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.handle(Op::Readdir, || match self.listing(ino.0, handle) {
            Ok(entries) => {
                for (next, entry) in from_offset(ino.0, &entries, offset) {
                    if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno.to_fuser()),
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.handle(Op::Readdir, || match self.listing(ino.0, handle) {
            Ok(entries) => {
                for (next, entry) in from_offset(ino.0, &entries, offset) {
                    // A model tree that went away since the snapshot is left out.
                    let Ok(attr) = self.tree.attr(entry.ino) else { continue };
                    // One TTL for name and attributes here; the shorter one where they differ.
                    let ttl = attr_ttl(attr.ino).min(entry_ttl(ino.0));
                    if reply.add(INodeNo(attr.ino), next, entry.name, &ttl, &file_attr(attr), GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno.to_fuser()),
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handle(Op::Other, || {
            self.listings.remove(handle);
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.handle(Op::Statfs, || {
            let stat = self.tree.statfs();
            let free = stat.free_bytes / STATFS_BLOCK_BYTES;
            let block = STATFS_BLOCK_BYTES as u32;
            reply.statfs(
                stat.total_bytes / STATFS_BLOCK_BYTES,
                free,
                free,
                stat.files,
                0,
                block,
                NAME_MAX,
                block,
            );
        });
    }

    fn listxattr(&self, _: &Request, _: INodeNo, size: u32, reply: ReplyXattr) {
        self.handle(Op::Other, || if size == 0 { reply.size(0) } else { reply.data(&[]) });
    }

    // The caller sees ENOTSUP for these three, without a request from the second time on: the kernel looks up
    // security.capability and overlayfs its own attributes for every file.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    // default_permissions decides access; nothing is ever dirty, so flush and fsync succeed; SEEK_DATA and SEEK_HOLE see
    // a file without holes; files are always ready to poll.

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: fuser::LockOwner, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::PollNotifier,
        _: fuser::PollEvents,
        _: fuser::PollFlags,
        reply: ReplyPoll,
    ) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.handle(Op::Other, || reply.error(Errno::ENOTTY.to_fuser()));
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        self.handle(Op::Other, || reply.error(Errno::EINVAL.to_fuser()));
    }

    // Locks are not negotiated, so the kernel keeps them itself; these do not arrive.

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.leave_to_kernel(|errno| reply.error(errno));
    }

    // Everything that would modify.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.refuse(|errno| reply.error(errno));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse(|errno| reply.error(errno));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse(|errno| reply.error(errno));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.refuse(|errno| reply.error(errno));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        self.refuse(|errno| reply.error(errno));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: fuser::WriteFlags,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: ReplyWrite,
    ) {
        self.refuse(|errno| reply.error(errno));
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        self.refuse(|errno| reply.error(errno));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.refuse(|errno| reply.error(errno));
    }
}
