//! The index of a model: `.towline/index.json` and `.towline/pieces` in the base layer.

use serde::{Deserialize, Serialize};

use crate::json::canonical;
use crate::path::MAX_FILES;
use crate::piece::{ContentId, PieceDigest, Sha256};
use crate::plan::{MAX_WEIGHT_LAYERS, Plan};

/// The version of the format that this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 2;
/// Path of the index in the tree.
pub const INDEX_PATH: &str = ".towline/index.json";
/// Path of the piece digests in the tree.
pub const PIECES_PATH: &str = ".towline/pieces";
/// The longest index a reader takes: 64 MiB, 512 bytes for each of [`MAX_FILES`] files.
pub const MAX_INDEX_LEN: usize = MAX_FILES * 512;
/// The most piece digests of a model: 2^22, which is 8 TiB of weights and 128 MiB of digests.
pub const MAX_PIECES: usize = 1 << 22;
/// The longest a text of the provenance may be, in bytes.
pub const MAX_TEXT_LEN: usize = 1024;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// `huggingface`, `modelscope` or `directory`.
    pub hub: String,
    /// `model` or `dataset`.
    pub kind: String,
    /// Repository on the hub; empty for a directory.
    pub repo: String,
    /// The commit, or the hash of a directory's listing.
    pub commit: String,
    /// Date of the commit in its own record, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The licence as the repository states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The repository's page at this commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl Provenance {
    /// Texts over [`MAX_TEXT_LEN`] or with control characters.
    pub(crate) fn is_sound(&self) -> bool {
        let optional = [&self.created, &self.licence, &self.url].into_iter().flatten();
        [&self.hub, &self.kind, &self.repo, &self.commit]
            .into_iter()
            .chain(optional)
            .all(|text| text.len() <= MAX_TEXT_LEN && !text.chars().any(char::is_control))
    }
}

/// A weight layer as the index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// SHA-256 of the layer, which is also its diff id.
    pub digest: Sha256,
    /// Length in bytes.
    pub size: u64,
}

/// A file as the index names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// BLAKE3 of the file.
    pub content: ContentId,
    /// 0 for the base layer, k for `layers[k - 1]`.
    pub layer: usize,
    /// Hard links to the file, sorted bytewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// `0644` or `0755`.
    pub mode: Mode,
    /// Offset in bytes of the file's data in its layer.
    pub offset: u64,
    /// Path in the tree.
    pub path: String,
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Length in bytes.
    pub size: u64,
}

/// The two modes a file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Readable by all.
    #[serde(rename = "0644")]
    Plain,
    /// Readable and executable by all.
    #[serde(rename = "0755")]
    Executable,
}

/// `.towline/index.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// Sorted bytewise by path.
    pub files: Vec<FileRecord>,
    /// Layers 1 to n.
    pub layers: Vec<LayerRecord>,
    /// Where the model comes from.
    pub source: Provenance,
}

/// An index that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Longer than [`MAX_INDEX_LEN`].
    #[error("index of {len} bytes is longer than {MAX_INDEX_LEN}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Another version of the format.
    #[error("index has format version {found}, this build reads {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u64,
    },
    /// Not the JSON it should be.
    #[error("index is not readable")]
    Json(#[source] serde_json::Error),
    /// Readable, but it contradicts itself or the format.
    #[error("index {what}")]
    Unsound {
        /// What is wrong, as the rest of a sentence.
        what: &'static str,
    },
}

impl Index {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(&serde_json::to_value(self).expect("an index has string keys and integers only"))
    }

    /// Reads an index from strangers. Paths and places are checked against the layer by the caller.
    ///
    /// # Errors
    /// [`IndexError`] naming what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        if bytes.len() > MAX_INDEX_LEN {
            return Err(IndexError::TooLong { len: bytes.len() });
        }
        let Version { format } = serde_json::from_slice(bytes).map_err(IndexError::Json)?;
        if format != u64::from(FORMAT_VERSION) {
            return Err(IndexError::Version { found: format });
        }
        let index: Self = serde_json::from_slice(bytes).map_err(IndexError::Json)?;
        let unsound = |what| Err(IndexError::Unsound { what });
        if index.files.is_empty() {
            return unsound("names no files");
        }
        if index.files.len() > MAX_FILES {
            return unsound("names more than 131072 files");
        }
        if index.layers.len() > MAX_WEIGHT_LAYERS {
            return unsound("names more than 99 weight layers");
        }
        if !index.files.is_sorted_by(|a, b| a.path < b.path) {
            return unsound("is not sorted by path");
        }
        if !index.files.iter().all(|file| file.links.is_sorted_by(|a, b| a < b)) {
            return unsound("has links that are not sorted");
        }
        if !index.source.is_sound() {
            return unsound("has a source with overlong text or control characters");
        }
        Ok(index)
    }

    /// The index of a plan whose bytes have been hashed.
    pub(crate) fn new(
        plan: &Plan,
        files: &[crate::FileDigests],
        layers: &[Sha256],
        source: Provenance,
    ) -> Self {
        let layers = layers.iter().zip(&plan.weight_layers);
        let files = plan.files.iter().zip(&plan.places).zip(files);
        Self {
            format: FORMAT_VERSION,
            files: files
                .map(|((spec, place), digests)| FileRecord {
                    content: digests.table.content(),
                    layer: place.layer,
                    links: spec.links.clone(),
                    mode: if spec.executable { Mode::Executable } else { Mode::Plain },
                    offset: place.offset,
                    path: spec.path.clone(),
                    sha256: digests.sha256,
                    size: spec.len,
                })
                .collect(),
            layers: layers.map(|(&digest, plan)| LayerRecord { digest, size: plan.len }).collect(),
            source,
        }
    }
}

/// The bytes of `.towline/pieces`: 32 for each digest, in the order of the files.
#[must_use]
pub fn pieces_bytes<'a>(tables: impl Iterator<Item = &'a [PieceDigest]>) -> Vec<u8> {
    tables.flatten().flat_map(|digest| digest.0).collect()
}
