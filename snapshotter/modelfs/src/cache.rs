//! Verified pieces in memory: a reader that follows the fetch gets them from here, not from disk.

use std::collections::{HashMap, VecDeque};

use towline_artifact::{PieceIndex, VerifiedPiece};

use crate::schedule::Slot;

/// The most recent pieces, up to a budget in bytes; the oldest go first.
#[derive(Debug)]
pub(crate) struct PieceCache {
    budget_bytes: u64,
    held_bytes: u64,
    pieces: HashMap<(Slot, u32), VerifiedPiece>,
    order: VecDeque<(Slot, u32)>,
}

impl PieceCache {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, held_bytes: 0, pieces: HashMap::new(), order: VecDeque::new() }
    }

    pub(crate) fn get(&self, slot: Slot, index: PieceIndex) -> Option<VerifiedPiece> {
        self.pieces.get(&(slot, index.0)).cloned()
    }

    pub(crate) fn insert(&mut self, slot: Slot, piece: VerifiedPiece) {
        let key = (slot, piece.index().0);
        let len = piece.bytes().len() as u64;
        if self.pieces.insert(key, piece).is_none() {
            self.order.push_back(key);
            self.held_bytes += len;
        }
        while self.held_bytes > self.budget_bytes {
            let Some(oldest) = self.order.pop_front() else { break };
            self.drop_piece(oldest);
        }
    }

    pub(crate) fn remove_slot(&mut self, slot: Slot) {
        self.order.retain(|key| key.0 != slot);
        let keys: Vec<_> = self.pieces.keys().filter(|key| key.0 == slot).copied().collect();
        keys.into_iter().for_each(|key| self.drop_piece(key));
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    fn drop_piece(&mut self, key: (Slot, u32)) {
        if let Some(piece) = self.pieces.remove(&key) {
            self.held_bytes -= piece.bytes().len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::PieceHasher;

    fn piece(fill: u8, len: usize) -> VerifiedPiece {
        let bytes = vec![fill; len];
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        hasher.finish().verify(PieceIndex(0), bytes.into()).unwrap()
    }

    #[test]
    fn the_budget_holds_and_the_oldest_goes_first() {
        let mut cache = PieceCache::new(250);
        for slot in 0..4 {
            cache.insert(slot, piece(slot as u8, 100));
            assert!(cache.held_bytes() <= 250);
        }
        let held: Vec<bool> = (0..4).map(|slot| cache.get(slot, PieceIndex(0)).is_some()).collect();
        assert_eq!(held, [false, false, true, true]);
        cache.insert(3, piece(3, 100));
        assert_eq!(cache.held_bytes(), 200, "the same piece again");
        cache.remove_slot(3);
        cache.remove_slot(9);
        assert_eq!(cache.held_bytes(), 100);
        cache.insert(5, piece(5, 300));
        assert_eq!(cache.held_bytes(), 0, "larger than the budget");
    }
}
