//! From hashed layers to blobs: base layer, configs, manifests, index.

use serde_json::{Map, Value, json};

use crate::index::{INDEX_PATH, Index, MAX_PIECES, PIECES_PATH, Provenance, pieces_bytes};
use crate::json::canonical;
use crate::piece::{PieceTable, Sha256};
use crate::plan::Plan;
use crate::tar::{self, Entry, Kind};

/// Media type of an image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image index.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer that is an uncompressed tar.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// `artifactType` of the ModelPack twin.
pub const MODELPACK_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
/// Media type of the ModelPack twin's configuration.
pub const MODELPACK_CONFIG_TYPE: &str = "application/vnd.cncf.model.config.v1+json";
const MODELPACK_BASE_TYPE: &str = "application/vnd.cncf.model.weight.config.v1.tar";
const MODELPACK_WEIGHT_TYPE: &str = "application/vnd.cncf.model.weight.v1.tar";
const MODELPACK_PATH: &str = "org.cncf.model.filepath";

/// Layer annotation: version of the format. containerd copies annotations with this prefix to the labels of Prepare.
pub const VERSION_LABEL: &str = "containerd.io/snapshot/io.towline.version";
/// Layer annotation: digest of the layer, for containerds that do not tell it.
pub const DIGEST_LABEL: &str = "containerd.io/snapshot/io.towline.digest";
/// Layer annotation: position of the layer, 0 for the base layer.
pub const POSITION_LABEL: &str = "containerd.io/snapshot/io.towline.position";

/// The platforms an index names: architectures of linux. Model files suit every machine; containerd wants a match.
pub const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// `created` where the hub has no date for the commit.
pub const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What hashing a file yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigests {
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Content id and piece digests.
    pub table: PieceTable,
}

/// Bytes with their name.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    /// Media type.
    pub media_type: &'static str,
    /// SHA-256 of `bytes`.
    pub digest: Sha256,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.digest)
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Sha256::of(&bytes), bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, canonical(value))
    }

    fn descriptor(&self) -> Map<String, Value> {
        descriptor(self.media_type, self.digest, self.bytes.len() as u64)
    }
}

/// A model ready to be published: push `base`, the configs and the manifests, then tag `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The base layer.
    pub base: Blob,
    /// Image configurations, one per platform, then the ModelPack configuration.
    pub configs: Vec<Blob>,
    /// Manifests, parallel to `configs`.
    pub manifests: Vec<Blob>,
    /// The image index.
    pub index: Blob,
}

/// Hashes that do not belong to the plan they were assembled with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    /// The bytes of a file are not as long as the plan says.
    #[error("file {path:?} has {found} bytes, planned were {planned}")]
    Length {
        /// Its path.
        path: String,
        /// Bytes that were hashed or given.
        found: u64,
        /// Bytes in the plan.
        planned: u64,
    },
    /// More pieces than [`MAX_PIECES`].
    #[error("{count} pieces are more than the {MAX_PIECES} a model may have")]
    TooManyPieces {
        /// How many there are.
        count: usize,
    },
    /// A text of the provenance is overlong or has control characters.
    #[error("repository, commit, date, licence or address has overlong text or control characters")]
    Provenance,
}

/// Builds everything but the weight layers.
///
/// `digests` is parallel to `plan.files`, `layers` to `plan.weight_layers`, `base_data` to `plan.base_files()`.
///
/// # Errors
/// [`AssembleError`] when lengths differ from the plan's or limits are exceeded.
///
/// # Panics
/// When the three lists do not have the lengths of the plan's.
pub fn assemble(
    plan: &Plan,
    digests: &[FileDigests],
    layers: &[Sha256],
    base_data: &[impl AsRef<[u8]>],
    source: Provenance,
) -> Result<Artifact, AssembleError> {
    assert_eq!(
        (digests.len(), layers.len()),
        (plan.files.len(), plan.weight_layers.len()),
        "lists parallel to plan"
    );
    if !source.is_sound() {
        return Err(AssembleError::Provenance);
    }
    let base_lens = plan.base_files().zip(base_data).map(|(n, data)| (n, data.as_ref().len() as u64));
    let hashed_lens = digests.iter().enumerate().map(|(n, digest)| (n, digest.table.file_len()));
    for (n, found) in base_lens.chain(hashed_lens) {
        let spec = &plan.files[n];
        if spec.len != found {
            return Err(AssembleError::Length { path: spec.path.clone(), found, planned: spec.len });
        }
    }
    let count = digests.iter().map(|digest| digest.table.digests().len()).sum();
    if count > MAX_PIECES {
        return Err(AssembleError::TooManyPieces { count });
    }
    let index = Index::new(plan, digests, layers, source);
    let pieces = pieces_bytes(digests.iter().map(|digest| digest.table.digests()));
    let base = Blob::new(LAYER_TYPE, base_layer(plan, base_data, &index.to_bytes(), &pieces));
    let image = Image { plan, index: &index, base: &base };
    let mut configs: Vec<Blob> = ARCHITECTURES.iter().map(|arch| image.config(arch)).collect();
    let mut manifests: Vec<Blob> = configs.iter().map(|config| image.manifest(config)).collect();
    configs.push(image.twin_config());
    manifests.push(image.twin_manifest(&configs[ARCHITECTURES.len()]));
    let index = image.image_index(&manifests);
    Ok(Artifact { base, configs, manifests, index })
}

fn base_layer(plan: &Plan, data: &[impl AsRef<[u8]>], index: &[u8], pieces: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut data = data.iter();
    for item in plan.base_entries() {
        out.extend(tar::header(&item.entry));
        if let Some(n) = item.file {
            assert_eq!(
                plan.places[n].offset,
                out.len() as u64,
                "the plan places a file where the writer does"
            );
            append(&mut out, data.next().expect("data for every file of the base").as_ref());
        }
    }
    assert!(data.next().is_none(), "no data beyond the files of the base");
    for (path, bytes) in [(INDEX_PATH, index), (PIECES_PATH, pieces)] {
        out.extend(tar::header(&index_entry(path, bytes.len() as u64)));
        append(&mut out, bytes);
    }
    out.extend(tar::END);
    out
}

/// The entry of one of the two index files.
pub(crate) fn index_entry(path: &str, len: u64) -> Entry {
    Entry { path: path.to_owned(), kind: Kind::File { len, executable: false } }
}

fn append(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len() + tar::padding(data.len() as u64), 0);
}

fn descriptor(media_type: &str, digest: Sha256, size: u64) -> Map<String, Value> {
    let fields = [("mediaType", json!(media_type)), ("digest", json!(digest)), ("size", json!(size))];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The index, its layers, and what the JSON documents say of them.
struct Image<'a> {
    plan: &'a Plan,
    index: &'a Index,
    base: &'a Blob,
}

impl Image<'_> {
    fn layers(&self) -> impl Iterator<Item = (usize, Sha256, u64)> {
        let base = (self.base.digest, self.base.bytes.len() as u64);
        let weights = self.index.layers.iter().map(|layer| (layer.digest, layer.size));
        std::iter::once(base).chain(weights).enumerate().map(|(n, (digest, size))| (n, digest, size))
    }

    fn created(&self) -> &str {
        self.index.source.created.as_deref().unwrap_or(EPOCH)
    }

    fn annotations(&self) -> Map<String, Value> {
        let source = &self.index.source;
        let optional = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let title = (!source.repo.is_empty()).then(|| source.repo.clone());
        [
            ("org.opencontainers.image.created", Some(self.created().to_owned())),
            ("org.opencontainers.image.licenses", optional(&source.licence)),
            ("org.opencontainers.image.revision", Some(source.commit.clone())),
            ("org.opencontainers.image.source", optional(&source.url)),
            ("org.opencontainers.image.title", title),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))))
        .collect()
    }

    fn diff_ids(&self) -> Vec<Sha256> {
        self.layers().map(|(_, digest, _)| digest).collect()
    }

    fn config(&self, architecture: &str) -> Blob {
        let config = json!({
            "architecture": architecture,
            "config": {"Labels": self.annotations()},
            "created": self.created(),
            "os": "linux",
            "rootfs": {"diff_ids": self.diff_ids(), "type": "layers"},
        });
        Blob::json(CONFIG_TYPE, &config)
    }

    fn manifest(&self, config: &Blob) -> Blob {
        let layers = self.layers().map(|(position, digest, size)| {
            let mut layer = descriptor(LAYER_TYPE, digest, size);
            let annotations = json!({
                VERSION_LABEL: self.index.format.to_string(),
                DIGEST_LABEL: digest,
                POSITION_LABEL: position.to_string(),
            });
            layer.insert("annotations".to_owned(), annotations);
            Value::from(layer)
        });
        let manifest = json!({
            "annotations": self.annotations(),
            "config": config.descriptor(),
            "layers": layers.collect::<Vec<_>>(),
            "mediaType": MANIFEST_TYPE,
            "schemaVersion": 2,
        });
        Blob::json(MANIFEST_TYPE, &manifest)
    }

    fn twin_config(&self) -> Blob {
        let source = &self.index.source;
        let mut about = Map::new();
        about.insert("createdAt".to_owned(), self.created().into());
        about.insert("revision".to_owned(), source.commit.clone().into());
        if !source.repo.is_empty() {
            about.insert("name".to_owned(), source.repo.clone().into());
        }
        if let Some(url) = &source.url {
            about.insert("sourceURL".to_owned(), url.clone().into());
        }
        if let Some(licence) = &source.licence {
            about.insert("licenses".to_owned(), json!([licence]));
        }
        let mut config = Map::new();
        if let Some(format) = self.weight_format() {
            config.insert("format".to_owned(), format.into());
        }
        let value = json!({
            "config": config,
            "descriptor": about,
            "modelfs": {"diffIds": self.diff_ids(), "type": "layers"},
        });
        Blob::json(MODELPACK_CONFIG_TYPE, &value)
    }

    /// The format of the weights, where all weight layers agree on one that ModelPack knows.
    fn weight_format(&self) -> Option<&'static str> {
        let known = ["safetensors", "gguf", "onnx"];
        known.into_iter().find(|format| {
            let mut weights = self.index.files.iter().filter(|file| file.layer > 0).peekable();
            weights.peek().is_some()
                && weights.all(|file| file.path.rsplit_once('.').is_some_and(|(_, x)| x == *format))
        })
    }

    fn twin_manifest(&self, config: &Blob) -> Blob {
        let layers = self.layers().map(|(position, digest, size)| {
            let media_type = if position == 0 { MODELPACK_BASE_TYPE } else { MODELPACK_WEIGHT_TYPE };
            let mut layer = descriptor(media_type, digest, size);
            if let Some([only]) = position.checked_sub(1).map(|n| &self.plan.weight_layers[n].files[..]) {
                layer.insert("annotations".to_owned(), json!({MODELPACK_PATH: self.plan.files[*only].path}));
            }
            Value::from(layer)
        });
        let manifest = json!({
            "annotations": self.annotations(),
            "artifactType": MODELPACK_TYPE,
            "config": config.descriptor(),
            "layers": layers.collect::<Vec<_>>(),
            "mediaType": MANIFEST_TYPE,
            "schemaVersion": 2,
        });
        Blob::json(MANIFEST_TYPE, &manifest)
    }

    fn image_index(&self, manifests: &[Blob]) -> Blob {
        let platforms = ARCHITECTURES.iter().map(|arch| json!({"architecture": arch, "os": "linux"}));
        let twin = json!({"architecture": "unknown", "os": "unknown"});
        let manifests = manifests.iter().zip(platforms.chain([twin])).map(|(manifest, platform)| {
            let mut entry = manifest.descriptor();
            if platform["os"] == "unknown" {
                entry.insert("artifactType".to_owned(), MODELPACK_TYPE.into());
            }
            entry.insert("platform".to_owned(), platform);
            Value::from(entry)
        });
        let index = json!({
            "annotations": self.annotations(),
            "manifests": manifests.collect::<Vec<_>>(),
            "mediaType": INDEX_TYPE,
            "schemaVersion": 2,
        });
        Blob::json(INDEX_TYPE, &index)
    }
}
