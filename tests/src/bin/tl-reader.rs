//! `tl-reader [--threads N] [--mmap] DIR`: reads every file below DIR and prints what it saw, one JSON object a line.
//!
//! It stands for a model server: it touches the largest file first, as a loader reads a header, then reads every
//! byte and hashes it. The lines are `towline_tests::reading::Event`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant as Stopwatch;

use anyhow::{Context, Result};
use clap::Parser;
use sha2::{Digest, Sha256};
use towline_tests::clock::Instant;
use towline_tests::model::files_below;
use towline_tests::reading::{Event, FileRead};

/// Bytes per read: what Python's and Rust's loaders ask for at least.
const READ_LEN: usize = 1 << 20;

#[derive(Parser)]
#[command(about = "Reads every file below a directory and prints what it saw as JSON lines.")]
struct Args {
    /// Files read at the same time.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Map files into memory instead of reading them.
    #[arg(long)]
    mmap: bool,
    /// The directory.
    dir: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    print(&Event::Start { at_ns: Instant::now().0 })?;
    let files = files_below(&args.dir)?;
    touch_largest(&args.dir, &files)?;
    let next = AtomicUsize::new(0);
    let results: Vec<Result<Totals>> = std::thread::scope(|scope| {
        let work = || {
            let mut totals = Totals::default();
            while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                read_one(&args, path, &mut totals)?;
            }
            Ok(totals)
        };
        let threads: Vec<_> = (0..args.threads.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    let mut all = Totals::default();
    for totals in results {
        let totals = totals?;
        all.files += totals.files;
        all.bytes += totals.bytes;
        all.failed += totals.failed;
    }
    print(&Event::Done { at_ns: Instant::now().0, files: all.files, bytes: all.bytes })?;
    Ok(if all.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Default)]
struct Totals {
    files: u64,
    bytes: u64,
    failed: u64,
}

/// Lines of several threads do not mix: each is one write under the lock of the standard output.
fn print(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("print")
}

fn touch_largest(dir: &Path, files: &[PathBuf]) -> Result<()> {
    let len = |path: &&PathBuf| dir.join(path).metadata().map_or(0, |metadata| metadata.len());
    let Some(path) = files.iter().max_by_key(len) else { return Ok(()) };
    let read = File::open(dir.join(path)).and_then(|mut file| file.read(&mut [0]));
    let at_ns = Instant::now().0;
    match read {
        Ok(_) => print(&Event::FirstByte { at_ns, path: path.display().to_string() }),
        Err(error) => print(&failed(path, &error)),
    }
}

fn read_one(args: &Args, path: &Path, totals: &mut Totals) -> Result<()> {
    let watch = Stopwatch::now();
    let full = args.dir.join(path);
    match if args.mmap { mapped::hash(&full) } else { hash(&full) } {
        Ok((size, sha256)) => {
            let seconds = watch.elapsed().as_secs_f64();
            totals.files += 1;
            totals.bytes += size;
            #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
            let mb_per_s = size as f64 / 1e6 / seconds.max(1e-9);
            let path = path.display().to_string();
            print(&Event::File(FileRead { at_ns: Instant::now().0, path, size, sha256, seconds, mb_per_s }))
        }
        Err(error) => {
            totals.failed += 1;
            print(&failed(path, &error))
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Event {
    Event::Failed {
        at_ns: Instant::now().0,
        path: path.display().to_string(),
        errno: error.raw_os_error().unwrap_or(0),
        error: error.to_string(),
    }
}

/// Length and SHA-256 of a file.
fn hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_LEN];
    let (mut hash, mut len) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((len, hex::encode(hash.finalize()))),
            count => {
                hash.update(&buffer[..count]);
                len += count as u64;
            }
        }
    }
}

/// Reading through a mapping, as safetensors loaders do.
#[expect(unsafe_code, reason = "a memory mapping is what is measured")]
mod mapped {
    use std::ffi::c_void;
    use std::fs::File;
    use std::io;
    use std::path::Path;
    use std::ptr;
    use std::slice;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use sha2::{Digest, Sha256};

    /// Length and SHA-256 of a file. A file that cannot be read to its end kills the process with SIGBUS.
    pub(super) fn hash(path: &Path) -> io::Result<(u64, String)> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if len == 0 {
            return Ok((0, hex::encode(Sha256::digest([]))));
        }
        let map = Mapping::new(&file, usize::try_from(len).map_err(io::Error::other)?)?;
        Ok((len, hex::encode(Sha256::digest(map.bytes()))))
    }

    struct Mapping {
        start: *mut c_void,
        len: usize,
    }

    impl Mapping {
        fn new(file: &File, len: usize) -> io::Result<Self> {
            // SAFETY: a new private mapping at an address the kernel chooses aliases nothing of ours.
            let start = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
            Ok(Self { start, len })
        }

        fn bytes(&self) -> &[u8] {
            // SAFETY: the mapping is readable for `len` bytes as long as `self` lives, and the files read here are
            // on read-only mounts, so that nobody writes to them or cuts them.
            unsafe { slice::from_raw_parts(self.start.cast(), self.len) }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: `start` and `len` are of the mapping made in `new`, and no borrow of it outlives `self`.
            let _ = unsafe { munmap(self.start, self.len) };
        }
    }
}
