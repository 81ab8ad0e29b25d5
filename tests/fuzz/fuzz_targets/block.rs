//! Blocks of a peer: whatever is believed is in the file, at that place.
#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::{ChainingValue, PIECE_LEN, PieceHasher, PieceIndex, PieceTable};

#[derive(Arbitrary, Debug)]
struct Input {
    last: bool,
    start: u32,
    len: u16,
    /// Of what is true: the block that is proven, else the one that is claimed.
    bytes: Option<Vec<u8>>,
    hashes: Option<Vec<ChainingValue>>,
    claimed: Option<Range<u32>>,
    /// Positions in bytes and hashes together, and what is added there.
    changes: Vec<(u32, u8)>,
}

static FILE: LazyLock<(Vec<u8>, PieceTable)> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..PIECE_LEN + 70_000).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
    let mut hasher = PieceHasher::new();
    hasher.update(&bytes);
    (bytes, hasher.finish())
});

fuzz_target!(|input: Input| {
    let (file, table) = &*FILE;
    let index = PieceIndex(u32::from(input.last));
    let piece = &file[index.offset() as usize..][..table.piece_len(index).get() as usize];
    let start = input.start % piece.len() as u32;
    let end = (start + 1 + u32::from(input.len)).min(piece.len() as u32);
    let block = table.block_around(index, start..end).expect("short enough");
    let mut hashes = table.prove(index, piece, &block).expect("true bytes");
    let mut bytes = piece[block.start as usize..block.end as usize].to_vec();
    let verify = |block: &Range<u32>, hashes: &[ChainingValue], bytes: &[u8]| {
        table.verify_block(index, block, hashes, bytes.to_vec().into())
    };
    assert_eq!(verify(&block, &hashes, &bytes).expect("true").bytes(), &bytes);
    bytes = input.bytes.unwrap_or(bytes);
    hashes = input.hashes.unwrap_or(hashes);
    let total = bytes.len() + 32 * hashes.len();
    for (at, add) in input.changes {
        let at = at as usize % total.max(1);
        let byte = match at.checked_sub(bytes.len()) {
            None => bytes.get_mut(at),
            Some(at) => hashes.get_mut(at / 32).map(|hash| &mut hash[at % 32]),
        };
        if let Some(byte) = byte {
            *byte = byte.wrapping_add(add);
        }
    }
    let claimed = input.claimed.unwrap_or(block);
    if let Ok(verified) = verify(&claimed, &hashes, &bytes) {
        assert_eq!(verified.range(), claimed);
        assert_eq!(verified.bytes(), &piece[claimed.start as usize..claimed.end as usize]);
    }
});
