//! One face for all hubs.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

use crate::error::HubError;
use crate::http::Http;
use crate::listing::{Listing, RemoteFile};
use crate::settings::HubSettings;
use crate::source_ref::{HubKind, SourceRef};
use crate::{directory, huggingface, modelscope};

/// Bytes of a file in order. After an error the stream is over.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, HubError>> + Send>>;

/// A repository that can be listed and read.
#[derive(Clone, Debug)]
pub struct Source(Kind);

#[derive(Clone, Debug)]
enum Kind {
    HuggingFace(huggingface::Repo),
    ModelScope(modelscope::Repo),
    Directory(directory::Directory),
}

impl Source {
    /// Sets up a client; the network is not used yet.
    ///
    /// # Errors
    /// [`HubError::Client`] if the system's certificates cannot be loaded.
    pub fn connect(source: &SourceRef, settings: &HubSettings) -> Result<Self, HubError> {
        let (kind, id) = (source.kind(), source.repo().to_owned());
        let revision = |default: &str| source.revision().unwrap_or(default).to_owned();
        Ok(Self(match source.hub() {
            HubKind::HuggingFace => {
                let http = Http::new(HubKind::HuggingFace, settings.huggingface.clone())?;
                let revision = revision(huggingface::Repo::DEFAULT_REVISION);
                Kind::HuggingFace(huggingface::Repo { http, kind, id, revision })
            }
            HubKind::ModelScope => {
                let http = Http::new(HubKind::ModelScope, settings.modelscope.clone())?;
                let revision = revision(modelscope::Repo::DEFAULT_REVISION);
                Kind::ModelScope(modelscope::Repo { http, kind, id, revision })
            }
            HubKind::Directory => Kind::Directory(directory::Directory::new(id)),
        }))
    }

    /// Turns the revision into a commit, once, and lists all files at that commit. For a directory this reads every file.
    ///
    /// Calling it again before publishing and comparing the two listings shows whether the hub still says the same.
    ///
    /// # Errors
    /// [`HubError`]; faults that pass by themselves were already waited for.
    pub async fn resolve(&self) -> Result<Listing, HubError> {
        match &self.0 {
            Kind::HuggingFace(repo) => repo.resolve().await,
            Kind::ModelScope(repo) => repo.resolve().await,
            Kind::Directory(directory) => directory.resolve().await,
        }
    }

    /// Streams the bytes `[from, size)` of `file` at the listing's commit. The stream resumes by itself after a broken
    /// connection and neither loses nor repeats a byte; it does not check hashes ([`crate::HashCheck`] does).
    ///
    /// `listing` must come from this source and `file` from that listing.
    ///
    /// # Errors
    /// [`HubError`], now or in the stream; [`HubError::CommitMoved`] if the hub answers for another commit.
    pub async fn open(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        from: u64,
    ) -> Result<ByteStream, HubError> {
        match &self.0 {
            Kind::HuggingFace(repo) => repo.open(&listing.commit, file, from).await,
            Kind::ModelScope(repo) => repo.open(&listing.commit, file, from).await,
            Kind::Directory(directory) => directory.open(file, from).await,
        }
    }
}

/// Whether `text` is a git commit as both hubs write it.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A hash of exactly `N` bytes in hex, in either case.
pub(crate) fn read_hash<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).is_ok().then_some(bytes)
}
