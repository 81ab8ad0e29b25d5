//! The rules of snapshots, over what is known of them in memory. No I/O and no clock.
//!
//! A `plan_*` method says what a call would change or why it may not; [`Index::apply`] does it, after
//! [`crate::metadata`] has made it durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{Shown, SnapshotError};
use crate::record::{Kind, Labels, Record, Timestamp, Usage};
use crate::request::{self, CHAIN_LABEL};

/// Snapshots on a node, so that memory stays bounded: a busy node has some thousands.
const MAX_SNAPSHOTS: usize = 1 << 18;
/// Snapshots in a chain: overlayfs stacks at most 500 layers (`OVL_MAX_STACK`).
const MAX_DEPTH: usize = 500;

/// What one call changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Adds or replaces the record of this name.
    Put(Arc<Record>),
    /// Removes `key` and adds a record under its new name.
    Rename { key: String, to: Arc<Record> },
    /// Removes the record of this name.
    Remove(String),
}

/// All snapshots of the node.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_name: BTreeMap<String, Arc<Record>>,
    /// Number of children, by name of the parent; no entry for none.
    children: HashMap<String, u32>,
    /// Names of the model snapshots, by chain id; no entry for none.
    chains: BTreeMap<String, BTreeSet<String>>,
}

impl Index {
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        self.by_name.get(name).cloned().ok_or_else(|| SnapshotError::NotFound(Shown::new(name)))
    }

    /// All records: those of models first, each part by name.
    ///
    /// After an `ALREADY_EXISTS` containerd takes the first snapshot listed with the right chain id and parent. Where
    /// the same layer was also unpacked once, it must take the model's, or the layers above cannot be claimed.
    pub(crate) fn list(&self) -> Vec<Arc<Record>> {
        let (mut models, ordinary): (Vec<_>, Vec<_>) =
            self.by_name.values().cloned().partition(|record| record.model.is_some());
        models.extend(ordinary);
        models
    }

    /// The chain ids that have a model snapshot, sorted.
    pub(crate) fn chains(&self) -> Vec<String> {
        self.chains.keys().cloned().collect()
    }

    pub(crate) fn has_chain(&self, chain: &str) -> bool {
        self.chains.contains_key(chain)
    }

    /// `parent` and its ancestors, nearest first. Empty for no parent.
    ///
    /// Ends because a parent was committed before its child could name it, and committed snapshots keep their
    /// parents; a damaged database that says otherwise is refused when it is read.
    pub(crate) fn ancestry(&self, parent: Option<&str>) -> Vec<Arc<Record>> {
        let mut chain = Vec::new();
        let mut next = parent;
        while let Some(record) = next.and_then(|name| self.by_name.get(name)) {
            chain.push(Arc::clone(record));
            next = record.parent.as_deref();
        }
        chain
    }

    /// Whether a snapshot may be prepared under `key`.
    pub(crate) fn check_create(&self, key: &str, parent: Option<&str>) -> Result<(), SnapshotError> {
        if let Some(parent) = parent {
            match self.by_name.get(parent) {
                None => return Err(SnapshotError::ParentNotFound(Shown::new(parent))),
                Some(record) if record.kind != Kind::Committed => {
                    return Err(SnapshotError::ParentNotCommitted(Shown::new(parent)));
                }
                Some(_) => self.check_depth(parent)?,
            }
        }
        if self.by_name.contains_key(key) {
            return Err(SnapshotError::AlreadyExists(Shown::new(key)));
        }
        self.check_room()
    }

    fn check_room(&self) -> Result<(), SnapshotError> {
        if self.by_name.len() < MAX_SNAPSHOTS {
            return Ok(());
        }
        Err(SnapshotError::Exhausted { what: "snapshots", limit: MAX_SNAPSHOTS })
    }

    fn check_depth(&self, parent: &str) -> Result<(), SnapshotError> {
        if self.ancestry(Some(parent)).len() < MAX_DEPTH {
            return Ok(());
        }
        Err(SnapshotError::Exhausted { what: "layers of a snapshot", limit: MAX_DEPTH })
    }

    /// A new active snapshot or view.
    pub(crate) fn plan_create(
        &self,
        key: &str,
        parent: Option<&str>,
        kind: Kind,
        labels: Labels,
        id: u64,
        now: Timestamp,
    ) -> Result<Arc<Record>, SnapshotError> {
        debug_assert_ne!(kind, Kind::Committed);
        self.check_create(key, parent)?;
        Ok(Arc::new(Record {
            name: key.to_owned(),
            id,
            kind,
            parent: parent.map(str::to_owned),
            created: now,
            updated: now,
            labels,
            usage: None,
            model: None,
        }))
    }

    /// A committed snapshot of a model layer; breaks off where there is one for this chain and parent already.
    ///
    /// One snapshot serves all namespaces: the chain id says what the content is. The name is free to choose
    /// (containerd finds the snapshot by label and parent), and the id only makes it unique.
    pub(crate) fn plan_adopt(
        &self,
        chain: &str,
        parent: Option<&str>,
        labels: Labels,
        id: u64,
        now: Timestamp,
    ) -> Result<ControlFlow<(), Arc<Record>>, SnapshotError> {
        let mut adopted =
            self.chains.get(chain).into_iter().flatten().filter_map(|name| self.by_name.get(name));
        if adopted.any(|record| record.parent.as_deref() == parent) {
            return Ok(ControlFlow::Break(()));
        }
        let mut name = format!("model/{chain}");
        if self.by_name.contains_key(&name) {
            name = format!("{name}/{id}");
        }
        self.check_create(&name, parent)?;
        let mut labels = request::snapshot_labels(labels);
        labels.insert(CHAIN_LABEL.to_owned(), chain.to_owned());
        Ok(ControlFlow::Continue(Arc::new(Record {
            name,
            id,
            kind: Kind::Committed,
            parent: parent.map(str::to_owned),
            created: now,
            updated: now,
            labels,
            usage: None,
            model: Some(chain.to_owned()),
        })))
    }

    /// The active snapshot `key` becomes the committed snapshot `name`. Labels replace the old ones.
    ///
    /// `new_parent` may give a parent to a snapshot that has none, even though the `rebase` capability that would make
    /// containerd do so is not advertised.
    pub(crate) fn plan_commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        new_parent: Option<&str>,
        usage: Option<Usage>,
        now: Timestamp,
    ) -> Result<Arc<Record>, SnapshotError> {
        if self.by_name.contains_key(name) {
            return Err(SnapshotError::AlreadyExists(Shown::new(name)));
        }
        let active = self.get(key)?;
        if active.kind != Kind::Active {
            return Err(SnapshotError::NotActive(Shown::new(key)));
        }
        let parent = match (&active.parent, new_parent) {
            (Some(old), Some(new)) if old != new => return Err(SnapshotError::ParentFixed(Shown::new(key))),
            (Some(old), _) => Some(old.clone()),
            (None, Some(new)) => {
                self.check_new_parent(new)?;
                Some(new.to_owned())
            }
            (None, None) => None,
        };
        Ok(Arc::new(Record {
            name: name.to_owned(),
            id: active.id,
            kind: Kind::Committed,
            parent,
            created: now,
            updated: now,
            labels,
            usage,
            model: None,
        }))
    }

    fn check_new_parent(&self, parent: &str) -> Result<(), SnapshotError> {
        match self.by_name.get(parent) {
            None => Err(SnapshotError::ParentNotFound(Shown::new(parent))),
            Some(record) if record.kind != Kind::Committed => {
                Err(SnapshotError::NewParentNotCommitted(Shown::new(parent)))
            }
            Some(_) => self.check_depth(parent),
        }
    }

    /// The record that goes.
    pub(crate) fn plan_remove(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        let record = self.get(key)?;
        if self.children.contains_key(key) {
            return Err(SnapshotError::HasChildren(Shown::new(key)));
        }
        Ok(record)
    }

    /// New labels for `name`. `mask` holds `labels` (all) or `labels.<key>` (one, deleted where `labels` lacks it);
    /// an empty mask means all. Whatever the labels say, a model snapshot stays findable by its chain id.
    pub(crate) fn plan_update(
        &self,
        name: &str,
        labels: Labels,
        mask: &[String],
        now: Timestamp,
    ) -> Result<Arc<Record>, SnapshotError> {
        let mut record = Record::clone(&*self.get(name)?);
        if mask.is_empty() {
            record.labels = labels;
        } else {
            for path in mask {
                match path.strip_prefix("labels") {
                    Some("") => record.labels = labels.clone(),
                    Some(key) if key.starts_with('.') => {
                        let key = &key[1..];
                        match labels.get(key) {
                            Some(value) => record.labels.insert(key.to_owned(), value.clone()),
                            None => record.labels.remove(key),
                        };
                    }
                    _ => return Err(SnapshotError::FieldFixed(Shown::new(path))),
                }
            }
        }
        if let Some(chain) = &record.model {
            record.labels.insert(CHAIN_LABEL.to_owned(), chain.clone());
        }
        request::check_label_sizes(&record.labels)?;
        record.updated = now;
        Ok(Arc::new(record))
    }

    /// Notes the measured usage of the committed snapshot `name`; none if it has been replaced meanwhile.
    pub(crate) fn plan_measured(&self, name: &str, id: u64, usage: Usage) -> Option<Arc<Record>> {
        let record = self.by_name.get(name)?;
        if record.id != id || record.kind != Kind::Committed {
            return None;
        }
        Some(Arc::new(Record { usage: Some(usage), ..Record::clone(record) }))
    }

    /// Makes a planned change.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(record) => self.put(record),
            Change::Rename { key, to } => {
                self.remove(&key);
                self.put(to);
            }
            Change::Remove(name) => self.remove(&name),
        }
    }

    fn put(&mut self, record: Arc<Record>) {
        self.remove(&record.name);
        if let Some(parent) = &record.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        if let Some(chain) = &record.model {
            self.chains.entry(chain.clone()).or_default().insert(record.name.clone());
        }
        self.by_name.insert(record.name.clone(), record);
    }

    fn remove(&mut self, name: &str) {
        let Some(record) = self.by_name.remove(name) else { return };
        if let Some(parent) = &record.parent
            && let Some(count) = self.children.get_mut(parent)
        {
            *count -= 1;
            if *count == 0 {
                self.children.remove(parent);
            }
        }
        if let Some(chain) = &record.model
            && let Some(names) = self.chains.get_mut(chain)
        {
            names.remove(name);
            if names.is_empty() {
                self.chains.remove(chain);
            }
        }
    }

    /// Names a record whose chain of parents is broken, endless, too long or not committed.
    pub(crate) fn find_damage(&self) -> Option<(String, &'static str)> {
        self.by_name.values().find_map(|record| {
            let mut next = record.parent.as_deref();
            for _ in 0..=MAX_DEPTH {
                match self.by_name.get(next?) {
                    None => return Some((record.name.clone(), "its parent is missing")),
                    Some(parent) if parent.kind != Kind::Committed => {
                        return Some((record.name.clone(), "its parent is not committed"));
                    }
                    Some(parent) => next = parent.parent.as_deref(),
                }
            }
            Some((record.name.clone(), "its chain of parents is endless"))
        })
    }
}
