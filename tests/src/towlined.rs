//! The daemon under test, run as its users run it: `towlined --config FILE`.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixStream;

use crate::cache;
use crate::process::Daemon;
use crate::scratch::Scratch;

/// How long the daemon may take to listen.
const START_LIMIT: Duration = Duration::from_secs(15);

/// A running `towlined`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Towlined {
    daemon: Daemon,
    dir: PathBuf,
    http: SocketAddr,
}

impl Towlined {
    /// Starts it with its files below `dir`: `root` (which survives it), `run` (sockets, mount), `towlined.toml`.
    /// `extra` is added to the configuration file.
    ///
    /// # Errors
    /// Where it was not built or does not listen in time, with the end of its log.
    pub async fn start(scratch: &Scratch, name: &str, dir: &Path, extra: &str) -> Result<Self> {
        let (root, run) = (dir.join("root"), dir.join("run"));
        for dir in [&root, &run] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let http = free_port()?;
        let config = format!(
            "root = \"{}\"\nrun_dir = \"{}\"\n\n[http]\nlisten = \"{http}\"\n{extra}",
            root.display(),
            run.display()
        );
        fs::write(dir.join("towlined.toml"), config)?;
        let daemon = Self::spawn(scratch, name, dir)?;
        let mut towlined = Self { daemon, dir: dir.to_path_buf(), http };
        towlined.wait_ready().await?;
        Ok(towlined)
    }

    /// Kills it with SIGKILL and starts it again on the same files.
    ///
    /// # Errors
    /// As [`Towlined::start`].
    pub async fn kill_and_restart(&mut self, scratch: &Scratch, name: &str) -> Result<()> {
        self.daemon.kill()?;
        self.daemon = Self::spawn(scratch, name, &self.dir)?;
        self.wait_ready().await
    }

    /// The process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The directory that holds models across restarts.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where containerd reaches it.
    #[must_use]
    pub fn snapshotter_socket(&self) -> PathBuf {
        self.dir.join("run/snapshotter.sock")
    }

    /// Where `towline status` reaches it.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("run/control.sock")
    }

    /// Where it serves metrics and health.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// Where it is still there after `grace`.
    pub async fn stop(self, grace: Duration) -> Result<()> {
        self.daemon.terminate(grace).await?;
        Ok(())
    }

    fn spawn(scratch: &Scratch, name: &str, dir: &Path) -> Result<Daemon> {
        let mut command = Command::new(cache::own("towlined")?);
        Daemon::spawn(scratch, name, command.arg("--config").arg(dir.join("towlined.toml")))
    }

    /// Ready is when both sockets accept: a socket file left by a killed daemon refuses.
    async fn wait_ready(&mut self) -> Result<()> {
        let sockets = [self.snapshotter_socket(), self.control_socket()];
        self.daemon
            .ready(START_LIMIT, async || {
                for socket in &sockets {
                    if UnixStream::connect(socket).await.is_err() {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await
    }
}

/// A loopback port that was free a moment ago, for programs that do not tell which port they chose.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?)
}
