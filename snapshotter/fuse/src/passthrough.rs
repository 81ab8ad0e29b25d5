//! Registering finished files with the kernel, and remembering whether that works on this node.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

/// Whether finished files are read past the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassthroughMode {
    /// The kernel offers it; no finished file has been opened or probed yet.
    Untried,
    /// It works.
    On,
    /// It does not, and all files are read through the daemon.
    Off {
        /// Why, in words for an operator.
        reason: String,
    },
}

impl fmt::Display for PassthroughMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.write_str("untried"),
            Self::On => f.write_str("on"),
            Self::Off { reason } => write!(f, "off: {reason}"),
        }
    }
}

/// The one place that knows [`PassthroughMode`] and changes it.
#[derive(Debug)]
pub(crate) struct Gate {
    mode: Mutex<PassthroughMode>,
}

impl Gate {
    pub(crate) fn new(allowed: bool) -> Self {
        let mode = if allowed {
            PassthroughMode::Untried
        } else {
            PassthroughMode::Off { reason: "disabled by configuration".to_owned() }
        };
        Self { mode: Mutex::new(mode) }
    }

    pub(crate) fn mode(&self) -> PassthroughMode {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(*self.mode.lock().unwrap_or_else(PoisonError::into_inner), PassthroughMode::Off { .. })
    }

    /// Turns passthrough off for good; the first reason stays.
    pub(crate) fn turn_off(&self, reason: &str) {
        let mut mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*mode, PassthroughMode::Off { .. }) {
            tracing::warn!(reason, "passthrough is off: all files are read through the daemon");
            *mode = PassthroughMode::Off { reason: reason.to_owned() };
        }
    }

    /// Takes the kernel's answer to registering a file; `None` if it refused, or if passthrough is off already.
    pub(crate) fn register<B>(&self, open_backing: impl FnOnce() -> io::Result<B>) -> Option<B> {
        if self.is_off() {
            return None;
        }
        match open_backing() {
            Ok(backing) => {
                let mut mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
                if *mode == PassthroughMode::Untried {
                    tracing::info!("passthrough is on: finished files are read past the daemon");
                    *mode = PassthroughMode::On;
                }
                Some(backing)
            }
            Err(error) => {
                match permanent_reason(&error) {
                    Some(reason) => self.turn_off(reason),
                    None => {
                        tracing::warn!(%error, "file not registered for passthrough, opened in cached mode")
                    }
                }
                None
            }
        }
    }
}

/// Why the kernel will go on refusing (`BACKING_OPEN`, fs/fuse/backing.c and passthrough.c), or `None` if another file
/// or another moment may fare better.
fn permanent_reason(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::ELOOP => Some("the cache directory is on a stacked file system such as overlayfs"),
        libc::EPERM => Some("the daemon lacks CAP_SYS_ADMIN in the initial user namespace"),
        libc::EOPNOTSUPP => Some("the file system of the cache directory cannot be read through"),
        libc::ENOSYS | libc::ENOTTY | libc::EINVAL => {
            Some("the kernel lacks FUSE passthrough (Linux 6.9 has it)")
        }
        _ => None,
    }
}

/// `_IOW(229, 2, uint32_t)`, include/uapi/linux/fuse.h.
const BACKING_CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);

/// Registers `file` with the connection `device` and takes it back at once.
pub(crate) fn try_register(device: BorrowedFd<'_>, file: &File) -> io::Result<()> {
    let id = fuser::BackingId::create_raw(device, file.as_fd())?;
    close_backing(device, id).map_err(io::Error::from)
}

#[expect(
    unsafe_code,
    reason = "fuser has no safe way to close a backing that was opened outside of a request"
)]
fn close_backing(device: BorrowedFd<'_>, id: u32) -> rustix::io::Result<()> {
    // SAFETY: BACKING_CLOSE reads one u32 from the pointer and keeps nothing, and `Setter` passes a pointer to a u32.
    unsafe { rustix::ioctl::ioctl(device, rustix::ioctl::Setter::<BACKING_CLOSE, u32>::new(id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_will_last_turns_it_off_and_keeps_the_first_reason() {
        let gate = Gate::new(true);
        let refuse = |errno| move || Err::<(), _>(io::Error::from_raw_os_error(errno));
        assert_eq!(gate.register(refuse(libc::ENOMEM)), None);
        assert_eq!(gate.mode(), PassthroughMode::Untried, "out of memory passes");
        assert_eq!(gate.register(|| Ok(1)), Some(1));
        assert_eq!(gate.mode(), PassthroughMode::On);
        assert_eq!(gate.register(refuse(libc::ELOOP)), None);
        gate.turn_off("another reason");
        let PassthroughMode::Off { reason } = gate.mode() else { panic!("{}", gate.mode()) };
        assert!(reason.contains("stacked"), "{reason}");
        assert_eq!(gate.register(|| -> io::Result<()> { panic!("asked although it is off") }), None);
    }

    #[test]
    fn not_allowed_is_off_from_the_start() {
        assert_eq!(Gate::new(false).mode().to_string(), "off: disabled by configuration");
    }

    #[test]
    fn the_ioctl_number_is_the_one_of_the_header() {
        assert_eq!(BACKING_CLOSE, 0x4004_e502);
    }
}
