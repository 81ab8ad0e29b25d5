//! Verified pieces and blocks in memory: a reader that follows the fetch gets them from here, not from disk.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use towline_artifact::{PieceIndex, VerifiedBlock, VerifiedPiece};

use crate::schedule::Slot;

/// Blocks kept, 8 MiB at most: for the readers that wait for them, and for others until the piece comes.
const BLOCKS: usize = 64;

/// The most recent pieces, up to a budget in bytes; the oldest go first.
#[derive(Debug)]
pub(crate) struct PieceCache {
    budget_bytes: u64,
    held_bytes: u64,
    pieces: HashMap<(Slot, u32), VerifiedPiece>,
    order: VecDeque<(Slot, u32)>,
    /// The oldest first.
    blocks: VecDeque<(Slot, VerifiedBlock)>,
}

impl PieceCache {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            held_bytes: 0,
            pieces: HashMap::new(),
            order: VecDeque::new(),
            blocks: VecDeque::new(),
        }
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

    /// These bytes of a piece, if one block has them all.
    pub(crate) fn block(&self, slot: Slot, index: PieceIndex, bytes: Range<u64>) -> Option<Bytes> {
        self.blocks.iter().rev().find_map(|(of, block)| {
            let held = u64::from(block.range().start)..u64::from(block.range().end);
            let covers = held.start <= bytes.start && bytes.end <= held.end;
            let within = |at: u64| usize::try_from(at - held.start).expect("within a block");
            (*of == slot && block.index() == index && covers)
                .then(|| block.bytes().slice(within(bytes.start)..within(bytes.end)))
        })
    }

    pub(crate) fn insert_block(&mut self, slot: Slot, block: VerifiedBlock) {
        if self.blocks.len() == BLOCKS {
            self.blocks.pop_front();
        }
        self.blocks.push_back((slot, block));
    }

    pub(crate) fn remove_slot(&mut self, slot: Slot) {
        self.blocks.retain(|(of, _)| *of != slot);
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
    fn a_read_within_a_block_finds_it_and_the_oldest_goes_first() {
        let bytes = vec![7; 20_000];
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        let table = hasher.finish();
        let block = |range: Range<u32>| {
            let hashes = table.prove(PieceIndex(0), &bytes, &range).unwrap();
            let part = Bytes::copy_from_slice(&bytes[range.start as usize..range.end as usize]);
            table.verify_block(PieceIndex(0), &range, &hashes, part).unwrap()
        };
        let mut cache = PieceCache::new(0);
        cache.insert_block(1, block(4096..12_288));
        cache.insert_block(1, block(16_384..20_000));
        let held = |cache: &PieceCache, slot, bytes| cache.block(slot, PieceIndex(0), bytes).map(|b| b.len());
        assert_eq!(held(&cache, 1, 4096..12_288), Some(8192));
        assert_eq!(held(&cache, 1, 5000..5001), Some(1));
        assert_eq!(held(&cache, 1, 19_000..20_000), Some(1000));
        for (slot, bytes) in [(1, 4095..4097), (1, 12_000..12_289), (2, 5000..5001), (1, 12_000..17_000)] {
            assert_eq!(held(&cache, slot, bytes.clone()), None, "{bytes:?}");
        }
        assert_eq!(cache.block(1, PieceIndex(1), 5000..5001), None);
        (0..BLOCKS - 1).for_each(|_| cache.insert_block(3, block(0..4096)));
        assert_eq!(held(&cache, 1, 5000..5001), None);
        assert_eq!(held(&cache, 1, 19_000..20_000), Some(1000));
        cache.remove_slot(1);
        assert_eq!(held(&cache, 1, 19_000..20_000), None);
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
