//! Writing to a registry: manifests, mounts, small blobs, and streamed uploads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use oci_spec::image::Digest;
use reqwest::Url;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Answer, Call, Client, Need};
use crate::endpoint::Endpoint;
use crate::error::{Object, RegistryError};
use crate::pull::{MAX_MANIFEST_LEN, registry_digest};
use crate::repository::{ManifestName, Repository, digest_bytes, sha256};

/// The most bytes in one item of an upload's buffer: larger writes are split, without copying.
const UPLOAD_SLICE_LEN: usize = 512 << 10;

/// Items in an upload's buffer: 8 MiB with slices of [`UPLOAD_SLICE_LEN`], enough to bridge a hiccup at 1 GB/s.
const UPLOAD_SLICES: usize = 16;

/// How long a registry may take to finish an upload after its last byte: behind object stores it copies the blob, at
/// 100 MB/s or so, and blobs have up to 50 GB.
const FINISH_TIMEOUT: Duration = Duration::from_secs(600);

/// How long we try to tell a registry that an upload is given up. It forgets by itself some day.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// Writes a manifest under a tag, or under its own digest. Returns its digest.
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`] when `tag_or_digest` is a digest other than that of `bytes`, or the registry
    /// says that it took other bytes; [`RegistryError::TooLarge`] above [`MAX_MANIFEST_LEN`].
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let name = ManifestName::parse(tag_or_digest)?;
        let digest = digest_bytes(&bytes);
        let object = Object::Manifest(name.to_string());
        let mut call = Call::new(repository, object, Need::Push, Method::PUT, format!("manifests/{name}"));
        let place = || call.place(repository.host());
        if bytes.len() as u64 > MAX_MANIFEST_LEN {
            return Err(RegistryError::TooLarge { place: place(), limit: MAX_MANIFEST_LEN });
        }
        if let ManifestName::Digest(expected) = name
            && expected != digest
        {
            return Err(RegistryError::DigestMismatch { place: place(), expected, actual: digest });
        }
        let media_type = HeaderValue::try_from(media_type).map_err(|_| RegistryError::Protocol {
            place: place(),
            what: "the media type is not a header value",
        })?;
        call.headers.insert(CONTENT_TYPE, media_type);
        call.body = bytes;
        let answer = self.call(&call).await?;
        check_taken(&answer, &digest)?;
        Ok(digest)
    }

    /// Makes a blob of repository `from` appear in `repository` without sending it.
    ///
    /// `false` when the registry would not, or the two are on different hosts: the blob must be sent.
    ///
    /// # Errors
    /// Faults other than a registry's refusal to mount.
    pub async fn mount_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
    ) -> Result<bool, RegistryError> {
        if repository.host() != from.host() {
            return Ok(false);
        }
        let tail = format!("blobs/uploads/?mount={digest}&from={}", escape(from.path()));
        let mut call = Call::new(repository, Object::Blob(digest.clone()), Need::Push, Method::POST, tail);
        call.mount_from = Some(from.path());
        match self.call(&call).await {
            Ok(answer) if answer.response.status() == StatusCode::CREATED => Ok(true),
            Ok(answer) => {
                // The registry has begun an ordinary upload instead.
                if let Ok(session) = Session::of(&answer) {
                    session.cancel(self, repository).await;
                }
                Ok(false)
            }
            // We may not read `from`, or the registry knows no mounting: both mean sending.
            Err(error) if error.is_unauthorized() || error.is_not_found() => Ok(false),
            Err(RegistryError::Refused {
                status: StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob that is in memory, unless the repository has it.
    ///
    /// Repeated as a whole after a transient fault: meant for what is small (configs, the base layer).
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`] when `bytes` are not what `digest` says.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        sha256(digest)?;
        let object = Object::Blob(digest.clone());
        let actual = digest_bytes(&bytes);
        if actual != *digest {
            let place = Call::new(repository, object, Need::Push, Method::PUT, String::new())
                .place(repository.host());
            return Err(RegistryError::DigestMismatch { place, expected: digest.clone(), actual });
        }
        if self.blob_len_for(repository, digest, Need::Push).await? == Some(bytes.len() as u64) {
            return Ok(());
        }
        let mut failed = 0;
        loop {
            let session = self.open_session(repository, object.clone()).await?;
            let mut call = Call::new(repository, object.clone(), Need::Push, Method::PUT, String::new());
            call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            call.body = bytes.clone();
            call.patience = Some(FINISH_TIMEOUT);
            // A session that failed is not used again: a new one begins at byte 0 for certain.
            match self.attempt_at(&session.endpoint, &call, &session.with_digest(digest)).await {
                Ok(answer) => return check_taken(&answer, digest),
                Err(error) => {
                    failed += 1;
                    if !self.pause(failed, &error, None).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Begins to send a blob whose digest is known only at its end. `len` is its size in bytes, if known.
    ///
    /// The bytes go out as one streamed request; it is never repeated by itself, as they cannot be read again.
    ///
    /// # Errors
    /// When the registry does not open an upload.
    pub async fn start_upload(
        &self,
        repository: &Repository,
        len: Option<u64>,
    ) -> Result<Upload, RegistryError> {
        let session = self.open_session(repository, Object::Upload).await?;
        Upload::start(self.clone(), repository.clone(), session, len).await
    }

    async fn open_session(&self, repository: &Repository, object: Object) -> Result<Session, RegistryError> {
        let call = Call::new(repository, object, Need::Push, Method::POST, "blobs/uploads/".to_owned());
        Session::of(&self.call(&call).await?)
    }
}

/// Percent-encodes the slashes of a repository path; nothing else in it needs it.
fn escape(path: &str) -> String {
    path.replace('/', "%2F")
}

fn check_taken(answer: &Answer, expected: &Digest) -> Result<(), RegistryError> {
    match registry_digest(&answer.response) {
        Some(actual) if actual != *expected => {
            let (place, expected) = (answer.place.clone(), expected.clone());
            Err(RegistryError::DigestMismatch { place, expected, actual })
        }
        _ => Ok(()),
    }
}

/// An open upload at a server. Its URL may hold a signature: never logged.
struct Session {
    endpoint: Arc<Endpoint>,
    url: Url,
}

impl Session {
    fn of(answer: &Answer) -> Result<Self, RegistryError> {
        let url = next_location(&answer.endpoint, &answer.url, &answer.response);
        let missing = || RegistryError::Protocol {
            place: answer.place.clone(),
            what: "no usable Location for an upload",
        };
        Ok(Self { endpoint: answer.endpoint.clone(), url: url.ok_or_else(missing)? })
    }

    fn with_digest(&self, digest: &Digest) -> Url {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("digest", digest.as_ref());
        url
    }

    /// Tells the registry to forget the upload. Best effort.
    async fn cancel(&self, client: &Client, repository: &Repository) {
        let call = Call::new(repository, Object::Upload, Need::Push, Method::DELETE, String::new());
        let delete = client.attempt_at(&self.endpoint, &call, &self.url);
        match tokio::time::timeout(ABORT_TIMEOUT, delete).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(image = %repository, %error, "upload not cancelled"),
            Err(_) => tracing::debug!(image = %repository, "upload not cancelled in time"),
        }
    }
}

fn next_location(endpoint: &Endpoint, base: &Url, response: &reqwest::Response) -> Option<Url> {
    endpoint.location(base, response.headers().get(LOCATION)?.to_str().ok()?)
}

/// What goes through an upload's buffer.
enum Item {
    Bytes(Bytes),
    /// The blob is complete. A buffer that closes without it breaks the request off.
    End,
}

/// A blob on its way to a registry. Dropping it gives the upload up.
pub struct Upload {
    client: Client,
    repository: Repository,
    session: Session,
    announced: Option<u64>,
    written: u64,
    buffer: Option<mpsc::Sender<Item>>,
    request: AbortOnDropHandle<Result<Option<Url>, RegistryError>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("repository", &self.repository)
            .field("announced", &self.announced)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Upload {
    async fn start(
        client: Client,
        repository: Repository,
        session: Session,
        len: Option<u64>,
    ) -> Result<Self, RegistryError> {
        let (buffer, items) = mpsc::channel(UPLOAD_SLICES);
        let call = Call::new(&repository, Object::Upload, Need::Push, Method::PATCH, String::new());
        let mut request = client
            .http(&session.endpoint, &session.url)
            .patch(session.url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(body_stream(items)));
        if session.endpoint.owns(&session.url) {
            request = request.headers(session.endpoint.headers.clone());
            if let Some(authorization) = client.authorization(&session.endpoint, &call).await? {
                request = request.header(AUTHORIZATION, authorization);
            }
        }
        if let Some(len) = len {
            request = request.header(CONTENT_LENGTH, len);
        }
        let task =
            patch(client.clone(), repository.clone(), session.endpoint.clone(), session.url.clone(), request);
        let request = AbortOnDropHandle::new(tokio::spawn(task));
        Ok(Self { client, repository, session, announced: len, written: 0, buffer: Some(buffer), request })
    }

    /// Sends the next bytes; waits while the buffer (8 MiB) is full.
    ///
    /// Not cancel-safe: of a dropped call, part of the bytes may be on their way.
    ///
    /// # Errors
    /// What the registry answered, if it has given up already; [`RegistryError::Stalled`] when it takes no byte for
    /// the idle limit; [`RegistryError::UploadLen`] past the announced length. The upload is dead then.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), RegistryError> {
        self.written += bytes.len() as u64;
        if self.announced.is_some_and(|announced| self.written > announced) {
            return Err(self.wrong_len());
        }
        while !bytes.is_empty() {
            let slice = bytes.split_to(bytes.len().min(UPLOAD_SLICE_LEN));
            self.send(Item::Bytes(slice)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, item: Item) -> Result<(), RegistryError> {
        let idle = self.client.idle_timeout();
        let Some(buffer) = &self.buffer else {
            return Err(RegistryError::Protocol {
                place: self.place(),
                what: "the upload has failed before",
            });
        };
        match tokio::time::timeout(idle, buffer.send(item)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                self.buffer = None;
                match self.finish_request().await {
                    Ok(_) => Err(self.answered_early()),
                    Err(error) => Err(error),
                }
            }
            Err(_) => {
                self.buffer = None;
                Err(RegistryError::Stalled { place: self.place(), idle })
            }
        }
    }

    fn place(&self) -> Box<crate::error::Place> {
        let call = Call::new(&self.repository, Object::Upload, Need::Push, Method::PATCH, String::new());
        call.place(&self.session.endpoint.host)
    }

    fn answered_early(&self) -> RegistryError {
        RegistryError::Protocol { place: self.place(), what: "the upload was answered before its end" }
    }

    fn wrong_len(&self) -> RegistryError {
        let announced = self.announced.unwrap_or(self.written);
        RegistryError::UploadLen { place: self.place(), written: self.written, announced }
    }

    async fn finish_request(&mut self) -> Result<Option<Url>, RegistryError> {
        match tokio::time::timeout(FINISH_TIMEOUT, &mut self.request).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(RegistryError::Protocol { place: self.place(), what: "the upload was given up" })
            }
            Err(_) => Err(RegistryError::Stalled { place: self.place(), idle: FINISH_TIMEOUT }),
        }
    }

    /// Ends the blob: the registry checks `digest` over what it got and makes it visible.
    ///
    /// # Errors
    /// [`RegistryError::UploadLen`] when bytes are missing; the registry's refusal when the digest is not that of the
    /// bytes.
    pub async fn commit(mut self, digest: &Digest) -> Result<(), RegistryError> {
        if self.announced.is_some_and(|announced| self.written != announced) {
            return Err(self.wrong_len());
        }
        // With an announced length the request is over at its last byte: the other end of the buffer may be gone by now,
        // and only the answer tells how it went. A stall shows there, too.
        if let Some(buffer) = self.buffer.take() {
            let idle = self.client.idle_timeout();
            match tokio::time::timeout(idle, buffer.send(Item::End)).await {
                Ok(Err(_)) if self.announced.is_none() => {
                    self.finish_request().await?;
                    return Err(self.answered_early());
                }
                Ok(_) => {}
                Err(_) => return Err(RegistryError::Stalled { place: self.place(), idle }),
            }
        }
        if let Some(url) = self.finish_request().await? {
            self.session.url = url;
        }
        let object = Object::Blob(digest.clone());
        let mut call = Call::new(&self.repository, object, Need::Push, Method::PUT, String::new());
        call.patience = Some(FINISH_TIMEOUT);
        let url = self.session.with_digest(digest);
        match self.client.call_at(&self.session.endpoint, &call, Some(&url)).await {
            Ok(answer) => check_taken(&answer, digest),
            // A repeated request may find the upload gone because the first, whose answer was lost, finished it.
            Err(error) if error.is_not_found() => {
                match self.client.blob_len_for(&self.repository, digest, Need::Push).await? {
                    Some(len) if len == self.written => Ok(()),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the upload up, and tells the registry so if it listens.
    pub async fn abort(self) {
        let Self { client, repository, session, buffer, request, .. } = self;
        drop(buffer);
        request.abort();
        session.cancel(&client, &repository).await;
    }
}

/// The body of the streamed request. Ends well only after [`Item::End`].
fn body_stream(
    items: mpsc::Receiver<Item>,
) -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    futures_util::stream::unfold(Some(items), |items| async move {
        let mut items = items?;
        match items.recv().await {
            Some(Item::Bytes(bytes)) => Some((Ok(bytes), Some(items))),
            Some(Item::End) => None,
            None => Some((Err(io::Error::other("upload given up")), None)),
        }
    })
    .boxed()
}

/// Runs the streamed request. Its duration is bounded by the writer: each write, and the wait at the end, has a limit.
async fn patch(
    client: Client,
    repository: Repository,
    endpoint: Arc<Endpoint>,
    url: Url,
    request: reqwest::RequestBuilder,
) -> Result<Option<Url>, RegistryError> {
    let call = Call::new(&repository, Object::Upload, Need::Push, Method::PATCH, String::new());
    let response = request.send().await.map_err(|e| RegistryError::Transport {
        place: call.place(&endpoint.host),
        source: e.without_url(),
    })?;
    let answer = client.judge_response(&call, &endpoint, response, url).await?;
    // Without a new Location the old one stays good (distribution-spec asks for one; not all send it).
    Ok(next_location(&answer.endpoint, &answer.url, &answer.response))
}
