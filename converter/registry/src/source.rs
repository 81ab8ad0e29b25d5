//! Where an image is read from: a registry, or a layout on disk.

use std::ops::Range;

use oci_spec::image::Digest;

use crate::body::{BlobBody, RangeBody};
use crate::client::Client;
use crate::destination::Name;
use crate::error::RegistryError;
use crate::layout::Layout;
use crate::pull::Manifest;
use crate::repository::Repository;

/// Where an image is read from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A repository in a registry.
    Registry {
        /// Reaches it.
        client: Client,
        /// The repository.
        repository: Repository,
    },
    /// A layout on disk.
    Layout(Layout),
}

impl ImageSource {
    /// Reads `oci:DIR[:TAG][@DIGEST]` or a registry reference. The second value is the digest, else the tag, else
    /// `latest`: what [`Self::manifest`] is to be asked for.
    ///
    /// # Errors
    /// [`RegistryError::Destination`] for a malformed name.
    pub fn parse(text: &str, client: &Client) -> Result<(Self, String), RegistryError> {
        let name = |tag: Option<String>, digest: Option<String>| {
            digest.or(tag).unwrap_or_else(|| "latest".to_owned())
        };
        Ok(match Name::parse(text)? {
            Name::Registry { repository, tag, digest } => {
                (Self::Registry { client: client.clone(), repository }, name(tag, digest))
            }
            Name::Layout { dir, tag, digest } => (Self::Layout(Layout::at(dir)), name(tag, digest)),
        })
    }

    /// A manifest by tag or by digest, its digest checked.
    ///
    /// # Errors
    /// As [`Client::manifest`] and [`Layout::manifest`].
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        match self {
            Self::Registry { client, repository } => client.manifest(repository, tag_or_digest).await,
            Self::Layout(layout) => layout.manifest(tag_or_digest).await,
        }
    }

    /// Size of a blob in bytes, or `None` when it is not there.
    ///
    /// # Errors
    /// Everything but "not found".
    pub async fn blob_len(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        match self {
            Self::Registry { client, repository } => client.blob_len(repository, digest).await,
            Self::Layout(layout) => layout.blob_len(digest).await,
        }
    }

    /// A whole blob as it arrives. **Not verified.**
    ///
    /// # Errors
    /// As [`Client::blob`] and [`Layout::blob`].
    pub async fn blob(&self, digest: &Digest) -> Result<BlobBody, RegistryError> {
        match self {
            Self::Registry { client, repository } => client.blob(repository, digest).await,
            Self::Layout(layout) => layout.blob(digest).await,
        }
    }

    /// A whole blob of at most `max_len` bytes in memory, its SHA-256 checked.
    ///
    /// # Errors
    /// As [`Client::blob_verified`] and [`Layout::blob_verified`].
    pub async fn blob_verified(&self, digest: &Digest, max_len: u64) -> Result<Vec<u8>, RegistryError> {
        match self {
            Self::Registry { client, repository } => client.blob_verified(repository, digest, max_len).await,
            Self::Layout(layout) => layout.blob_verified(digest, max_len).await,
        }
    }

    /// Exactly the bytes `range` of a blob, or an error. **Not verified.**
    ///
    /// # Errors
    /// As [`Client::blob_range`] and [`Layout::blob_range`].
    pub async fn blob_range(&self, digest: &Digest, range: Range<u64>) -> Result<RangeBody, RegistryError> {
        match self {
            Self::Registry { client, repository } => client.blob_range(repository, digest, range).await,
            Self::Layout(layout) => layout.blob_range(digest, range).await,
        }
    }
}
