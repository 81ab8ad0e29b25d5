//! A node: containerd in directories of its own, with the snapshotter a test asks for.
//!
//! Layout below the run's directory: `<node>/{config.toml,root,state,shim,runc,opt,pods,c.sock}`, and for Towline
//! `<node>/towline/{towlined.toml,root,run}`. Nothing of the machine's own containerd is read or written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::cri::Cri;
use crate::process::Daemon;
use crate::scratch::Scratch;
use crate::towlined::Towlined;

/// How long a daemon may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Which snapshotter a node uses by default.
#[derive(Clone, Debug)]
pub enum Snapshotter {
    /// containerd's own, the baseline.
    Overlayfs,
    /// `towlined`, started before containerd. The text is added to its configuration file.
    Towline {
        /// TOML, tables included; may be empty.
        extra: String,
    },
    /// A snapshotter that the test runs by itself.
    Proxy {
        /// The name in containerd's configuration.
        name: String,
        /// Its socket.
        socket: PathBuf,
        /// Its directory, which must exist.
        root: PathBuf,
    },
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Default snapshotter of the node.
    pub snapshotter: Snapshotter,
    /// Reference of the pause image.
    pub pause: String,
    /// Added at the end of containerd's configuration; whole tables only.
    pub extra: String,
}

/// A running node. Dropping it kills its daemons; [`Node::stop`] takes it down in order.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    containerd: Daemon,
    towlined: Option<Towlined>,
    cri: Cri,
}

impl Node {
    /// Starts a node named `name`, its daemons ready for a pod.
    ///
    /// # Errors
    /// Where a part is missing or does not start, with the end of its log.
    pub async fn start(scratch: &Scratch, name: &str, setup: &Setup) -> Result<Self> {
        let dir = scratch.subdir(name)?;
        let towlined = match &setup.snapshotter {
            Snapshotter::Towline { extra } => Some(
                Towlined::start(scratch, &format!("{name}-towlined"), &dir.join("towline"), extra).await?,
            ),
            Snapshotter::Overlayfs | Snapshotter::Proxy { .. } => None,
        };
        let proxy = match (&setup.snapshotter, &towlined) {
            (Snapshotter::Proxy { name, socket, root }, _) => {
                Some((name.as_str(), socket.clone(), root.clone()))
            }
            (_, Some(towlined)) => Some(("towline", towlined.snapshotter_socket(), towlined.root())),
            _ => None,
        };
        let config = dir.join("config.toml");
        fs::write(&config, containerd_config(&dir, setup, proxy.as_ref()))?;
        let path = std::env::join_paths(
            [cache::tools_dir()].into_iter().chain(std::env::split_paths("/usr/sbin:/usr/bin:/sbin:/bin")),
        )?;
        let mut containerd = Daemon::spawn(
            scratch,
            &format!("{name}-containerd"),
            Command::new(cache::tool("containerd")?).arg("--config").arg(&config).env("PATH", path),
        )?;
        let socket = dir.join("c.sock");
        let cri = Cri::new(&socket)?;
        containerd
            .ready(START_LIMIT, async || {
                // Until the CRI plugin serves, calls are refused; that is what is waited for.
                Ok(if socket.exists() { cri.is_ready().await.ok().filter(|ready| *ready) } else { None })
            })
            .await?;
        Ok(Self { dir, containerd, towlined, cri })
    }

    /// A CRI client of the node.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// containerd's socket, which serves CRI too.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The node's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// containerd itself.
    #[must_use]
    pub fn containerd(&self) -> &Daemon {
        &self.containerd
    }

    /// The Towline daemon, on a node that has one.
    #[must_use]
    pub fn towlined(&self) -> Option<&Towlined> {
        self.towlined.as_ref()
    }

    /// The Towline daemon, to be killed and started again.
    #[must_use]
    pub fn towlined_mut(&mut self) -> Option<&mut Towlined> {
        self.towlined.as_mut()
    }

    /// The daemons that do the node's work with images, for accounts of what it costs.
    pub fn image_daemons(&self) -> impl Iterator<Item = &Daemon> {
        [Some(&self.containerd), self.towlined.as_ref().map(Towlined::daemon)].into_iter().flatten()
    }

    /// Runs `ctr` on the node, in the namespace of CRI, and returns what it prints.
    ///
    /// # Errors
    /// Where it fails, with what it said.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(cache::tool("ctr")?);
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]).args(args);
        let output = command.output().await.context("run ctr")?;
        if !output.status.success() {
            bail!("ctr {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Takes the node down: pods, containerd, then `towlined`.
    ///
    /// # Errors
    /// Where something does not end in time; the run's janitor sees to the rest.
    pub async fn stop(self) -> Result<()> {
        for sandbox in self.cri.sandboxes().await? {
            self.cri.remove_sandbox(&sandbox).await?;
        }
        self.containerd.terminate(STOP_LIMIT).await?;
        if let Some(towlined) = self.towlined {
            towlined.stop(STOP_LIMIT).await?;
        }
        Ok(())
    }
}

/// The configuration of a containerd 2.4 that shares nothing with another one on the machine.
///
/// - No NRI: its socket is one per machine.
/// - `restrict_oom_score_adj`: runc cannot lower a pause container's score where root lacks `CAP_SYS_RESOURCE`, and
///   fails with a message that does not say so.
/// - The list of unpack configurations replaces the default one, so overlayfs stays listed beside a proxy.
fn containerd_config(dir: &Path, setup: &Setup, proxy: Option<&(&str, PathBuf, PathBuf)>) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    let (root, state, shim, runc, opt) = (at("root"), at("state"), at("shim"), at("runc"), at("opt"));
    let (socket, cni, pause) = (at("c.sock"), at("cni"), &setup.pause);
    let snapshotter = proxy.map_or("overlayfs", |(name, ..)| name);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut text = format!(
        "version = 4
root = '{root}'
state = '{state}'
[plugins.'io.containerd.server.v1.grpc']
address = '{socket}'
[plugins.'io.containerd.server.v1.ttrpc']
address = '{socket}.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
path = '{opt}'
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.shim.v1.manager']
socket_dir = '{shim}'
[plugins.'io.containerd.cri.v1.images']
snapshotter = '{snapshotter}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = '{cni}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
Root = '{runc}'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/{arch}'
snapshotter = 'overlayfs'
differ = 'walking'
"
    );
    if let Some((name, socket, root)) = proxy {
        let (socket, root) = (socket.display(), root.display());
        text.push_str(&format!(
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/{arch}'
snapshotter = '{name}'
differ = 'walking'
[proxy_plugins.{name}]
type = 'snapshot'
address = '{socket}'
[proxy_plugins.{name}.exports]
root = '{root}'
enable_remote_snapshot_annotations = 'true'
"
        ));
    }
    text.push_str(&setup.extra);
    text
}
