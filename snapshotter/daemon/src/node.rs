//! What the parts of the daemon share, and the work that goes on by itself: fills, completion, removal.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, Sha256};
use towline_fuse::Mount;
use towline_modelfs::{ContentHandle, Engine, fill_order};
use towline_store::{TreeContent, TreeFile};

use crate::catalog::{Catalog, KnownModel};
use crate::config::Config;
use crate::metrics::{Declined, Metrics};
use crate::origin::Origins;

/// How often completion is looked for. Readers do not wait for it; the next pod profits.
const TICK: Duration = Duration::from_millis(500);

/// The daemon's shared state.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) engine: Arc<Engine>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) catalog: Catalog,
    pub(crate) runtime: Handle,
    pub(crate) mount: OnceLock<Mount>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    pub(crate) volumes_open: AtomicU64,
    /// Whether this host relabels volumes for SELinux. Plain directories share files between pods and cannot carry each
    /// pod's label; FUSE volumes answer that they have none.
    pub(crate) relabels: bool,
    /// Base layers whose last snapshot is gone; removed by the next cleanup.
    dead: Mutex<Vec<Sha256>>,
    /// Contents that could not be removed yet because somebody reads them.
    unwanted: Mutex<Vec<ContentId>>,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        engine: Arc<Engine>,
        origins: Arc<Origins>,
        catalog: Catalog,
        runtime: Handle,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let models = catalog.models();
        models.iter().for_each(|known| origins.add(known));
        Arc::new(Self {
            config,
            engine,
            origins,
            catalog,
            runtime,
            mount: OnceLock::new(),
            metrics: Metrics::default(),
            stop,
            volumes_open: AtomicU64::new(0),
            relabels: Path::new("/sys/fs/selinux/enforce").exists(),
            dead: Mutex::default(),
            unwanted: Mutex::default(),
        })
    }

    /// An image of ours that cannot be served lazily: counted and said aloud. True if that fails the pull.
    pub(crate) fn declined(&self, reason: Declined, image: &str, detail: &str) -> bool {
        self.metrics.declined(reason);
        let strict = self.config.snapshotter.strict;
        let outcome = if strict { "pull refused" } else { "containerd downloads it whole" };
        tracing::error!(image, reason = reason.name(), detail, "model image is not served lazily; {outcome}");
        strict
    }

    /// Starts to fetch the whole model, once. Returns at once; the work is on the blocking pool.
    pub(crate) fn start_fill(self: &Arc<Self>, known: &Arc<KnownModel>) {
        if !self.config.fetch.fill || known.fill_begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let (node, known) = (Arc::clone(self), Arc::clone(known));
        self.runtime.spawn_blocking(move || {
            if let Err(error) = node.fill(&known) {
                known.fill_begun.store(false, Ordering::Release);
                tracing::error!(model = %known.model.base, error = format!("{error:#}"), "background fetch cannot start");
            }
        });
    }

    fn fill(&self, known: &KnownModel) -> anyhow::Result<()> {
        let mut parts: Vec<(Arc<ContentHandle>, std::ops::Range<u32>)> = Vec::new();
        for (file, pieces) in fill_order(&known.model) {
            let handle = known.handle(file, &self.engine)?;
            parts.push((Arc::clone(handle), pieces));
        }
        *lock(&known.fill) = Some(self.engine.start_fill(&parts));
        Ok(())
    }

    /// Starts the fill of `known` after the configured delay, so that a pod that is starting has the machine first.
    pub(crate) fn start_fill_later(self: &Arc<Self>, known: &Arc<KnownModel>) {
        let (node, known) = (Arc::clone(self), Arc::clone(known));
        self.runtime.spawn(async move {
            tokio::select! {
                () = node.stop.cancelled() => {}
                () = tokio::time::sleep(node.config.fetch.fill_delay) => node.start_fill(&known),
            }
        });
    }

    /// Resumes what was under way before a restart, then watches for models that become whole.
    pub(crate) async fn watch(self: Arc<Self>) {
        let node = Arc::clone(&self);
        // What was complete before a restart is served as such from the first pod on. A panic is logged by its hook.
        let _opened = tokio::task::spawn_blocking(move || node.open_contents()).await;
        for known in self.catalog.models() {
            self.start_fill_later(&known);
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for known in self.catalog.models() {
                if known.sealed_tree.get().is_some() || !known.is_sealed() {
                    continue;
                }
                let node = Arc::clone(&self);
                let made = tokio::task::spawn_blocking(move || node.complete(&known)).await;
                if let Ok(Err(error)) = made {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "complete model keeps being served through FUSE"
                    );
                }
            }
        }
    }

    /// Opens the contents of all models, without fetching any.
    fn open_contents(&self) {
        for known in self.catalog.models() {
            for file in known.weight_files() {
                if let Err(error) = known.handle(file, &self.engine) {
                    tracing::error!(%error, model = %known.model.base, "content cannot be opened");
                }
            }
        }
    }

    /// A model is whole: gives it a plain directory, which needs no daemon.
    fn complete(&self, known: &KnownModel) -> anyhow::Result<()> {
        let first_time = lock(&known.fill).take().map(|fill| self.engine.stop_fill(fill)).is_some();
        let path = self.make_sealed_tree(known).context("make the plain directory of a complete model")?;
        if known.sealed_tree.set(path).is_ok() {
            let elapsed = known.known_since.elapsed();
            if first_time {
                self.metrics.ready(elapsed);
            }
            tracing::info!(
                model = %known.model.base, repository = known.model.source.repo, bytes = known.model.total_len(),
                elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), "model is complete"
            );
        }
        Ok(())
    }

    fn make_sealed_tree(&self, known: &KnownModel) -> anyhow::Result<PathBuf> {
        let top = known.chains.last().expect("a model has a base layer");
        let mut files = Vec::new();
        for (n, file) in known.model.files.iter().enumerate() {
            let content = if file.layer == 0 {
                let len =
                    u32::try_from(file.table.file_len()).context("length of a file in the base layer")?;
                TreeContent::Inline(known.read_base(n, 0, len).context("read base layer")?)
            } else {
                TreeContent::Sealed(file.table.content())
            };
            for path in std::iter::once(&file.path).chain(&file.links) {
                let (path, executable) = (path.clone(), file.executable);
                files.push(TreeFile { path, executable, content: content.clone() });
            }
        }
        Ok(self.engine.store().sealed_tree(&hex::encode(top.0), &files, &[])?)
    }

    /// The last snapshot of a chain is gone. A base layer goes last, and takes its model along.
    pub(crate) fn forget(&self, chain: Sha256) {
        if self.catalog.by_chain(chain).is_some_and(|(_, layer)| layer == 0) {
            lock(&self.dead).push(chain);
        }
    }

    /// A chain is wanted again before the cleanup came.
    pub(crate) fn revive(&self, base: Sha256) {
        lock(&self.dead).retain(|dead| *dead != base);
    }

    /// Finds what a crash between the removal of a last snapshot and the end of the cleanup left: models without a
    /// snapshot, contents without a model.
    pub(crate) fn forget_all_but(&self, chains: &[String]) {
        for known in self.catalog.models() {
            let base = known.model.base.to_string();
            if chains.binary_search(&base).is_err() {
                lock(&self.dead).push(known.model.base);
            }
        }
        let wanted: Vec<ContentId> = self.catalog.models().iter().flat_map(|known| contents(known)).collect();
        let stored = self.engine.store().contents().into_iter().map(|info| info.id);
        lock(&self.unwanted).extend(stored.filter(|content| !wanted.contains(content)));
    }

    /// Removes dead models and the contents that no other model has. Blocks on the disk.
    pub(crate) fn remove_dead(&self) {
        for base in std::mem::take(&mut *lock(&self.dead)) {
            let Some((known, _)) = self.catalog.by_chain(base) else { continue };
            if let Err(error) = self.remove_model(&known) {
                tracing::error!(model = %base, error = format!("{error:#}"), "model cannot be removed");
            }
        }
        let wanted: Vec<ContentId> = self.catalog.models().iter().flat_map(|known| contents(known)).collect();
        let mut unwanted = lock(&self.unwanted);
        unwanted.retain(|content| !wanted.contains(content));
        self.engine.forget_unused();
        unwanted.retain(|&content| match self.engine.store().remove(content) {
            Ok(freed) => {
                tracing::info!(%content, freed, "content removed");
                false
            }
            Err(error) => {
                tracing::debug!(%content, %error, "content not removed yet");
                true
            }
        });
    }

    fn remove_model(&self, known: &Arc<KnownModel>) -> anyhow::Result<()> {
        if let Some(fill) = lock(&known.fill).take() {
            self.engine.stop_fill(fill);
        }
        self.catalog.remove(known)?;
        for chain in &known.chains {
            let name = hex::encode(chain.0);
            if let Some(mount) = self.mount.get() {
                mount.forget_entry(towline_fuse::ROOT, name.as_ref());
            }
        }
        let top = known.chains.last().expect("a model has a base layer");
        self.engine.store().remove_tree(&hex::encode(top.0))?;
        for content in contents(known) {
            self.origins.remove(content);
            lock(&self.unwanted).push(content);
        }
        // A content that another model has, too, keeps the origins of that one.
        self.catalog.models().iter().for_each(|other| self.origins.add(other));
        tracing::info!(model = %known.model.base, repository = known.model.source.repo, "model removed");
        Ok(())
    }

    pub(crate) fn volume_opened(&self) {
        self.volumes_open.fetch_add(1, Ordering::Relaxed);
    }
}

fn contents(known: &KnownModel) -> Vec<ContentId> {
    known.weight_files().map(|n| known.model.files[n].table.content()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
