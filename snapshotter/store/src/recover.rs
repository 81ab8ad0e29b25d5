//! What is on disk: read without trusting it, and verified again piece by piece after an unclean end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;
use towline_artifact::{ContentId, PIECE_LEN, PieceIndex, PieceTable, piece_count};

use crate::bits;
use crate::disk::{self, Root};
use crate::error::{StoreError, doing};
use crate::format::{self, Damage, State};
use crate::opened::{Found, len_of, open_data};
use crate::slot::lock;

/// Threads that verify one content again. BLAKE3 does some GB/s on each, more than most disks read.
const MAX_REHASH_THREADS: usize = 4;

/// Why a content on disk cannot be opened.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Its files are wrong, and would be the next time.
    Damaged(Damage),
    /// The system refused for now.
    Refused(StoreError),
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// What the start finds under a content's name.
#[derive(Debug)]
pub(crate) enum Probe {
    /// Usable as far as its small files tell.
    Usable { len: u64, sealed: bool },
    /// Never checkpointed and not whole: made shortly before a power cut, nothing of value.
    Unfinished,
}

/// The ids that have a file in the store, and the remains of unfinished writes.
pub(crate) fn list(root: &Root) -> Result<(BTreeSet<ContentId>, Vec<PathBuf>), StoreError> {
    let (mut ids, mut remains) = (BTreeSet::new(), Vec::new());
    for shard in 0..=u8::MAX {
        let dir = root.shard(shard);
        for entry in fs::read_dir(&dir).map_err(doing("list", dir.display()))? {
            let entry = entry.map_err(doing("list", dir.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let (stem, suffix) = name.split_once('.').unwrap_or((&name, ""));
            match (stem.parse::<ContentId>(), suffix) {
                (Ok(_), "pieces.tmp" | "state.tmp") => remains.push(entry.path()),
                (Ok(id), "" | "pieces" | "state") if id.0[0] == shard => drop(ids.insert(id)),
                _ => tracing::warn!(path = %entry.path().display(), "unknown file in the store left alone"),
            }
        }
    }
    Ok((ids, remains))
}

/// Judges a content by its state and the length of its data, or by its piece table where it has no state yet.
pub(crate) fn probe(root: &Root, id: ContentId) -> Result<Probe, Fault> {
    if let Some(state) = read_state(root, id)? {
        check_data_len(root, id, state.file_len)?;
        return Ok(Probe::Usable { len: state.file_len, sealed: state.sealed });
    }
    let whole = read_table(root, id).and_then(|table| {
        check_data_len(root, id, table.file_len())?;
        Ok(Probe::Usable { len: table.file_len(), sealed: false })
    });
    match whole {
        Err(Fault::Damaged(_)) => Ok(Probe::Unfinished),
        other => other,
    }
}

/// Opens a content that was there at the start, or was created since. `settled`: no piece is beyond its state.
pub(crate) fn load(root: &Root, table: &PieceTable, settled: bool) -> Result<Found, Fault> {
    let id = table.content();
    if read_table(root, id)? != *table {
        // Both tables merge to the id, so their digests are the same; the caller compared the lengths.
        return Err(Damage::Field { field: "digests" }.into());
    }
    let state = read_state(root, id)?;
    if let Some(state) = &state
        && state.file_len != table.file_len()
    {
        return Err(Damage::Field { field: "file length" }.into());
    }
    check_data_len(root, id, table.file_len())?;
    let sealed = state.as_ref().is_some_and(|state| state.sealed);
    let path = root.data(id);
    let file = open_data(&path, sealed).map_err(doing("open", path.display()))?;
    let mut found = Found { file, state, recovered: Vec::new() };
    if !sealed && !settled {
        let empty = vec![0; bits::words_for(table.piece_count())];
        let durable = found.state.as_ref().map_or(&empty, |state| &state.durable);
        found.recovered = verify_again(root, &found.file, table, durable)?;
    }
    Ok(found)
}

/// Reads the piece table of a content.
pub(crate) fn read_table(root: &Root, id: ContentId) -> Result<PieceTable, Fault> {
    let bytes = read_small(&root.pieces(id), "pieces", format::MAX_PIECES_LEN)?;
    let bytes = bytes.ok_or(Damage::Gone { name: "pieces" })?;
    Ok(format::parse_pieces(id, &bytes)?)
}

/// Reads what the last checkpoint recorded; none if there was none.
pub(crate) fn read_state(root: &Root, id: ContentId) -> Result<Option<State>, Fault> {
    let bytes = read_small(&root.state(id), "state", format::MAX_STATE_LEN)?;
    Ok(bytes.map(|bytes| format::parse_state(id, &bytes)).transpose()?)
}

/// Whether the last checkpoint holds the piece that proves the content's length.
pub(crate) fn len_is_proven(state: &State) -> bool {
    piece_count(state.file_len).checked_sub(1).is_none_or(|last| bits::test(&state.durable, last))
}

fn read_small(path: &Path, name: &'static str, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    match disk::read_at_most(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(error, path, name)),
    }
}

fn check_data_len(root: &Root, id: ContentId, expected: u64) -> Result<(), Fault> {
    let path = root.data(id);
    let meta = fs::symlink_metadata(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Damage::Gone { name: "data" }.into(),
        _ => fault(error, &path, "data"),
    })?;
    if !meta.is_file() {
        return Err(Damage::NotAFile { name: "data" }.into());
    }
    if meta.len() != expected {
        return Err(Damage::DataLen { found: meta.len(), expected }.into());
    }
    Ok(())
}

/// A medium error or something else in a file's place stays; lack of memory or descriptors passes.
fn fault(error: io::Error, path: &Path, name: &'static str) -> Fault {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO) => Damage::Unreadable { name }.into(),
        Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => Damage::NotAFile { name }.into(),
        _ => doing("read", path.display())(error).into(),
    }
}

/// Reads pieces that have data but no durable bit back from the disk; returns those that match the table, ascending.
fn verify_again(
    root: &Root,
    file: &File,
    table: &PieceTable,
    durable: &[u64],
) -> Result<Vec<u32>, StoreError> {
    let id = table.content();
    let candidates = undurable_pieces(file, table, durable).map_err(doing("map data of content", id))?;
    if candidates.is_empty() {
        return Ok(candidates);
    }
    // Count what the disk holds, not what the page cache remembers: after a write error these differ. A sync that
    // fails changes nothing here, for what it could not write will not be read.
    let _ = file.sync_data();
    for index in &candidates {
        let len = NonZeroU64::new(len_of(table, *index));
        let _ = rustix::fs::fadvise(file, PieceIndex(*index).offset(), len, Advice::DontNeed);
    }
    let verified = matching_pieces(file, table, &candidates);
    let (good, bad) = (verified.len() as u64, (candidates.len() - verified.len()) as u64);
    root.counters.recovered_pieces.fetch_add(good, Ordering::Relaxed);
    root.counters.rejected_pieces.fetch_add(bad, Ordering::Relaxed);
    tracing::info!(content = %id, verified = good, rejected = bad, "pieces beyond the last checkpoint read again");
    Ok(verified)
}

fn matching_pieces(file: &File, table: &PieceTable, candidates: &[u32]) -> Vec<u32> {
    let (next, good) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut buf = vec![0; PIECE_LEN as usize];
        while let Some(index) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
            let piece = PieceIndex(*index);
            let bytes = &mut buf[..len_of(table, *index) as usize];
            // A piece that cannot be read is missing.
            if file.read_exact_at(bytes, piece.offset()).is_ok() && table.matches(piece, bytes) {
                lock(&good).push(*index);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_REHASH_THREADS);
    std::thread::scope(|scope| {
        // If the system has no more threads, this one does the rest.
        for _ in 1..threads.min(candidates.len()) {
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut good = good.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    good.sort_unstable();
    good
}

/// Pieces that have data on disk and no durable bit, ascending.
fn undurable_pieces(file: &File, table: &PieceTable, durable: &[u64]) -> io::Result<Vec<u32>> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while let Some(data) = next_data(file, from, table.file_len())? {
        let first = PieceIndex::containing(data.start).0.max(pieces.last().map_or(0, |last| last + 1));
        let last = PieceIndex::containing(data.end - 1).0;
        pieces.extend((first..=last).filter(|index| !bits::test(durable, *index)));
        from = data.end;
    }
    Ok(pieces)
}

/// The next range with data at or after `from`, cut at `len`. File systems that know no holes answer all of it.
fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if from >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(len);
    Ok((start < end).then_some(start..end))
}
