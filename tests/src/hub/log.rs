//! What a stand-in was asked and what it served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one stand-in; reading them takes no request.
#[derive(Debug, Default)]
pub struct Log {
    requests: Mutex<BTreeMap<String, u64>>,
    tokens: Mutex<BTreeSet<String>>,
    bytes: Mutex<BTreeMap<String, u64>>,
    leaks: AtomicU64,
}

impl Log {
    /// Requests by URL path, as sent.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.requests.lock().expect("no holder panics").clone()
    }

    /// Requests whose URL path starts so.
    #[must_use]
    pub fn requests_at(&self, prefix: &str) -> u64 {
        self.requests().iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// Tokens that were sent to the hub.
    #[must_use]
    pub fn tokens(&self) -> BTreeSet<String> {
        self.tokens.lock().expect("no holder panics").clone()
    }

    /// Bytes of files handed to the network, over all.
    #[must_use]
    pub fn bytes_served(&self) -> u64 {
        self.bytes.lock().expect("no holder panics").values().sum()
    }

    /// Bytes served of the file at `path` in any repository.
    #[must_use]
    pub fn bytes_of(&self, path: &str) -> u64 {
        self.bytes.lock().expect("no holder panics").get(path).copied().unwrap_or_default()
    }

    /// Requests that brought credentials to the storage, which no client may do.
    #[must_use]
    pub fn leaked_credentials(&self) -> u64 {
        self.leaks.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, path: &str, token: Option<&str>) {
        *self.requests.lock().expect("no holder panics").entry(path.to_owned()).or_default() += 1;
        if let Some(token) = token {
            self.tokens.lock().expect("no holder panics").insert(token.to_owned());
        }
    }

    pub(super) fn note_bytes(&self, path: &str, len: u64) {
        *self.bytes.lock().expect("no holder panics").entry(path.to_owned()).or_default() += len;
    }

    pub(super) fn note_leak(&self) {
        self.leaks.fetch_add(1, Ordering::Relaxed);
    }
}
