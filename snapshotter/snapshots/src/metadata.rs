//! Durable metadata: the index in memory, every change of it in a redb database first.
//!
//! Reads never wait for the disk. Writes are one after the other, and durable when they return. A write that fails
//! leaves open whether it reached the disk; the database is then opened and read again before the next write, so that
//! memory and disk agree and a full disk that has been emptied needs no restart.
//!
//! Lock order: `writer`, then `index`. The index is never locked across disk I/O.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use crate::error::{SnapshotError, StorageError};
use crate::index::{Change, Index};
use crate::record::{Kind, Labels, Record, Timestamp, Usage};

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The format number under `META`; a newer one is refused.
const FORMAT: (&str, u64) = ("format", 1);
/// Key in `META` of the lowest id that was never given to a snapshot.
const NEXT_ID: &str = "next_id";
/// Page cache of the database in bytes. Everything is read once at start and kept as records.
const CACHE_LEN: usize = 8 << 20;

type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// The metadata of all snapshots of the node.
pub(crate) struct Metadata {
    opener: Opener,
    writer: Mutex<Writer>,
    index: RwLock<Index>,
}

struct Writer {
    /// `None` after a failed write.
    db: Option<Database>,
    next_id: u64,
}

impl Metadata {
    /// Opens the database file at `path`, or makes it. Ids below `floor` are not given out again.
    pub(crate) fn open(path: &Path, floor: u64) -> Result<Self, StorageError> {
        let path = path.to_owned();
        Self::with_opener(
            Box::new(move || Database::builder().set_cache_size(CACHE_LEN).create(&path)),
            floor,
        )
    }

    fn with_opener(opener: Opener, floor: u64) -> Result<Self, StorageError> {
        let db = opener()?;
        let (index, next_id) = load(&db)?;
        let writer = Mutex::new(Writer { db: Some(db), next_id: next_id.max(floor) });
        Ok(Self { opener, writer, index: RwLock::new(index) })
    }

    /// Looks at the index; `read` must be quick and must not write.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new id for a snapshot. Ids may have gaps.
    pub(crate) fn next_id(&self) -> u64 {
        let mut writer = self.lock_writer();
        writer.next_id += 1;
        writer.next_id - 1
    }

    /// See [`Index::plan_create`].
    pub(crate) fn create(
        &self,
        key: &str,
        parent: Option<&str>,
        kind: Kind,
        labels: Labels,
        id: u64,
    ) -> Result<Arc<Record>, SnapshotError> {
        self.write(|index| {
            let record = index.plan_create(key, parent, kind, labels, id, Timestamp::now())?;
            Ok((Some(Change::Put(Arc::clone(&record))), record))
        })
    }

    /// See [`Index::plan_adopt`].
    pub(crate) fn adopt(
        &self,
        chain: &str,
        parent: Option<&str>,
        labels: Labels,
        id: u64,
    ) -> Result<(), SnapshotError> {
        self.write(|index| {
            Ok(match index.plan_adopt(chain, parent, labels, id, Timestamp::now())? {
                ControlFlow::Continue(record) => (Some(Change::Put(record)), ()),
                ControlFlow::Break(()) => (None, ()),
            })
        })
    }

    /// See [`Index::plan_commit`].
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        new_parent: Option<&str>,
        usage: Option<Usage>,
    ) -> Result<Arc<Record>, SnapshotError> {
        self.write(|index| {
            let record = index.plan_commit(name, key, labels, new_parent, usage, Timestamp::now())?;
            Ok((Some(Change::Rename { key: key.to_owned(), to: Arc::clone(&record) }), record))
        })
    }

    /// See [`Index::plan_remove`].
    pub(crate) fn remove(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        self.write(|index| {
            let record = index.plan_remove(key)?;
            Ok((Some(Change::Remove(key.to_owned())), record))
        })
    }

    /// See [`Index::plan_update`].
    pub(crate) fn update(
        &self,
        name: &str,
        labels: Labels,
        mask: &[String],
    ) -> Result<Arc<Record>, SnapshotError> {
        self.write(|index| {
            let record = index.plan_update(name, labels, mask, Timestamp::now())?;
            Ok((Some(Change::Put(Arc::clone(&record))), record))
        })
    }

    /// See [`Index::plan_measured`].
    pub(crate) fn measured(&self, name: &str, id: u64, usage: Usage) -> Result<(), SnapshotError> {
        self.write(|index| Ok((index.plan_measured(name, id, usage).map(Change::Put), ())))
    }

    /// Reads the database again if a write has failed, so that the index is what the disk says.
    pub(crate) fn recover(&self) -> Result<(), SnapshotError> {
        self.write(|_| Ok((None, ())))
    }

    fn write<T>(
        &self,
        plan: impl FnOnce(&Index) -> Result<(Option<Change>, T), SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let mut writer = self.lock_writer();
        if writer.db.is_none() {
            self.reopen(&mut writer)?;
        }
        let (change, answer) = self.read(plan)?;
        if let Some(change) = change {
            let next_id = writer.next_id;
            let db = writer.db.as_ref().expect("just opened");
            if let Err(error) = persist(db, &change, next_id) {
                writer.db = None;
                return Err(error.into());
            }
            self.index.write().unwrap_or_else(PoisonError::into_inner).apply(change);
        }
        Ok(answer)
    }

    fn reopen(&self, writer: &mut Writer) -> Result<(), StorageError> {
        let db = (self.opener)()?;
        let (index, next_id) = load(&db)?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        *writer = Writer { db: Some(db), next_id: next_id.max(writer.next_id) };
        Ok(())
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        // A panic between planning and applying leaves both sides as they were.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn persist(db: &Database, change: &Change, next_id: u64) -> Result<(), StorageError> {
    let transaction = db.begin_write()?;
    {
        let mut snapshots = transaction.open_table(SNAPSHOTS)?;
        let (remove, put) = match change {
            Change::Put(record) => (None, Some(record)),
            Change::Rename { key, to } => (Some(key), Some(to)),
            Change::Remove(name) => (Some(name), None),
        };
        if let Some(name) = remove {
            snapshots.remove(name.as_str())?;
        }
        if let Some(record) = put {
            let row = serde_json::to_vec(record.as_ref()).expect("a record has only string keys");
            snapshots.insert(record.name.as_str(), row.as_slice())?;
            transaction.open_table(META)?.insert(NEXT_ID, next_id.max(record.id + 1))?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Reads all of a database, making its tables where it is new.
fn load(db: &Database) -> Result<(Index, u64), StorageError> {
    let is_new = db.begin_read()?.list_tables()?.all(|table| table.name() != META.name());
    if is_new {
        let transaction = db.begin_write()?;
        transaction.open_table(SNAPSHOTS)?;
        transaction.open_table(META)?.insert(FORMAT.0, FORMAT.1)?;
        transaction.commit()?;
    }
    let transaction = db.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |key| Ok::<_, StorageError>(meta.get(key)?.map_or(0, |row| row.value()));
    let (found, known) = (number(FORMAT.0)?, FORMAT.1);
    if found > known {
        return Err(StorageError::NewerFormat { found, known });
    }
    let mut next_id = number(NEXT_ID)?.max(1);
    let mut index = Index::default();
    for row in transaction.open_table(SNAPSHOTS)?.iter()? {
        let (name, row) = row?;
        let name = name.value().to_owned();
        let mut record: Record = serde_json::from_slice(row.value())
            .map_err(|error| StorageError::Damaged { name: name.clone(), reason: error.to_string() })?;
        record.name = name;
        next_id = next_id.max(record.id.saturating_add(1));
        index.apply(Change::Put(Arc::new(record)));
    }
    match index.find_damage() {
        Some((name, reason)) => Err(StorageError::Damaged { name, reason: reason.to_owned() }),
        None => Ok((index, next_id)),
    }
}

#[cfg(test)]
mod tests;
