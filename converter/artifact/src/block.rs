//! Blocks: parts of a piece that are proven by themselves, for a reader who cannot wait for a whole one.
//!
//! A piece digest is the top of a BLAKE3 tree. Whoever has the piece can send a part of it together with the chaining values
//! of all subtrees beside that part, and whoever knows the digest can hash its way up: what does not end at the digest is
//! thrown away. `docs/format.md`, "Blocks", has the order.

use std::ops::Range;

use blake3::hazmat::{self, Mode};
use bytes::Bytes;

use crate::piece::{ContentId, Corrupt, PIECE_LEN, PieceIndex, PieceTable, chaining_value};

/// Blocks begin at multiples of this many bytes of their piece: a page.
pub const BLOCK_ALIGN: u32 = 4096;
/// The longest block in bytes. It passes a link within the time that messages wait there anyway; who reads more is better served
/// by the piece.
pub const MAX_BLOCK_LEN: u32 = 128 << 10;
/// The most hashes that a block needs: one at each level on each side, from a piece down to pages.
pub const MAX_BLOCK_HASHES: usize = 2 * (PIECE_LEN / BLOCK_ALIGN as u64).ilog2() as usize;

/// Chaining value of a subtree of a file's hash tree.
pub type ChainingValue = [u8; 32];

/// Part of a piece that was proven to belong to it. Only these reach a reader before their piece does.
#[derive(Clone)]
pub struct VerifiedBlock {
    content: ContentId,
    index: PieceIndex,
    start: u32,
    bytes: Bytes,
}

impl VerifiedBlock {
    /// The file the block belongs to.
    #[must_use]
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// The piece the block belongs to.
    #[must_use]
    pub fn index(&self) -> PieceIndex {
        self.index
    }

    /// Its place within the piece, in bytes; half-open, never empty.
    #[must_use]
    pub fn range(&self) -> Range<u32> {
        self.start..self.start + u32::try_from(self.bytes.len()).expect("at most a piece")
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl std::fmt::Debug for VerifiedBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (content, index) = (self.content, self.index);
        f.debug_struct("VerifiedBlock")
            .field("content", &content)
            .field("index", &index)
            .field("range", &self.range())
            .finish()
    }
}

impl PieceTable {
    /// The shortest block that covers `bytes` of a piece. `None` for an empty range, one that ends behind the piece, or a block
    /// longer than [`MAX_BLOCK_LEN`]. `index` must be below [`Self::piece_count`].
    #[must_use]
    pub fn block_around(&self, index: PieceIndex, bytes: Range<u32>) -> Option<Range<u32>> {
        let end = self.len_of(index);
        if bytes.is_empty() || bytes.end > end {
            return None;
        }
        let start = bytes.start / BLOCK_ALIGN * BLOCK_ALIGN;
        let block = start..bytes.end.next_multiple_of(BLOCK_ALIGN).min(end);
        (block.len() <= MAX_BLOCK_LEN as usize).then_some(block)
    }

    /// Whether `block` is one of piece `index`.
    #[must_use]
    pub fn is_block(&self, index: PieceIndex, block: &Range<u32>) -> bool {
        index.0 < self.piece_count() && self.block_around(index, block.clone()).as_ref() == Some(block)
    }

    /// The hashes that prove a block of piece `index`, whose bytes are `piece`. `None` if it is no block, or these are not the
    /// bytes of the piece. Hashes the whole piece.
    #[must_use]
    pub fn prove(&self, index: PieceIndex, piece: &[u8], block: &Range<u32>) -> Option<Vec<ChainingValue>> {
        if !self.is_block(index, block) || piece.len() != self.len_of(index) as usize {
            return None;
        }
        let mut hashes = Vec::new();
        let matches = self.climb(index, block, |at, inside| {
            let value = chaining_value(
                index.offset() + u64::from(at.start),
                &piece[at.start as usize..at.end as usize],
            );
            if !inside {
                hashes.push(value);
            }
            Some(value)
        });
        matches.unwrap_or_else(|| self.matches(index, piece)).then_some(hashes)
    }

    /// Turns received bytes and hashes into a block, the only way there is to make one.
    ///
    /// # Errors
    /// [`Corrupt`] when `block` is no block of the piece, `bytes` has another length, or they do not end at the digest of the piece.
    pub fn verify_block(
        &self,
        index: PieceIndex,
        block: &Range<u32>,
        hashes: &[ChainingValue],
        bytes: Bytes,
    ) -> Result<VerifiedBlock, Corrupt> {
        let corrupt = Corrupt { content: self.content(), index };
        if !self.is_block(index, block) || bytes.len() != block.len() {
            return Err(corrupt);
        }
        let mut hashes = hashes.iter();
        let matches = self.climb(index, block, |at, inside| {
            if !inside {
                return hashes.next().copied();
            }
            let own = (at.start - block.start) as usize..(at.end - block.start) as usize;
            Some(chaining_value(index.offset() + u64::from(at.start), &bytes[own]))
        });
        let matches = matches.unwrap_or_else(|| self.matches(index, &bytes));
        if !matches || hashes.next().is_some() {
            return Err(corrupt);
        }
        Ok(VerifiedBlock { content: self.content(), index, start: block.start, bytes })
    }

    /// Merges what `value` says of the largest subtrees that lie wholly within `block` or wholly outside, from the front to the end
    /// of the piece. Whether that ends at the digest of the piece; `None` if the block is the whole piece, which has no parts.
    fn climb(
        &self,
        index: PieceIndex,
        block: &Range<u32>,
        mut value: impl FnMut(Range<u32>, bool) -> Option<ChainingValue>,
    ) -> Option<bool> {
        let piece = 0..self.len_of(index);
        if *block == piece {
            return None;
        }
        let Some((left, right)) = children(&piece, block, &mut value) else { return Some(false) };
        Some(match self.digests().get(index.0 as usize) {
            Some(digest) => hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash) == digest.0,
            // The only piece of its file: its top is the root.
            None => *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes() == self.content().0,
        })
    }

    fn len_of(&self, index: PieceIndex) -> u32 {
        u32::try_from(self.piece_len(index).get()).expect("at most a piece")
    }
}

/// Both halves of a subtree that `block` begins or ends in. That is longer than [`BLOCK_ALIGN`], so it has two, and they meet at a
/// multiple of it.
fn children(
    at: &Range<u32>,
    block: &Range<u32>,
    value: &mut impl FnMut(Range<u32>, bool) -> Option<ChainingValue>,
) -> Option<(ChainingValue, ChainingValue)> {
    let left = hazmat::left_subtree_len(at.len() as u64);
    let middle = at.start + u32::try_from(left).expect("less than a piece");
    let mut side = |at: Range<u32>| {
        let inside = block.start <= at.start && at.end <= block.end;
        if inside || block.end <= at.start || at.end <= block.start {
            return value(at, inside);
        }
        let (left, right) = children(&at, block, value)?;
        Some(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash))
    };
    Some((side(at.start..middle)?, side(middle..at.end)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::piece::PieceHasher;

    fn file(len: u64) -> (Vec<u8>, PieceTable) {
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        (bytes, hasher.finish())
    }

    fn piece<'a>(bytes: &'a [u8], table: &PieceTable, index: PieceIndex) -> &'a [u8] {
        &bytes[index.offset() as usize..][..table.len_of(index) as usize]
    }

    const LENS: [u64; 12] = [
        1,
        1024,
        4096,
        4097,
        8192,
        100_000,
        PIECE_LEN - 1,
        PIECE_LEN,
        PIECE_LEN + 1,
        PIECE_LEN + 5000,
        2 * PIECE_LEN,
        3 * PIECE_LEN - 4096,
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// What is proven is what is in the file; and a proof that was changed anywhere proves nothing.
        #[test]
        fn a_block_is_proven_and_nothing_else_is(
            len in prop::sample::select(LENS.to_vec()), nth in any::<u32>(), at in any::<u32>(), wanted in 1..=MAX_BLOCK_LEN,
            turned in any::<prop::sample::Index>(), bit in 0..8u8
        ) {
            let (bytes, table) = file(len);
            let index = PieceIndex(nth % table.piece_count());
            let piece = piece(&bytes, &table, index);
            let start = at % piece.len() as u32;
            let end = (start + wanted).min(piece.len() as u32);
            let Some(block) = table.block_around(index, start..end) else {
                prop_assert!(wanted > MAX_BLOCK_LEN - 2 * BLOCK_ALIGN);
                return Ok(());
            };
            prop_assert!(block.start <= start && end <= block.end && table.is_block(index, &block));
            let hashes = table.prove(index, piece, &block).unwrap();
            prop_assert!(hashes.len() <= MAX_BLOCK_HASHES);
            let part = &piece[block.start as usize..block.end as usize];
            let verified = table.verify_block(index, &block, &hashes, Bytes::copy_from_slice(part)).unwrap();
            prop_assert_eq!((verified.range(), &verified.bytes()[..], verified.index()), (block.clone(), part, index));

            // One bit of bytes and hashes, taken as one string.
            let mut all: Vec<u8> = part.iter().chain(hashes.iter().flatten()).copied().collect();
            let turned = turned.index(all.len());
            all[turned] ^= 1 << bit;
            let (wrong, proof) = all.split_at(part.len());
            let proof: Vec<ChainingValue> = proof.chunks(32).map(|hash| hash.try_into().unwrap()).collect();
            let check = |block: &Range<u32>, hashes: &[ChainingValue], bytes: &[u8]| {
                table.verify_block(index, block, hashes, Bytes::copy_from_slice(bytes)).is_err()
            };
            prop_assert!(check(&block, &proof, wrong), "byte {} of {} was turned", turned, all.len());
            // Too few, too many, another place, too short.
            prop_assert!(hashes.is_empty() || check(&block, &hashes[1..], part));
            prop_assert!(check(&block, &[&hashes[..], &[[0; 32]]].concat(), part));
            prop_assert!(check(&(block.start + BLOCK_ALIGN..block.end + BLOCK_ALIGN), &hashes, part));
            prop_assert!(check(&block, &hashes, &part[1..]));
            prop_assert!(table.verify_block(PieceIndex(index.0 ^ 1), &block, &hashes, Bytes::copy_from_slice(part)).is_err());

            // Who has other bytes than the piece proves nothing.
            let mut spoiled = piece.to_vec();
            spoiled[at as usize % piece.len()] ^= 1 << bit;
            prop_assert_eq!(table.prove(index, &spoiled, &block), None);
        }
    }

    #[test]
    fn only_blocks_are_blocks() {
        let (bytes, table) = file(PIECE_LEN + 5000);
        let (first, last) = (PieceIndex(0), PieceIndex(1));
        let around = |index, range| table.block_around(index, range);
        assert_eq!(around(first, 1..2), Some(0..4096));
        assert_eq!(around(first, 4095..4097), Some(0..8192));
        assert_eq!(around(last, 4096..4097), Some(4096..5000));
        assert_eq!(around(last, 4096..5001), None);
        assert_eq!(around(first, 7..7), None);
        assert_eq!(around(first, 4096..4096 + MAX_BLOCK_LEN), Some(4096..4096 + MAX_BLOCK_LEN));
        assert_eq!(around(first, 4095..4096 + MAX_BLOCK_LEN), None);
        for (index, block) in [(first, 1..4096), (first, 0..4095), (last, 0..8192), (PieceIndex(2), 0..4096)]
        {
            assert!(!table.is_block(index, &block), "{block:?}");
            assert_eq!(table.prove(index, &bytes[..PIECE_LEN as usize], &block), None);
        }
        assert_eq!(table.prove(first, &bytes[1..][..PIECE_LEN as usize], &(0..4096)), None);
        assert_eq!(table.prove(first, &bytes[..100], &(0..4096)), None);
    }

    #[test]
    fn the_longest_proof_is_as_long_as_its_bound() {
        let (bytes, table) = file(PIECE_LEN * 2);
        let middle = (PIECE_LEN / 2) as u32;
        let hashes =
            table.prove(PieceIndex(0), &bytes[..PIECE_LEN as usize], &(middle - 4096..middle + 4096));
        assert_eq!(hashes.unwrap().len(), MAX_BLOCK_HASHES - 2);
    }
}
