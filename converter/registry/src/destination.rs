//! Where an image is written: a registry, or a layout on disk.

use std::fmt;

use bytes::Bytes;
use oci_spec::distribution::Reference;
use oci_spec::image::Digest;

use crate::client::{Client, Need};
use crate::error::RegistryError;
use crate::layout::Layout;
use crate::layout_write::LayoutBlob;
use crate::push::Upload;
use crate::repository::{Repository, is_tag};
use crate::source::ImageSource;

/// The tag of a name without one.
const DEFAULT_TAG: &str = "latest";

/// The prefix of a layout's name.
const LAYOUT_PREFIX: &str = "oci:";

/// Where an image is written, and under which tag.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A repository in a registry.
    Registry {
        /// Reaches it.
        client: Client,
        /// The repository.
        repository: Repository,
        /// The tag.
        tag: String,
    },
    /// A layout on disk.
    Layout {
        /// The layout.
        layout: Layout,
        /// The tag.
        tag: String,
    },
}

/// A parsed name, before anything is opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Registry { repository: Repository, tag: Option<String>, digest: Option<String> },
    Layout { dir: String, tag: Option<String>, digest: Option<String> },
}

impl Name {
    /// Reads `oci:DIR[:TAG][@DIGEST]` or a registry reference.
    pub(crate) fn parse(text: &str) -> Result<Self, RegistryError> {
        let error = |why| RegistryError::Destination { text: text.chars().take(256).collect(), why };
        let Some(rest) = text.strip_prefix(LAYOUT_PREFIX) else {
            let reference: Reference = text.parse().map_err(|_| error("not an image reference"))?;
            let repository = Repository::try_from(&reference)?;
            let own = |part: Option<&str>| part.map(str::to_owned);
            return Ok(Self::Registry {
                repository,
                tag: own(reference.tag()),
                digest: own(reference.digest()),
            });
        };
        let (rest, digest) = match rest.rsplit_once("@sha256:") {
            Some((rest, hex)) => (rest, Some(format!("sha256:{hex}"))),
            None => (rest, None),
        };
        if let Some(digest) = &digest
            && digest.parse::<Digest>().is_err()
        {
            return Err(error("not a SHA-256 digest after the @"));
        }
        let (dir, tag) = match rest.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(error("not a tag after the last colon"));
        }
        if dir.is_empty() || dir.contains('\0') {
            return Err(error("no directory"));
        }
        Ok(Self::Layout { dir: dir.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

impl Destination {
    /// Reads `oci:DIR[:TAG]` or a registry reference; the tag is `latest` when there is none. Opens nothing.
    ///
    /// # Errors
    /// [`RegistryError::Destination`] for a malformed name, and for a digest: what will be written is not known yet.
    pub fn parse(text: &str, client: &Client) -> Result<Self, RegistryError> {
        let error = |why| RegistryError::Destination { text: text.chars().take(256).collect(), why };
        let or_latest = |tag: Option<String>| tag.unwrap_or_else(|| DEFAULT_TAG.to_owned());
        match Name::parse(text)? {
            Name::Registry { digest: Some(_), .. } | Name::Layout { digest: Some(_), .. } => {
                Err(error("a destination is named by tag, not by digest"))
            }
            Name::Registry { repository, tag, .. } => {
                Ok(Self::Registry { client: client.clone(), repository, tag: or_latest(tag) })
            }
            Name::Layout { dir, tag, .. } => {
                Ok(Self::Layout { layout: Layout::at(dir), tag: or_latest(tag) })
            }
        }
    }

    /// The tag that [`Self::publish`] sets.
    #[must_use]
    pub fn tag(&self) -> &str {
        match self {
            Self::Registry { tag, .. } | Self::Layout { tag, .. } => tag,
        }
    }

    /// The registry's repository; `None` for a layout.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Registry { repository, .. } => Some(repository),
            Self::Layout { .. } => None,
        }
    }

    /// The name by which `digest` in this destination is read back, such as `host/path@sha256:…`.
    #[must_use]
    pub fn pinned(&self, digest: &Digest) -> String {
        match self {
            Self::Registry { repository, .. } => format!("{repository}@{digest}"),
            Self::Layout { layout, .. } => format!("{LAYOUT_PREFIX}{}@{digest}", layout.dir().display()),
        }
    }

    /// The same place, for reading.
    #[must_use]
    pub fn source(&self) -> ImageSource {
        match self {
            Self::Registry { client, repository, .. } => {
                ImageSource::Registry { client: client.clone(), repository: repository.clone() }
            }
            Self::Layout { layout, .. } => ImageSource::Layout(layout.clone()),
        }
    }

    /// Whether the blob is there already.
    ///
    /// # Errors
    /// Everything but "not found".
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let len = match self {
            Self::Registry { client, repository, .. } => {
                client.blob_len_for(repository, digest, Need::Push).await?
            }
            Self::Layout { layout, .. } => layout.blob_len(digest).await?,
        };
        Ok(len.is_some())
    }

    /// Makes a blob of another repository appear here without sending it; `false` when it must be sent.
    ///
    /// # Errors
    /// As [`Client::mount_blob`].
    pub async fn mount_blob(&self, digest: &Digest, from: &Repository) -> Result<bool, RegistryError> {
        match self {
            Self::Registry { client, repository, .. } => client.mount_blob(repository, digest, from).await,
            Self::Layout { .. } => Ok(false),
        }
    }

    /// Begins to write a blob whose digest is known only at its end. `len` is its size in bytes, if known.
    ///
    /// # Errors
    /// As [`Client::start_upload`] and [`Layout::start_blob`].
    pub async fn start_blob(&self, len: Option<u64>) -> Result<BlobWriter, RegistryError> {
        Ok(BlobWriter(match self {
            Self::Registry { client, repository, .. } => {
                Writer::Upload(client.start_upload(repository, len).await?)
            }
            Self::Layout { layout, .. } => Writer::Layout(layout.start_blob(len).await?),
        }))
    }

    /// Writes a blob that is in memory, unless it is there.
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`] when `bytes` are not what `digest` says.
    pub async fn put_blob(&self, digest: &Digest, bytes: Bytes) -> Result<(), RegistryError> {
        match self {
            Self::Registry { client, repository, .. } => client.push_blob(repository, digest, bytes).await,
            Self::Layout { layout, .. } => layout.put_blob(digest, bytes).await,
        }
    }

    /// Writes a manifest that is named only by its digest: a child of the index that [`Self::publish`] writes.
    ///
    /// # Errors
    /// As [`Self::put_blob`].
    pub async fn put_manifest(
        &self,
        media_type: &str,
        bytes: Bytes,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        match self {
            Self::Registry { client, repository, .. } => {
                client.push_manifest(repository, digest.as_ref(), media_type, bytes).await.map(drop)
            }
            Self::Layout { layout, .. } => layout.put_blob(digest, bytes).await,
        }
    }

    /// Writes the index (or manifest) and lets the tag name it. Last: what it refers to must be there.
    ///
    /// # Errors
    /// As [`Client::push_manifest`] and [`Layout::publish`].
    pub async fn publish(&self, bytes: Bytes, media_type: &str) -> Result<Digest, RegistryError> {
        match self {
            Self::Registry { client, repository, tag } => {
                client.push_manifest(repository, tag, media_type, bytes).await
            }
            Self::Layout { layout, tag } => layout.publish(tag, media_type, bytes).await,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { repository, tag, .. } => write!(f, "{repository}:{tag}"),
            Self::Layout { layout, tag } => write!(f, "{LAYOUT_PREFIX}{}:{tag}", layout.dir().display()),
        }
    }
}

/// A blob on its way to a [`Destination`]. Dropping it gives it up.
#[derive(Debug)]
pub struct BlobWriter(Writer);

#[derive(Debug)]
enum Writer {
    Upload(Upload),
    Layout(LayoutBlob),
}

impl BlobWriter {
    /// Writes the next bytes; waits while 8 MiB are under way. Not cancel-safe. After an error the blob is dead.
    ///
    /// # Errors
    /// As [`Upload::write`] and [`LayoutBlob::write`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        match &mut self.0 {
            Writer::Upload(upload) => upload.write(bytes).await,
            Writer::Layout(blob) => blob.write(bytes).await,
        }
    }

    /// Ends the blob and makes it visible.
    ///
    /// # Errors
    /// When `digest` is not that of the bytes, and as [`Upload::commit`] and [`LayoutBlob::commit`].
    pub async fn commit(self, digest: &Digest) -> Result<(), RegistryError> {
        match self.0 {
            Writer::Upload(upload) => upload.commit(digest).await,
            Writer::Layout(blob) => blob.commit(digest).await,
        }
    }

    /// Gives the blob up and cleans up behind it, as far as possible.
    pub async fn abort(self) {
        match self.0 {
            Writer::Upload(upload) => upload.abort().await,
            Writer::Layout(blob) => blob.abort().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClientOptions;
    use proptest::prelude::*;

    fn client() -> Client {
        Client::new(ClientOptions::default()).unwrap()
    }

    #[test]
    fn names_are_read() {
        let client = client();
        for (text, expected) in [
            ("registry.example.com/models/qwen:v1", "registry.example.com/models/qwen:v1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("models/qwen", "docker.io/models/qwen:latest"),
            ("oci:/tmp/x", "oci:/tmp/x:latest"),
            ("oci:x:v1", "oci:x:v1"),
            ("oci:/tmp/a:b/c", "oci:/tmp/a:b/c:latest"),
            ("oci:/tmp/a:b/c:v2", "oci:/tmp/a:b/c:v2"),
        ] {
            assert_eq!(Destination::parse(text, &client).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn digests_and_nonsense_are_refused() {
        let client = client();
        let digest = format!("sha256:{}", "0".repeat(64));
        for text in
            ["", "oci:", "oci::v1", "oci:x:", "oci:x:a b", "UPPER/case:v1", "a b", "https://example.com/x"]
        {
            assert!(Destination::parse(text, &client).is_err(), "{text}");
        }
        for text in [
            format!("example.com/a@{digest}"),
            format!("example.com/a:v1@{digest}"),
            format!("oci:x@{digest}"),
        ] {
            let error = Destination::parse(&text, &client).unwrap_err().to_string();
            assert!(error.contains("not by digest"), "{error}");
            assert!(ImageSource::parse(&text, &client).is_ok_and(|(_, name)| name == digest), "{text}");
        }
        assert!(Destination::parse("oci:x@sha256:12", &client).is_err());
    }

    proptest! {
        #[test]
        fn any_name_is_survived_and_layouts_come_back(text in "(oci:)?[a-z0-9:/@._-]{0,24}") {
            if let Ok(Name::Layout { dir, tag: Some(tag), digest: None }) = Name::parse(&text) {
                prop_assert_eq!(text, format!("oci:{dir}:{tag}"));
            }
        }
    }
}
