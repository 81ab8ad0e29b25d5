//! The origin as a source of pieces: ranges of layer blobs in the registries where a model was seen.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;

use std::sync::{Arc, PoisonError, RwLock};

use futures_util::TryStreamExt;
use towline_artifact::{ContentId, PieceTable};
use towline_modelfs::{Fault, FetchError, PieceSource, PieceStream};
use towline_registry::{Client, Digest, RegistryError, Repository};

use crate::catalog::KnownModel;
use crate::error::chain;

/// Where the bytes of a content lie.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    repository: Repository,
    layer: Digest,
    offset: u64,
}

/// All origins of the node's contents.
#[derive(Debug)]
pub(crate) struct Origins {
    client: Client,
    /// Fetches pieces. With peers, when to try again is decided among them.
    pieces: Client,
    /// The one to ask first comes first; a failure moves it to the end.
    by_content: Arc<Table>,
}

type Table = RwLock<HashMap<ContentId, Vec<Origin>>>;

/// The most origins that are remembered for one content.
const MAX_ORIGINS: usize = 8;

impl Origins {
    pub(crate) fn new(client: Client) -> Self {
        Self { pieces: client.clone(), client, by_content: Arc::default() }
    }

    /// Origins of a node that has peers: a refusal is told at once, for another node may do better.
    pub(crate) fn with_peers(client: Client) -> Self {
        Self { pieces: client.without_repetitions(), ..Self::new(client) }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Adds the places of `known`, the latest as the first to ask.
    pub(crate) fn add(&self, known: &KnownModel) {
        let mut by_content = self.by_content.write().unwrap_or_else(PoisonError::into_inner);
        for place in known.places() {
            let Ok(repository) = Repository::new(&place.host, &place.repository) else { continue };
            for n in known.weight_files() {
                let file = &known.model.files[n];
                let digest = known.model.layer_digest(file.layer).map(|digest| digest.to_string().parse());
                let Some(Ok(layer)) = digest else { continue };
                let origin = Origin { repository: repository.clone(), layer, offset: file.offset };
                let origins = by_content.entry(file.table.content()).or_default();
                origins.retain(|old| *old != origin);
                origins.insert(0, origin);
                origins.truncate(MAX_ORIGINS);
            }
        }
    }

    /// Forgets a content.
    pub(crate) fn remove(&self, content: ContentId) {
        self.by_content.write().unwrap_or_else(PoisonError::into_inner).remove(&content);
    }

    fn first(&self, content: ContentId) -> Option<Origin> {
        let by_content = self.by_content.read().unwrap_or_else(PoisonError::into_inner);
        by_content.get(&content)?.first().cloned()
    }

    async fn ask(&self, content: ContentId, bytes: Range<u64>) -> Result<PieceStream, FetchError> {
        let origin = self.first(content).ok_or(FetchError::NoSource { content })?;
        let range = origin.offset + bytes.start..origin.offset + bytes.end;
        let failed = |error: RegistryError| fetch_error(&error);
        let mut unfinished = Unfinished {
            table: Arc::clone(&self.by_content),
            content,
            origin: origin.clone(),
            missing: range.end - range.start,
        };
        let body: PieceStream =
            match self.pieces.blob_range(&origin.repository, &origin.layer, range.clone()).await {
                Ok(body) => Box::pin(body.map_err(failed)),
                Err(RegistryError::RangeIgnored { .. }) => {
                    let body = self.pieces.blob(&origin.repository, &origin.layer).await.map_err(failed)?;
                    part_of_whole(body.map_err(failed), range)
                }
                Err(error) => return Err(failed(error)),
            };
        Ok(Box::pin(body.inspect_ok(move |chunk| unfinished.received(chunk.len() as u64))))
    }
}

/// What a registry's refusal means for the next attempt.
fn fetch_error(error: &RegistryError) -> FetchError {
    let fault = match error.status().map(|status| status.as_u16()) {
        Some(429 | 503) => Fault::Throttled,
        _ if error.is_not_found() => Fault::Gone,
        _ if error.is_unauthorized() => Fault::Denied,
        _ => Fault::Broken,
    };
    FetchError::Source { message: chain(error), fault, retry_after: error.retry_after() }
}

/// A request that was made. Unless all of it comes, whatever the reason, the next one goes to somebody else.
struct Unfinished {
    table: Arc<Table>,
    content: ContentId,
    origin: Origin,
    missing: u64,
}

impl Unfinished {
    fn received(&mut self, len: u64) {
        self.missing = self.missing.saturating_sub(len);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.missing > 0 {
            rotate(&self.table, self.content, Some(&self.origin));
        }
    }
}

/// The next fetch asks somebody else, if there is anybody else, and if it is still `blamed` that would be asked.
fn rotate(table: &Table, content: ContentId, blamed: Option<&Origin>) {
    let mut by_content = table.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(origins) = by_content.get_mut(&content).filter(|origins| origins.len() > 1)
        && blamed.is_none_or(|blamed| origins.first() == Some(blamed))
    {
        origins.rotate_left(1);
    }
}

/// The bytes `range` of a body that begins at 0: for registries that answer a range with the whole blob.
fn part_of_whole(
    body: impl futures_util::Stream<Item = Result<bytes::Bytes, FetchError>> + Send + 'static,
    range: Range<u64>,
) -> PieceStream {
    let mut at = 0;
    Box::pin(body.try_filter_map(move |mut chunk| {
        let (start, len) = (at, chunk.len() as u64);
        at += len;
        let from = range.start.clamp(start, start + len) - start;
        let to = range.end.clamp(start, start + len) - start;
        let part = chunk.split_to(usize::try_from(to).expect("within the chunk"));
        let part = part.slice(usize::try_from(from).expect("within the chunk")..);
        std::future::ready(Ok((!part.is_empty()).then_some(part)))
    }))
}

impl PieceSource for Origins {
    fn fetch<'a>(
        &'a self,
        table: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>> {
        Box::pin(async move { self.ask(table.content(), bytes).await })
    }

    fn corrupt(&self, content: ContentId) {
        let origin = self.first(content).map(|origin| origin.repository.to_string());
        tracing::error!(%content, origin, "registry sent bytes that do not match their digest");
        rotate(&self.by_content, content, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

    #[tokio::test]
    async fn all_places_of_a_model_are_asked_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let made = crate::testing::two_weights();
        let (claims, model) = crate::testing::claims(dir.path(), &made);
        let (known, _) = claims.0.catalog.by_chain(model.base).unwrap();
        claims.0.catalog.add_place(&known, crate::testing::place("v2")).unwrap();
        drop((claims, known));
        let catalog = crate::catalog::Catalog::open(dir.path()).unwrap();
        let origins = Origins::new(Client::new(Default::default()).unwrap());
        origins.add(&catalog.models()[0]);
        let content = model.files.iter().find(|file| file.layer > 0).unwrap().table.content();
        let first = || origins.first(content).unwrap().repository.path().to_owned();
        assert_eq!(first(), "m-v2", "the latest");
        rotate(&origins.by_content, content, None);
        assert_eq!(first(), "m-v1");
    }

    /// A registry that answers ranges of zeros, of which it sends at most `most` bytes.
    async fn registry(most: usize) -> String {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mut socket = BufReader::new(socket);
                let (mut line, mut range) = (String::new(), (0, 0));
                while socket.read_line(&mut line).await.is_ok_and(|len| len > 2) {
                    if let Some(found) = line.to_lowercase().strip_prefix("range: bytes=") {
                        let (from, to) = found.trim().split_once('-').unwrap();
                        range = (from.parse().unwrap(), to.parse::<usize>().unwrap());
                    }
                    line.clear();
                }
                let (from, len) = (range.0, range.1 + 1 - range.0);
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/99999999\r\n\
                     Content-Length: {len}\r\nConnection: close\r\n\r\n",
                    range.1
                );
                let body = vec![0; len.min(most)];
                let _ = socket.write_all(&[head.as_bytes(), &body].concat()).await;
            }
        });
        host
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_makes_the_next_fetch_ask_another_origin() {
        let dir = tempfile::tempdir().unwrap();
        let (claims, model) = crate::testing::claims(dir.path(), &crate::testing::two_weights());
        let (known, _) = claims.0.catalog.by_chain(model.base).unwrap();
        for most in [1000, usize::MAX, 1000] {
            let place = crate::catalog::Place { host: registry(most).await, ..crate::testing::place("v1") };
            claims.0.catalog.add_place(&known, place).unwrap();
        }
        let origins = &claims.0.origins;
        origins.add(&known);
        let table = &model.files.iter().find(|file| file.layer > 0).unwrap().table;
        let fetch = || async {
            let body = origins.fetch(table, 0..5000).await?;
            body.try_fold(0, |len, chunk| std::future::ready(Ok(len + chunk.len()))).await
        };
        assert!(fetch().await.is_err(), "breaks off");
        assert_eq!(fetch().await.unwrap(), 5000, "the other one");
        assert_eq!(fetch().await.unwrap(), 5000, "which is asked from now on");
        // Nobody waits for the rest of this one, as after a timeout.
        drop(origins.fetch(table, 0..5000).await.unwrap());
        assert!(fetch().await.is_err());
    }

    #[tokio::test]
    async fn a_part_is_cut_out_of_a_whole_body() {
        let whole: Vec<u8> = (0..100).collect();
        for (start, end) in [(0, 100), (0, 1), (99, 100), (10, 20), (7, 8), (13, 91)] {
            for chunk in [1, 7, 100] {
                let chunks: Vec<_> = whole.chunks(chunk).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
                let part = part_of_whole(stream::iter(chunks), start..end);
                let part: Vec<Bytes> = part.try_collect().await.unwrap();
                assert_eq!(part.concat(), whole[start as usize..end as usize], "{start}..{end} by {chunk}");
            }
        }
    }
}
