//! The bytes of `ID.pieces` and `ID.state`, version 1. All integers are little-endian.
//!
//! Both files start with the same 56 bytes and end with a checksum:
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | `TWLPIECE` or `TWLSTATE` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | piece length in bytes, 2097152 |
//! | 16 | 8 | file length in bytes |
//! | 24 | 32 | content id |
//! | last 32 | 32 | BLAKE3 hash of every byte before it |
//!
//! Between them `ID.pieces` has the piece digests in order, 32 bytes each: none for a file of at most one piece, else
//! one per piece. It is written once. `ID.state` has, and is replaced whole by each checkpoint:
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 56 | 4 | flags: bit 0 is set when the content is sealed; the others are 0 |
//! | 60 | 4 | number of pieces n |
//! | 64 | ceil(n / 8) | piece i is durable when bit i mod 8 (1 is the lowest) of byte i / 8 is set; spare bits are 0 |
//!
//! A file whose size, checksum or any field is not exactly so is damaged. The largest `ID.pieces` (8 TiB in pieces of
//! 2 MiB) has 128 MiB, the largest `ID.state` 512 KiB.

use towline_artifact::{
    ContentId, MAX_FILE_LEN, PIECE_LEN, PieceDigest, PieceTable, PieceTableError, digest_count, piece_count,
};

use crate::bits;

pub(crate) const PIECES_MAGIC: &[u8; 8] = b"TWLPIECE";
pub(crate) const STATE_MAGIC: &[u8; 8] = b"TWLSTATE";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 56;
const CHECKSUM_LEN: usize = 32;
const FLAG_SEALED: u32 = 1;

/// The most bytes an `ID.pieces` can have: the table of the longest file.
pub(crate) const MAX_PIECES_LEN: u64 =
    HEADER_LEN as u64 + MAX_FILE_LEN / PIECE_LEN * 32 + CHECKSUM_LEN as u64;

/// The most bytes an `ID.state` can have: the bitmap of the longest file.
pub(crate) const MAX_STATE_LEN: u64 =
    HEADER_LEN as u64 + 8 + MAX_FILE_LEN / PIECE_LEN / 8 + CHECKSUM_LEN as u64;

/// Why a file of the store cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Damage {
    #[error("file of {found} bytes should have {expected}")]
    Size { found: usize, expected: usize },
    #[error("file starts with another magic")]
    Magic,
    #[error("file has version {found}, this build knows {VERSION}")]
    Version { found: u32 },
    #[error("checksum does not match")]
    Checksum,
    #[error("field {field} is out of its range")]
    Field { field: &'static str },
    #[error("file belongs to content {found}")]
    OtherContent { found: ContentId },
    #[error("piece table is wrong")]
    Table(#[from] PieceTableError),
    #[error("data file has {found} bytes, not {expected}")]
    DataLen { found: u64, expected: u64 },
    #[error("file {name} is missing")]
    Gone { name: &'static str },
    #[error("file {name} is no regular file")]
    NotAFile { name: &'static str },
    #[error("file {name} cannot be read")]
    Unreadable { name: &'static str },
}

/// What a checkpoint records.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct State {
    pub(crate) file_len: u64,
    pub(crate) sealed: bool,
    /// Bit i of word i / 64 is set when piece i is durable; [`bits::words_for`] the piece count.
    pub(crate) durable: Vec<u64>,
}

pub(crate) fn encode_pieces(table: &PieceTable) -> Vec<u8> {
    let mut out = header(PIECES_MAGIC, table.content(), table.file_len());
    for digest in table.digests() {
        out.extend_from_slice(&digest.0);
    }
    with_checksum(out)
}

pub(crate) fn parse_pieces(id: ContentId, bytes: &[u8]) -> Result<PieceTable, Damage> {
    let (file_len, body) = open(PIECES_MAGIC, id, bytes, |file_len| digest_count(file_len) * 32)?;
    let digests = body.chunks_exact(32).map(|digest| PieceDigest(array(digest))).collect();
    Ok(PieceTable::new(id, file_len, digests)?)
}

pub(crate) fn encode_state(id: ContentId, state: &State) -> Vec<u8> {
    let count = piece_count(state.file_len);
    let mut out = header(STATE_MAGIC, id, state.file_len);
    out.extend_from_slice(&if state.sealed { FLAG_SEALED } else { 0 }.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    let bitmap = state.durable.iter().flat_map(|word| word.to_le_bytes());
    out.extend(bitmap.take(count.div_ceil(8) as usize));
    with_checksum(out)
}

pub(crate) fn parse_state(id: ContentId, bytes: &[u8]) -> Result<State, Damage> {
    let bitmap_len = |file_len| piece_count(file_len).div_ceil(8) as usize;
    let (file_len, body) = open(STATE_MAGIC, id, bytes, |file_len| 8 + bitmap_len(file_len))?;
    let (fields, bitmap) = body.split_at(8);
    let flags = u32::from_le_bytes(array(&fields[..4]));
    let count = u32::from_le_bytes(array(&fields[4..]));
    if flags & !FLAG_SEALED != 0 {
        return Err(Damage::Field { field: "flags" });
    }
    if count != piece_count(file_len) {
        return Err(Damage::Field { field: "piece count" });
    }
    let mut durable = vec![0u64; bits::words_for(count)];
    for (number, byte) in bitmap.iter().enumerate() {
        durable[number / 8] |= u64::from(*byte) << (number % 8 * 8);
    }
    if (count..durable.len() as u32 * 64).any(|spare| bits::test(&durable, spare)) {
        return Err(Damage::Field { field: "bitmap" });
    }
    let sealed = flags & FLAG_SEALED != 0;
    if sealed && !(0..count).all(|piece| bits::test(&durable, piece)) {
        return Err(Damage::Field { field: "flags" });
    }
    Ok(State { file_len, sealed, durable })
}

pub(crate) fn header(magic: &[u8; 8], id: ContentId, file_len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + CHECKSUM_LEN);
    out.extend_from_slice(magic);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(PIECE_LEN as u32).to_le_bytes());
    out.extend_from_slice(&file_len.to_le_bytes());
    out.extend_from_slice(&id.0);
    out
}

pub(crate) fn with_checksum(mut out: Vec<u8>) -> Vec<u8> {
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// Checks header, size and checksum; returns the file length and the bytes between header and checksum.
fn open<'a>(
    magic: &[u8; 8],
    id: ContentId,
    bytes: &'a [u8],
    body_len: impl Fn(u64) -> usize,
) -> Result<(u64, &'a [u8]), Damage> {
    let shortest = HEADER_LEN + CHECKSUM_LEN;
    if bytes.len() < shortest {
        return Err(Damage::Size { found: bytes.len(), expected: shortest });
    }
    if bytes[..8] != magic[..] {
        return Err(Damage::Magic);
    }
    let found = u32::from_le_bytes(array(&bytes[8..12]));
    if found != VERSION {
        return Err(Damage::Version { found });
    }
    let (checked, checksum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
    if blake3::hash(checked).as_bytes() != checksum {
        return Err(Damage::Checksum);
    }
    if u64::from(u32::from_le_bytes(array(&bytes[12..16]))) != PIECE_LEN {
        return Err(Damage::Field { field: "piece length" });
    }
    let file_len = u64::from_le_bytes(array(&bytes[16..24]));
    if file_len > MAX_FILE_LEN {
        return Err(Damage::Field { field: "file length" });
    }
    let found = ContentId(array(&bytes[24..HEADER_LEN]));
    if found != id {
        return Err(Damage::OtherContent { found });
    }
    let expected = shortest + body_len(file_len);
    if bytes.len() != expected {
        return Err(Damage::Size { found: bytes.len(), expected });
    }
    Ok((file_len, &checked[HEADER_LEN..]))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cuts exactly N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: ContentId = ContentId([7; 32]);

    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM_LEN);
        with_checksum(bytes)
    }

    fn state(pieces: u32, sealed: bool, pick: impl Fn(u32) -> bool) -> State {
        let mut durable = vec![0; bits::words_for(pieces)];
        (0..pieces).filter(|i| sealed || pick(*i)).for_each(|i| durable[(i / 64) as usize] |= 1 << (i % 64));
        State { file_len: u64::from(pieces) * PIECE_LEN, sealed, durable }
    }

    #[test]
    fn the_documented_offsets_hold() {
        let bytes = encode_state(ID, &state(9, false, |i| i == 0 || i == 8));
        assert_eq!(bytes.len(), 64 + 2 + 32);
        assert_eq!(&bytes[..16], b"TWLSTATE\x01\0\0\0\0\0\x20\0");
        assert_eq!(&bytes[16..24], &(9 * PIECE_LEN).to_le_bytes());
        assert_eq!(&bytes[24..56], &ID.0);
        assert_eq!(&bytes[56..66], &[0, 0, 0, 0, 9, 0, 0, 0, 1, 1]);
        assert_eq!(encode_state(ID, &state(8, true, |_| true))[56..65], [1, 0, 0, 0, 8, 0, 0, 0, 0xff]);
    }

    #[track_caller]
    fn check_damage(change: impl Fn(&mut Vec<u8>), expected: Damage) {
        let mut bytes = encode_state(ID, &state(9, false, |i| i == 0));
        change(&mut bytes);
        assert_eq!(parse_state(ID, &resealed(bytes)), Err(expected));
    }

    #[test]
    fn every_field_is_checked_even_under_a_right_checksum() {
        check_damage(|b| b[0] = b'X', Damage::Magic);
        check_damage(|b| b[8] = 2, Damage::Version { found: 2 });
        check_damage(|b| b[14] = 0x40, Damage::Field { field: "piece length" });
        check_damage(|b| b[23] = 1, Damage::Field { field: "file length" });
        check_damage(|b| b[16] = 1, Damage::Field { field: "piece count" });
        check_damage(
            |b| b[24] = 0,
            Damage::OtherContent {
                found: ContentId({
                    let mut id = ID.0;
                    id[0] = 0;
                    id
                }),
            },
        );
        check_damage(|b| b[56] = 2, Damage::Field { field: "flags" });
        check_damage(|b| b[56] = 1, Damage::Field { field: "flags" });
        check_damage(|b| b[60] = 8, Damage::Field { field: "piece count" });
        check_damage(|b| b[65] = 2, Damage::Field { field: "bitmap" });
        check_damage(|b| b.push(0), Damage::Size { found: 99, expected: 98 });
    }

    proptest! {
        #[test]
        fn states_come_back(pieces in 0..200u32, sealed: bool, seed: u64) {
            let state = state(pieces, sealed, |i| seed.rotate_left(i) & 1 == 1);
            let bytes = encode_state(ID, &state);
            prop_assert_eq!(parse_state(ID, &bytes), Ok(state));
            for cut in 0..bytes.len() {
                prop_assert!(parse_state(ID, &bytes[..cut]).is_err());
            }
        }

        #[test]
        fn a_flipped_bit_is_damage(at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = encode_state(ID, &state(70, false, |i| i % 3 == 0));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(parse_state(ID, &bytes).is_err());
        }

        /// Random bodies under a valid magic, version and checksum reach the deep checks; nothing panics.
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), len in any::<u64>()) {
            let _ = parse_state(ID, &bytes);
            let _ = parse_pieces(ID, &bytes);
            for magic in [STATE_MAGIC, PIECES_MAGIC] {
                let small = len % (70 * PIECE_LEN);
                for file_len in [len, small] {
                    let mut file = header(magic, ID, file_len);
                    file.extend_from_slice(&bytes);
                    let file = with_checksum(file);
                    if let Ok(state) = parse_state(ID, &file) {
                        prop_assert_eq!(encode_state(ID, &state), file.clone());
                    }
                    if let Ok(table) = parse_pieces(ID, &file) {
                        prop_assert_eq!(encode_pieces(&table), file);
                    }
                }
            }
        }
    }
}
