//! How fast a mount is read, next to a plain file in the same run: `mount_throughput [MiB] [rounds]`, as root.
//!
//! Prints the median over the rounds. Native reads come from the page cache, so the ratio is what the mount costs.
#![expect(clippy::print_stdout, reason = "the numbers are the output")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Answer, Mapping, Mounted, TestTree, bytes};
use rustix::fs::{Advice, fadvise};
use rustix::mm::MapFlags;
use towline_fuse::{MountOptions, Op};

const BLOCK: usize = 1 << 20;
const PAGE: usize = 4096;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let len = arguments.next().unwrap_or(1024) << 20;
    let rounds = arguments.next().unwrap_or(5);
    let tree = TestTree::new();
    tree.add("model/near", bytes(len, 1));
    let far = tree.add("model/far", bytes(len, 1));
    let sealed = tree.add("model/sealed", bytes(len, 1));
    tree.set_answer(far, Answer::Delayed(Duration::from_millis(5)));
    let Some(mounted) = Mounted::start_with(tree, MountOptions::default()) else { return };
    mounted.seal(sealed);
    let native = mounted.beside(&format!("content-{sealed}"));
    let (near_path, far_path) = (mounted.path("model/near"), mounted.path("model/far"));
    let sealed_path = mounted.path("model/sealed");
    let read_requests = || mounted.mount().stats().requests(Op::Read);

    let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut record = |name, elapsed: Duration| {
        let rate = len as f64 / elapsed.as_secs_f64() / 1e9;
        match rows.iter_mut().find(|(row, _)| *row == name) {
            Some((_, rates)) => rates.push(rate),
            None => rows.push((name, vec![rate])),
        }
    };
    let mut cold_requests = 0;
    for _ in 0..rounds {
        record("native read, warm", read(&native));
        record("native mmap copy, warm", copy_mapped(&native));
        record("native mmap touch, warm", touch(&native));
        forget(&near_path);
        let before = read_requests();
        record("read, cold, local in the daemon", read(&near_path));
        cold_requests = read_requests() - before;
        record("read, warm", read(&near_path));
        record("mmap copy, warm", copy_mapped(&near_path));
        record("mmap touch, warm", touch(&near_path));
        forget(&near_path);
        record("mmap copy, cold, local in the daemon", copy_mapped(&near_path));
        forget(&near_path);
        record("two readers, cold, local in the daemon", two_readers(&near_path, len));
        forget(&far_path);
        record("read, cold, 5 ms late from another thread", read(&far_path));
        forget(&far_path);
        record("mmap copy, cold, 5 ms late", copy_mapped(&far_path));
        record("read, passthrough", read(&sealed_path));
        record("mmap copy, passthrough", copy_mapped(&sealed_path));
        record("mmap touch, passthrough", touch(&sealed_path));
    }
    let native_read = median(&rows[0].1);
    println!("{:<44} {:>8} {:>16}", "", "GB/s", "of native read");
    for (name, rates) in &rows {
        println!("{name:<44} {:>8.2} {:>16.2}", median(rates), median(rates) / native_read);
    }
    println!(
        "requests for one cold read: {cold_requests}, {} KiB each",
        (len as u64 >> 10) / cold_requests.max(1)
    );
    println!(
        "passthrough: {}, read-ahead: {:?} KiB",
        mounted.mount().passthrough(),
        mounted.mount().read_ahead_kb()
    );
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Drops what the kernel has cached of a file.
fn forget(path: &Path) {
    fadvise(File::open(path).expect("it is there"), 0, None, Advice::DontNeed).expect("it can be dropped");
}

fn read(path: &Path) -> Duration {
    let start = Instant::now();
    read_all(File::open(path).expect("it is there"));
    start.elapsed()
}

fn read_all(mut from: impl Read) {
    let mut block = vec![0; BLOCK];
    while from.read(&mut block).expect("it can be read") > 0 {}
}

fn two_readers(path: &Path, len: usize) -> Duration {
    use std::io::{Seek, SeekFrom};
    let half = len as u64 / 2;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for offset in [0, half] {
            scope.spawn(move || {
                let mut file = File::open(path).expect("it is there");
                file.seek(SeekFrom::Start(offset)).expect("it can seek");
                read_all(file.take(half));
            });
        }
    });
    start.elapsed()
}

fn copy_mapped(path: &Path) -> Duration {
    let mut block = vec![0; BLOCK];
    let start = Instant::now();
    let mapping =
        Mapping::new(&File::open(path).expect("it is there"), MapFlags::PRIVATE).expect("it can be mapped");
    for part in mapping.bytes().chunks(BLOCK) {
        block[..part.len()].copy_from_slice(part);
        std::hint::black_box(&mut block);
    }
    start.elapsed()
}

fn touch(path: &Path) -> Duration {
    let start = Instant::now();
    let mapping =
        Mapping::new(&File::open(path).expect("it is there"), MapFlags::PRIVATE).expect("it can be mapped");
    let sum: u64 = mapping.bytes().iter().step_by(PAGE).map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
    start.elapsed()
}
