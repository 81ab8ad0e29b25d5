//! Error numbers, as the kernel hands them to the process that made the system call.

use std::fmt;
use std::io;

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// No such file or directory.
    pub const ENOENT: Self = Self(libc::ENOENT);
    /// Input/output error: the bytes cannot be had.
    pub const EIO: Self = Self(libc::EIO);
    /// Try again: the caller may repeat the read.
    pub const EAGAIN: Self = Self(libc::EAGAIN);
    /// Out of memory.
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    /// Permission denied.
    pub const EACCES: Self = Self(libc::EACCES);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(libc::ENOTDIR);
    /// Is a directory.
    pub const EISDIR: Self = Self(libc::EISDIR);
    /// Invalid argument.
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// Too many open files.
    pub const EMFILE: Self = Self(libc::EMFILE);
    /// Inappropriate ioctl for the device.
    pub const ENOTTY: Self = Self(libc::ENOTTY);
    /// No space left on the device.
    pub const ENOSPC: Self = Self(libc::ENOSPC);
    /// Read-only file system.
    pub const EROFS: Self = Self(libc::EROFS);
    /// Not implemented; for many operations the kernel then stops asking.
    pub const ENOSYS: Self = Self(libc::ENOSYS);
    /// Not supported (the same number as `EOPNOTSUPP` on Linux).
    pub const ENOTSUP: Self = Self(libc::ENOTSUP);
    /// Stale handle: what was opened is gone.
    pub const ESTALE: Self = Self(libc::ESTALE);
    /// The wait for the bytes took too long.
    pub const ETIMEDOUT: Self = Self(libc::ETIMEDOUT);

    /// The error number `raw`; [`Errno::EIO`] for anything that is not a number the kernel accepts (1 to 511).
    #[must_use]
    pub fn from_raw(raw: i32) -> Self {
        // fs/fuse/dev.c: a reply with an error outside -512 < error <= 0 is refused, and its request never ends.
        if (1..512).contains(&raw) { Self(raw) } else { Self::EIO }
    }

    /// The number itself.
    #[must_use]
    pub fn raw(self) -> i32 {
        self.0
    }

    pub(crate) fn to_fuser(self) -> fuser::Errno {
        fuser::Errno::from_i32(self.0)
    }
}

/// The operating system's number where the error has one, [`Errno::EIO`] otherwise.
impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::from_raw)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_the_kernel_would_refuse_become_eio() {
        for raw in [i32::MIN, -5, 0, 512, i32::MAX] {
            assert_eq!(Errno::from_raw(raw), Errno::EIO, "{raw}");
        }
        for raw in [1, libc::ENOENT, 511] {
            assert_eq!(Errno::from_raw(raw).raw(), raw);
        }
        assert_eq!(Errno::from(&io::Error::other("no number")), Errno::EIO);
        assert_eq!(Errno::from(&io::Error::from_raw_os_error(libc::ENOSPC)), Errno::ENOSPC);
    }
}
