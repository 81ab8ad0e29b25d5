//! What the parts of the daemon share, and the work that goes on by itself: fills, completion, removal.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, Sha256};
use towline_fuse::Mount;
use towline_modelfs::{ContentHandle, Engine, fill_order};
use towline_peer::Reporter;
use towline_store::{StoreError, TreeContent, TreeFile};

use crate::catalog::{Catalog, KnownModel};
use crate::config::Config;
use crate::metrics::{Declined, Metrics};
use crate::origin::Origins;

/// How often completion is looked for. Readers do not wait for it; the next pod profits.
const TICK: Duration = Duration::from_millis(500);
/// How often is tried again to start fills that could not start, and to remove what was in use: containerd asks for a
/// cleanup only after it removed something.
const RETRY: Duration = Duration::from_secs(5);

/// The daemon's shared state.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) engine: Arc<Engine>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) catalog: Catalog,
    pub(crate) runtime: Handle,
    pub(crate) mount: OnceLock<Mount>,
    /// Set where there is a peer network.
    pub(crate) peers: OnceLock<Reporter>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    pub(crate) volumes_open: AtomicU64,
    /// Whether this host relabels volumes for SELinux. Plain directories share files between pods and cannot carry each
    /// pod's label; FUSE volumes answer that they have none.
    pub(crate) relabels: bool,
    /// What no model needs, and could not be removed yet: somebody reads it, or the disk refused.
    unwanted: Mutex<Unwanted>,
    /// Held while a model's plain directory is made or removed.
    trees: Mutex<()>,
}

#[derive(Debug, Default)]
struct Unwanted {
    contents: HashSet<ContentId>,
    /// Names of plain directories with the base layers of their models, where these are known.
    trees: Vec<(String, Option<Sha256>)>,
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
            peers: OnceLock::new(),
            metrics: Metrics::default(),
            stop,
            volumes_open: AtomicU64::new(0),
            relabels: Path::new("/sys/fs/selinux/enforce").exists(),
            unwanted: Mutex::default(),
            trees: Mutex::default(),
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
        if !(self.config.fetch.fill || known.needs.is_kept())
            || !self.is_known(known)
            || known.fill_begun.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let (node, known) = (Arc::clone(self), Arc::clone(known));
        self.runtime.spawn_blocking(move || {
            if let Err(error) = node.fill(&known) {
                known.fill_begun.store(false, Ordering::Release);
                known.fill_failed.store(true, Ordering::Release);
                tracing::error!(model = %known.model.base, error = format!("{error:#}"), "background fetch cannot start");
            }
        });
    }

    fn fill(&self, known: &KnownModel) -> anyhow::Result<()> {
        let mut parts: Vec<(Arc<ContentHandle>, std::ops::Range<u32>)> = Vec::new();
        for (file, pieces) in fill_order(&known.model) {
            if !self.is_known(known) {
                break;
            }
            let handle = known.handle(file, &self.engine)?;
            parts.push((Arc::clone(handle), pieces));
        }
        let mut fill = lock(&known.fill);
        if self.is_known(known) {
            *fill = Some(self.engine.start_fill(&parts));
        } else {
            // Removed meanwhile: what was opened here may have been made anew.
            lock(&self.unwanted).contents.extend(contents(known));
        }
        Ok(())
    }

    /// Whether the model was not removed. Slots are never used twice.
    pub(crate) fn is_known(&self, known: &KnownModel) -> bool {
        self.catalog.by_slot(known.slot).is_some()
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
        let _opened = tokio::task::spawn_blocking(move || {
            node.open_contents();
            node.remove_dead();
        })
        .await;
        for known in self.catalog.models() {
            self.start_fill_later(&known);
        }
        let mut tried = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if tried.elapsed() >= RETRY {
                self.try_again().await;
                tried = Instant::now();
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

    async fn try_again(self: &Arc<Self>) {
        for known in self.catalog.models() {
            if known.fill_failed.swap(false, Ordering::AcqRel) {
                self.start_fill(&known);
            }
        }
        if !lock(&self.unwanted).is_empty() || self.catalog.has_unneeded() {
            let node = Arc::clone(self);
            // A panic there is logged by its hook.
            let _removed = tokio::task::spawn_blocking(move || node.remove_dead()).await;
        }
    }

    /// Opens the contents of all models, without fetching any.
    fn open_contents(&self) {
        self.catalog.models().iter().for_each(|known| self.open_contents_of(known));
    }

    pub(crate) fn open_contents_of(&self, known: &KnownModel) {
        for file in known.weight_files() {
            if let Err(error) = known.handle(file, &self.engine) {
                tracing::error!(%error, model = %known.model.base, "content cannot be opened");
            }
        }
    }

    /// A model is whole: gives it a plain directory, which needs no daemon.
    pub(crate) fn complete(&self, known: &KnownModel) -> anyhow::Result<()> {
        let _one_at_a_time = lock(&self.trees);
        if !self.is_known(known) {
            return Ok(());
        }
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
        Ok(self.engine.store().sealed_tree(&tree_name(known), &files, &[])?)
    }

    /// The last snapshot of a chain is gone. A base layer goes last, and takes its model along unless that is held.
    pub(crate) fn forget(&self, chain: Sha256) {
        if self.catalog.by_chain(chain).is_some_and(|(_, layer)| layer == 0) {
            self.catalog.unpull(chain);
        }
    }

    /// Finds what a crash between the removal of a last snapshot and the end of the cleanup left: models without a
    /// snapshot, contents and plain directories without a model. `chains` is sorted.
    pub(crate) fn forget_all_but(&self, chains: &[String]) {
        let models = self.catalog.models();
        for known in &models {
            let base = known.model.base.to_string();
            if chains.binary_search(&base).is_err() {
                self.catalog.unpull(known.model.base);
            }
        }
        if self.catalog.has_unreadable_but(chains) {
            tracing::warn!(
                "contents without a model are kept, for they may be those of a model that cannot be read"
            );
            return;
        }
        let wanted = self.wanted();
        let tops: HashSet<String> = models.iter().map(|known| tree_name(known)).collect();
        let trees = self.engine.store().trees().unwrap_or_else(|error| {
            tracing::warn!(%error, "plain directories without a model are not looked for");
            Vec::new()
        });
        let mut unwanted = lock(&self.unwanted);
        let stored = self.engine.store().contents().into_iter().map(|info| info.id);
        unwanted.contents.extend(stored.filter(|content| !wanted.contains(content)));
        let orphans = trees.into_iter().filter(|name| !tops.contains(name));
        unwanted.trees.extend(orphans.map(|name| (name, None)));
    }

    fn wanted(&self) -> HashSet<ContentId> {
        self.catalog.models().iter().flat_map(|known| contents(known)).collect()
    }

    /// Removes models that nothing needs and the contents that no other model has. Blocks on the disk.
    pub(crate) fn remove_dead(&self) {
        self.catalog.take_unneeded().iter().for_each(|known| self.remove_model(known));
        self.remove_unwanted();
    }

    /// Removes what is left of a model that the catalogue has forgotten.
    fn remove_model(&self, known: &KnownModel) {
        if let Some(fill) = lock(&known.fill).take() {
            self.engine.stop_fill(fill);
        }
        let base = known.model.base;
        if let Err(error) = self.catalog.remove_forgotten(base) {
            tracing::error!(model = %base, error = format!("{error:#}"), "record of a removed model stays");
        }
        for chain in &known.chains {
            let name = hex::encode(chain.0);
            if let Some(mount) = self.mount.get() {
                mount.forget_entry(towline_fuse::ROOT, name.as_ref());
            }
        }
        for content in contents(known) {
            self.origins.remove(content);
        }
        // A content that another model has, too, keeps the origins of that one.
        self.catalog.models().iter().for_each(|other| self.origins.add(other));
        let mut unwanted = lock(&self.unwanted);
        unwanted.contents.extend(contents(known));
        unwanted.trees.push((tree_name(known), Some(base)));
        tracing::info!(model = %base, repository = known.model.source.repo, "model removed");
    }

    /// Removes plain directories and contents that no model needs; what is in use is tried again later.
    fn remove_unwanted(&self) {
        let Unwanted { contents, trees } = std::mem::take(&mut *lock(&self.unwanted));
        let wanted = self.wanted();
        let mut left = Unwanted::default();
        for (name, base) in trees {
            if let Err(error) = self.remove_tree(&name, base) {
                tracing::warn!(tree = name, %error, "plain directory not removed yet");
                left.trees.push((name, base));
            }
        }
        self.engine.forget_unused();
        for content in contents.into_iter().filter(|content| !wanted.contains(content)) {
            match self.engine.store().remove(content) {
                Ok(freed) => tracing::info!(%content, freed, "content removed"),
                Err(error) => {
                    tracing::debug!(%content, %error, "content not removed yet");
                    left.contents.insert(content);
                }
            }
        }
        let mut unwanted = lock(&self.unwanted);
        unwanted.contents.extend(left.contents);
        unwanted.trees.extend(left.trees);
    }

    /// Removes a plain directory, unless its model was pulled again and has it.
    fn remove_tree(&self, name: &str, base: Option<Sha256>) -> Result<(), StoreError> {
        let _one_at_a_time = lock(&self.trees);
        let known = base.and_then(|base| self.catalog.by_chain(base));
        if known.is_some_and(|(known, _)| known.sealed_tree.get().is_some()) {
            return Ok(());
        }
        self.engine.store().remove_tree(name)
    }

    pub(crate) fn volume_opened(&self) {
        self.volumes_open.fetch_add(1, Ordering::Relaxed);
    }
}

impl Unwanted {
    fn is_empty(&self) -> bool {
        self.contents.is_empty() && self.trees.is_empty()
    }
}

fn contents(known: &KnownModel) -> impl Iterator<Item = ContentId> + '_ {
    known.weight_files().map(|n| known.model.files[n].table.content())
}

/// Name of the plain directory of a whole model.
pub(crate) fn tree_name(known: &KnownModel) -> String {
    hex::encode(known.chains.last().expect("a model has a base layer").0)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
