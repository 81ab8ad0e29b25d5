//! Reading from a registry: manifests, whole blobs, ranges of blobs.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method};
use oci_spec::image::Digest;

use crate::answer::content_len;
use crate::body::{BlobBody, Counted, RangeBody, collect};
use crate::client::{Answer, Call, Client, Need};
use crate::error::{Object, RegistryError};
use crate::locations::Location;
use crate::repository::{ManifestName, Repository, digest_bytes, sha256};

/// The most bytes of a manifest. Registries refuse more than 4 MiB; twice that is room, not a need.
pub const MAX_MANIFEST_LEN: u64 = 8 << 20;

/// The manifest types we can read, so that registries with several forms of an image send one of these.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A registry's word for the digest of what it sends or took.
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

/// A manifest or an index, as bytes whose digest was computed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of `bytes`.
    pub digest: Digest,
    /// From the manifest itself where it says, else as the registry labelled it; may be empty.
    pub media_type: String,
    /// At most [`MAX_MANIFEST_LEN`].
    pub bytes: Bytes,
}

impl Manifest {
    /// A manifest of these bytes. `label` is its type if it does not name one itself.
    pub(crate) fn new(bytes: Bytes, label: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Typed {
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
        }
        // The bytes are bound by the digest, the label is not: theirs is the better word.
        let own = serde_json::from_slice::<Typed>(&bytes).ok().and_then(|typed| typed.media_type);
        let label = label.split(';').next().unwrap_or_default().trim();
        Self { digest: digest_bytes(&bytes), media_type: own.unwrap_or_else(|| label.to_owned()), bytes }
    }
}

impl Client {
    /// Fetches a manifest by tag or by digest.
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`] when the bytes are not what the digest (or, for a tag, the registry's own
    /// `Docker-Content-Digest`) says; [`RegistryError::TooLarge`] above [`MAX_MANIFEST_LEN`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        tag_or_digest: &str,
    ) -> Result<Manifest, RegistryError> {
        let name = ManifestName::parse(tag_or_digest)?;
        let object = Object::Manifest(name.to_string());
        let need = if matches!(name, ManifestName::Tag(_)) { Need::Resolve } else { Need::Pull };
        let mut call = Call::new(repository, object, need, Method::GET, format!("manifests/{name}"));
        call.headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        self.whole(&call, MAX_MANIFEST_LEN, |bytes, answer| {
            let manifest = Manifest::new(bytes, &answer.media_type);
            let expected = match &name {
                ManifestName::Digest(digest) => Some(digest),
                ManifestName::Tag(_) => answer.digest.as_ref(),
            };
            match expected {
                Some(expected) if *expected != manifest.digest => Err((expected.clone(), manifest.digest)),
                _ => Ok(manifest),
            }
        })
        .await
    }

    /// Size of a blob in bytes, or `None` when the repository does not have it.
    ///
    /// # Errors
    /// Everything but "not found".
    pub async fn blob_len(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, RegistryError> {
        self.blob_len_for(repository, digest, Need::Pull).await
    }

    /// As [`Self::blob_len`], of the servers that will take a push.
    pub(crate) async fn blob_len_for(
        &self,
        repository: &Repository,
        digest: &Digest,
        need: Need,
    ) -> Result<Option<u64>, RegistryError> {
        let call = Call::new(
            repository,
            Object::Blob(digest.clone()),
            need,
            Method::HEAD,
            format!("blobs/{digest}"),
        );
        match self.call(&call).await {
            Ok(answer) => match content_len(&answer.response) {
                Some(len) => Ok(Some(len)),
                None => {
                    Err(RegistryError::Protocol { place: answer.place, what: "no Content-Length for a blob" })
                }
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A whole blob as it arrives. **Not verified**: check the digest of what was read before using it.
    ///
    /// # Errors
    /// As [`Self::manifest`]; later faults come from the body.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobBody, RegistryError> {
        let answer = self.blob_answer(&blob_call(repository, digest), digest).await?;
        let len = content_len(&answer.response);
        Ok(BlobBody(Counted::http(answer.response, answer.place, len, self.idle_timeout())))
    }

    /// A whole blob of at most `max_len` bytes in memory, its SHA-256 checked.
    ///
    /// # Errors
    /// [`RegistryError::TooLarge`], [`RegistryError::DigestMismatch`], [`RegistryError::Name`] for a digest that is
    /// not SHA-256.
    pub async fn blob_verified(
        &self,
        repository: &Repository,
        digest: &Digest,
        max_len: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        sha256(digest)?;
        let call = blob_call(repository, digest);
        let bytes = self.whole(&call, max_len, |bytes, _| match digest_bytes(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err((digest.clone(), actual)),
        });
        bytes.await.map(Vec::from)
    }

    /// Exactly the bytes `range` of a blob, or an error. An empty range asks nobody.
    ///
    /// # Errors
    /// [`RegistryError::RangeIgnored`] when the answer is the whole blob (nothing of it is read),
    /// [`RegistryError::WrongRange`] when it is another range; a short, long or stalled body fails as it is read.
    pub async fn blob_range(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<RangeBody, RegistryError> {
        let mut call = blob_call(repository, digest);
        if range.is_empty() {
            return Ok(RangeBody(Counted::empty(call.place(repository.host()))));
        }
        let len = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        call.headers.insert(RANGE, HeaderValue::try_from(header).expect("digits are a header value"));
        call.range = Some(range);
        let answer = self.blob_answer(&call, digest).await?;
        Ok(RangeBody(Counted::http(answer.response, answer.place, Some(len), self.idle_timeout())))
    }

    /// Asks where the blob was last redirected to, then, on any fault there, the registry.
    async fn blob_answer(&self, call: &Call<'_>, digest: &Digest) -> Result<Answer, RegistryError> {
        let key = (call.repository.clone(), digest.clone());
        if let Some(Location { endpoint, url }) = self.locations().get(&key, Instant::now()) {
            let answer = match self.send(&endpoint, call, &url, None).await {
                Ok((response, url)) => self.judge_response(call, &endpoint, response, url).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(image = %call.repository, %digest, %error, "redirect dropped");
                    self.locations().remove(&key);
                }
            }
        }
        let answer = self.call(call).await?;
        if !answer.endpoint.owns(&answer.url) {
            let location = Location { endpoint: answer.endpoint.clone(), url: answer.url.clone() };
            self.locations().put(key, location, Instant::now());
        }
        Ok(answer)
    }

    /// Reads a whole object into memory and has it checked; a body that breaks off is asked for again.
    async fn whole<T>(
        &self,
        call: &Call<'_>,
        limit: u64,
        check: impl Fn(Bytes, &Labels) -> Result<T, (Digest, Digest)>,
    ) -> Result<T, RegistryError> {
        let mut failed = 0;
        loop {
            let answer = self.call(call).await?;
            let labels = Labels::of(&answer);
            let place = answer.place.clone();
            let len = content_len(&answer.response);
            let body = Counted::http(answer.response, answer.place, len, self.idle_timeout());
            match collect(body, limit).await {
                Ok(bytes) => {
                    return check(bytes, &labels).map_err(|(expected, actual)| {
                        RegistryError::DigestMismatch { place, expected, actual }
                    });
                }
                Err(error) => {
                    failed += 1;
                    if !self.pause(failed, &error, None).await {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// What the registry says about what it sends.
struct Labels {
    media_type: String,
    digest: Option<Digest>,
}

impl Labels {
    fn of(answer: &Answer) -> Self {
        let text = |name: &str| answer.response.headers().get(name).and_then(|value| value.to_str().ok());
        let media_type = text(CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
        Self { media_type, digest: registry_digest(&answer.response) }
    }
}

/// The SHA-256 digest that the registry names for what it sends or took. Others we cannot compare.
pub(crate) fn registry_digest(response: &reqwest::Response) -> Option<Digest> {
    let text = response.headers().get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?;
    text.parse().ok().filter(|digest| sha256(digest).is_ok())
}

fn blob_call<'a>(repository: &'a Repository, digest: &Digest) -> Call<'a> {
    let tail = format!("blobs/{digest}");
    let mut call = Call::new(repository, Object::Blob(digest.clone()), Need::Pull, Method::GET, tail);
    // A range of an encoded body would be a range of other bytes.
    call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    call
}
