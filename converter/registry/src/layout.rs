//! An OCI image layout on disk (image-spec, "Image Layout"): reading.
//!
//! Writing is in `layout_write`. Blobs appear under their name only when they are whole and on disk; `index.json` is
//! replaced in one step, so a crash leaves the layout as it was before or as it is after.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use oci_spec::image::Digest;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::body::{BlobBody, Counted, Fault, RangeBody, collect};
use crate::error::{Object, Place, RegistryError};
use crate::pull::{MAX_MANIFEST_LEN, Manifest};
use crate::repository::{ManifestName, digest_bytes, sha256};

/// The annotation that holds a tag (image-spec, "Pre-Defined Annotation Keys").
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The only layout version there is.
pub(crate) const LAYOUT_VERSION: &str = "1.0.0";

/// The most bytes of an `index.json`, as of any other index.
const MAX_INDEX_LEN: u64 = MAX_MANIFEST_LEN;

/// Bytes read from a file at a time: fewer system calls than the default 4 KiB, little memory per reader.
const READ_LEN: usize = 256 << 10;

/// Limit without any byte from the disk (a network file system may hang).
const DISK_IDLE: Duration = Duration::from_secs(60);

/// A directory that is, or will be, an OCI image layout. Holds no file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout in `dir`. Nothing is read or made yet; the first write makes what is missing.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn place(&self, object: Object) -> Box<Place> {
        Box::new(Place { object, repository: None, host: self.dir.display().to_string() })
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> Result<PathBuf, RegistryError> {
        sha256(digest)?;
        Ok(self.dir.join("blobs").join("sha256").join(digest.digest()))
    }

    fn missing(&self, object: impl ToString) -> RegistryError {
        RegistryError::NotInLayout { object: object.to_string(), path: self.dir.display().to_string() }
    }

    /// Size of a blob in bytes, or `None` when it is not there. Its content is not looked at.
    ///
    /// # Errors
    /// [`RegistryError::Disk`].
    pub async fn blob_len(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let path = self.blob_path(digest)?;
        match tokio::fs::symlink_metadata(&path).await {
            Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
            Ok(_) => Err(damaged(&path, "not a regular file")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(disk(&path, e)),
        }
    }

    async fn open(&self, digest: &Digest) -> Result<(tokio::fs::File, u64, PathBuf), RegistryError> {
        let path = self.blob_path(digest)?;
        let Some(len) = self.blob_len(digest).await? else { return Err(self.missing(digest)) };
        let file = tokio::fs::File::open(&path).await.map_err(|e| disk(&path, e))?;
        Ok((file, len, path))
    }

    async fn body(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<Counted, RegistryError> {
        let (mut file, len, path) = self.open(digest).await?;
        let range = range.unwrap_or(0..len);
        if range.end > len {
            return Err(damaged(&path, "shorter than the range asked for"));
        }
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start)).await.map_err(|e| disk(&path, e))?;
        }
        let expected = range.end.saturating_sub(range.start);
        let name = path.display().to_string();
        let chunks = ReaderStream::with_capacity(file.take(expected), READ_LEN);
        let chunks = chunks.map_err(move |e| Fault::Disk(name.clone(), e)).boxed();
        Ok(Counted::new(chunks, self.place(Object::Blob(digest.clone())), Some(expected), DISK_IDLE))
    }

    /// A whole blob as it is read. **Not verified.**
    ///
    /// # Errors
    /// [`RegistryError::NotInLayout`], [`RegistryError::Disk`].
    pub async fn blob(&self, digest: &Digest) -> Result<BlobBody, RegistryError> {
        self.body(digest, None).await.map(BlobBody)
    }

    /// Exactly the bytes `range` of a blob, or an error. **Not verified.**
    ///
    /// # Errors
    /// [`RegistryError::Layout`] for a range past the blob's end.
    pub async fn blob_range(&self, digest: &Digest, range: Range<u64>) -> Result<RangeBody, RegistryError> {
        self.body(digest, Some(range)).await.map(RangeBody)
    }

    /// A whole blob of at most `max_len` bytes in memory, its SHA-256 checked.
    ///
    /// # Errors
    /// [`RegistryError::TooLarge`], [`RegistryError::DigestMismatch`].
    pub async fn blob_verified(&self, digest: &Digest, max_len: u64) -> Result<Vec<u8>, RegistryError> {
        let bytes = collect(self.body(digest, None).await?, max_len).await?;
        self.check(digest, &bytes, Object::Blob(digest.clone()))?;
        Ok(bytes.into())
    }

    fn check(&self, expected: &Digest, bytes: &[u8], object: Object) -> Result<(), RegistryError> {
        let actual = digest_bytes(bytes);
        if actual == *expected {
            return Ok(());
        }
        Err(RegistryError::DigestMismatch { place: self.place(object), expected: expected.clone(), actual })
    }

    /// A manifest by tag or by digest, its digest checked.
    ///
    /// # Errors
    /// As [`Self::blob_verified`]; [`RegistryError::Layout`] for a damaged `index.json`.
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        let name = ManifestName::parse(tag_or_digest)?;
        let (digest, label) = match name {
            ManifestName::Digest(digest) => (digest, String::new()),
            ManifestName::Tag(tag) => {
                let (index, path) = self.read_index().await?.ok_or_else(|| self.missing(&tag))?;
                let entry = entries(&index).find(|entry| tag_of(entry) == Some(&tag));
                let entry = entry.ok_or_else(|| self.missing(format!("tag {tag}")))?;
                let digest = entry["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
                let digest = digest.ok_or_else(|| damaged(&path, "an entry without a digest"))?;
                (digest, entry["mediaType"].as_str().unwrap_or_default().to_owned())
            }
        };
        let bytes = collect(self.body(&digest, None).await?, MAX_MANIFEST_LEN).await?;
        self.check(&digest, &bytes, Object::Manifest(tag_or_digest.to_owned()))?;
        Ok(Manifest::new(bytes, &label))
    }

    /// The parsed `index.json` and its path; `None` when there is no layout yet.
    pub(crate) async fn read_index(&self) -> Result<Option<(Value, PathBuf)>, RegistryError> {
        let marker = self.dir.join("oci-layout");
        let Some(text) = read_small(&marker).await? else { return Ok(None) };
        let version: Value = serde_json::from_slice(&text).map_err(|_| damaged(&marker, "not JSON"))?;
        if version["imageLayoutVersion"] != LAYOUT_VERSION {
            return Err(damaged(&marker, "a layout version other than 1.0.0"));
        }
        let path = self.dir.join("index.json");
        let Some(text) = read_small(&path).await? else { return Ok(None) };
        let index: Value = serde_json::from_slice(&text).map_err(|_| damaged(&path, "not JSON"))?;
        if !index["manifests"].is_array() {
            return Err(damaged(&path, "no list of manifests"));
        }
        Ok(Some((index, path)))
    }
}

/// The descriptors in an `index.json`.
pub(crate) fn entries(index: &Value) -> impl Iterator<Item = &Value> {
    index["manifests"].as_array().into_iter().flatten()
}

/// The tag of a descriptor.
pub(crate) fn tag_of(entry: &Value) -> Option<&str> {
    entry["annotations"][REF_NAME].as_str()
}

pub(crate) fn disk(path: &Path, source: std::io::Error) -> RegistryError {
    RegistryError::Disk { path: path.display().to_string(), source }
}

pub(crate) fn damaged(path: &Path, detail: &str) -> RegistryError {
    RegistryError::Layout { path: path.display().to_string(), detail: detail.to_owned() }
}

async fn read_small(path: &Path) -> Result<Option<Bytes>, RegistryError> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(disk(path, e)),
    };
    let mut text = Vec::new();
    file.take(MAX_INDEX_LEN + 1).read_to_end(&mut text).await.map_err(|e| disk(path, e))?;
    if text.len() as u64 > MAX_INDEX_LEN {
        return Err(damaged(path, "larger than 8 MiB"));
    }
    Ok(Some(text.into()))
}
