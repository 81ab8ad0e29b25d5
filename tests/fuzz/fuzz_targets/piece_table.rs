//! `PieceTable`: whatever table is accepted covers its file exactly, and believes no other bytes.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::{
    ContentId, PIECE_LEN, PieceDigest, PieceHasher, PieceIndex, PieceTable, Sha256, digest_count,
};
use towline_fuzz::{digest, table};

#[derive(Arbitrary, Debug)]
struct Input {
    len: u64,
    content: [u8; 32],
    digests: Vec<u8>,
    /// Where the length is taken from: as it is, or to fit the digests.
    fits: bool,
    data: Vec<u8>,
    chunk: u8,
    text: String,
}

fuzz_target!(|input: Input| {
    let digests: Vec<PieceDigest> = input.digests.iter().map(|n| digest(*n)).collect();
    let most = digests.len() as u64 * PIECE_LEN;
    let len = if input.fits { most.saturating_sub(input.len % PIECE_LEN) } else { input.len };
    let stranger = PieceTable::new(ContentId(input.content), len, digests.clone());
    if let Ok(table) = stranger.or_else(|_| table(len, &digests)) {
        let count = table.piece_count();
        let lens: u64 = (0..count.min(1000)).map(|n| table.piece_len(PieceIndex(n)).get()).sum();
        assert!(count > 1000 || lens == len);
        assert_eq!(table.digests().len(), digest_count(len));
        assert!(!table.matches(PieceIndex(count), &input.data));
        assert!(!table.matches(PieceIndex(0), &input.data) || input.data.len() as u64 == len);
    }
    let mut hasher = PieceHasher::new();
    input.data.chunks(usize::from(input.chunk).max(1)).for_each(|chunk| hasher.update(chunk));
    let own = hasher.finish();
    assert!(input.data.is_empty() || own.matches(PieceIndex(0), &input.data));
    if let Ok(id) = input.text.parse::<ContentId>() {
        assert_eq!(id.to_string(), input.text);
    }
    if let Ok(digest) = input.text.parse::<Sha256>() {
        assert_eq!(digest.to_string(), input.text);
    }
});
