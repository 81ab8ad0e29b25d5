//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use std::collections::HashMap;
use std::sync::Arc;

use crate::filter::Filters;
use crate::index::{Change, Index};
use crate::record::{Kind, Labels, Record, Timestamp};
use crate::{idmap, request};

/// Whether a snapshot with this name and these labels is selected; `None` when the filters cannot be read.
#[must_use]
pub fn selects(filters: &[&str], name: &str, labels: &[(&str, &str)]) -> Option<bool> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let record = Record {
        name: name.to_owned(),
        id: 1,
        kind: Kind::Committed,
        parent: None,
        created: Timestamp::default(),
        updated: Timestamp::default(),
        labels: labels.iter().map(owned).collect(),
        usage: None,
        model: None,
    };
    Some(Filters::parse(filters).ok()?.matches(&record))
}

/// What a request with labels means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The labels that are kept.
    pub labels: Labels,
    /// Those of them that a model snapshot keeps.
    pub of_model: Labels,
    /// The chain id of the extraction.
    pub chain: Option<String>,
    /// User and group outside of root inside; `None` when the labels contradict themselves.
    pub root: Option<Option<(u32, u32)>>,
}

/// Reads the labels of a request; `None` when they are refused.
#[must_use]
pub fn labels(labels: HashMap<String, String>) -> Option<Labelled> {
    let labels = request::check_labels(labels).ok()?;
    Some(Labelled {
        chain: request::chain_id(&labels).map(str::to_owned),
        root: idmap::root_owner(&labels).ok(),
        of_model: request::snapshot_labels(labels.clone()),
        labels,
    })
}

/// What a key is for, `None` for a key that is refused.
#[must_use]
pub fn purpose(key: &str) -> Option<String> {
    request::check_key("key", key).ok()?;
    Some(format!("{:?}", request::Purpose::of(key)))
}

/// Loads records, name and stored form each, as from a database; the lengths of their chains of parents.
///
/// `None` when a record is not readable or the chains are damaged.
#[must_use]
pub fn chains(rows: &[(&str, &[u8])]) -> Option<Vec<usize>> {
    let mut index = Index::default();
    for (name, row) in rows {
        let mut record: Record = serde_json::from_slice(row).ok()?;
        record.name = (*name).to_owned();
        index.apply(Change::Put(Arc::new(record)));
    }
    if index.find_damage().is_some() {
        return None;
    }
    Some(index.list().iter().map(|record| index.ancestry(record.parent.as_deref()).len()).collect())
}
