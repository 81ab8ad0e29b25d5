//! Where blobs were last redirected to, so that the next range of the same blob saves the registry a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci_spec::image::Digest;
use reqwest::Url;

use crate::endpoint::Endpoint;
use crate::repository::Repository;

/// How long a target is used again. Signed URLs in use live for minutes; the registry gets to say no once in this time.
const LIFE: Duration = Duration::from_secs(60);

/// The most targets held: layers being read at once, with room.
const MAX_LOCATIONS: usize = 4096;

/// A server's redirect for one blob.
#[derive(Clone)]
pub(crate) struct Location {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Holds a signature: never logged.
    pub(crate) url: Url,
}

/// Targets by repository and blob: access was granted for that repository only.
#[derive(Default)]
pub(crate) struct Locations {
    known: Mutex<HashMap<(Repository, Digest), (Instant, Location)>>,
}

impl Locations {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(Repository, Digest), (Instant, Location)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &(Repository, Digest), now: Instant) -> Option<Location> {
        let known = self.known();
        let (until, location) = known.get(key)?;
        (*until > now).then(|| location.clone())
    }

    pub(crate) fn put(&self, key: (Repository, Digest), location: Location, now: Instant) {
        let mut known = self.known();
        if known.len() >= MAX_LOCATIONS && !known.contains_key(&key) {
            known.retain(|_, (until, _)| *until > now);
            if known.len() >= MAX_LOCATIONS {
                known.clear();
            }
        }
        known.insert(key, (now + LIFE, location));
    }

    pub(crate) fn remove(&self, key: &(Repository, Digest)) {
        self.known().remove(key);
    }

    pub(crate) fn forget(&self, repository: &Repository) {
        self.known().retain(|(of, _), _| of != repository);
    }
}
