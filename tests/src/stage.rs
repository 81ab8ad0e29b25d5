//! What every end-to-end run needs: its turn, its directory, a registry, the pod and pause images, and nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::cache;
use crate::exclusive::Exclusive;
use crate::image;
use crate::node::{Node, Setup, Snapshotter};
use crate::pod::{Pod, Spec, Volume, host_libraries};
use crate::reading::Reading;
use crate::registry::Registry;
use crate::scratch::Scratch;

/// How long a pod that reads may take.
const POD_LIMIT: Duration = Duration::from_secs(120);

/// A run. Fields end in this order: the registry, the directory with all that is left in it, the turn.
#[derive(Debug)]
pub struct Stage {
    /// The registry.
    pub registry: Registry,
    /// Reference of the pod image: busybox.
    pub pod_image: String,
    /// Reference of the pause image.
    pub pause_image: String,
    /// The run's directory.
    pub scratch: Scratch,
    _turn: Exclusive,
}

/// Whether this machine can run end-to-end tests; prints the reason where it cannot.
///
/// Only the lack of root or of FUSE is a reason to skip. A missing program is an error of the set-up and fails.
#[must_use]
pub fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers and mounts need root");
        return false;
    }
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: /dev/fuse is missing");
        return false;
    }
    true
}

impl Stage {
    /// Waits for its turn and sets up.
    ///
    /// # Errors
    /// Where a part is missing or fails.
    pub async fn set() -> Result<Self> {
        let turn = Exclusive::wait().await?;
        let scratch = Scratch::new()?;
        let registry = Registry::start(&scratch, "registry").await?;
        let images = scratch.subdir("images")?;
        let pod = image::busybox(&images.join("pod"), "v1", &["/bin/sh"])?;
        let pause = image::busybox(&images.join("pause"), "v1", &["/bin/sleep", "infinity"])?;
        let pod_image = registry.push(&pod, "pod:v1").await?;
        let pause_image = registry.push(&pause, "pause:v1").await?;
        Ok(Self { registry, pod_image, pause_image, scratch, _turn: turn })
    }

    /// Starts a node, with the pod and pause images pulled.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn node(&self, name: &str, snapshotter: Snapshotter) -> Result<Node> {
        let setup = Setup { snapshotter, pause: self.pause_image.clone(), extra: String::new() };
        let node = Node::start(&self.scratch, name, &setup).await?;
        node.cri().pull(&self.pod_image).await?;
        node.cri().pull(&self.pause_image).await?;
        Ok(node)
    }

    /// Packages a directory as a plain image, one layer per file, and pushes it. Returns its reference.
    ///
    /// # Errors
    /// Where a file cannot be read or the push fails.
    pub async fn push_plain_model(&self, model: &Path, name: &str) -> Result<String> {
        let dir = self.scratch.path().join("plain-model");
        let (from, to) = (model.to_path_buf(), dir.clone());
        let layout = tokio::task::spawn_blocking(move || image::plain_model(&from, &to, "v1")).await??;
        let reference = self.registry.push(&layout, name).await?;
        std::fs::remove_dir_all(&dir)?;
        Ok(reference)
    }

    /// Runs a pod named `name` that reads all of an image volume, and removes it.
    ///
    /// # Errors
    /// Where the pod does not start, fails, or takes longer than two minutes.
    pub async fn read_in_pod(&self, node: &Node, name: &str, reference: &str) -> Result<Reading> {
        let pod = Pod::run(node, &self.reader(name, reference, &[])?).await?;
        let reading = Reading::parse(&pod.wait(POD_LIMIT).await?.success()?)?;
        pod.remove().await?;
        Ok(reading)
    }

    /// A pod that reads all of an image volume with `tl-reader`; its output is for [`crate::reading::Reading`].
    ///
    /// # Errors
    /// Where `tl-reader` was not built.
    pub fn reader(&self, name: &str, reference: &str, options: &[&str]) -> Result<Spec> {
        let reader: PathBuf = cache::own("tl-reader")?;
        let mut mounts = host_libraries();
        mounts.push(Volume::host(reader, "/tl-reader"));
        mounts.push(Volume::image(reference, "/model"));
        let command = ["/tl-reader"].iter().chain(options).chain(&["/model"]);
        Ok(Spec {
            name: name.to_owned(),
            image: self.pod_image.clone(),
            command: command.map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            mounts,
        })
    }
}
