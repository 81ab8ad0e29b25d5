//! Hashing on threads of its own: the network's threads only hand over references to bytes.
//!
//! Each byte of a weight is hashed three times: SHA-256 of the file (what hubs and the index name), BLAKE3 of the file (its
//! pieces) and SHA-256 of the layer. File and layer are hashed by two workers side by side, so that a model of one file
//! uses two cores.

use bytes::Bytes;
use sha2::Digest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use towline_artifact::{FileDigests, PieceHasher, Sha256};
use towline_hub::{HashCheck, HubError, RemoteFile};

/// Bytes handed to a worker at once: enough that waking it costs nothing beside the hashing (0.5 ms of SHA-256).
const BATCH_LEN: usize = 1 << 20;
/// Batches that may wait for a worker; what is more makes the sender wait. With [`BATCH_LEN`] this bounds the memory.
const QUEUE_BATCHES: usize = 4;

/// Consecutive bytes in the portions in which they arrived; clones share them.
pub(crate) type Batch = std::sync::Arc<[Bytes]>;

/// Collects portions into batches.
#[derive(Debug, Default)]
pub(crate) struct Batcher {
    portions: Vec<Bytes>,
    len: usize,
}

impl Batcher {
    /// Takes the next bytes and gives a batch when there is a full one.
    pub(crate) fn push(&mut self, bytes: Bytes) -> Option<Batch> {
        self.len += bytes.len();
        self.portions.push(bytes);
        if self.len < BATCH_LEN { None } else { self.take() }
    }

    /// Whatever is left.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        self.len = 0;
        let portions = std::mem::take(&mut self.portions);
        (!portions.is_empty()).then(|| portions.into())
    }
}

/// A thread that hashes what it is fed. Dropping it before [`Self::finish`] gives the work up.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    queue: mpsc::Sender<Batch>,
    done: JoinHandle<T>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(mpsc::Receiver<Batch>) -> T + Send + 'static) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_BATCHES);
        Self { queue, done: tokio::task::spawn_blocking(move || work(inbox)) }
    }

    /// Hands over the next bytes; waits while the worker is behind.
    pub(crate) async fn feed(&self, batch: Batch) {
        // A worker that is gone has panicked; `finish` carries that on.
        let _ = self.queue.send(batch).await;
    }

    /// The hash of all that was fed.
    pub(crate) async fn finish(self) -> T {
        drop(self.queue);
        match self.done.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Checks a file against its listing and computes its piece digests.
pub(crate) fn file_worker(file: &RemoteFile) -> Worker<Result<FileDigests, HubError>> {
    let mut hash = FileHash::new(file);
    Worker::start(move |mut inbox| {
        while let Some(batch) = inbox.blocking_recv() {
            batch.iter().for_each(|bytes| hash.update(bytes));
        }
        hash.finish()
    })
}

/// Computes the digest of a layer.
pub(crate) fn layer_worker() -> Worker<Sha256> {
    Worker::start(|mut inbox| {
        let mut hash = sha2::Sha256::new();
        while let Some(batch) = inbox.blocking_recv() {
            batch.iter().for_each(|bytes| hash.update(bytes));
        }
        Sha256(hash.finalize().into())
    })
}

/// The two hashes of a file.
struct FileHash {
    check: HashCheck,
    pieces: PieceHasher,
}

impl FileHash {
    fn new(file: &RemoteFile) -> Self {
        Self { check: HashCheck::new(file), pieces: PieceHasher::new() }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.check.update(bytes);
        self.pieces.update(bytes);
    }

    fn finish(self) -> Result<FileDigests, HubError> {
        Ok(FileDigests { sha256: Sha256(self.check.finish()?), table: self.pieces.finish() })
    }
}

/// Checks and hashes a small file here and now.
///
/// # Errors
/// When `bytes` are not what the listing says.
pub(crate) fn hash_small(file: &RemoteFile, bytes: &[u8]) -> Result<FileDigests, HubError> {
    let mut hash = FileHash::new(file);
    hash.update(bytes);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::memory::digest_file;
    use towline_hub::FileHash as Listed;

    fn file(bytes: &[u8], hash: [u8; 32]) -> RemoteFile {
        RemoteFile {
            path: "f".into(),
            size: bytes.len() as u64,
            executable: false,
            hash: Listed::Sha256(hash),
        }
    }

    #[tokio::test]
    async fn workers_hash_what_they_are_fed() {
        let bytes: Vec<u8> = (0..9_000_001u32).map(|n| (n % 251) as u8).collect();
        let expected = digest_file(&bytes);
        for step in [1000, BATCH_LEN - 1, BATCH_LEN, BATCH_LEN + 1, bytes.len()] {
            let of_file = file_worker(&file(&bytes, expected.sha256.0));
            let of_layer = layer_worker();
            let mut batcher = Batcher::default();
            for chunk in bytes.chunks(step) {
                if let Some(batch) = batcher.push(Bytes::copy_from_slice(chunk)) {
                    of_file.feed(batch.clone()).await;
                    of_layer.feed(batch).await;
                }
            }
            if let Some(batch) = batcher.take() {
                of_file.feed(batch.clone()).await;
                of_layer.feed(batch).await;
            }
            assert_eq!(of_file.finish().await.unwrap(), expected);
            assert_eq!(of_layer.finish().await, expected.sha256);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_the_listed_one_has_no_digests() {
        let worker = file_worker(&file(b"right", Sha256::of(b"right").0));
        worker.feed([Bytes::from_static(b"wrong")].into()).await;
        assert!(matches!(worker.finish().await, Err(HubError::WrongHash { .. })));
        assert!(hash_small(&file(b"right", Sha256::of(b"right").0), b"righ").is_err());
    }
}
