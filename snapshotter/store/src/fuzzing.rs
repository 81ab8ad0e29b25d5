//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use towline_artifact::ContentId;

use crate::format::{self, PIECES_MAGIC, STATE_MAGIC};
use crate::tree::{TreeContent, TreeFile, plan_dirs};

/// The two kinds of files beside a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `ID.pieces`.
    Pieces,
    /// `ID.state`.
    State,
}

/// Reads a file and writes it again; `None` when it is damaged.
#[must_use]
pub fn reencode(file: File, id: ContentId, bytes: &[u8]) -> Option<Vec<u8>> {
    match file {
        File::Pieces => Some(format::encode_pieces(&format::parse_pieces(id, bytes).ok()?)),
        File::State => Some(format::encode_state(id, &format::parse_state(id, bytes).ok()?)),
    }
}

/// A file whose header and checksum are right, whatever its body.
#[must_use]
pub fn sealed(file: File, id: ContentId, file_len: u64, body: &[u8]) -> Vec<u8> {
    let magic = match file {
        File::Pieces => PIECES_MAGIC,
        File::State => STATE_MAGIC,
    };
    let mut bytes = format::header(magic, id, file_len);
    bytes.extend_from_slice(body);
    format::with_checksum(bytes)
}

/// The directories of a tree with files at these paths; `None` when it is refused.
#[must_use]
pub fn directories(paths: &[&str]) -> Option<Vec<String>> {
    let content = || TreeContent::Inline(Vec::new());
    let file = |path: &&str| TreeFile { path: (*path).to_owned(), executable: false, content: content() };
    let files: Vec<TreeFile> = paths.iter().map(file).collect();
    Some(plan_dirs(&files, &[]).ok()?.into_iter().map(str::to_owned).collect())
}
