//! Starting to write pieces back before a checkpoint asks for them.
//!
//! Measured on the development machine (ext4, NVMe, Linux 6.18, 1 GiB in 4 MiB pieces, a checkpoint every 256 MiB,
//! medians of nine runs): without it 1.00 s until sealed, 0.10 s of that in the last sync, slowest piece 94 ms; with
//! it 0.58 s, 0.01 s and 29 ms. The disk works from the first piece on, and no sync finds 256 MiB waiting.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Asks the kernel to start writing a byte range to disk, and waits for none of it. Promises nothing: durability comes
/// from `fdatasync`, which also still reports what goes wrong here, as this flag alone consumes no error.
#[expect(unsafe_code, reason = "neither the standard library nor rustix wraps sync_file_range")]
pub(crate) fn start(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the call takes no pointers, and `file` keeps its descriptor open until the call returns.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
