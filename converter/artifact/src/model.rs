//! Reading a model back from its base layer, which comes from strangers.

use std::ops::Range;
use std::sync::Arc;

use crate::image::index_entry;
use crate::index::{
    FileRecord, INDEX_PATH, Index, IndexError, LayerRecord, MAX_INDEX_LEN, MAX_PIECES, Mode, PIECES_PATH,
    Provenance,
};
use crate::path::{self, MAX_FILES, PathError};
use crate::piece::{ContentId, PIECE_LEN, PieceDigest, PieceTable, PieceTableError, Sha256, digest_count};
use crate::plan::{BASE_FILES_LEN, FileSpec, base_entries, names};
use crate::tar::{self, Found, TarError};

/// The longest base layer a reader takes: its files, index, piece digests, and headers of at most 8 KiB for each of
/// twice [`MAX_FILES`] entries would be larger still, so the sum is cut at 256 MiB; writers stay far below.
pub const MAX_BASE_LEN: u64 = 256 << 20;
/// The most entries of a base layer: files, links and directories.
const MAX_ENTRIES: usize = 4 * MAX_FILES;

/// The chain id of a stack of layers: what containerd names a snapshot by.
///
/// Chain id 0 is the diff id of layer 0; chain id k is the SHA-256 of "chain id k-1", a space, "diff id k".
#[must_use]
pub fn chain_id(parent: Option<Sha256>, diff_id: Sha256) -> Sha256 {
    parent.map_or(diff_id, |parent| Sha256::of(format!("{parent} {diff_id}").as_bytes()))
}

/// A file of a model.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Path in the tree.
    pub path: String,
    /// Hard links to the file.
    pub links: Vec<String>,
    /// Mode 0755 instead of 0644.
    pub executable: bool,
    /// SHA-256 as the index claims it; the content id is what reads are verified against.
    pub sha256: Sha256,
    /// Length, content id and piece digests, checked against each other.
    pub table: Arc<PieceTable>,
    /// 0 for the base layer, k for the k-th weight layer.
    pub layer: usize,
    /// Offset in bytes of the file's data in its layer.
    pub offset: u64,
}

impl ModelFile {
    /// Where the file's bytes lie in its layer.
    #[must_use]
    pub fn layer_range(&self) -> Range<u64> {
        self.offset..self.offset + self.table.file_len()
    }
}

/// A model, proven to be consistent with the base layer it was read from.
#[derive(Clone, Debug)]
pub struct Model {
    /// Digest of the base layer.
    pub base: Sha256,
    /// Length of the base layer in bytes.
    pub base_len: u64,
    /// Where the model comes from, as the index claims.
    pub source: Provenance,
    /// Files in bytewise path order. The two index files come first, as files of the base layer.
    pub files: Vec<ModelFile>,
    /// Layers 1 to n.
    pub layers: Vec<LayerRecord>,
}

/// A base layer that does not hold a sound model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Longer than [`MAX_BASE_LEN`].
    #[error("base layer of {len} bytes is longer than {MAX_BASE_LEN}")]
    TooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// The layer is not a canonical tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The layer does not end in the two index files.
    #[error("base layer has no index")]
    NoIndex,
    /// The index is unreadable or contradicts itself.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The index names paths that cannot form a tree.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The layer's entries are not the ones the index implies.
    #[error("base layer and index disagree on {what}")]
    Disagree {
        /// On what.
        what: &'static str,
    },
    /// The digests of a file's pieces do not belong to its content id.
    #[error("piece digests of file {path:?}")]
    Pieces {
        /// Its path.
        path: String,
        /// What is wrong.
        source: PieceTableError,
    },
    /// A file in the base layer is not what the index says.
    #[error("file {path:?} in the base layer does not match its content id")]
    Content {
        /// Its path.
        path: String,
    },
    /// A file's data lies outside its layer, or its layer does not exist.
    #[error("file {path:?} lies outside its layer")]
    Place {
        /// Its path.
        path: String,
    },
}

impl Model {
    /// Reads the model in `base`, the whole base layer. The caller has checked its digest where it knows one.
    ///
    /// # Errors
    /// [`ModelError`]; what this accepts is a tree with plain paths, digests that belong together, and a base layer
    /// whose bytes are exactly those that the writer makes for that index.
    pub fn read(base: &[u8]) -> Result<Self, ModelError> {
        if base.len() as u64 > MAX_BASE_LEN {
            return Err(ModelError::TooLong { len: base.len() as u64 });
        }
        let found = tar::read(base, MAX_ENTRIES)?;
        let [.., index_file, pieces_file] = &found[..] else { return Err(ModelError::NoIndex) };
        let index_bytes = index_data(base, index_file, INDEX_PATH, MAX_INDEX_LEN)?;
        let pieces = index_data(base, pieces_file, PIECES_PATH, MAX_PIECES * 32)?;
        let index = Index::from_bytes(index_bytes)?;
        let specs: Vec<FileSpec> = index.files.iter().map(spec).collect();
        path::check_files(names(&specs).collect::<Vec<_>>().into_iter())?;
        check_entries(&index, &specs, &found[..found.len() - 2])?;
        let mut files = vec![own_file(base, index_file), own_file(base, pieces_file)];
        files.extend(read_files(&index, pieces, base)?);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            base: Sha256::of(base),
            base_len: base.len() as u64,
            source: index.source,
            files,
            layers: index.layers,
        })
    }

    /// Chain ids of the model's layers, base layer first.
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Sha256> {
        let mut chain = vec![self.base];
        for layer in &self.layers {
            chain.push(chain_id(chain.last().copied(), layer.digest));
        }
        chain
    }

    /// Digest of layer `n`, 0 being the base layer.
    #[must_use]
    pub fn layer_digest(&self, n: usize) -> Option<Sha256> {
        match n.checked_sub(1) {
            None => Some(self.base),
            Some(n) => self.layers.get(n).map(|layer| layer.digest),
        }
    }

    /// Sum of the lengths of all files in bytes, the index files left out.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.files
            .iter()
            .filter(|file| !file.path.starts_with(".towline/"))
            .map(|file| file.table.file_len())
            .sum()
    }
}

fn spec(record: &FileRecord) -> FileSpec {
    FileSpec {
        path: record.path.clone(),
        len: record.size,
        executable: record.mode == Mode::Executable,
        links: record.links.clone(),
    }
}

fn index_data<'a>(base: &'a [u8], found: &Found, path: &str, limit: usize) -> Result<&'a [u8], ModelError> {
    let tar::Kind::File { len, .. } = found.entry.kind else { return Err(ModelError::NoIndex) };
    if found.entry != index_entry(path, len) || len > limit as u64 {
        return Err(ModelError::NoIndex);
    }
    let start = usize::try_from(found.data_offset).expect("offsets in a slice fit");
    Ok(&base[start..start + usize::try_from(len).expect("at most the limit")])
}

/// The layer's entries up to the index are exactly those the writer makes for this index.
fn check_entries(index: &Index, specs: &[FileSpec], found: &[Found]) -> Result<(), ModelError> {
    let expected = base_entries(specs, |n| index.files[n].layer == 0);
    let mut base_len = 0u64;
    if expected.len() != found.len() {
        return Err(ModelError::Disagree { what: "the number of entries" });
    }
    for (expected, found) in expected.iter().zip(found) {
        if expected.entry != found.entry {
            return Err(ModelError::Disagree { what: "an entry" });
        }
        if let Some(n) = expected.file {
            if index.files[n].offset != found.data_offset {
                return Err(ModelError::Disagree { what: "the offset of a file" });
            }
            base_len = base_len.saturating_add(index.files[n].size);
        }
    }
    if base_len > BASE_FILES_LEN {
        return Err(ModelError::Disagree { what: "the size of small files" });
    }
    Ok(())
}

fn read_files(index: &Index, pieces: &[u8], base: &[u8]) -> Result<Vec<ModelFile>, ModelError> {
    let (digests, rest) = pieces.as_chunks::<32>();
    let mut digests = digests.iter().map(|bytes| PieceDigest(*bytes));
    let mut files = Vec::with_capacity(index.files.len());
    let mut layer_used = vec![false; index.layers.len()];
    for record in &index.files {
        let path = || record.path.clone();
        if record.size > crate::MAX_FILE_LEN {
            let source = PieceTableError::TooLong { len: record.size };
            return Err(ModelError::Pieces { path: path(), source });
        }
        let own = digests.by_ref().take(digest_count(record.size)).collect();
        let table = PieceTable::new(record.content, record.size, own)
            .map_err(|source| ModelError::Pieces { path: path(), source })?;
        let layer_len = match record.layer.checked_sub(1) {
            None => base.len() as u64,
            Some(n) => {
                *layer_used.get_mut(n).ok_or_else(|| ModelError::Place { path: path() })? = true;
                index.layers[n].size
            }
        };
        if record.offset.checked_add(record.size).is_none_or(|end| end > layer_len) {
            return Err(ModelError::Place { path: path() });
        }
        let file = ModelFile {
            path: path(),
            links: record.links.clone(),
            executable: record.mode == Mode::Executable,
            sha256: record.sha256,
            table: Arc::new(table),
            layer: record.layer,
            offset: record.offset,
        };
        if record.layer == 0 && !base_file_matches(&file, base) {
            return Err(ModelError::Content { path: path() });
        }
        files.push(file);
    }
    if !rest.is_empty() || digests.next().is_some() {
        return Err(ModelError::Disagree { what: "the number of piece digests" });
    }
    if layer_used.contains(&false) {
        return Err(ModelError::Disagree { what: "the number of weight layers" });
    }
    Ok(files)
}

fn base_file_matches(file: &ModelFile, base: &[u8]) -> bool {
    let range = file.layer_range();
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return false;
    };
    let data = &base[start..end];
    // A writer puts only files below one piece here, but a reader need not insist.
    *blake3::hash(data).as_bytes() == file.table.content().0 && Sha256::of(data) == file.sha256
}

/// One of the two index files as a file of the tree.
fn own_file(base: &[u8], found: &Found) -> ModelFile {
    let start = usize::try_from(found.data_offset).expect("offsets in a slice fit");
    let tar::Kind::File { len, .. } = found.entry.kind else { unreachable!("checked by index_data") };
    let data = &base[start..start + usize::try_from(len).expect("in the slice")];
    let mut hasher = crate::PieceHasher::new();
    hasher.update(data);
    ModelFile {
        path: found.entry.path.clone(),
        links: Vec::new(),
        executable: false,
        sha256: Sha256::of(data),
        table: Arc::new(hasher.finish()),
        layer: 0,
        offset: found.data_offset,
    }
}

/// The content id of an empty file.
#[must_use]
pub fn empty_content() -> ContentId {
    ContentId(*blake3::hash(&[]).as_bytes())
}

const _: () = assert!(PIECE_LEN <= BASE_FILES_LEN);
