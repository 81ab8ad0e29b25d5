//! The daemon under test, run as its users run it: `towlined --config FILE`.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

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

    /// A metric without labels, as a number.
    ///
    /// # Errors
    /// Where the daemon does not answer or has no such metric.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.http).await?;
        let head = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.http);
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (head, body) = text.split_once("\r\n\r\n").context("an HTTP answer")?;
        ensure!(head.contains(" 200 "), "{head}");
        let line = body.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let line = line.with_context(|| format!("no metric {name} in\n{body}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
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
    free_ports().map(|[port]| port)
}

/// As [`free_port`], several that differ.
///
/// # Errors
/// Where there are not so many.
pub fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("find a free port");
    let listeners: Vec<TcpListener> = (0..N).map(|_| bind()).collect::<Result<_>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?)).collect::<Result<Vec<_>>>()?;
    Ok(ports.try_into().expect("as many as were bound"))
}
