//! Why a model stays on the node. Without a reason it goes at the next cleanup.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::catalog::KnownModel;

/// What was asked for through the control API and not taken back. Part of the model's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holds {
    /// References that are kept. One reference keeps at most one model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kept: Vec<String>,
    /// Mounts on this host. One directory has at most one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<HeldMount>,
}

/// A mount that is to be there, also after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldMount {
    /// Absolute, without symbolic links.
    pub(crate) directory: String,
    /// What was asked to be mounted.
    pub(crate) reference: String,
}

impl Holds {
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.mounts.is_empty()
    }

    /// Whether `reference` was resolved to the model, and checked, when it was kept or mounted.
    pub(crate) fn names(&self, reference: &str) -> bool {
        self.kept.iter().any(|kept| kept == reference)
            || self.mounts.iter().any(|mount| mount.reference == reference)
    }
}

/// All reasons of one model.
#[derive(Debug)]
pub(crate) struct Needs(Mutex<State>);

#[derive(Debug)]
struct State {
    /// A snapshot of containerd stands on it, or will.
    pulled: bool,
    /// Calls under way that use it.
    pins: u32,
    holds: Holds,
}

impl Needs {
    /// Those of a model on disk: pulled until containerd's snapshots are known.
    pub(crate) fn new(holds: Holds) -> Self {
        Self(Mutex::new(State { pulled: true, pins: 0, holds }))
    }

    pub(crate) fn set_pulled(&self, pulled: bool) {
        self.lock().pulled = pulled;
    }

    pub(crate) fn holds(&self) -> Holds {
        self.lock().holds.clone()
    }

    /// To be called once the record says so.
    pub(crate) fn set_holds(&self, holds: Holds) {
        self.lock().holds = holds;
    }

    pub(crate) fn is_kept(&self) -> bool {
        !self.lock().holds.kept.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        !state.pulled && state.pins == 0 && state.holds.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model that does not go while this exists.
#[derive(Debug)]
pub(crate) struct Pin(Arc<KnownModel>);

impl Pin {
    /// The caller sees to it that nobody takes the model out of the catalogue meanwhile.
    pub(crate) fn new(known: Arc<KnownModel>) -> Self {
        known.needs.lock().pins += 1;
        Self(known)
    }

    pub(crate) fn model(&self) -> &Arc<KnownModel> {
        &self.0
    }
}

impl Deref for Pin {
    type Target = KnownModel;

    fn deref(&self) -> &KnownModel {
        &self.0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.needs.lock().pins -= 1;
    }
}
