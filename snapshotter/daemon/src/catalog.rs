//! The models that the node knows, durably.
//!
//! Per model one file `models/HEX` with its base layer, and one record in `models.redb` that says where the model can
//! be fetched and what holds it. The record is committed after the file is durable, so a record always has its file;
//! files without a record are removed at the next start. Nothing here needs the network.
//!
//! A write that fails leaves the database unusable until it is opened anew, which the next write does: a disk that was
//! full needs no restart. Lock order: `writer` (one change at a time, across disk), then a model's `places`, the index or
//! `unreadable` (never across disk); the index, then a model's needs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Context, ensure};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use towline_artifact::model::MAX_BASE_LEN;
use towline_artifact::{Model, Sha256};
use towline_modelfs::{ContentHandle, Engine, FillId, Tree};
use towline_store::StoreError;

use crate::needs::{Holds, Needs, Pin};

/// Base layer digest to a [`Record`] as JSON.
const MODELS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("models");
/// Single numbers by name.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const NEXT_SLOT: &str = "next_slot";
const VERSION_KEY: &str = "version";
/// Version of the records.
const VERSION: u64 = 1;
/// Version once a model was held: a daemon that knows nothing of holds would remove it, and is to refuse instead.
const VERSION_WITH_HOLDS: u64 = 2;
/// Where a model was seen; older places beyond this many are forgotten.
const MAX_PLACES: usize = 8;
/// Slots are 24 bits of an inode number, and never used twice.
const MAX_SLOT: u64 = (1 << 24) - 1;

/// An image that holds a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Registry host and port.
    pub(crate) host: String,
    /// Repository on it.
    pub(crate) repository: String,
    /// The reference as containerd was told it.
    pub(crate) reference: String,
    /// Digest of the manifest, if containerd tells it.
    pub(crate) manifest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    slot: u64,
    places: Vec<Place>,
    #[serde(flatten)]
    holds: Holds,
}

/// A record that the start could not make a model of. Volumes of it may be mounted all the same.
#[derive(Debug)]
struct Unreadable {
    key: String,
    /// `None` if not even the record can be read.
    record: Option<Record>,
}

impl Unreadable {
    fn holds(&self) -> Holds {
        self.record.as_ref().map(|record| record.holds.clone()).unwrap_or_default()
    }
}

/// A model and what the daemon holds of it.
#[derive(Debug)]
pub(crate) struct KnownModel {
    pub(crate) model: Model,
    pub(crate) chains: Vec<Sha256>,
    pub(crate) slot: u32,
    base: File,
    places: Mutex<Vec<Place>>,
    pub(crate) needs: Needs,
    trees: Vec<OnceLock<Tree>>,
    handles: Vec<OnceLock<Arc<ContentHandle>>>,
    /// Set by whoever starts the fill, before the work of it.
    pub(crate) fill_begun: AtomicBool,
    /// The fill could not start, and is to be started again.
    pub(crate) fill_failed: AtomicBool,
    pub(crate) fill: Mutex<Option<FillId>>,
    pub(crate) known_since: Instant,
    /// Set once, when every content is sealed and the plain directory is made.
    pub(crate) sealed_tree: OnceLock<PathBuf>,
}

impl KnownModel {
    fn new(model: Model, base: File, record: Record) -> Self {
        let chains = model.chain_ids();
        Self {
            slot: u32::try_from(record.slot).expect("bounded when it was given out"),
            places: Mutex::new(record.places),
            needs: Needs::new(record.holds),
            trees: chains.iter().map(|_| OnceLock::new()).collect(),
            handles: model.files.iter().map(|_| OnceLock::new()).collect(),
            fill_begun: AtomicBool::new(false),
            fill_failed: AtomicBool::new(false),
            fill: Mutex::new(None),
            known_since: Instant::now(),
            sealed_tree: OnceLock::new(),
            chains,
            base,
            model,
        }
    }

    /// Where the model was seen, the latest last.
    pub(crate) fn places(&self) -> Vec<Place> {
        lock(&self.places).clone()
    }

    /// The tree up to `layer`, which is below the number of chain ids.
    pub(crate) fn tree(&self, layer: usize) -> &Tree {
        self.trees[layer].get_or_init(|| Tree::new(&self.model, layer))
    }

    /// The content of a weight file, opened at first use. Touches the disk.
    pub(crate) fn handle(&self, file: usize, engine: &Engine) -> Result<&Arc<ContentHandle>, StoreError> {
        if let Some(handle) = self.handles[file].get() {
            return Ok(handle);
        }
        let handle = engine.open(&self.model.files[file].table)?;
        Ok(self.handles[file].get_or_init(|| handle))
    }

    /// The content of a weight file, if it was opened.
    pub(crate) fn opened(&self, file: usize) -> Option<&Arc<ContentHandle>> {
        self.handles[file].get()
    }

    /// The contents of weight files that are open.
    pub(crate) fn open_handles(&self) -> impl Iterator<Item = &Arc<ContentHandle>> {
        self.handles.iter().filter_map(OnceLock::get)
    }

    /// Positions of the files in weight layers.
    pub(crate) fn weight_files(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.model.files.len()).filter(|&n| self.model.files[n].layer > 0)
    }

    /// Whether every weight file is whole and durable.
    pub(crate) fn is_sealed(&self) -> bool {
        self.weight_files().all(|n| self.handles[n].get().is_some_and(|handle| handle.content().is_sealed()))
    }

    /// Bytes of the model that are here and verified.
    pub(crate) fn bytes_local(&self) -> u64 {
        let weights: u64 = self.open_handles().map(|handle| handle.content().bytes_have()).sum();
        let base = self.model.files.iter().filter(|file| file.layer == 0 && !is_index(&file.path));
        weights + base.map(|file| file.table.file_len()).sum::<u64>()
    }

    /// Reads bytes of a file in the base layer.
    pub(crate) fn read_base(&self, file: usize, offset: u64, len: u32) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.base.read_exact_at(&mut bytes, self.model.files[file].offset + offset)?;
        Ok(bytes)
    }
}

/// Whether the path is one of the two index files.
pub(crate) fn is_index(path: &str) -> bool {
    path.starts_with(".towline/")
}

#[derive(Debug, Default)]
struct Known {
    by_chain: HashMap<Sha256, (Arc<KnownModel>, usize)>,
    by_slot: HashMap<u32, Arc<KnownModel>>,
}

/// All models of the node.
#[derive(Debug)]
pub(crate) struct Catalog {
    dir: PathBuf,
    path: PathBuf,
    /// `None` after a failed write.
    writer: Mutex<Option<Database>>,
    known: RwLock<Known>,
    unreadable: Mutex<Vec<Unreadable>>,
}

impl Catalog {
    /// Opens the catalogue below `root`. A model that cannot be read is left out and reported, never fatal.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        let dir = root.join("models");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let path = root.join("models.redb");
        let db = Database::create(&path).with_context(|| format!("open {}", path.display()))?;
        let write = db.begin_write()?;
        {
            write.open_table(MODELS)?;
            let mut numbers = write.open_table(NUMBERS)?;
            let version = numbers.get(VERSION_KEY)?.map_or(VERSION, |value| value.value());
            ensure!(
                (VERSION..=VERSION_WITH_HOLDS).contains(&version),
                "{} has version {version}, this build reads up to {VERSION_WITH_HOLDS}",
                path.display()
            );
            numbers.insert(VERSION_KEY, version)?;
        }
        write.commit()?;
        let catalog = Self {
            dir,
            path,
            writer: Mutex::default(),
            known: RwLock::default(),
            unreadable: Mutex::default(),
        };
        catalog.load(&db)?;
        *catalog.lock_writer() = Some(db);
        Ok(catalog)
    }

    fn load(&self, db: &Database) -> anyhow::Result<()> {
        let read = db.begin_read()?;
        let (mut names, mut unreadable) = (HashSet::new(), Vec::new());
        for entry in read.open_table(MODELS)?.iter()? {
            let (key, value) = entry?;
            let key = key.value();
            match self.load_one(key, value.value()) {
                Ok(model) => self.insert(Arc::new(model)),
                Err(error) => {
                    tracing::error!(
                        digest = key,
                        error = format!("{error:#}"),
                        "model cannot be read; its volumes are refused"
                    );
                    let record = serde_json::from_slice(value.value()).ok();
                    unreadable.push(Unreadable { key: key.to_owned(), record });
                }
            }
            names.insert(key.trim_start_matches("sha256:").to_owned());
        }
        *lock(&self.unreadable) = unreadable;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let is_ours = entry.file_name().to_str().is_some_and(|name| names.contains(name));
            if !is_ours && let Err(error) = std::fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "unknown file beside the models left alone");
            }
        }
        Ok(())
    }

    /// Removes the records of unreadable models that nothing holds and whose base layers are not in `chains` (sorted).
    /// True if others are left: then nobody knows which contents and trees are in use.
    pub(crate) fn has_unreadable_but(&self, chains: &[String]) -> bool {
        let mut unreadable = std::mem::take(&mut *lock(&self.unreadable));
        unreadable.retain(|Unreadable { key, record }| {
            let is_held = record.as_ref().is_some_and(|record| !record.holds.is_empty());
            let is_used = is_held || chains.binary_search(key).is_ok();
            if !is_used && let Err(error) = self.remove_record(key) {
                tracing::warn!(
                    digest = key,
                    error = format!("{error:#}"),
                    "record of an unreadable model not removed"
                );
            }
            is_used
        });
        let is_left = !unreadable.is_empty();
        *lock(&self.unreadable) = unreadable;
        is_left
    }

    fn load_one(&self, digest: &str, record: &[u8]) -> anyhow::Result<KnownModel> {
        let digest: Sha256 = digest.parse()?;
        let record: Record = serde_json::from_slice(record).context("record")?;
        let path = self.base_path(digest);
        let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MAX_BASE_LEN + 1).read_to_end(&mut bytes)?;
        ensure!(Sha256::of(&bytes) == digest, "{} does not match its digest", path.display());
        let model = Model::read(&bytes)?;
        Ok(KnownModel::new(model, file, record))
    }

    fn base_path(&self, digest: Sha256) -> PathBuf {
        self.dir.join(hex::encode(digest.0))
    }

    fn insert(&self, model: Arc<KnownModel>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (layer, &chain) in model.chains.iter().enumerate() {
            known.by_chain.insert(chain, (Arc::clone(&model), layer));
        }
        known.by_slot.insert(model.slot, model);
    }

    /// The model of a chain id, and the layer that the chain ends in.
    pub(crate) fn by_chain(&self, chain: Sha256) -> Option<(Arc<KnownModel>, usize)> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).by_chain.get(&chain).cloned()
    }

    pub(crate) fn by_slot(&self, slot: u32) -> Option<Arc<KnownModel>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).by_slot.get(&slot).cloned()
    }

    /// All models, in the order in which they became known.
    pub(crate) fn models(&self) -> Vec<Arc<KnownModel>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut models: Vec<_> = known.by_slot.values().cloned().collect();
        models.sort_by_key(|model| model.slot);
        models
    }

    /// Adds a model that is being pulled, or a place to a known one; durable when it returns. `base` is the whole base
    /// layer.
    pub(crate) fn add(&self, base: &[u8], model: Model, place: Place) -> anyhow::Result<Arc<KnownModel>> {
        let digest = model.base;
        let pin = self.add_pinned(base, model, place)?;
        // Pinned, so it is still there.
        self.pull(digest);
        Ok(Arc::clone(pin.model()))
    }

    /// As [`Self::add`], for a model that stays only if something comes to hold it before the pin goes.
    pub(crate) fn add_pinned(&self, base: &[u8], model: Model, place: Place) -> anyhow::Result<Pin> {
        let mut writer = self.lock_writer();
        if let Some(pin) = self.pin(model.base) {
            self.write_place(&mut writer, &pin, place)?;
            return Ok(pin);
        }
        let key = model.base.to_string();
        let path = self.base_path(model.base);
        // One that could not be read is mended, and keeps what it was asked to.
        let holds = lock(&self.unreadable).iter().find(|entry| entry.key == key).map(Unreadable::holds);
        let holds = holds.unwrap_or_default();
        let added = self.write_base(&path, base).and_then(|file| {
            let record = self.write(&mut writer, |write| write_new(write, model.base, place, holds))?;
            Ok(KnownModel::new(model, file, record))
        });
        // A full disk gets back what it gave. Should the record have been written all the same, the next start finds
        // it without its file, and no snapshot of it.
        let known = added.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        lock(&self.unreadable).retain(|entry| entry.key != key);
        known.needs.set_pulled(false);
        let known = Arc::new(known);
        let pin = Pin::new(Arc::clone(&known));
        self.insert(known);
        Ok(pin)
    }

    fn write_base(&self, path: &Path, base: &[u8]) -> anyhow::Result<File> {
        let unfinished = path.with_extension("tmp");
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(base)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, path)?;
            File::open(&self.dir)?.sync_all()?;
            File::open(path)
        };
        write()
            .inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Remembers another image with the same model. Does nothing if it is the latest one already.
    pub(crate) fn add_place(&self, known: &KnownModel, place: Place) -> anyhow::Result<()> {
        self.write_place(&mut self.lock_writer(), known, place)
    }

    fn write_place(
        &self,
        writer: &mut Option<Database>,
        known: &KnownModel,
        place: Place,
    ) -> anyhow::Result<()> {
        let mut places = known.places();
        if places.last() == Some(&place) {
            return Ok(());
        }
        places.retain(|old| *old != place);
        places.push(place);
        let excess = places.len().saturating_sub(MAX_PLACES);
        places.drain(..excess);
        let record = Record { slot: known.slot.into(), places, holds: known.needs.holds() };
        // A model that was forgotten meanwhile must not come back.
        if self.by_slot(known.slot).is_some() {
            self.write(writer, |write| write_record(write, &known.model.base.to_string(), &record))?;
        }
        *lock(&known.places) = record.places;
        Ok(())
    }

    /// A model is being pulled, if it is known: it stays until [`Self::unpull`].
    pub(crate) fn pull(&self, base: Sha256) -> Option<Arc<KnownModel>> {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let (known, _) = all.by_chain.get(&base)?;
        known.needs.set_pulled(true);
        Some(Arc::clone(known))
    }

    /// No snapshot of a model is left.
    pub(crate) fn unpull(&self, base: Sha256) {
        if let Some((known, _)) = self.by_chain(base) {
            known.needs.set_pulled(false);
        }
    }

    /// The model of a base layer, if it is known. It stays while it is pinned.
    pub(crate) fn pin(&self, base: Sha256) -> Option<Pin> {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        all.by_chain.get(&base).map(|(known, _)| Pin::new(Arc::clone(known)))
    }

    /// The model that is held under `reference`, pinned.
    pub(crate) fn pin_held(&self, reference: &str) -> Option<Pin> {
        let held = self.models().into_iter().find(|known| known.needs.holds().names(reference))?;
        self.pin(held.model.base)
    }

    /// What holds the models that cannot be read.
    pub(crate) fn unreadable_holds(&self) -> Vec<Holds> {
        lock(&self.unreadable).iter().map(Unreadable::holds).collect()
    }

    /// Changes what holds the models, all in one step, and is durable when it returns. `change` sees every model, and
    /// `None` for one that cannot be read; it may refuse. Gives how many models it changed.
    pub(crate) fn change_holds<E: From<anyhow::Error>>(
        &self,
        mut change: impl FnMut(Option<&KnownModel>, &mut Holds) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut writer = self.lock_writer();
        let mut changed = Vec::new();
        for known in self.models() {
            let before = known.needs.holds();
            let mut holds = before.clone();
            change(Some(&known), &mut holds)?;
            if holds != before {
                changed.push((known, holds));
            }
        }
        let mut unreadable = Vec::new();
        for entry in lock(&self.unreadable).iter() {
            let Some(record) = &entry.record else { continue };
            let mut holds = record.holds.clone();
            change(None, &mut holds)?;
            if holds != record.holds {
                let (slot, places) = (record.slot, record.places.clone());
                unreadable.push((entry.key.clone(), Record { slot, places, holds }));
            }
        }
        if changed.is_empty() && unreadable.is_empty() {
            return Ok(0);
        }
        self.write(&mut writer, |write| {
            for (known, holds) in &changed {
                let (slot, places) = (known.slot.into(), known.places());
                let record = Record { slot, places, holds: holds.clone() };
                write_record(write, &known.model.base.to_string(), &record)?;
            }
            for (key, record) in &unreadable {
                write_record(write, key, record)?;
            }
            Ok(())
        })?;
        let count = changed.len() + unreadable.len();
        changed.into_iter().for_each(|(known, holds)| known.needs.set_holds(holds));
        let mut entries = lock(&self.unreadable);
        for (key, record) in unreadable {
            if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) {
                entry.record = Some(record);
            }
        }
        Ok(count)
    }

    /// Whether there is a model that nothing needs: a call that pinned it was given up.
    pub(crate) fn has_unneeded(&self) -> bool {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        all.by_slot.values().any(|known| known.needs.is_empty())
    }

    /// Forgets the models that nothing needs, in memory; from here on it is as if they had never been known. Quick.
    pub(crate) fn take_unneeded(&self) -> Vec<Arc<KnownModel>> {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let unneeded: Vec<_> = all.by_slot.values().filter(|known| known.needs.is_empty()).cloned().collect();
        for known in &unneeded {
            known.chains.iter().for_each(|chain| drop(all.by_chain.remove(chain)));
            all.by_slot.remove(&known.slot);
        }
        unneeded
    }

    /// Removes what is on disk of a model that was forgotten, unless it was pulled again.
    ///
    /// # Errors
    /// What the disk says. The next start finds the record, and no snapshot of it.
    pub(crate) fn remove_forgotten(&self, base: Sha256) -> anyhow::Result<()> {
        self.remove_record(&base.to_string())
    }

    fn remove_record(&self, key: &str) -> anyhow::Result<()> {
        let mut writer = self.lock_writer();
        let base: Option<Sha256> = key.parse().ok();
        if base.is_some_and(|base| self.by_chain(base).is_some()) {
            return Ok(());
        }
        let removed = self.write(&mut writer, |write| {
            write.open_table(MODELS)?.remove(key)?;
            Ok(())
        });
        let Some(base) = base else { return removed };
        // Also where the record stays, for it may stay for want of space.
        match std::fs::remove_file(self.base_path(base)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                removed.and(Err(error).context("remove base layer"))
            }
            _ => removed,
        }
    }

    fn write<T>(
        &self,
        writer: &mut Option<Database>,
        change: impl FnOnce(&WriteTransaction) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let db = match writer.take() {
            Some(db) => db,
            None => Database::create(&self.path).with_context(|| format!("open {}", self.path.display()))?,
        };
        let write = db.begin_write().map_err(redb::Error::from)?;
        let answer = change(&write)?;
        write.commit().map_err(redb::Error::from)?;
        *writer = Some(db);
        Ok(answer)
    }

    fn lock_writer(&self) -> MutexGuard<'_, Option<Database>> {
        lock(&self.writer)
    }
}

/// Writes the record of a model that was not known, with a slot of its own.
fn write_new(write: &WriteTransaction, base: Sha256, place: Place, holds: Holds) -> anyhow::Result<Record> {
    let slot = {
        let mut numbers = write.open_table(NUMBERS)?;
        let slot = numbers.get(NEXT_SLOT)?.map_or(1, |value| value.value());
        ensure!(slot <= MAX_SLOT, "this node has known {MAX_SLOT} models, and their numbers are used up");
        numbers.insert(NEXT_SLOT, slot + 1)?;
        slot
    };
    let record = Record { slot, places: vec![place], holds };
    write_record(write, &base.to_string(), &record)?;
    Ok(record)
}

fn write_record(write: &WriteTransaction, key: &str, record: &Record) -> anyhow::Result<()> {
    if !record.holds.is_empty() {
        write.open_table(NUMBERS)?.insert(VERSION_KEY, VERSION_WITH_HOLDS)?;
    }
    let json = serde_json::to_vec(record)?;
    write.open_table(MODELS)?.insert(key, json.as_slice())?;
    Ok(())
}

/// Whether an operation failed because the disk, or a quota, is full.
pub(crate) fn is_full(error: &anyhow::Error) -> bool {
    use redb::{Error, StorageError, TableError};
    let is_full = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    };
    error.chain().any(|cause| {
        let cause = match cause.downcast_ref::<TableError>() {
            Some(TableError::Storage(storage)) => storage,
            _ => cause,
        };
        match (cause.downcast_ref::<std::io::Error>(), cause.downcast_ref(), cause.downcast_ref()) {
            (Some(error), ..) | (_, Some(Error::Io(error)), _) | (.., Some(StorageError::Io(error))) => {
                is_full(error)
            }
            _ => false,
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
