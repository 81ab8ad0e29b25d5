//! Single reads of what is not there yet, while everything else arrives.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rustix::fs::{Advice, SeekFrom, fadvise, seek};

use super::model::{Model, content_path};
use super::netns::NetNs;
use super::network::ORIGIN;
use super::origin::PORT;

/// Bytes of a read: a page.
const READ_LEN: u64 = 4096;

/// Bytes of a piece (docs/format.md).
pub const PIECE_LEN: u64 = 2 << 20;

/// A reader thread. It ends when told to, or when nothing is missing any more.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Vec<Duration>>>,
}

impl Reader {
    /// Reads random pages of the weight files below `mount`, one after the other, and times those that are in no piece of the store
    /// below `root` when the read begins.
    #[must_use]
    pub fn start(model: &Model, mount: PathBuf, root: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let files: Vec<_> =
            model.files.iter().map(|file| (file.path.clone(), file.content.clone(), file.len)).collect();
        let thread = std::thread::spawn(move || {
            let opened = files.iter().map(|(path, content, len)| {
                let shown = mount.join(path);
                let file = File::open(&shown).with_context(|| format!("open {}", shown.display()))?;
                fadvise(&file, 0, None, Advice::Random).context("switch read-ahead off")?;
                Ok((file, content_path(&root, content), *len))
            });
            read(&opened.collect::<Result<Vec<_>>>()?, &stopped)
        });
        Self { stop, thread }
    }

    /// The times of the reads, sorted.
    ///
    /// # Errors
    /// Where a read failed.
    pub fn finish(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        times.sort();
        Ok(times)
    }
}

fn read(files: &[(File, PathBuf, u64)], stop: &AtomicBool) -> Result<Vec<Duration>> {
    let mut rng = rand::rng();
    let (mut times, mut page) = (Vec::new(), vec![0; 4096]);
    let mut warm_in_a_row = 0;
    // So many pages in a row that were there: as good as nothing is missing.
    while !stop.load(Ordering::Relaxed) && warm_in_a_row < 10_000 {
        let (file, stored, len) = &files[rng.random_range(0..files.len())];
        let at = rng.random_range(0..len.div_ceil(READ_LEN).saturating_sub(1).max(1)) * READ_LEN;
        if !is_missing(stored, at)? {
            warm_in_a_row += 1;
            continue;
        }
        warm_in_a_row = 0;
        let begin = Instant::now();
        file.read_exact_at(&mut page, at).with_context(|| format!("read 4 KiB at {at}"))?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// Whether the stored file has a hole at `at`: pieces are written once, whole.
fn is_missing(stored: &Path, at: u64) -> Result<bool> {
    let Ok(file) = File::open(stored) else { return Ok(true) };
    match seek(&file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data > at),
        Err(rustix::io::Errno::NXIO) => Ok(true),
        Err(error) => Err(error).context("look for a hole"),
    }
}

/// The time in which a plain client in `ns` gets one piece from the origin, on a new connection.
///
/// # Errors
/// Where the answer is not a piece.
pub fn time_of_piece(ns: &NetNs, path: &str) -> Result<Duration> {
    ns.enter(|| {
        let begin = Instant::now();
        let mut stream = TcpStream::connect((ORIGIN, PORT)).context("connect to the origin")?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {ORIGIN}:{PORT}\r\nRange: bytes=0-{}\r\nConnection: close\r\n\r\n",
            PIECE_LEN - 1
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("read a piece")?;
        ensure!(answer.starts_with(b"HTTP/1.1 206") && answer.len() as u64 > PIECE_LEN, "no piece was sent");
        Ok(begin.elapsed())
    })?
}

/// The value below which `share` of the sorted `times` are; the upper one of two.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an index below the length"
)]
pub fn percentile(times: &[Duration], share: f64) -> Option<Duration> {
    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::{is_missing, percentile};

    #[test]
    fn a_hole_is_missing_and_written_bytes_are_not() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("content");
        assert!(is_missing(&path, 0).unwrap());
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[1; 1 << 20], 1 << 20).unwrap();
        let missing = |at| is_missing(&path, at).unwrap();
        assert!(missing(0) && !missing(1 << 20) && !missing((2 << 20) - 4096) && missing(2 << 20));
    }

    #[test]
    fn percentiles_of_few_and_many() {
        let times: Vec<Duration> = (0..100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.95), Some(Duration::from_millis(95)));
        assert_eq!(percentile(&times[..1], 0.95), Some(Duration::ZERO));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
