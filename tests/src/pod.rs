//! A pod with one container, run through CRI the way the kubelet does it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towline_proto::cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};

use crate::clock::Instant;
use crate::cri::{Cri, image};
use crate::node::Node;
use crate::process::until;

/// What to run. The image must have been pulled; image volumes too.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name of the pod; unique on its node.
    pub name: String,
    /// The container's image.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Volumes.
    pub mounts: Vec<Volume>,
}

/// What a container sees at a path. Always read-only.
#[derive(Clone, Debug)]
pub enum Volume {
    /// An image volume.
    Image {
        /// The image's reference.
        reference: String,
        /// Path in the container.
        at: String,
        /// A directory in the image, empty for its root.
        sub_path: String,
    },
    /// A file or directory of the machine.
    Host {
        /// Path on the machine.
        path: PathBuf,
        /// Path in the container.
        at: String,
    },
}

impl Volume {
    /// A whole image at a path.
    #[must_use]
    pub fn image(reference: &str, at: &str) -> Self {
        Self::Image { reference: reference.to_owned(), at: at.to_owned(), sub_path: String::new() }
    }

    /// A path of the machine at a path of the container.
    #[must_use]
    pub fn host(path: impl Into<PathBuf>, at: &str) -> Self {
        Self::Host { path: path.into(), at: at.to_owned() }
    }
}

/// The machine's shared libraries, for a dynamically linked program of the machine in a container.
#[must_use]
pub fn host_libraries() -> Vec<Volume> {
    let present = ["/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    present.map(|path| Volume::host(path, path)).collect()
}

/// A pod that was started. It stays until [`Pod::remove`] or the end of its node.
#[derive(Debug)]
pub struct Pod {
    cri: Cri,
    sandbox: String,
    container: String,
    log: PathBuf,
    /// When CRI answered that its program runs.
    pub running: Instant,
}

/// How a container ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Exit code of its program; 128 + n where signal n ended it.
    pub code: i32,
    /// What it printed on either output, without CRI's line heads.
    pub output: String,
}

impl Exit {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// Where it did not, with its output.
    pub fn success(self) -> Result<String> {
        ensure!(self.code == 0, "the container ended with code {}:\n{}", self.code, self.output);
        Ok(self.output)
    }
}

impl Pod {
    /// Runs a pod: sandbox on the machine's network, container created and started.
    ///
    /// # Errors
    /// What CRI answers.
    pub async fn run(node: &Node, spec: &Spec) -> Result<Self> {
        let cri = node.cri().clone();
        let logs = node.dir().join("pods").join(&spec.name);
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let pod = sandbox_config(&spec.name, &logs);
        let sandbox = cri.run_sandbox(pod.clone()).await?;
        let container = cri.create(&sandbox, container_config(spec), pod).await?;
        cri.start(&container).await?;
        Ok(Self { cri, sandbox, container, log: logs.join("main.log"), running: Instant::now() })
    }

    /// The container's log so far, without CRI's line heads.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn output(&self) -> Result<String> {
        read_cri_log(&self.log)
    }

    /// Waits until its program ends.
    ///
    /// # Errors
    /// Where it runs longer than `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<Exit> {
        let code = until("end of the container", limit, async || {
            let status = self.cri.container(&self.container).await?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status.exit_code))
        });
        let code = code.await.with_context(|| self.output().unwrap_or_default())?;
        Ok(Exit { code, output: self.output()? })
    }

    /// Ends and removes it, volumes included.
    ///
    /// # Errors
    /// What CRI answers.
    pub async fn remove(self) -> Result<()> {
        self.cri.remove_container(&self.container, Duration::ZERO).await?;
        self.cri.remove_sandbox(&self.sandbox).await
    }
}

/// The content of a log in CRI's format: `<time> <stream> <P or F> <text>`, where P marks a line to be continued.
///
/// # Errors
/// Where it cannot be read.
pub fn read_cri_log(log: &Path) -> Result<String> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(strip_cri_heads(&text))
}

fn strip_cri_heads(log: &str) -> String {
    let mut output = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(text)) = (parts.next(), parts.next()) else { continue };
        output.push_str(text);
        if tag == "F" {
            output.push('\n');
        }
    }
    output
}

fn sandbox_config(name: &str, logs: &Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        log_directory: logs.display().to_string(),
        labels: HashMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(host_network()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(spec: &Spec) -> ContainerConfig {
    let env = spec.env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone().into() });
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(image(&spec.image)),
        command: spec.command.clone(),
        envs: env.collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        log_path: "main.log".to_owned(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(host_network()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn mount(volume: &Volume) -> Mount {
    match volume {
        Volume::Image { reference, at, sub_path } => Mount {
            container_path: at.clone(),
            readonly: true,
            image: Some(image(reference)),
            image_sub_path: sub_path.clone(),
            ..Default::default()
        },
        Volume::Host { path, at } => Mount {
            container_path: at.clone(),
            host_path: path.display().to_string(),
            readonly: true,
            ..Default::default()
        },
    }
}

fn host_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::strip_cri_heads;

    #[test]
    fn continued_lines_are_joined() {
        let log = "2026-11-22T12:00:00Z stdout P one \n2026-11-22T12:00:00Z stdout F line\n2026-11-22T12:00:01Z stderr F two\n";
        assert_eq!(strip_cri_heads(log), "one line\ntwo\n");
    }
}
