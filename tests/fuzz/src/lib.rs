//! What several fuzz targets share.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use towline_artifact::tar::{self, Entry, Found, Kind};
use towline_artifact::{ContentId, PieceDigest, PieceTable, PieceTableError, Provenance};

/// One change of a byte string. Positions are taken modulo the length.
#[derive(Arbitrary, Debug)]
pub enum Edit {
    /// Replaces what stands there.
    Overwrite(u32, Vec<u8>),
    /// Puts bytes in between.
    Insert(u32, Vec<u8>),
    /// Takes bytes out.
    Remove(u32, u16),
    /// Copies a block of a tar over another.
    CopyBlock(u8, u8),
    /// Corrects the checksum of the tar header in a block.
    Checksum(u8),
}

/// Bytes with the edits made, one after the other.
pub fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let len = bytes.len();
        let at = |at: u32| at as usize % (len + 1);
        let block = |n: u8| usize::from(n) % (len / 512).max(1) * 512;
        match edit {
            Edit::Overwrite(start, new) => {
                bytes[at(*start)..].iter_mut().zip(new).for_each(|(byte, new)| *byte = *new)
            }
            Edit::Insert(start, new) => drop(bytes.splice(at(*start)..at(*start), new.iter().copied())),
            Edit::Remove(start, count) => {
                drop(bytes.drain(at(*start)..len.min(at(*start) + usize::from(*count))))
            }
            Edit::CopyBlock(from, to) if len >= 512 => {
                bytes.copy_within(block(*from)..block(*from) + 512, block(*to));
            }
            Edit::Checksum(n) if len >= 512 => correct_checksum(&mut bytes[block(*n)..][..512]),
            Edit::CopyBlock(..) | Edit::Checksum(_) => {}
        }
    }
    bytes
}

fn correct_checksum(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The archive with these entries and the bytes of `data` one after the other in its files.
pub fn archive<'a>(entries: impl IntoIterator<Item = (&'a Entry, &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, data) in entries {
        out.extend(tar::header(entry));
        out.extend(data);
        out.resize(out.len() + tar::padding(data.len() as u64), 0);
    }
    out.extend(tar::END);
    out
}

/// The data of an entry that was read from `archive`.
pub fn data<'a>(archive: &'a [u8], found: &Found) -> &'a [u8] {
    match found.entry.kind {
        Kind::File { len, .. } => &archive[found.data_offset as usize..][..len as usize],
        Kind::Directory | Kind::HardLink { .. } => &[],
    }
}

/// A table with these digests and the content id that belongs to them.
pub fn table(len: u64, digests: &[PieceDigest]) -> Result<PieceTable, PieceTableError> {
    let guess = towline_artifact::model::empty_content();
    match PieceTable::new(guess, len, digests.to_vec()) {
        Err(PieceTableError::WrongRoot { merged, .. }) => PieceTable::new(merged, len, digests.to_vec()),
        result => result,
    }
}

/// A digest that differs for every `n`.
pub fn digest(n: u8) -> PieceDigest {
    PieceDigest(ContentId([n; 32]).0)
}

/// A provenance with nothing odd in it.
pub fn provenance() -> Provenance {
    let text = |text: &str| text.to_owned();
    Provenance {
        hub: text("huggingface"),
        kind: text("model"),
        repo: text("acme/tiny"),
        commit: text("0123456789abcdef0123456789abcdef01234567"),
        created: Some(text("2024-09-25T12:32:50Z")),
        licence: None,
        url: None,
    }
}

/// Fails unless a text from strangers is fit for a terminal.
#[track_caller]
pub fn check_shown(text: &str) {
    assert!(!text.chars().any(char::is_control), "control characters in {text:?}");
}
