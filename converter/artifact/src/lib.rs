//! The Towline artifact: files to layers, tar bytes, piece digests, index, manifests.
//!
//! Pure and streaming: no sockets, no files, no clock. Every byte is a function of the input and of the format
//! version; `docs/format.md` specifies it, and the readers here treat their input as hostile.

mod block;
pub mod image;
pub mod index;
mod json;
pub mod manifest;
pub mod memory;
pub mod model;
pub mod path;
mod piece;
pub mod plan;
pub mod tar;

pub use block::{BLOCK_ALIGN, ChainingValue, MAX_BLOCK_HASHES, MAX_BLOCK_LEN, VerifiedBlock};
pub use image::{Artifact, AssembleError, Blob, FileDigests, assemble};
pub use index::Provenance;
pub use model::{Model, ModelError, ModelFile, chain_id};
pub use piece::{
    ContentId, Corrupt, MAX_FILE_LEN, PIECE_LEN, ParseDigestError, PieceDigest, PieceHasher, PieceIndex,
    PieceTable, PieceTableError, Sha256, VerifiedPiece, digest_count, hash_piece, piece_count,
};
pub use plan::{FileSpec, LayerPlan, Plan, PlanError, Segment};
