//! What went over a node's link, recorded and searched for secrets.
//!
//! Two recordings are made: what the node exchanged with the origin, and all the rest. The secrets must be in the first,
//! or the search would find nothing anywhere and prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Serialize;

use super::netns::NetNs;
use super::network::ORIGIN;
use crate::process::{Daemon, until};
use crate::scratch::Scratch;

/// What a recording shows.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Found {
    /// Bytes recorded of what the node exchanged with others than the origin.
    pub peer_bytes: u64,
    /// Places in these where a secret stands.
    pub at_peers: usize,
    /// Places where one stands in what the node exchanged with the origin.
    pub at_origin: usize,
}

/// A recording under way.
#[derive(Debug)]
pub struct Capture {
    origin: (Daemon, PathBuf),
    peers: (Daemon, PathBuf),
}

impl Capture {
    /// Records the link of the node in `ns` into files in `dir`.
    ///
    /// # Errors
    /// Where tcpdump is missing or does not begin.
    pub async fn start(scratch: &Scratch, ns: &NetNs, dir: &Path) -> Result<Self> {
        let origin = record(scratch, ns, &dir.join("origin.pcap"), &format!("host {ORIGIN}")).await?;
        let peers = record(scratch, ns, &dir.join("peers.pcap"), &format!("not host {ORIGIN}")).await?;
        Ok(Self { origin, peers })
    }

    /// Ends the recording and searches it.
    ///
    /// # Errors
    /// Where a recording is not whole, for example because the kernel had to leave out packets.
    pub async fn finish(self, secrets: &[String]) -> Result<Found> {
        let (peers, origin) = (finished(self.peers).await?, finished(self.origin).await?);
        let count = |bytes: &[u8]| secrets.iter().map(|secret| places(bytes, secret.as_bytes())).sum();
        Ok(Found { peer_bytes: peers.len() as u64, at_peers: count(&peers), at_origin: count(&origin) })
    }
}

async fn record(scratch: &Scratch, ns: &NetNs, file: &Path, filter: &str) -> Result<(Daemon, PathBuf)> {
    let name = format!("tcpdump-{}", file.file_stem().unwrap_or_default().to_string_lossy());
    let mut command = Command::new("tcpdump");
    // As root, for the file is root's; whole packets; 64 MiB of buffer in the kernel.
    command.args(["-i", "eth0", "-Z", "root", "-s", "0", "-B", "65536", "-U", "-w"]).arg(file).arg(filter);
    let mut daemon = ns.enter(|| Daemon::spawn(scratch, &name, &mut command))??;
    let log = daemon.log().to_owned();
    let listening = async || Ok(fs::read_to_string(&log)?.contains("listening on").then_some(()));
    daemon.ready(Duration::from_secs(10), listening).await?;
    Ok((daemon, file.to_owned()))
}

async fn finished((daemon, file): (Daemon, PathBuf)) -> Result<Vec<u8>> {
    let log = daemon.log().to_owned();
    daemon.signal(Signal::INT)?;
    let said = until("end of tcpdump", Duration::from_secs(10), async || {
        let text = fs::read_to_string(&log)?;
        Ok(text.contains("dropped by kernel").then_some(text))
    })
    .await?;
    ensure!(said.contains("\n0 packets dropped by kernel"), "packets are missing: {said}");
    drop(daemon);
    fs::read(&file).with_context(|| format!("read {}", file.display()))
}

/// How often `needle` is in `hay`.
fn places(hay: &[u8], needle: &[u8]) -> usize {
    hay.windows(needle.len()).filter(|window| *window == needle).count()
}
