//! A directory for one run, and the promise that nothing of the run outlives it.
//!
//! Everything a run starts carries the variable [`MARK`] in its environment, and everything it writes is below one
//! directory. A janitor process (`tl-janitor`, in a process group of its own) waits for its standard input to end,
//! which happens when the [`Scratch`] is dropped, and just as well when the test panics, is interrupted or is killed.
//! It then sweeps: see [`crate::sweep`].

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::cache;

/// The environment variable that marks the processes of a run; its value is the run's directory.
pub const MARK: &str = "TOWLINE_SCRATCH";

/// How many last lines of each log are shown when a run fails, and how many characters of each.
const SHOWN_LOG_LINES: usize = 25;
const SHOWN_LINE_LEN: usize = 300;

/// The directory of one run. Dropping it ends every process of the run, unmounts what is mounted below, and removes
/// it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    janitor: Option<Child>,
}

impl Scratch {
    /// Makes a directory below `TOWLINE_TMP` (default `/var/tmp`, which is on disk where `/tmp` may be memory) with
    /// a short name, since Unix socket paths end at 107 bytes.
    ///
    /// # Errors
    /// Where it cannot be made, or the janitor cannot be started.
    pub fn new() -> Result<Self> {
        let base = std::env::var_os("TOWLINE_TMP").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        std::fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
        let dir = tempfile::Builder::new()
            .prefix("towline-")
            .tempdir_in(&base)
            .with_context(|| format!("create a directory in {}", base.display()))?
            .keep();
        let janitor = Command::new(cache::own("tl-janitor")?)
            .arg(&dir)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start tl-janitor")?;
        Ok(Self { dir, janitor: Some(janitor) })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A directory below, made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// Where the processes of the run write their logs.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn logs(&self) -> Result<PathBuf> {
        self.subdir("logs")
    }

    /// The end of every log of the run, for the report of a failure.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        let Ok(entries) = std::fs::read_dir(self.dir.join("logs")) else { return text };
        for entry in entries.flatten() {
            let log = std::fs::read(entry.path()).unwrap_or_default();
            text.push_str(&format!("---- end of {}\n", entry.file_name().to_string_lossy()));
            text.push_str(&last_lines(&String::from_utf8_lossy(&log), SHOWN_LOG_LINES));
        }
        text
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(self.log_tails().as_bytes());
        }
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// The last `count` lines of `text`, each with its newline, cut where they are very long.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(count)..].iter();
    last.flat_map(|line| line.chars().take(SHOWN_LINE_LEN).chain(['\n'])).collect()
}

#[cfg(test)]
mod tests {
    use super::{SHOWN_LINE_LEN, last_lines};

    #[test]
    fn last_lines_of_short_and_long_texts() {
        assert_eq!(last_lines("", 2), "");
        assert_eq!(last_lines("a", 2), "a\n");
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines(&"x".repeat(SHOWN_LINE_LEN + 1), 1).len(), SHOWN_LINE_LEN + 1);
    }
}
