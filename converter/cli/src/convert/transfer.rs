//! Moving bytes from the hub to the destination, hashed on the way; weights touch neither disk nor large buffers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towline_artifact::{FileDigests, LayerPlan, PIECE_LEN, Segment, Sha256};
use towline_hub::{ByteStream, HubError, Listing, RemoteFile, Source};
use towline_registry::{BlobWriter, Destination, RegistryError};

use super::hashing::{Batcher, Worker, file_worker, hash_small, layer_worker};
use super::selection::Selection;
use crate::error::Problem;
use crate::oci_digest;
use crate::progress::{Bar, Progress};

/// How often a layer is begun before a fault at the destination ends the conversion: a streamed upload cannot be resumed,
/// so one dropped connection costs a layer, and a registry that drops three in a row is not there.
const LAYER_ATTEMPTS: u32 = 3;
/// Wait before a layer is begun again, times the number of attempts so far.
const LAYER_RETRY_WAIT: Duration = Duration::from_secs(2);
/// Small files of one layer whose requests run ahead of the file that is read, so that a thousand pictures in a layer do
/// not wait a round trip each. What has arrived stays in socket buffers.
const OPEN_AHEAD: usize = 4;

/// Everything a conversion's tasks share.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) source: Source,
    pub(crate) listing: Arc<Listing>,
    pub(crate) selection: Selection,
    pub(crate) destination: Destination,
    pub(crate) progress: Progress,
    /// Bytes of files read from the hub.
    pub(crate) hub_bytes: AtomicU64,
    /// Bytes of blobs and manifests written to the destination.
    pub(crate) registry_bytes: AtomicU64,
}

/// A weight layer that is at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrittenLayer {
    pub(crate) digest: Sha256,
    /// Parallel to the planned layer's files.
    pub(crate) files: Vec<FileDigests>,
}

impl Transfer {
    /// Streams the weight layers `wanted` (positions in the plan), at most `jobs` at a time, and returns them in that order.
    ///
    /// The first failure stops the others; when this returns, every upload has been committed or given up.
    ///
    /// # Errors
    /// The first failure, or interruption through `stop`.
    pub(crate) async fn write_layers(
        self: &Arc<Self>,
        wanted: &[usize],
        jobs: usize,
        stop: &CancellationToken,
    ) -> anyhow::Result<Vec<WrittenLayer>> {
        let len = |n: &usize| self.selection.plan.weight_layers[*n].len;
        let total = self.progress.total(wanted.iter().map(len).sum());
        let turns = Arc::new(Semaphore::new(jobs));
        let stop = stop.child_token();
        let mut running = JoinSet::new();
        for (position, &n) in wanted.iter().enumerate() {
            let (this, turns, stop, total) =
                (Arc::clone(self), Arc::clone(&turns), stop.clone(), total.clone());
            running.spawn(async move {
                let turn = stop.run_until_cancelled(turns.acquire()).await;
                let _turn = turn.ok_or_else(Problem::interrupted)?.expect("the semaphore is never closed");
                Ok((position, this.write_layer(n, &total, &stop).await?))
            });
        }
        let mut written: Vec<Option<WrittenLayer>> = vec![None; wanted.len()];
        let mut failure: Option<anyhow::Error> = None;
        while let Some(joined) = running.join_next().await {
            match joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
                Ok((position, layer)) => written[position] = Some(layer),
                Err(error) => {
                    stop.cancel();
                    // Those that stop because of the first failure have nothing to add.
                    failure.get_or_insert(error);
                }
            }
        }
        total.clear();
        match failure {
            Some(error) => Err(error),
            None => Ok(written.into_iter().map(|layer| layer.expect("no task failed")).collect()),
        }
    }

    /// One weight layer, begun again after transient faults at the destination.
    async fn write_layer(
        &self,
        n: usize,
        total: &Bar,
        stop: &CancellationToken,
    ) -> anyhow::Result<WrittenLayer> {
        let name = self.layer_name(n);
        let mut attempt = 1;
        loop {
            let bar = self.progress.layer(&name, self.selection.plan.weight_layers[n].len);
            let result = self.try_layer(n, &[total, &bar], stop).await;
            bar.clear();
            match result {
                Ok(layer) => {
                    self.progress.say(&format!("layer {}: {name} is {}", n + 1, layer.digest));
                    return Ok(layer);
                }
                Err(error) if attempt < LAYER_ATTEMPTS && is_transient(&error) => {
                    self.progress.say(&format!("layer {}: {name} begins again: {error:#}", n + 1));
                    total.rewind(bar.position());
                    let wait = tokio::time::sleep(LAYER_RETRY_WAIT * attempt);
                    stop.run_until_cancelled(wait).await.ok_or_else(Problem::interrupted)?;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_layer(
        &self,
        n: usize,
        bars: &[&Bar],
        stop: &CancellationToken,
    ) -> anyhow::Result<WrittenLayer> {
        let plan = &self.selection.plan.weight_layers[n];
        let doing = || format!("write layer {} ({})", n + 1, self.layer_name(n));
        let mut blob = self.destination.start_blob(Some(plan.len)).await.with_context(doing)?;
        let streamed = stop.run_until_cancelled(self.stream(plan, bars, &mut blob)).await;
        match streamed.unwrap_or_else(|| Err(Problem::interrupted().into())) {
            Ok(layer) => {
                blob.commit(&oci_digest(layer.digest)).await.with_context(doing)?;
                Ok(layer)
            }
            Err(error) => {
                blob.abort().await;
                Err(error.context(doing()))
            }
        }
    }

    /// Sends all bytes of a layer. Every file in it has been checked when this returns, and nothing is committed.
    async fn stream(
        &self,
        plan: &LayerPlan,
        bars: &[&Bar],
        blob: &mut BlobWriter,
    ) -> anyhow::Result<WrittenLayer> {
        let of_layer = layer_worker();
        let mut files = Vec::with_capacity(plan.files.len());
        let mut opening = Opening::new(self, &plan.files);
        for segment in &plan.segments {
            match segment {
                Segment::Bytes(fixed) => {
                    let fixed = Bytes::copy_from_slice(fixed);
                    of_layer.feed([fixed.clone()].into()).await;
                    self.send(blob, fixed, bars).await?;
                }
                Segment::File(n) => {
                    let file = &self.selection.remote[*n];
                    let body = opening.next(*n).await.with_context(|| format!("read {:?}", file.path))?;
                    files.push(self.stream_file(file, body, &of_layer, bars, blob).await?);
                }
            }
        }
        Ok(WrittenLayer { digest: of_layer.finish().await, files })
    }

    async fn stream_file(
        &self,
        file: &RemoteFile,
        mut body: ByteStream,
        of_layer: &Worker<Sha256>,
        bars: &[&Bar],
        blob: &mut BlobWriter,
    ) -> anyhow::Result<FileDigests> {
        let reading = || format!("read {:?}", file.path);
        let of_file = file_worker(file);
        let mut batcher = Batcher::default();
        let mut left = file.size;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.with_context(reading)?;
            self.hub_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            let is_too_long = chunk.len() as u64 > left;
            left = left.saturating_sub(chunk.len() as u64);
            if let Some(batch) = batcher.push(chunk.clone()) {
                of_file.feed(batch.clone()).await;
                of_layer.feed(batch).await;
            }
            if is_too_long {
                // The check below says so in the file's own name; the layer has no room for the bytes.
                break;
            }
            self.send(blob, chunk, bars).await?;
        }
        if let Some(batch) = batcher.take() {
            of_file.feed(batch.clone()).await;
            of_layer.feed(batch).await;
        }
        of_file.finish().await.with_context(reading)
    }

    async fn send(&self, blob: &mut BlobWriter, bytes: Bytes, bars: &[&Bar]) -> Result<(), RegistryError> {
        let len = bytes.len() as u64;
        blob.write(bytes).await?;
        self.registry_bytes.fetch_add(len, Ordering::Relaxed);
        bars.iter().for_each(|bar| bar.advance(len));
        Ok(())
    }

    /// Reads a file of less than a piece into memory and checks it.
    ///
    /// # Errors
    /// When it cannot be read, or is not what the listing says.
    pub(crate) async fn fetch_small(&self, n: usize) -> anyhow::Result<(Vec<u8>, FileDigests)> {
        let file = self.selection.remote[n].clone();
        let fetch = async {
            let mut body = self.source.open(&self.listing, &file, 0).await?;
            let mut bytes = Vec::with_capacity(usize::try_from(file.size).expect("less than a piece"));
            while let Some(chunk) = body.next().await {
                let chunk = chunk?;
                self.hub_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > file.size {
                    break;
                }
            }
            let listed = file.clone();
            let hash = move || hash_small(&listed, &bytes).map(|digests| (bytes, digests));
            match tokio::task::spawn_blocking(hash).await {
                Ok(result) => result,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        };
        let result: Result<_, HubError> = fetch.await;
        result.with_context(|| format!("read {:?}", file.path))
    }

    /// What a person calls a weight layer.
    pub(crate) fn layer_name(&self, n: usize) -> String {
        let files = &self.selection.plan.weight_layers[n].files;
        let first = &self.selection.plan.files[files[0]].path;
        if files.len() == 1 { first.clone() } else { format!("{first} and {} more", files.len() - 1) }
    }
}

/// The files of a layer in order, requests for small ones sent ahead.
struct Opening<'a> {
    transfer: &'a Transfer,
    later: std::slice::Iter<'a, usize>,
    ahead: VecDeque<(usize, tokio::task::JoinHandle<Result<ByteStream, HubError>>)>,
}

impl<'a> Opening<'a> {
    fn new(transfer: &'a Transfer, files: &'a [usize]) -> Self {
        Self { transfer, later: files.iter(), ahead: VecDeque::new() }
    }

    /// The body of file `n`, which must be the next one of the layer.
    async fn next(&mut self, n: usize) -> Result<ByteStream, HubError> {
        let Some(opened) = self.ahead.pop_front() else {
            self.later.next();
            let body = self.open(n).await;
            self.fill();
            return body;
        };
        debug_assert_eq!(opened.0, n);
        self.fill();
        match opened.1.await {
            Ok(body) => body,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn open(&self, n: usize) -> impl Future<Output = Result<ByteStream, HubError>> + Send + use<> {
        let (source, listing) = (self.transfer.source.clone(), Arc::clone(&self.transfer.listing));
        let file = self.transfer.selection.remote[n].clone();
        async move { source.open(&listing, &file, 0).await }
    }

    /// Sends requests for the small files that come next; a large one is asked for when its turn comes.
    fn fill(&mut self) {
        while self.ahead.len() < OPEN_AHEAD {
            let Some(&n) = self.later.as_slice().first() else { return };
            if self.transfer.selection.remote[n].size >= PIECE_LEN {
                return;
            }
            self.later.next();
            self.ahead.push_back((n, tokio::spawn(self.open(n))));
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.ahead.iter().for_each(|(_, task)| task.abort());
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<RegistryError>().is_some_and(RegistryError::is_transient))
}
