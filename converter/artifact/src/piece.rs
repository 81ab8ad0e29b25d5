//! Pieces: the unit of transfer and of verification, and the digests that bind pieces to a file.

use blake3::hazmat::{self, HasherExt, Mode};
use bytes::Bytes;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Length of a piece in bytes: 2 MiB. Only the last piece of a file may be shorter.
///
/// A power of two of at least one BLAKE3 chunk (1024 bytes), so that every piece is a complete subtree of the file's
/// hash tree (docs/format.md, "Pieces", where it is told why so many).
pub const PIECE_LEN: u64 = 2 << 20;

/// The most bytes a file may have: 8 TiB, so that piece numbers fit in 22 bits and tables stay small.
pub const MAX_FILE_LEN: u64 = 8 << 40;

/// Position of a piece within its file, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(pub u32);

impl PieceIndex {
    /// The piece that holds the byte at `offset`.
    #[must_use]
    pub fn containing(offset: u64) -> Self {
        Self(u32::try_from(offset / PIECE_LEN).expect("offsets are below MAX_FILE_LEN"))
    }

    /// Offset in bytes of the piece's first byte within the file.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) * PIECE_LEN
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many pieces a file of `len` bytes has: `ceil(len / PIECE_LEN)`, 0 for an empty file.
#[must_use]
pub fn piece_count(len: u64) -> u32 {
    u32::try_from(len.div_ceil(PIECE_LEN)).expect("lengths are at most MAX_FILE_LEN")
}

/// A text that is not the digest it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {expected}")]
pub struct ParseDigestError {
    text: String,
    expected: &'static str,
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = || ParseDigestError { text: text.chars().take(128).collect(), expected: $expected };
                let digits = text.strip_prefix($prefix).ok_or_else(error)?;
                let lower_case = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let mut bytes = [0; 32];
                if !lower_case || hex::decode_to_slice(digits, &mut bytes).is_err() {
                    return Err(error());
                }
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_newtype!(
    /// Names the bytes of a file everywhere on a node and between peers: the file's plain BLAKE3 hash, as `b3sum`
    /// prints it. Written as 64 lower-case hex digits.
    ContentId, "", "a content id (64 lower-case hex digits)"
);
digest_newtype!(
    /// BLAKE3 chaining value of one piece, as a subtree at the piece's offset. Written as 64 lower-case hex digits.
    PieceDigest, "", "a piece digest (64 lower-case hex digits)"
);
digest_newtype!(
    /// A SHA-256 digest as OCI writes it: `sha256:` and 64 lower-case hex digits.
    Sha256, "sha256:", "a SHA-256 digest (sha256: and 64 lower-case hex digits)"
);

impl Sha256 {
    /// SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

/// Chaining value of the subtree that piece `index` is, whatever the length of the file around it.
///
/// Meaningless for the only piece of a one-piece file: there the content id is the digest (see [`PieceTable`]).
#[must_use]
pub fn hash_piece(index: PieceIndex, bytes: &[u8]) -> PieceDigest {
    debug_assert!(!bytes.is_empty() && bytes.len() as u64 <= PIECE_LEN);
    PieceDigest(chaining_value(index.offset(), bytes))
}

/// Chaining value of the subtree at `offset` of a file, in bytes, whose bytes are `bytes`.
pub(crate) fn chaining_value(offset: u64, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Merges the piece digests of a file of at least two pieces to its content id.
fn merge_root(digests: &[PieceDigest]) -> ContentId {
    let (left, right) = digests.split_at(left_len(digests.len()));
    let root = hazmat::merge_subtrees_root(&merge(left), &merge(right), Mode::Hash);
    ContentId(*root.as_bytes())
}

fn merge(digests: &[PieceDigest]) -> [u8; 32] {
    match digests {
        [only] => only.0,
        _ => {
            let (left, right) = digests.split_at(left_len(digests.len()));
            hazmat::merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// BLAKE3's left subtree is the largest power of two of pieces that leaves at least one for the right.
fn left_len(count: usize) -> usize {
    debug_assert!(count >= 2);
    1 << (count - 1).ilog2()
}

/// A piece table does not belong to the file it claims.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PieceTableError {
    /// The file is longer than [`MAX_FILE_LEN`].
    #[error("file of {len} bytes is longer than {MAX_FILE_LEN}")]
    TooLong {
        /// Claimed length in bytes.
        len: u64,
    },
    /// An empty file has another content id.
    #[error("empty file with the content id {claimed} of another")]
    NotEmpty {
        /// What the file claims.
        claimed: ContentId,
    },
    /// Not one digest per piece.
    #[error("{found} piece digests for a file of {expected} pieces")]
    WrongCount {
        /// Digests that were given.
        found: usize,
        /// Digests that the length asks for.
        expected: usize,
    },
    /// The digests merge to another file's hash, so some of them are wrong.
    #[error("piece digests merge to {merged}, not to the content id {claimed}")]
    WrongRoot {
        /// What the digests merge to.
        merged: ContentId,
        /// What the file claims.
        claimed: ContentId,
    },
}

/// A received piece is not what its digest says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("piece {index} of content {content} does not match its digest")]
pub struct Corrupt {
    /// The content asked for.
    pub content: ContentId,
    /// The piece asked for.
    pub index: PieceIndex,
}

/// The digests of all pieces of one file, proven to merge to its content id.
///
/// A file of at most one piece has no digests of its own: its content id is the digest of that piece.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceTable {
    content: ContentId,
    len: u64,
    digests: Vec<PieceDigest>,
}

impl PieceTable {
    /// Checks that `digests` belong to the file `content` of `len` bytes.
    ///
    /// `digests` is empty for files of at most one piece and holds one entry per piece for longer ones.
    ///
    /// # Errors
    /// [`PieceTableError`] when the count is wrong or the digests merge to another hash.
    pub fn new(content: ContentId, len: u64, digests: Vec<PieceDigest>) -> Result<Self, PieceTableError> {
        if len > MAX_FILE_LEN {
            return Err(PieceTableError::TooLong { len });
        }
        let expected = digest_count(len);
        if digests.len() != expected {
            return Err(PieceTableError::WrongCount { found: digests.len(), expected });
        }
        if len == 0 && *blake3::hash(&[]).as_bytes() != content.0 {
            return Err(PieceTableError::NotEmpty { claimed: content });
        }
        if expected > 0 {
            let merged = merge_root(&digests);
            if merged != content {
                return Err(PieceTableError::WrongRoot { merged, claimed: content });
            }
        }
        Ok(Self { content, len, digests })
    }

    /// The file's content id.
    #[must_use]
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Number of pieces; 0 for an empty file.
    #[must_use]
    pub fn piece_count(&self) -> u32 {
        piece_count(self.len)
    }

    /// Length of a piece in bytes. `index` must be below [`Self::piece_count`].
    #[must_use]
    pub fn piece_len(&self, index: PieceIndex) -> NonZeroU64 {
        assert!(index.0 < self.piece_count(), "piece {index} of {}", self.piece_count());
        NonZeroU64::new(PIECE_LEN.min(self.len - index.offset())).expect("a piece below the count has bytes")
    }

    /// The stored digests: empty for files of at most one piece.
    #[must_use]
    pub fn digests(&self) -> &[PieceDigest] {
        &self.digests
    }

    /// Whether `bytes` are piece `index` of this file.
    #[must_use]
    pub fn matches(&self, index: PieceIndex, bytes: &[u8]) -> bool {
        if index.0 >= self.piece_count() || bytes.len() as u64 != self.piece_len(index).get() {
            return false;
        }
        match self.digests.get(index.0 as usize) {
            Some(digest) => hash_piece(index, bytes) == *digest,
            None => blake3::hash(bytes).as_bytes() == &self.content.0,
        }
    }

    /// Turns received bytes into a piece, the only way there is to make one.
    ///
    /// # Errors
    /// [`Corrupt`] when length or digest differ.
    pub fn verify(&self, index: PieceIndex, bytes: Bytes) -> Result<VerifiedPiece, Corrupt> {
        if self.matches(index, &bytes) {
            Ok(VerifiedPiece { content: self.content, index, bytes })
        } else {
            Err(Corrupt { content: self.content, index })
        }
    }
}

impl fmt::Debug for PieceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceTable")
            .field("content", &self.content)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Digests that the piece table of a file of `len` bytes stores: one per piece, none for at most one piece.
#[must_use]
pub fn digest_count(len: u64) -> usize {
    match piece_count(len) {
        0 | 1 => 0,
        many => many as usize,
    }
}

/// Bytes of a piece that matched its digest. Only these enter the store, reach a reader or are offered to a peer.
#[derive(Clone)]
pub struct VerifiedPiece {
    content: ContentId,
    index: PieceIndex,
    bytes: Bytes,
}

impl VerifiedPiece {
    /// The file the piece belongs to.
    #[must_use]
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// Which piece of the file it is.
    #[must_use]
    pub fn index(&self) -> PieceIndex {
        self.index
    }

    /// The piece's bytes, never empty.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl fmt::Debug for VerifiedPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedPiece")
            .field("content", &self.content)
            .field("index", &self.index)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// Computes content id and piece digests of a file that streams by.
#[derive(Debug)]
pub struct PieceHasher {
    piece: blake3::Hasher,
    in_piece: u64,
    digests: Vec<PieceDigest>,
}

impl Default for PieceHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl PieceHasher {
    /// A hasher that has seen no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self { piece: blake3::Hasher::new(), in_piece: 0, digests: Vec::new() }
    }

    /// Takes the next bytes of the file, in any portions.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.in_piece == PIECE_LEN {
                self.finish_piece();
            }
            let room = PIECE_LEN - self.in_piece;
            let take = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(take);
            self.piece.update(now);
            self.in_piece += take as u64;
            bytes = later;
        }
    }

    fn finish_piece(&mut self) {
        self.digests.push(PieceDigest(self.piece.finalize_non_root()));
        // A new hasher: `reset` of blake3 1.8 keeps the old input offset, and the next count underflows.
        self.piece = blake3::Hasher::new();
        self.piece.set_input_offset(self.digests.len() as u64 * PIECE_LEN);
        self.in_piece = 0;
    }

    /// The finished table of the file.
    #[must_use]
    pub fn finish(mut self) -> PieceTable {
        let len = self.digests.len() as u64 * PIECE_LEN + self.in_piece;
        if self.digests.is_empty() {
            let content = ContentId(*self.piece.finalize().as_bytes());
            return PieceTable { content, len, digests: Vec::new() };
        }
        self.finish_piece();
        PieceTable { content: merge_root(&self.digests), len, digests: self.digests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: u64) -> Vec<u8> {
        (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
    }

    #[track_caller]
    fn check_len(len: u64, step: usize) {
        let data = bytes(len);
        let mut hasher = PieceHasher::new();
        data.chunks(step).for_each(|chunk| hasher.update(chunk));
        let table = hasher.finish();
        assert_eq!(
            table.content().to_string(),
            blake3::hash(&data).to_hex().as_str(),
            "b3sum of {len} bytes"
        );
        assert_eq!(table.file_len(), len);
        let again = PieceTable::new(table.content(), len, table.digests().to_vec());
        assert_eq!(again.as_ref(), Ok(&table));
        for (n, piece) in data.chunks(PIECE_LEN as usize).enumerate() {
            assert!(table.matches(PieceIndex(n as u32), piece));
        }
    }

    #[test]
    fn digests_merge_to_the_b3sum_at_every_boundary() {
        for len in [0, 1, 1023, 1024, 1025] {
            check_len(len, 100);
        }
        for pieces in [1, 2, 3, 4, 5, 7, 8] {
            for len in [pieces * PIECE_LEN - 1, pieces * PIECE_LEN, pieces * PIECE_LEN + 1] {
                check_len(len, 1 << 20);
            }
        }
        check_len(2 * PIECE_LEN + 5, 65_537);
    }

    #[test]
    fn a_table_that_lies_is_refused() {
        let data = bytes(2 * PIECE_LEN + 1);
        let mut hasher = PieceHasher::new();
        hasher.update(&data);
        let table = hasher.finish();
        let mut digests = table.digests().to_vec();
        digests.swap(0, 1);
        assert!(matches!(
            PieceTable::new(table.content(), table.file_len(), digests),
            Err(PieceTableError::WrongRoot { .. })
        ));
        assert!(matches!(
            PieceTable::new(table.content(), table.file_len(), Vec::new()),
            Err(PieceTableError::WrongCount { found: 0, expected: 3 })
        ));
        assert!(matches!(
            PieceTable::new(table.content(), u64::MAX, Vec::new()),
            Err(PieceTableError::TooLong { .. })
        ));
        assert!(matches!(
            PieceTable::new(table.content(), 0, Vec::new()),
            Err(PieceTableError::NotEmpty { .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn one_flipped_bit_never_verifies(len in 1..3 * PIECE_LEN, at in any::<u64>(), bit in 0..8u8) {
            let mut data = bytes(len);
            let mut hasher = PieceHasher::new();
            hasher.update(&data);
            let table = hasher.finish();
            let at = (at % len) as usize;
            data[at] ^= 1 << bit;
            let index = PieceIndex::containing(at as u64);
            let start = index.offset() as usize;
            let end = start + table.piece_len(index).get() as usize;
            prop_assert!(table.verify(index, Bytes::copy_from_slice(&data[start..end])).is_err());
            data[at] ^= 1 << bit;
            prop_assert!(table.verify(index, Bytes::copy_from_slice(&data[start..end])).is_ok());
        }
    }

    #[test]
    fn digests_are_read_strictly() {
        let id = ContentId([0xab; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let upper = id.to_string().to_uppercase();
        for bad in ["", "ab", upper.as_str()] {
            assert!(bad.parse::<ContentId>().is_err(), "{bad}");
        }
        assert!(id.to_string().parse::<Sha256>().is_err());
    }
}
