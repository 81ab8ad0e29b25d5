//! What an origin counts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

/// What an origin has sent of weight layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// GETs, refused ones included.
    pub requests: u64,
    /// Requests that were refused or spoilt.
    pub faulty: u64,
    /// Bytes of bodies, as they were handed to the kernel.
    pub bytes: u64,
    /// The same by who asked.
    pub bytes_to: HashMap<IpAddr, u64>,
    /// The most requests that were being answered at once.
    pub most_in_flight: usize,
}

#[derive(Debug, Default)]
pub(super) struct Counter {
    state: Mutex<(Served, usize)>,
}

impl Counter {
    pub(super) fn served(&self) -> Served {
        self.state().0.clone()
    }

    pub(super) fn reset(&self) {
        self.state().0 = Served::default();
    }

    /// Begins a request: its number, from 0, how many are being answered with it, and a guard that ends it.
    pub(super) fn begin(self: &Arc<Self>, from: IpAddr) -> (u64, usize, Flight) {
        let mut state = self.state();
        let number = state.0.requests;
        state.0.requests += 1;
        state.1 += 1;
        state.0.most_in_flight = state.0.most_in_flight.max(state.1);
        (number, state.1, Flight { counter: self.clone(), from })
    }

    fn state(&self) -> MutexGuard<'_, (Served, usize)> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Flight {
    counter: Arc<Counter>,
    from: IpAddr,
}

impl Flight {
    pub(super) fn sent(&self, bytes: usize) {
        let mut state = self.counter.state();
        state.0.bytes += bytes as u64;
        *state.0.bytes_to.entry(self.from).or_default() += bytes as u64;
    }

    pub(super) fn faulty(&self) {
        self.counter.state().0.faulty += 1;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.counter.state().1 -= 1;
    }
}
