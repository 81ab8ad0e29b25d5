//! `ID.pieces` and `ID.state`: what is accepted is, byte for byte, what the store writes.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::{ContentId, PIECE_LEN, PieceDigest, digest_count};
use towline_store::fuzzing::{File, reencode, sealed};

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<u8>),
    /// A body under a right header and checksum.
    Body(u64, Vec<u8>),
    /// The same for a file of few pieces.
    SmallBody(u16, u32, Vec<u8>),
    /// Digests that belong to the id.
    Table(u8, u16),
}

const ID: ContentId = ContentId([7; 32]);

fn check(file: File, id: ContentId, bytes: &[u8]) {
    if let Some(again) = reencode(file, id, bytes) {
        assert_eq!(again, bytes);
    }
}

fuzz_target!(|input: Input| {
    for file in [File::Pieces, File::State] {
        match &input {
            Input::Raw(bytes) => check(file, ID, bytes),
            Input::Body(len, body) => check(file, ID, &sealed(file, ID, *len, body)),
            Input::SmallBody(pieces, more, body) => {
                let len = u64::from(*pieces) * PIECE_LEN + u64::from(*more) % PIECE_LEN;
                // The fields of a state before its bitmap, as they must be.
                let count = towline_artifact::piece_count(len);
                let state = [&[0; 4], &count.to_le_bytes(), &body[..]].concat();
                check(file, ID, &sealed(file, ID, len, &state));
                check(file, ID, &sealed(file, ID, len, body));
            }
            Input::Table(pieces, less) => {
                let len = (u64::from(*pieces) * PIECE_LEN).saturating_sub(u64::from(*less));
                let digests: Vec<PieceDigest> =
                    (0..digest_count(len)).map(|n| towline_fuzz::digest(n as u8)).collect();
                let Ok(table) = towline_fuzz::table(len, &digests) else { continue };
                let body: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
                let bytes = sealed(File::Pieces, table.content(), len, &body);
                assert_eq!(reencode(File::Pieces, table.content(), &bytes), Some(bytes));
            }
        }
    }
});
