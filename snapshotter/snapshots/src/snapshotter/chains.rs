//! Which chains are being claimed, so that a model is forgotten only when nothing needs it.
//!
//! A chain may lose its last snapshot (a removal) while a claim for it is under way. The removal then leaves the
//! decision to the end of the claim. Lock order: this lock, then the index; [`crate::Models::forget`] is called under this
//! lock, so that a claim cannot begin between the decision and the call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Shared;

/// Claims under way, by chain id.
#[derive(Debug, Default)]
pub(super) struct Chains(Mutex<HashMap<String, Pending>>);

#[derive(Debug, Default)]
struct Pending {
    claims: usize,
    /// Whether the end of the last claim has to look for a snapshot.
    look: bool,
}

/// A claim under way; ends when dropped.
pub(super) struct PendingClaim {
    shared: Arc<Shared>,
    chain: String,
    declined: bool,
}

/// Notes the begin of a claim.
pub(super) fn begin(shared: &Arc<Shared>, chain: String) -> PendingClaim {
    shared.chains.lock().entry(chain.clone()).or_default().claims += 1;
    PendingClaim { shared: Arc::clone(shared), chain, declined: false }
}

/// Notes that a snapshot of `chain` has been removed.
pub(super) fn removed(shared: &Shared, chain: &str) {
    let mut chains = shared.chains.lock();
    match chains.get_mut(chain) {
        Some(pending) => pending.look = true,
        None => shared.forget_unused(chain),
    }
}

impl PendingClaim {
    /// The models do not want the layer, so they remember nothing of it.
    pub(super) fn decline(&mut self) {
        self.declined = true;
    }
}

impl Drop for PendingClaim {
    fn drop(&mut self) {
        let mut chains = self.shared.chains.lock();
        let Some(pending) = chains.get_mut(&self.chain) else { return };
        pending.claims -= 1;
        pending.look |= !self.declined;
        if pending.claims == 0 {
            let look = pending.look;
            chains.remove(&self.chain);
            if look {
                self.shared.forget_unused(&self.chain);
            }
        }
    }
}

impl Chains {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn forget_unused(&self, chain: &str) {
        if !self.metadata.read(|index| index.has_chain(chain)) {
            self.models.forget(chain);
        }
    }
}
