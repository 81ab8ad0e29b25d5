//! Long-running programs of a run: start with a log, wait until ready, measure, end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::scratch::{MARK, Scratch, last_lines};

/// How often a condition that is waited for is looked at.
const POLL_EVERY: Duration = Duration::from_millis(5);

/// Ticks per second in `/proc/<pid>/stat`: fixed by the kernel's interface to programs, whatever its own clock rate.
const USER_HZ: u64 = 100;

/// Asks `probe` again and again until it has an answer.
///
/// # Errors
/// The probe's own error, at once; or that `what` did not happen within `limit`.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("{what} did not happen within {limit:?}");
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// A program of the run. It is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a process has used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Most resident memory so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Processor time in user and kernel mode, its ended children not included.
    pub cpu: Duration,
    /// Bytes it caused to be sent to a disk: `write_bytes` of `/proc/<pid>/io`.
    pub write_bytes: u64,
    /// Bytes it caused to be read from a disk: `read_bytes` of `/proc/<pid>/io`.
    pub read_bytes: u64,
}

impl Daemon {
    /// Starts `command` with both outputs appended to `logs/<name>.log` of the run.
    ///
    /// # Errors
    /// Where the log cannot be made or the program cannot be started.
    pub fn spawn(scratch: &Scratch, name: &str, command: &mut Command) -> Result<Self> {
        let log = scratch.logs()?.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .env(MARK, scratch.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until `probe` has an answer, as [`until`], but gives up at once when the program ends.
    ///
    /// # Errors
    /// As [`until`], with the end of the log.
    pub async fn ready<T>(
        &mut self,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let what = format!("start of {}", self.name);
        let result = until(&what, limit, async || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}", self.name);
            }
            probe().await
        })
        .await;
        result.with_context(|| self.log_tail())
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid()).with_context(|| format!("read what {} has used", self.name))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("send a signal to {}", self.name))
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// Where it is still there after `grace`; it is then killed.
    pub async fn terminate(mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let what = format!("end of {}", self.name);
        until(&what, grace, async || Ok(self.child.try_wait()?)).await.with_context(|| self.log_tail())
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        format!("end of {}'s log:\n{}", self.name, last_lines(&String::from_utf8_lossy(&text), 15))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What process `pid` has used so far.
///
/// # Errors
/// Where it does not exist or is not ours to look at.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{pid}/{name}")).with_context(|| format!("read /proc/{pid}/{name}"))
    };
    let (status, stat, io) = (read("status")?, read("stat")?, read("io")?);
    // In stat the name, in brackets, may hold anything; utime and stime are the 12th and 13th field after it.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|text| text.parse().unwrap_or(0))
        .collect();
    let ticks: u64 = fields.iter().sum();
    Ok(Usage {
        peak_rss_bytes: field(&status, "VmHWM:") * 1024,
        cpu: Duration::from_millis(ticks * 1000 / USER_HZ),
        write_bytes: field(&io, "write_bytes:"),
        read_bytes: field(&io, "read_bytes:"),
    })
}

/// The number after `label` at the start of a line, 0 where there is none.
fn field(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{field, usage};

    #[test]
    fn field_takes_the_number_after_its_label() {
        let text = "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(field(text, "write_bytes:"), 4096);
        assert_eq!(field(text, "absent:"), 0);
    }

    #[test]
    fn this_process_has_used_memory() {
        let used = usage(std::process::id()).expect("this process exists");
        assert!(used.peak_rss_bytes > 100 << 10);
    }
}
