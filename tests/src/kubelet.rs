//! The real kubelet on a node, without a control plane: its pods come from a directory of manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache;
use crate::cri::Cri;
use crate::node::Node;
use crate::pod::{Exit, Spec, Volume, read_cri_log};
use crate::process::{Daemon, until};
use crate::scratch::Scratch;
use crate::towlined::free_port;

/// The kubelet's version; `tests/setup.sh` builds the same.
pub const VERSION: &str = "v1.36.3";

/// How long the kubelet may take to answer its health check.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The node's name in Kubernetes. Names of static pods end with it.
const NODE_NAME: &str = "node";

/// The kubelet keeps a socket and links at fixed places of the machine. A mount namespace of its own gives it other
/// directories there. What it mounts does not reach containerd then, which matters to volumes in memory only.
const START: &str = r#"mount --bind "$1" /var/lib && mount --bind "$2" /var/log && shift 2 && exec "$@""#;

/// A running kubelet. It is killed when this is dropped; its pods end with the node.
#[derive(Debug)]
pub struct Kubelet {
    daemon: Daemon,
    dir: PathBuf,
    cri: Cri,
}

impl Kubelet {
    /// Starts the kubelet of `node`. With `image_service` it reaches the CRI image service at that socket instead of
    /// containerd's.
    ///
    /// # Errors
    /// Where it was not built or does not get healthy.
    pub async fn start(
        scratch: &Scratch,
        name: &str,
        node: &Node,
        image_service: Option<&Path>,
    ) -> Result<Self> {
        let dir = scratch.subdir(name)?;
        for below in ["manifests", "pods", "root", "pki", "var-lib", "var-log"] {
            fs::create_dir_all(dir.join(below)).with_context(|| format!("create {below} for the kubelet"))?;
        }
        let healthz = free_port()?;
        let config = dir.join("kubelet.json");
        fs::write(&config, kubelet_config(&dir, node, image_service, healthz.port())?.to_string())?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "--", "sh", "-c", START, "sh"]);
        command.arg(dir.join("var-lib")).arg(dir.join("var-log"));
        command.arg(cache::tool(&format!("kubelet-{VERSION}"))?);
        command.arg(format!("--config={}", config.display()));
        command.arg(format!("--root-dir={}", dir.join("root").display()));
        command.arg(format!("--cert-dir={}", dir.join("pki").display()));
        command.arg(format!("--hostname-override={NODE_NAME}")).arg("--v=2");
        let mut daemon = Daemon::spawn(scratch, name, &mut command)?;
        daemon
            .ready(START_LIMIT, async || Ok(tokio::net::TcpStream::connect(healthz).await.ok().map(drop)))
            .await?;
        Ok(Self { daemon, dir, cri: node.cri().clone() })
    }

    /// The process.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Hands a pod to the kubelet, which pulls what is missing and runs it once.
    ///
    /// # Errors
    /// Where the manifest cannot be written.
    pub fn run(&self, spec: &Spec) -> Result<()> {
        let manifests = self.dir.join("manifests");
        // The kubelet ignores names that start with a dot, so it never sees half a manifest.
        let part = manifests.join(format!(".{}.json", spec.name));
        fs::write(&part, manifest(spec).to_string()).context("write a manifest")?;
        fs::rename(&part, manifests.join(format!("{}.json", spec.name))).context("publish a manifest")
    }

    /// Waits until the container of a pod has ended.
    ///
    /// # Errors
    /// Where that takes longer than `limit`.
    pub async fn wait(&self, pod: &str, limit: Duration) -> Result<Exit> {
        let name = format!("{pod}-{NODE_NAME}");
        let what = format!("end of pod {name}");
        let code = until(&what, limit, async || self.cri.exit_code_in_pod(&name).await).await?;
        Ok(Exit { code, output: self.output(&name)? })
    }

    /// Withdraws a pod; the kubelet ends and removes it.
    ///
    /// # Errors
    /// Where there is no such manifest.
    pub fn remove(&self, pod: &str) -> Result<()> {
        fs::remove_file(self.dir.join("manifests").join(format!("{pod}.json"))).context("remove a manifest")
    }

    /// Ends the kubelet; pods stay.
    ///
    /// # Errors
    /// Where it does not end within `grace`.
    pub async fn stop(self, grace: Duration) -> Result<()> {
        self.daemon.terminate(grace).await?;
        Ok(())
    }

    /// The log at `pods/<namespace>_<name>_<uid>/main/0.log`.
    fn output(&self, name: &str) -> Result<String> {
        let head = format!("default_{name}_");
        let mut pods = fs::read_dir(self.dir.join("pods"))?.flatten();
        let pod = pods.find(|entry| entry.file_name().to_string_lossy().starts_with(&head));
        read_cri_log(&pod.with_context(|| format!("pod {name} has no log"))?.path().join("main/0.log"))
    }
}

/// A kubelet's configuration, in JSON, which it reads as YAML.
///
/// - Without pod cgroups (`cgroupsPerQOS`), since a kubelet removes the cgroups of pods it does not know, and another
///   kubelet may run here. `enforceNodeAllocatable` must then be empty.
/// - `failCgroupV1`: since 1.35 the kubelet refuses cgroup v1 unless told otherwise.
/// - Thresholds that a busy development machine does not reach.
fn kubelet_config(dir: &Path, node: &Node, image_service: Option<&Path>, healthz: u16) -> Result<Value> {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "staticPodPath": dir.join("manifests"),
        "podLogsDir": dir.join("pods"),
        "volumePluginDir": dir.join("volume-plugins"),
        "address": "127.0.0.1",
        "port": free_port()?.port(),
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": healthz,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi" },
        "fileCheckFrequency": "1s",
    });
    if let Some(socket) = image_service {
        config["imageServiceEndpoint"] = format!("unix://{}", socket.display()).into();
    }
    Ok(config)
}

fn manifest(spec: &Spec) -> Value {
    let named = || spec.mounts.iter().enumerate().map(|(index, volume)| (format!("v{index}"), volume));
    let volumes = named().map(|(name, volume)| match volume {
        Volume::Image { reference, .. } => {
            json!({ "name": name, "image": { "reference": reference, "pullPolicy": "IfNotPresent" } })
        }
        Volume::Host { path, .. } => json!({ "name": name, "hostPath": { "path": path } }),
    });
    let mounts = named().map(|(name, volume)| match volume {
        Volume::Image { at, sub_path, .. } => {
            json!({ "name": name, "mountPath": at, "subPath": sub_path, "readOnly": true })
        }
        Volume::Host { at, .. } => json!({ "name": name, "mountPath": at, "readOnly": true }),
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": spec.name, "namespace": "default" },
        "spec": {
            "hostNetwork": true,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "volumes": volumes.collect::<Vec<_>>(),
            "containers": [{
                "name": "main",
                "image": spec.image,
                "imagePullPolicy": "IfNotPresent",
                "command": spec.command,
                "env": spec.env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect::<Vec<_>>(),
                "volumeMounts": mounts.collect::<Vec<_>>(),
            }],
        },
    })
}
