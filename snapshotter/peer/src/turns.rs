//! Who sends next: of the pieces that are being sent, the oldest two, unless their receivers take nothing.
//!
//! A piece is of use when it is whole. Four that share a link all come after the time of four; one after the other, they come
//! after the time of one, two, three and four. So the kernel gets bytes of two pieces at a time, and only what those leave of
//! the link goes to the others. It also keeps the connections few that compete in the queue of a link at one moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Pieces that have their turn at once. With one the link would idle whenever its receiver's is full.
const AT_ONCE: usize = 2;

#[derive(Debug)]
struct State {
    begun: u64,
    free: usize,
    waiting: BTreeMap<u64, oneshot::Sender<Turn>>,
}

/// The turns of a node's uploads.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Mutex<State>>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { begun: 0, free: AT_ONCE, waiting: BTreeMap::new() })))
    }
}

impl Turns {
    /// The place of an upload that begins now, behind all before it.
    pub(crate) fn place(&self) -> Place {
        let mut state = self.lock();
        state.begun += 1;
        Place { turns: self.clone(), number: state.begun }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one upload.
#[derive(Debug)]
pub(crate) struct Place {
    turns: Turns,
    number: u64,
}

impl Place {
    /// Waits for the turn.
    pub(crate) async fn turn(&self) -> Turn {
        let told = {
            let mut state = self.turns.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.turns.clone()));
            }
            let (tell, told) = oneshot::channel();
            state.waiting.insert(self.number, tell);
            told
        };
        told.await.expect("who waits is told")
    }

    /// Whether an older one waits.
    pub(crate) fn gives_way(&self) -> bool {
        self.turns.lock().waiting.first_key_value().is_some_and(|(&oldest, _)| oldest < self.number)
    }
}

/// A turn, until it is dropped; then it is the oldest's who waits.
#[derive(Debug)]
pub(crate) struct Turn(Option<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let next = {
            let mut state = turns.lock();
            let next = state.waiting.pop_first();
            state.free += usize::from(next.is_none());
            next
        };
        // One that no longer waits drops what it gets, and so passes it on.
        if let Some((_, next)) = next {
            drop(next.send(Self(Some(turns))));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_is_next_and_a_turn_is_never_lost() {
        let turns = Turns::default();
        let places: Vec<Place> = (0..5).map(|_| turns.place()).collect();
        let mut waits: Vec<_> = places.iter().map(|place| Box::pin(place.turn())).collect();
        let mut turn_of = |n: usize| waits[n].as_mut().now_or_never();
        let (second, third) = (turn_of(1).unwrap(), turn_of(2).unwrap());
        assert!(turn_of(4).is_none() && turn_of(3).is_none());
        assert!(!places[2].gives_way() && places[4].gives_way());
        assert!(turn_of(0).is_none() && places[2].gives_way());
        drop(second);
        let first = turn_of(0).unwrap();
        // The fourth is told, and gone before it hears it.
        drop(third);
        drop(waits.remove(3));
        let fifth = waits[3].as_mut().now_or_never().unwrap();
        drop((first, fifth));
        let state = turns.lock();
        assert!(state.free == AT_ONCE && state.waiting.is_empty());
    }
}
