//! What is known of one snapshot.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Labels of a snapshot, sorted; no value is empty.
pub(crate) type Labels = BTreeMap<String, String>;

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Read-only, for looking at a parent.
    View,
    /// Writable, not yet usable as a parent.
    Active,
    /// Unchanging, usable as a parent.
    Committed,
}

/// What a snapshot takes on disk, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) bytes: i64,
    pub(crate) inodes: i64,
}

/// A point in time as the protocol carries it: seconds and nanoseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanos: i32,
}

impl Timestamp {
    /// The wall clock; 1970 if the clock is set before it.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).expect("nanoseconds of a second fit"),
        }
    }
}

/// One snapshot. Stored as JSON under its name; fields may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The key it was prepared under, or the name it was committed as.
    #[serde(skip)]
    pub(crate) name: String,
    /// Names its directory; never used twice.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) parent: Option<String>,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    pub(crate) labels: Labels,
    /// Of a committed snapshot once it has been measured.
    pub(crate) usage: Option<Usage>,
    /// The chain id, if this is a model snapshot. Kept apart from the labels, which clients may change.
    pub(crate) model: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_stable() {
        let record = Record {
            name: String::new(),
            id: 7,
            kind: Kind::Committed,
            parent: Some("k8s.io/1/a".into()),
            created: Timestamp { seconds: 1, nanos: 2 },
            updated: Timestamp { seconds: 3, nanos: 4 },
            labels: Labels::from([("a".into(), "b".into())]),
            usage: Some(Usage { bytes: 5, inodes: 6 }),
            model: None,
        };
        let stored = r#"{"id":7,"kind":"committed","parent":"k8s.io/1/a","created":{"seconds":1,"nanos":2},"updated":{"seconds":3,"nanos":4},"labels":{"a":"b"},"usage":{"bytes":5,"inodes":6},"model":null}"#;
        assert_eq!(serde_json::to_string(&record).expect("serializes"), stored);
        assert_eq!(serde_json::from_str::<Record>(stored).expect("parses"), record);
    }
}
