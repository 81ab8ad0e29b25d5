//! The Towline artifact: files to layers, tar bytes, piece digests, index, manifests.
//!
//! Pure and streaming: no sockets, no files, no clock. Every byte is a function of the input and of the format
//! version; `docs/format.md` specifies it, and the readers here treat their input as hostile.

mod piece;

pub use piece::{
    ContentId, Corrupt, MAX_FILE_LEN, PIECE_LEN, ParseDigestError, PieceDigest, PieceHasher, PieceIndex, PieceTable,
    PieceTableError, Sha256, VerifiedPiece, digest_count, hash_piece, piece_count,
};
