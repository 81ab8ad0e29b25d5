//! The origin as a source of pieces: ranges of layer blobs in the registries where a model was seen.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;

use std::sync::{PoisonError, RwLock};

use futures_util::TryStreamExt;
use towline_artifact::{ContentId, PieceTable};
use towline_modelfs::{FetchError, PieceSource, PieceStream};
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
    /// The one to ask first comes first; a failure moves it to the end.
    by_content: RwLock<HashMap<ContentId, Vec<Origin>>>,
}

/// The most origins that are remembered for one content.
const MAX_ORIGINS: usize = 8;

impl Origins {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, by_content: RwLock::default() }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Adds the latest place of `known` as the first to ask.
    pub(crate) fn add(&self, known: &KnownModel) {
        let Some(place) = known.places().pop() else { return };
        let Ok(repository) = Repository::new(&place.host, &place.repository) else { return };
        let mut by_content = self.by_content.write().unwrap_or_else(PoisonError::into_inner);
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

    /// Forgets a content.
    pub(crate) fn remove(&self, content: ContentId) {
        self.by_content.write().unwrap_or_else(PoisonError::into_inner).remove(&content);
    }

    fn first(&self, content: ContentId) -> Option<Origin> {
        let by_content = self.by_content.read().unwrap_or_else(PoisonError::into_inner);
        by_content.get(&content)?.first().cloned()
    }

    /// The next fetch asks somebody else, if there is anybody else.
    fn rotate(&self, content: ContentId) {
        let mut by_content = self.by_content.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(origins) = by_content.get_mut(&content).filter(|origins| origins.len() > 1) {
            origins.rotate_left(1);
        }
    }

    async fn ask(&self, content: ContentId, bytes: Range<u64>) -> Result<PieceStream, FetchError> {
        let origin = self.first(content).ok_or(FetchError::NoSource { content })?;
        let range = origin.offset + bytes.start..origin.offset + bytes.end;
        let failed =
            move |error: RegistryError| FetchError::Source { message: chain(&error), retry_after: None };
        match self.client.blob_range(&origin.repository, &origin.layer, range.clone()).await {
            Ok(body) => Ok(Box::pin(body.map_err(failed))),
            Err(RegistryError::RangeIgnored { .. }) => {
                let body = self.client.blob(&origin.repository, &origin.layer).await.map_err(failed)?;
                Ok(part_of_whole(body.map_err(failed), range))
            }
            Err(error) => {
                self.rotate(content);
                Err(failed(error))
            }
        }
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
        self.rotate(content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

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
