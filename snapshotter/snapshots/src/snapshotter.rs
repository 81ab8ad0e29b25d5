//! Decides what each call means and carries it out: the models are asked first, then disk and metadata are changed.
//!
//! Everything that changes state runs to its end in a task of its own, also when containerd hangs up meanwhile.

mod chains;
mod live;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::chains::Chains;
use self::live::Prober;
use crate::disk::{Disk, Owner};
use crate::error::{OpenError, Shown, SnapshotError};
use crate::idmap;
use crate::kernel::Kernel;
use crate::metadata::Metadata;
use crate::models::{Claim, LayerClaim, Models, Refusal, RefusalKind};
use crate::mounts::{self, Guard, Layers, Mount};
use crate::record::{Kind, Labels, Record, Usage};
use crate::request::{self, CHAIN_LABEL, Purpose};

/// How long Commit may spend on measuring before it leaves that to the background. containerd's whole metadata is
/// locked meanwhile.
const COMMIT_MEASURE_TIME: Duration = Duration::from_millis(10);
/// Trees measured at once; measuring is a burst of system calls and seeks.
const MAX_MEASURING: usize = 2;

/// Where and how a [`Snapshotter`] works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for metadata and layers; made if missing. Absolute and short, on a file system that overlayfs can
    /// use: containerd passes all paths of a mount in one page of 4096 bytes, less 512 (beyond that it has to change
    /// directory to shorten them).
    pub root: PathBuf,
    /// Whether mounts carry `uidmap=` and `gidmap=` for pods with user namespaces, so that containerd id-maps the
    /// layers. Only right where containerd's configuration gives this plugin the capability `remap-ids`; without it
    /// containerd changes the owner of every file of a layer instead. Model volumes are never id-mapped.
    pub remap_ids: bool,
    /// How long [`Models::claim`] may take; containerd's garbage collection waits for it.
    pub claim_timeout: Duration,
    /// How long [`Models::directory`] may take.
    pub directory_timeout: Duration,
    /// How long the root of a model may take to answer before it counts as dead.
    pub probe_timeout: Duration,
}

impl Options {
    /// The defaults for `root`: no id mapping; 60 s for a claim, 5 s for a directory, 2 s for a sign of life.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            remap_ids: false,
            claim_timeout: Duration::from_secs(60),
            directory_timeout: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(2),
        }
    }
}

/// An overlay snapshotter that leaves the layers of model images to [`Models`]. Clones share one state.
#[derive(Clone)]
pub struct Snapshotter {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    overlay_options: Vec<String>,
    models: Arc<dyn Models>,
    metadata: Metadata,
    disk: Disk,
    chains: Chains,
    prober: Prober,
    measuring: Semaphore,
    /// One Cleanup at a time.
    cleaning: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

/// What a Prepare or View asks for.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
}

impl Creation {
    /// The chain id of the layer to offer to the models, if this is the extraction of one.
    fn claimable_chain(&self) -> Option<&str> {
        let is_extraction = self.kind == Kind::Active && Purpose::of(&self.key) == Purpose::Extraction;
        request::chain_id(&self.labels).filter(|_| is_extraction)
    }
}

/// What a Prepare or View comes to.
#[derive(Debug)]
pub(crate) enum Created {
    Mounts(Vec<Mount>),
    /// The layer is a model's and committed: containerd must not unpack it.
    Claimed {
        chain: String,
    },
}

/// One layer below a snapshot, as its mount sees it.
#[derive(Debug)]
enum Lower {
    Ordinary(u64),
    /// A run of model layers, by the chain id of its top.
    Model(String),
}

/// The layers below a snapshot, found and alive.
struct Lowers {
    paths: Vec<String>,
    /// Owner of the topmost.
    owner: Option<Owner>,
    /// How the directory is kept unchanged, if all of it is one model's.
    one_model: Option<Guard>,
}

impl Snapshotter {
    /// Opens the state under `options.root`, or makes it. Blocks on the disk, never on the network or on `models`.
    ///
    /// # Errors
    /// [`OpenError`]: the root cannot be used, or its metadata cannot be read or is in use by another process.
    pub fn open(options: Options, models: Arc<dyn Models>) -> Result<Self, OpenError> {
        let kernel = Kernel::probe();
        if options.remap_ids && !kernel.maps_overlay_ids() {
            return Err(OpenError::NoIdMappedMounts { release: kernel.release });
        }
        let disk = Disk::open(&options.root)?;
        let path = options.root.join("metadata.redb");
        let metadata =
            Metadata::open(&path, disk.id_floor()?).map_err(|source| OpenError::Metadata { path, source })?;
        let shared = Shared {
            overlay_options: kernel.overlay_options(&options.root),
            prober: Prober::new(options.probe_timeout),
            options,
            models,
            metadata,
            disk,
            chains: Chains::default(),
            measuring: Semaphore::new(MAX_MEASURING),
            cleaning: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The chain ids that have a model snapshot, sorted. A daemon that starts compares them with what it remembers: a
    /// crash may have come between the removal of a snapshot and [`Models::forget`].
    #[must_use]
    pub fn chains(&self) -> Vec<String> {
        self.shared.metadata.read(|index| index.chains())
    }

    /// Waits until nothing is being changed or measured. To be called after the server has stopped.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    pub(crate) async fn create(&self, creation: Creation) -> Result<Created, SnapshotError> {
        let parent = creation.parent.as_deref();
        self.shared.metadata.read(|index| index.check_create(&creation.key, parent))?;
        if let Some(chain) = creation.claimable_chain().map(str::to_owned)
            && self.offer(&creation, chain.clone()).await? == Claim::Accepted
        {
            return Ok(Created::Claimed { chain });
        }
        let lowers = self.shared.resolve(parent).await?;
        let mapped = idmap::root_owner(&creation.labels).map_err(SnapshotError::IdMap)?;
        let owner = mapped.or(lowers.owner);
        let record = self.run(move |shared| shared.make(creation, owner)).await?;
        Ok(Created::Mounts(vec![self.shared.mount(&record, lowers)]))
    }

    /// Offers a layer to the models; where they take it, its snapshot is durable on return.
    async fn offer(&self, creation: &Creation, chain: String) -> Result<Claim, SnapshotError> {
        let parent = creation.parent.clone();
        let parent_record = match &parent {
            None => None,
            Some(parent) => Some(self.shared.metadata.read(|index| index.get(parent))?),
        };
        let claim = LayerClaim {
            chain_id: chain.clone(),
            parent_chain: parent_record.as_ref().and_then(|record| record.model.clone()),
            parent_is_ordinary: parent_record.is_some_and(|record| record.model.is_none()),
            labels: creation.labels.clone(),
        };
        let mut pending = chains::begin(&self.shared, chain.clone());
        let answer =
            within(self.shared.options.claim_timeout, "claim", self.shared.models.claim(&claim)).await;
        match answer {
            Ok(Claim::Accepted) => {
                let labels = claim.labels;
                self.run(move |shared| {
                    // Held to the end: a removal meanwhile must not forget a chain that is about to have a snapshot.
                    let _pending = pending;
                    let id = shared.metadata.next_id();
                    shared.metadata.adopt(&chain, parent.as_deref(), labels, id)
                })
                .await?;
                Ok(Claim::Accepted)
            }
            Ok(Claim::NotOurs) => {
                pending.decline();
                Ok(Claim::NotOurs)
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let record = self.shared.metadata.read(|index| index.get(key))?;
        if record.kind == Kind::Committed {
            return Err(SnapshotError::NoMounts(Shown::new(key)));
        }
        let lowers = self.shared.resolve(record.parent.as_deref()).await?;
        Ok(vec![self.shared.mount(&record, lowers)])
    }

    pub(crate) async fn commit(
        &self,
        name: String,
        key: String,
        labels: Labels,
        new_parent: Option<String>,
    ) -> Result<(), SnapshotError> {
        let record =
            self.run(move |shared| shared.commit(&name, &key, labels, new_parent.as_deref())).await?;
        if record.usage.is_none() {
            let this = self.clone();
            self.shared.tasks.spawn(async move {
                if let Err(error) = this.measure(&record).await {
                    tracing::debug!(
                        snapshot = record.name,
                        error = &error as &dyn std::error::Error,
                        "measuring is left to Usage"
                    );
                }
            });
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.run(move |shared| {
            let record = shared.metadata.remove(&key)?;
            if let Some(chain) = &record.model {
                chains::removed(shared, chain);
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        self.shared.metadata.read(|index| index.get(key))
    }

    pub(crate) async fn update(
        &self,
        name: String,
        labels: Labels,
        mask: Vec<String>,
    ) -> Result<Arc<Record>, SnapshotError> {
        self.run(move |shared| shared.metadata.update(&name, labels, &mask)).await
    }

    /// Every snapshot, as of now. The caller holds no lock while it looks at them.
    pub(crate) fn list(&self) -> Vec<Arc<Record>> {
        self.shared.metadata.read(|index| index.list())
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.stat(key)?;
        if let Some(chain) = &record.model {
            let (bytes, inodes) = self.shared.models.usage(chain);
            return Ok(Usage { bytes, inodes });
        }
        match (record.kind, record.usage) {
            (Kind::View, _) => Ok(Usage::default()),
            (Kind::Committed, Some(usage)) => Ok(usage),
            (Kind::Active | Kind::Committed, _) => self.measure(&record).await,
        }
    }

    /// Measures a snapshot's own directory, and notes the result where it is final.
    async fn measure(&self, record: &Arc<Record>) -> Result<Usage, SnapshotError> {
        let _permit = self.shared.measuring.acquire().await.expect("never closed");
        let record = Arc::clone(record);
        self.run(move |shared| {
            let usage = shared.disk.measure(record.id, None)?.unwrap_or_default();
            if record.kind == Kind::Committed {
                shared.metadata.measured(&record.name, record.id, usage)?;
            }
            Ok(usage)
        })
        .await
    }

    pub(crate) async fn cleanup(&self) -> Result<(), SnapshotError> {
        let _one_at_a_time = self.shared.cleaning.lock().await;
        self.run(|shared| {
            // After a failed write, memory may not know what the disk does; then nothing may be deleted.
            shared.metadata.recover()?;
            shared.disk.sweep(|| {
                shared
                    .metadata
                    .read(|index| index.list().iter().map(|record| record.id).collect::<HashSet<_>>())
            })
        })
        .await?;
        self.shared.models.cleanup().await;
        Ok(())
    }

    /// Runs blocking work to its end, whether or not anybody still waits for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let shared = Arc::clone(&self.shared);
        let task = self.shared.tasks.spawn_blocking(move || work(&shared));
        task.await.map_err(SnapshotError::BrokeOff)?
    }
}

impl Shared {
    /// Makes the directories and the record of a new snapshot.
    fn make(&self, creation: Creation, owner: Option<Owner>) -> Result<Arc<Record>, SnapshotError> {
        let Creation { kind, key, parent, labels } = creation;
        let id = self.metadata.next_id();
        let _in_flight = self.disk.create(id, kind, owner)?;
        let created = self.metadata.create(&key, parent.as_deref(), kind, labels, id);
        // After a failed write the record may be on disk all the same; the directory waits for Cleanup to know.
        if matches!(&created, Err(error) if !matches!(error, SnapshotError::Storage(_)))
            && let Err(error) = self.disk.remove(id)
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "directory is left to Cleanup");
        }
        created
    }

    fn commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        new_parent: Option<&str>,
    ) -> Result<Arc<Record>, SnapshotError> {
        let active = self.metadata.read(|index| index.get(key).ok().filter(|r| r.kind == Kind::Active));
        let deadline = Instant::now() + COMMIT_MEASURE_TIME;
        let usage = match active {
            Some(record) => self.disk.measure(record.id, Some(deadline))?,
            None => None,
        };
        self.metadata.commit(name, key, labels, new_parent, usage)
    }

    /// Finds the directories of `parent` and its ancestors. Models are asked and must show a sign of life.
    async fn resolve(&self, parent: Option<&str>) -> Result<Lowers, SnapshotError> {
        let lowers = stack(&self.metadata.read(|index| index.ancestry(parent)));
        let is_one_model = matches!(lowers.as_slice(), [Lower::Model(_)]);
        let mut paths = Vec::with_capacity(lowers.len());
        let mut owner = None;
        for (n, lower) in lowers.iter().enumerate() {
            let own = match lower {
                Lower::Ordinary(id) => {
                    paths.push(self.disk.upper(*id));
                    if n == 0 { Some(self.disk.owner(*id)?) } else { None }
                }
                Lower::Model(chain) => {
                    let (path, owner) = self.model_directory(chain).await?;
                    paths.push(path);
                    Some(owner)
                }
            };
            if n == 0 {
                owner = own;
            }
        }
        let one_model = paths.first().filter(|_| is_one_model).map(|path| {
            if self.models.refuses_changes(path.as_ref()) { Guard::FileSystem } else { Guard::ReadOnlyMount }
        });
        Ok(Lowers { paths, owner, one_model })
    }

    async fn model_directory(&self, chain: &str) -> Result<(String, Owner), SnapshotError> {
        let asked = self.models.directory(chain);
        let directory = within(self.options.directory_timeout, "directory", asked).await?;
        let owner = self.prober.probe(directory.clone()).await?;
        let path = mounts::overlay_path(directory).map_err(|path| {
            let message = format!("model directory {} is unfit for mount options", path.display());
            Refusal::new(RefusalKind::Internal, message)
        })?;
        Ok((path, owner))
    }

    fn mount(&self, record: &Record, lowers: Lowers) -> Mount {
        let is_volume = record.kind == Kind::Active && Purpose::of(&record.name) == Purpose::ImageVolume;
        let remap = if self.options.remap_ids { mounts::remap_options(&record.labels) } else { Vec::new() };
        let layers = Layers {
            kind: record.kind,
            upper: self.disk.upper(record.id),
            work: self.disk.work(record.id),
            lowers: lowers.paths,
            model_volume: lowers.one_model.filter(|_| is_volume),
            remap,
            overlay_options: self.overlay_options.clone(),
        };
        layers.mount()
    }
}

/// What an overlay of `ancestry` (nearest first) stacks. A model's directory shows all layers of its chain, so of a
/// run of model layers only the topmost counts.
fn stack(ancestry: &[Arc<Record>]) -> Vec<Lower> {
    let mut lowers = Vec::with_capacity(ancestry.len());
    for record in ancestry {
        match (&record.model, lowers.last()) {
            (Some(_), Some(Lower::Model(_))) => {}
            (Some(chain), _) => lowers.push(Lower::Model(chain.clone())),
            (None, _) => lowers.push(Lower::Ordinary(record.id)),
        }
    }
    lowers
}

/// Waits for the models no longer than `limit`.
async fn within<T>(
    limit: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let message = format!("no answer to the {what} of a model layer within {} s", limit.as_secs_f64());
        Err(Refusal::new(RefusalKind::Unavailable, message))
    })
}

/// What containerd is told when a layer has been claimed.
pub(crate) fn claimed_message(chain: &str) -> String {
    format!("{CHAIN_LABEL} {chain} is served from a model")
}

impl std::fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshotter").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
