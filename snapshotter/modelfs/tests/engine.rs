//! The engine over a real store and sources that misbehave.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use towline_artifact::{ContentId, PIECE_LEN, PieceHasher, PieceIndex, PieceTable};
use towline_modelfs::{
    ContentHandle, Engine, EngineOptions, FetchError, FillId, Limits, Network, PieceSource, PieceStream,
    ReadError,
};
use towline_store::{Store, StoreOptions};

/// What goes wrong with the next fetches, one each.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Flip,
    Short,
    Refuse,
    Silent,
    Extra,
    Panic,
}

#[derive(Default)]
struct Source {
    files: Mutex<HashMap<ContentId, Arc<Vec<u8>>>>,
    faults: Mutex<Vec<Fault>>,
    always: Mutex<Option<Fault>>,
    asked: Mutex<Vec<Range<u64>>>,
    under_way: AtomicU32,
    most_under_way: AtomicU32,
    corrupt: AtomicU64,
}

impl PieceSource for Source {
    fn fetch<'a>(
        &'a self,
        table: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(now, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            self.asked.lock().unwrap().push(bytes.clone());
            let fault = self.faults.lock().unwrap().pop().or(*self.always.lock().unwrap());
            let file = self.files.lock().unwrap().get(&table.content()).cloned();
            let file = file.ok_or(FetchError::NoSource { content: table.content() })?;
            let mut data = file[bytes.start as usize..bytes.end as usize].to_vec();
            match fault {
                Some(Fault::Flip) => *data.last_mut().unwrap() ^= 1,
                Some(Fault::Short) => data.truncate(data.len() - 1),
                Some(Fault::Extra) => data.extend_from_slice(b"more"),
                Some(Fault::Refuse) => {
                    return Err(FetchError::broken("refused".into()));
                }
                Some(Fault::Panic) => panic!("a fault of the test: the source panics"),
                Some(Fault::Silent) => return Ok(Box::pin(stream::pending()) as PieceStream),
                None => {}
            }
            let chunks: Vec<_> = data.chunks(300_007).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            Ok(Box::pin(stream::iter(chunks)) as PieceStream)
        })
    }

    fn corrupt(&self, _: ContentId) {
        self.corrupt.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    source: Arc<Source>,
    engine: Arc<Engine>,
    running: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(read_timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let source = Arc::new(Source::default());
        let limits = Limits {
            backoff: Duration::from_millis(1),
            backoff_max: Duration::from_millis(20),
            ..Limits::default()
        };
        let options = EngineOptions {
            limits,
            memory_bytes: 3 * PIECE_LEN,
            read_timeout,
            idle_timeout: Duration::from_millis(200),
        };
        let engine = Engine::new(store, source.clone(), options);
        let running = tokio::spawn(Arc::clone(&engine).run());
        Self { source, engine, running, _dir: dir }
    }

    fn file(&self, len: u64, seed: u8) -> (Arc<Vec<u8>>, Arc<PieceTable>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect();
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        let (bytes, table) = (Arc::new(bytes), Arc::new(hasher.finish()));
        self.source.files.lock().unwrap().insert(table.content(), Arc::clone(&bytes));
        (bytes, table)
    }

    async fn end(self) {
        self.engine.stop();
        self.running.await.unwrap();
    }
}

const PATIENT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_read_sees_the_files_bytes_whatever_the_source_does() {
    let bench = Bench::new(PATIENT);
    let (bytes, table) = bench.file(7 * PIECE_LEN + 12_345, 1);
    use Fault::{Extra, Flip, Refuse, Short, Silent};
    *bench.source.faults.lock().unwrap() =
        vec![Flip, Short, Refuse, Flip, Extra, Silent, Flip, Short, Refuse];
    let handle = bench.engine.open(&table).unwrap();
    let len = table.file_len();
    let mut readers = Vec::new();
    for n in 0..64u64 {
        let (engine, handle, bytes) = (Arc::clone(&bench.engine), Arc::clone(&handle), Arc::clone(&bytes));
        readers.push(tokio::spawn(async move {
            let offset = n.wrapping_mul(0x9E37_79B9) % (len + 100);
            let size = [1, 4096, 1 << 20, PIECE_LEN as u32, 3][n as usize % 5];
            let got = engine.read(&handle, offset, size).await.unwrap();
            let end = (offset + u64::from(size)).min(len);
            let expected = if offset < end { &bytes[offset as usize..end as usize] } else { &[][..] };
            assert_eq!(got.as_ref(), expected, "{size} bytes at {offset}");
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(bench.source.corrupt.load(Ordering::SeqCst) >= 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_makes_contents_whole_with_one_fetch_per_piece() {
    let bench = Bench::new(PATIENT);
    let (bytes, table) = bench.file(20 * PIECE_LEN, 2);
    let handle = bench.engine.open(&table).unwrap();
    bench.engine.start_fill(&[(Arc::clone(&handle), 0..1), (Arc::clone(&handle), 0..20)]);
    // A reader of the last byte waits for its piece only; the fill brings the rest.
    let got = bench.engine.read(&handle, 20 * PIECE_LEN - 1, 10).await.unwrap();
    assert_eq!(got.as_ref(), &bytes[bytes.len() - 1..]);
    let deadline = std::time::Instant::now() + PATIENT;
    while !handle.content().is_sealed() {
        assert!(std::time::Instant::now() < deadline, "fill does not end");
        tokio::task::yield_now().await;
    }
    let asked: u64 = bench.source.asked.lock().unwrap().iter().map(|range| range.end - range.start).sum();
    assert_eq!(asked, table.file_len(), "each byte once");
    assert_eq!(handle.fetched_bytes(), table.file_len());
    assert!(bench.source.most_under_way.load(Ordering::SeqCst) > 1, "fetches overlap");
    assert!(bench.engine.memory_bytes() <= 3 * PIECE_LEN);
    let local = bench.engine.try_read(&handle, PIECE_LEN - 5, 10).unwrap().unwrap();
    assert_eq!(local.as_ref(), &bytes[PIECE_LEN as usize - 5..PIECE_LEN as usize + 5]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_always_lies_or_fails_ends_in_an_error_never_in_wrong_bytes() {
    for fault in [Fault::Flip, Fault::Short, Fault::Refuse, Fault::Silent, Fault::Panic] {
        let bench = Bench::new(Duration::from_millis(300));
        let (bytes, table) = bench.file(PIECE_LEN + 1, 3);
        *bench.source.always.lock().unwrap() = Some(fault);
        let handle = bench.engine.open(&table).unwrap();
        let result = bench.engine.read(&handle, 0, 100).await;
        assert!(matches!(result, Err(ReadError::TimedOut { .. })), "{fault:?}: {result:?}");
        assert!(handle.last_error().is_some());
        *bench.source.always.lock().unwrap() = None;
        // A fetch may still rest or hang from before; readers come again as programs do.
        let mut healed = bench.engine.read(&handle, 0, 100).await;
        for _ in 0..100 {
            if healed.is_err() {
                healed = bench.engine.read(&handle, 0, 100).await;
            }
        }
        let healed = healed.unwrap();
        assert_eq!(healed.as_ref(), &bytes[..100], "after {fault:?} ends");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_shared_and_given_up() {
    let bench = Bench::new(PATIENT);
    let (_, table) = bench.file(10, 4);
    let (a, b) = (bench.engine.open(&table).unwrap(), bench.engine.open(&table).unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    drop(a);
    bench.engine.forget_unused();
    assert_eq!(bench.engine.read(&b, 0, 10).await.unwrap().as_ref().len(), 10);
    // The reader had the piece from memory; the store gets it behind that.
    while !b.content().is_sealed() {
        tokio::task::yield_now().await;
    }
    drop(b);
    bench.engine.forget_unused();
    assert!(bench.engine.open(&table).unwrap().content().is_sealed(), "from the store");
    let unknown = bench.engine.open(&Arc::new(PieceHasher::new().finish())).unwrap();
    assert!(bench.engine.read(&unknown, 0, 5).await.unwrap().as_ref().is_empty(), "an empty file");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_wakes_readers() {
    let bench = Bench::new(PATIENT);
    let (_, table) = bench.file(10, 5);
    *bench.source.always.lock().unwrap() = Some(Fault::Silent);
    let handle = bench.engine.open(&table).unwrap();
    let (engine, reading) = (Arc::clone(&bench.engine), Arc::clone(&handle));
    let reader = tokio::spawn(async move { engine.read(&reading, 0, 1).await.map(|_| ()) });
    while !bench.engine.is_touched(&handle) {
        tokio::task::yield_now().await;
    }
    bench.end().await;
    assert!(matches!(reader.await.unwrap(), Err(ReadError::Stopping)));
}

/// A network that brings nothing and notes which blocks and which pieces readers want, and from which piece on they are thought to read.
#[derive(Default)]
struct Blocks(Mutex<Vec<(u32, Range<u32>)>>, Mutex<Vec<u32>>, Mutex<Option<u32>>);

impl Network for Blocks {
    fn join(&self, _: &Arc<ContentHandle>) -> bool {
        true
    }
    fn leave(&self, _: ContentId) {}
    fn demand(&self, _: ContentId, pieces: Range<u32>) {
        self.1.lock().unwrap().extend(pieces);
    }
    fn demand_block(&self, _: ContentId, piece: u32, bytes: Range<u32>) {
        self.0.lock().unwrap().push((piece, bytes));
    }
    fn ahead(&self, _: ContentId, pieces: Range<u32>) {
        *self.2.lock().unwrap() = Some(pieces.start);
    }
    fn start_fill(&self, _: FillId, _: Vec<(ContentId, Range<u32>)>) {}
    fn stop_fill(&self, _: FillId) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_served_by_a_block_that_is_proven_and_by_no_other() {
    let (bench, holder) = (Bench::new(PATIENT), Bench::new(PATIENT));
    let blocks = Arc::new(Blocks::default());
    bench.engine.set_network(blocks.clone());
    let (bytes, table) = holder.file(3 * PIECE_LEN, 5);
    let there = holder.engine.open(&table).unwrap();
    holder.engine.read(&there, PIECE_LEN, 1).await.unwrap();
    let here = bench.engine.open(&table).unwrap();
    let at = PIECE_LEN + 8000;
    let read = tokio::spawn({
        let (engine, here) = (Arc::clone(&bench.engine), Arc::clone(&here));
        async move { engine.read(&here, at, 500).await.unwrap().as_ref().to_vec() }
    });
    let wanted = loop {
        if let Some(wanted) = blocks.0.lock().unwrap().first().cloned() {
            break wanted;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(wanted, (1, 4096..12_288), "whole pages around it");
    let (index, block) = (PieceIndex(1), wanted.1);
    let proven = holder.engine.prove(&there, index, &block).unwrap();
    assert!(bench.engine.prove(&here, index, &block).is_none(), "not here");
    assert!(holder.engine.prove(&there, index, &(1..4096)).is_none(), "no block");
    let mut wrong = proven.clone();
    let mut turned = wrong.bytes.to_vec();
    turned[8000 - 4096] ^= 1;
    wrong.bytes = turned.into();
    assert!(bench.engine.take_block(&here, index, &block, wrong).is_err());
    assert!(bench.engine.take_block(&here, PieceIndex(0), &block, proven.clone()).is_err());
    assert!(bench.engine.try_read(&here, at, 500).is_none() && !read.is_finished(), "nobody has seen it");
    bench.engine.take_block(&here, index, &block, proven).unwrap();
    assert_eq!(*blocks.2.lock().unwrap(), None);
    assert_eq!(read.await.unwrap(), &bytes[at as usize..][..500]);
    assert_eq!(here.content().bytes_have(), 0, "it is not stored");
    assert!(bench.engine.try_read(&here, at + 4096, 500).is_none(), "what is beside it is not here");
    // In a piece, at its start, over a border of pieces, longer than a block, and both of these.
    let last = (PIECE_LEN - 4096) as u32;
    for (offset, len, parts, pieces, ahead) in [
        (4096, 1, vec![(0, 4096..8192)], vec![], None),
        (0, 1, vec![(0, 0..4096)], vec![], Some(0)),
        (PIECE_LEN - 1, 2, vec![(0, last..PIECE_LEN as u32), (1, 0..4096)], vec![], Some(1)),
        (0, 200_000, vec![], vec![0], Some(1)),
        (PIECE_LEN - 5, 200_000, vec![(0, last..PIECE_LEN as u32)], vec![1], Some(2)),
    ] {
        *blocks.0.lock().unwrap() = Vec::new();
        let read = bench.engine.read(&here, offset, len);
        assert!(tokio::time::timeout(Duration::from_millis(10), read).await.is_err());
        assert_eq!(*blocks.0.lock().unwrap(), parts);
        assert_eq!(blocks.2.lock().unwrap().take(), ahead, "{len} bytes at {offset}");
        assert_eq!(std::mem::take(&mut *blocks.1.lock().unwrap()), pieces);
    }
    bench.end().await;
    holder.end().await;
}
