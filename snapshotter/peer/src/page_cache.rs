//! What the kernel's page cache holds of a file.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;

/// Number of the system call, the same on all architectures that have joined the common table (all 64-bit ones but alpha and mips).
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of Linux.
#[repr(C)]
struct Asked {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of Linux, in pages.
#[repr(C)]
#[derive(Default)]
struct Counted {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all of a range is there, so that sending it does not wait for a disk. Linux tells since 6.5; an older one, and who
/// forbids to ask, count as no.
pub(crate) fn holds(file: &File, range: &Range<u64>) -> bool {
    let page = rustix::param::page_size() as u64;
    count(file, range).is_some_and(|cached| cached == range.end.div_ceil(page) - range.start / page)
}

/// Pages of a range that are there.
#[expect(unsafe_code, reason = "neither the standard library, rustix nor libc wraps it")]
fn count(file: &File, range: &Range<u64>) -> Option<u64> {
    if cfg!(any(target_arch = "mips", target_arch = "mips64")) {
        return None;
    }
    // A length of 0 would mean the rest of the file.
    let asked = Asked { offset: range.start, len: NonZeroU64::new(range.end - range.start)?.get() };
    let mut counted = Counted::default();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and both structures are laid out as the kernel's and
    // outlive the call.
    let told =
        unsafe { libc::syscall(CACHESTAT, file.as_fd().as_raw_fd(), &raw const asked, &raw mut counted, 0) };
    (told == 0).then_some(counted.cached)
}

/// Brings a range into it, and waits for the disk. What cannot be read is met again by who sends it.
pub(crate) fn bring(file: &File, range: &Range<u64>) {
    // All of it at once, before the first byte is waited for.
    let _ =
        rustix::fs::fadvise(file, range.start, NonZeroU64::new(range.end - range.start), Advice::WillNeed);
    let mut part = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(part.len() as u64) as usize;
        match file.read_at(&mut part[..len], at) {
            Ok(0) | Err(_) => break,
            Ok(read) => at += read as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_dropped_is_told_and_brought_back() {
        let mut file = tempfile::tempfile().unwrap();
        let len = (1 << 20) + 7;
        file.write_all(&vec![1; len as usize]).unwrap();
        file.sync_all().unwrap();
        let (all, middle) = (0..len, 300_001..600_001);
        if !holds(&file, &all) {
            eprintln!("skipped what_was_dropped_is_told_and_brought_back: this kernel does not tell");
            return;
        }
        assert_eq!(count(&file, &(5..5)), None);
        assert_eq!(count(&file, &(4095..4097)), Some(2));
        rustix::fs::fadvise(&file, 0, NonZeroU64::new(len), Advice::DontNeed).unwrap();
        if holds(&file, &all) {
            eprintln!("skipped what_was_dropped_is_told_and_brought_back: this file system keeps its pages");
            return;
        }
        bring(&file, &middle);
        assert!(holds(&file, &middle));
        bring(&file, &all);
        assert!(holds(&file, &all));
        bring(&file, &(len..2 * len));
        assert!(!holds(&file, &(0..2 * len)), "nothing is beyond the end");
    }
}
