//! Memory that the machine has, and not only its host.
//!
//! A virtual machine may give memory that it does not use back to its host. Who then touches a page first waits for the host,
//! 10 to 20 µs where we measured it: 4 s of processor time for a GiB, several times what a daemon needs to receive, verify
//! and keep it. Nodes of a fleet do not all start on memory that was just given away, so it is taken back before a run.
//!
//! Linux reports free memory to the host in blocks of 2 MiB at least (`page_reporting_order`). So memory is filled, and all but
//! one page in 64 is given up again: what becomes free between them is never such a block, and the allocator prefers the smallest
//! blocks that fit.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

/// One page of this is kept.
const BLOCK: u64 = 256 << 10;
const PAGE: u64 = 4096;

/// What is kept until this process ends, and the memory around it.
static KEPT: Mutex<(Vec<File>, u64)> = Mutex::new((Vec::new(), 0));

/// Sees to it that `bytes` of memory have been touched and stay with this machine for as long as this process lives. Tells
/// how long a GiB took if there was something to do.
///
/// # Errors
/// Where there is not so much memory.
pub fn keep(bytes: u64) -> Result<Option<Duration>> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = bytes.saturating_sub(kept.1).next_multiple_of(1 << 20);
    if missing == 0 {
        return Ok(None);
    }
    let started = Instant::now();
    let mut file = File::from(memfd_create("towline-warm", MemfdFlags::CLOEXEC)?);
    let block = vec![1; 1 << 20];
    for _ in 0..missing >> 20 {
        file.write_all(&block).context("touch memory")?;
    }
    let took = started.elapsed();
    for offset in (0..missing).step_by(BLOCK as usize) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, offset + PAGE, BLOCK - PAGE).context("give memory up")?;
    }
    kept.0.push(file);
    kept.1 += missing;
    Ok(Some(took.mul_f64((1_u64 << 30) as f64 / missing as f64)))
}

#[cfg(test)]
mod tests {
    use std::os::linux::fs::MetadataExt;

    use super::{BLOCK, KEPT, PAGE, keep};

    #[test]
    fn little_is_kept_and_only_once() {
        assert!(keep(8 << 20).unwrap().is_some());
        assert!(keep(8 << 20).unwrap().is_none());
        let kept = KEPT.lock().unwrap();
        assert_eq!(kept.0[0].metadata().unwrap().st_blocks() * 512, (8 << 20) / BLOCK * PAGE);
    }
}
