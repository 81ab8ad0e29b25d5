//! A node: a `towlined` in a namespace of its own, and its control API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use towline_proto::control::v1::control_client::ControlClient;
use towline_proto::control::v1::{
    Model, MountRequest, Peer, PeersRequest, PeersResponse, PrefetchRequest, StatusRequest, UnmountRequest,
};

use super::netns::NetNs;
use super::network::address;
use super::scenario::{Peers, Scenario};
use crate::cache;
use crate::process::{Daemon, Usage};
use crate::scratch::Scratch;

/// Where peers accept control connections, and where they serve pieces: the defaults of `towlined`.
pub const PEER_PORT: u16 = 7118;
/// See above.
pub const BULK_PORT: u16 = 7119;

/// How many nodes the others are told of in advance.
pub(super) const BOOTSTRAP_NODES: usize = 2;

/// How long the daemon may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How often a fetch is looked at near its end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a call that only looks may take, also of a daemon whose processors are busy.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// `HOST:PORT` of the origin.
    pub origin: String,
    /// File with the cluster key.
    pub key: PathBuf,
    /// Whether stores are in memory, where the disk of one machine would be slower than the links of many.
    pub in_memory: bool,
    /// A docker `config.json`, where the origin wants a password.
    pub credentials: Option<PathBuf>,
}

/// A node. Its daemon is killed when this is dropped.
#[derive(Debug)]
pub struct Node {
    /// From 0.
    pub index: usize,
    name: String,
    dir: PathBuf,
    daemon: Option<Daemon>,
    control: ControlClient<Channel>,
    /// What daemons that have ended had used.
    spent: Usage,
    clock: Duration,
}

impl Node {
    /// Writes its configuration and starts its daemon.
    ///
    /// # Errors
    /// Where the daemon was not built or does not listen in time.
    pub async fn start(
        scratch: &Scratch,
        ns: &NetNs,
        index: usize,
        common: &Common,
        scenario: &Scenario,
    ) -> Result<Self> {
        let name = format!("n{index}");
        let dir = scratch.subdir(&name)?;
        for below in ["root", "run"] {
            fs::create_dir_all(dir.join(below)).with_context(|| format!("create {below} of {name}"))?;
        }
        let in_memory = common.in_memory.then_some(2 * scenario.model);
        if let Some(bytes) = scenario.disk_of(index).or(in_memory) {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(dir.join("root"));
            anyhow::ensure!(mount.status()?.success(), "mount a disk for {name}");
        }
        fs::write(dir.join("towlined.toml"), configuration(index, &dir, common, scenario))?;
        let socket = dir.join("run/control.sock");
        let clock = scenario.clock_of(index);
        let spent = Usage::default();
        let mut node = Self { index, name, dir, daemon: None, control: client(socket)?, spent, clock };
        node.spawn(scratch, ns).await?;
        Ok(node)
    }

    /// Starts the daemon again, after [`Node::kill`], on the same files.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn spawn(&mut self, scratch: &Scratch, ns: &NetNs) -> Result<()> {
        let mut command = Command::new(cache::own("towlined")?);
        command.arg("--config").arg(self.dir.join("towlined.toml"));
        if !self.clock.is_zero() {
            // Only the wall clock: no program compares its monotonic clock with another machine's.
            command.env("LD_PRELOAD", faketime()?).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME", format!("+{}", self.clock.as_secs()));
        }
        let mut daemon = ns.enter(|| Daemon::spawn(scratch, &self.name, &mut command))??;
        let socket = self.dir.join("run/control.sock");
        daemon.ready(START_LIMIT, async || Ok(UnixStream::connect(&socket).await.ok())).await?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Whether its daemon was started and not killed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.spent = self.usage();
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Sends SIGSTOP or SIGCONT.
    ///
    /// # Errors
    /// Where the daemon has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().with_context(|| format!("{} is down", self.name))?.signal(signal)
    }

    /// What its daemons have used so far, and the largest of them.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let now = self.daemon.as_ref().and_then(|daemon| daemon.usage().ok()).unwrap_or_default();
        Usage {
            peak_rss_bytes: now.peak_rss_bytes.max(self.spent.peak_rss_bytes),
            cpu: now.cpu + self.spent.cpu,
            write_bytes: now.write_bytes + self.spent.write_bytes,
            read_bytes: now.read_bytes + self.spent.read_bytes,
        }
    }

    /// The directory that holds models across restarts.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A directory of this node for whatever it is needed for.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A client of the node's control API that outlives it.
    #[must_use]
    pub fn driver(&self) -> Driver {
        Driver { name: self.name.clone(), control: self.control.clone() }
    }
}

/// How long a fetch took.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    /// Until every byte was here and had matched.
    pub verified: Duration,
    /// Until the daemon said that every byte was durable.
    pub durable: Duration,
}

/// Makes a node do things. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Driver {
    name: String,
    control: ControlClient<Channel>,
}

impl Driver {
    /// Fetches all of a model, and waits until every byte is there and durable.
    ///
    /// # Errors
    /// What the daemon answers; also where it ends meanwhile.
    pub async fn prefetch(&self, reference: &str) -> Result<Fetched> {
        let begin = Instant::now();
        let what = || format!("prefetch on {}", self.name);
        let request = PrefetchRequest { reference: reference.to_owned(), wait: true };
        let mut progress = self.control.clone().prefetch(request).await.with_context(what)?.into_inner();
        let mut verified = None;
        // The stream tells twice a second. Near the end that is not often enough.
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<Model> = None;
        loop {
            let is_near = last.as_ref().is_some_and(|model| model.bytes_local >= model.bytes / 100 * 95);
            tokio::select! {
                message = progress.next() => match message {
                    Some(message) => last = message.with_context(what)?.model,
                    None => break,
                },
                _ = looks.tick(), if is_near && verified.is_none() => last = self.models().await?.pop(),
            }
            if verified.is_none() && last.as_ref().is_some_and(|model| model.bytes_local >= model.bytes) {
                verified = Some(begin.elapsed());
            }
        }
        let verified = verified.with_context(|| format!("{}: ended with {last:?}", what()))?;
        Ok(Fetched { verified, durable: begin.elapsed() })
    }

    /// The models that the node knows.
    ///
    /// # Errors
    /// What the daemon answers.
    pub async fn models(&self) -> Result<Vec<Model>> {
        let request = limited(StatusRequest {});
        let what = || format!("status of {}", self.name);
        Ok(self.control.clone().status(request).await.with_context(what)?.into_inner().models)
    }

    /// The peers that the node sees.
    ///
    /// # Errors
    /// What the daemon answers.
    pub async fn peers(&self) -> Result<PeersResponse> {
        let request = limited(PeersRequest {});
        let what = || format!("peers of {}", self.name);
        Ok(self.control.clone().peers(request).await.with_context(what)?.into_inner())
    }

    /// Mounts a model's tree at an empty directory.
    ///
    /// # Errors
    /// What the daemon answers.
    pub async fn mount(&self, reference: &str, directory: &Path) -> Result<()> {
        let directory = directory.display().to_string();
        let request = limited(MountRequest { reference: reference.to_owned(), directory });
        self.control.clone().mount(request).await.with_context(|| format!("mount on {}", self.name))?;
        Ok(())
    }

    /// Undoes [`Driver::mount`].
    ///
    /// # Errors
    /// What the daemon answers.
    pub async fn unmount(&self, directory: &Path) -> Result<()> {
        let request = limited(UnmountRequest { directory: directory.display().to_string() });
        self.control.clone().unmount(request).await.with_context(|| format!("unmount on {}", self.name))?;
        Ok(())
    }
}

/// Peers of `seen` that it does not deal with.
#[must_use]
pub fn banned(seen: &PeersResponse) -> Vec<&Peer> {
    seen.peers.iter().filter(|peer| peer.banned_seconds > 0).collect()
}

/// Debian's libfaketime, which `tests/setup.sh` installs.
fn faketime() -> Result<PathBuf> {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    // The loader would only say that it is missing, and go on with the right time.
    anyhow::ensure!(Path::new(&path).is_file(), "{path} is missing: run tests/setup.sh test");
    Ok(path.into())
}

fn limited<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(LOOK_LIMIT);
    request
}

fn client(socket: PathBuf) -> Result<ControlClient<Channel>> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(ControlClient::new(Endpoint::try_from("http://localhost")?.connect_with_connector_lazy(connector)))
}

/// Pieces that a daemon keeps in memory: an eighth of the usual model here, as models are many times the default of 256 MiB
/// elsewhere.
const MEMORY: &str = "32MiB";

fn configuration(index: usize, dir: &Path, common: &Common, scenario: &Scenario) -> String {
    let mut text = format!(
        "root = \"{0}/root\"\nrun_dir = \"{0}/run\"\n\n[http]\nlisten = \"127.0.0.1:7117\"\n\n\
         [fetch]\nmemory = \"{MEMORY}\"\n\n[registry]\nplain_http = [\"{1}\"]\n",
        dir.display(),
        common.origin
    );
    if let Some(path) = &common.credentials {
        text.push_str(&format!("docker_config = \"{}\"\n", path.display()));
    }
    let strategy = match scenario.peers {
        Peers::None => return text,
        Peers::Swarm => "swarm",
        Peers::OwnerOnly => "owner-only",
    };
    let bootstrap: Vec<String> =
        (0..BOOTSTRAP_NODES).map(|index| format!("\"{}:{PEER_PORT}\"", address(index))).collect();
    text.push_str(&format!(
        "\n[peers]\ncluster_key_file = \"{}\"\nadvertise = \"{}\"\nbootstrap = [{}]\nzone = \"zone-{}\"\n\
         name = \"n{index}\"\nstrategy = \"{strategy}\"\n",
        common.key.display(),
        address(index),
        bootstrap.join(", "),
        scenario.zone_of(index),
    ));
    text
}
