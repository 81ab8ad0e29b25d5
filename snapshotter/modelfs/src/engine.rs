//! Acts on the schedule: asks sources, verifies, hands pieces to readers and to the store.
//!
//! One dispatcher task starts runs; each run is a task of its own and holds at most two pieces in memory: the one it
//! receives and the one being verified and written on the blocking pool. A verified piece is in memory for readers
//! before it is written. Lock order: `state` before `cache`; neither is held across an await or disk access.

mod blocks;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, Corrupt, PieceIndex, PieceTable, VerifiedPiece};
use towline_store::{Content, Store, StoreError};

use crate::cache::PieceCache;
use crate::fill::FillId;
use crate::network::{Network, PieceBytes, Supplier};
use crate::read::{ReadBytes, ReadError};
use crate::schedule::{Limits, Run, Schedule, Slot};
use crate::source::{FetchError, PieceSource};

pub use blocks::ProvenBlock;

/// How long the fill pauses after the store was full.
const STORE_FULL_PAUSE: Duration = Duration::from_secs(30);

/// Bounds of the engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bounds of what is under way.
    pub limits: Limits,
    /// Bytes of verified pieces kept in memory for readers.
    pub memory_bytes: u64,
    /// How long a read waits for bytes before it fails.
    pub read_timeout: Duration,
    /// The longest silence of a source within a run.
    pub idle_timeout: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            memory_bytes: 256 << 20,
            read_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Bytes received from sources, verified or not.
    pub fetched_bytes: AtomicU64,
    /// Bytes of verified pieces that came from peers.
    pub peer_bytes: AtomicU64,
    /// Pieces that did not match their digest.
    pub corrupt_pieces: AtomicU64,
    /// Runs that failed.
    pub failed_runs: AtomicU64,
    /// Runs that were started.
    pub runs: AtomicU64,
    /// Pieces the store could not take.
    pub unstored_pieces: AtomicU64,
    /// Reads that gave up waiting.
    pub timed_out_reads: AtomicU64,
}

/// A read that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A content that can be read and fetched.
#[derive(Debug)]
pub struct ContentHandle {
    slot: Slot,
    content: Arc<Content>,
    arrived: Notify,
    /// Reads that wait for pieces.
    waiting: AtomicUsize,
    fetched_bytes: AtomicU64,
    peer_bytes: AtomicU64,
    /// Whether the network brings its pieces, not the schedule.
    networked: bool,
    /// When a read last asked for a piece that was not there; the fill is to run from the first such read.
    touched: std::sync::OnceLock<Instant>,
    last_error: Mutex<Option<String>>,
}

impl ContentHandle {
    /// The content in the store.
    #[must_use]
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// Bytes received for this content since the daemon started.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of verified pieces that came from peers since the daemon started.
    #[must_use]
    pub fn peer_bytes(&self) -> u64 {
        self.peer_bytes.load(Ordering::Relaxed)
    }

    /// Notes how a fetch ended that the engine did not make itself.
    pub fn note_fetch(&self, error: Option<String>) {
        *lock(&self.last_error) = error;
    }

    /// What the last failed fetch said, unless one succeeded after it.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// The digests of its pieces.
    #[must_use]
    pub fn table(&self) -> &Arc<PieceTable> {
        self.content.table()
    }
}

struct State {
    schedule: Schedule,
    by_slot: HashMap<Slot, Arc<ContentHandle>>,
    by_id: HashMap<ContentId, Weak<ContentHandle>>,
}

/// Fetches, verifies and serves the contents of a node.
pub struct Engine {
    store: Store,
    source: Arc<dyn PieceSource>,
    network: std::sync::OnceLock<Arc<dyn Network>>,
    options: EngineOptions,
    state: Mutex<State>,
    cache: Mutex<PieceCache>,
    wake: Notify,
    stop: CancellationToken,
    stats: EngineStats,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its state sound at each step, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// An engine over `store` that asks `source`. Nothing is fetched before [`Self::run`] runs.
    #[must_use]
    pub fn new(store: Store, source: Arc<dyn PieceSource>, options: EngineOptions) -> Arc<Self> {
        let state =
            State { schedule: Schedule::new(options.limits), by_slot: HashMap::new(), by_id: HashMap::new() };
        Arc::new(Self {
            store,
            source,
            network: std::sync::OnceLock::new(),
            options,
            state: Mutex::new(state),
            cache: Mutex::new(PieceCache::new(options.memory_bytes)),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            stats: EngineStats::default(),
        })
    }

    /// Lets `network` bring the pieces of all contents that are opened from now on and for which it has room.
    ///
    /// # Panics
    /// When called a second time.
    pub fn set_network(&self, network: Arc<dyn Network>) {
        assert!(self.network.set(network).is_ok(), "an engine has one network");
    }

    /// The store behind the engine.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Bytes of pieces in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        lock(&self.cache).held_bytes()
    }

    /// Runs under way.
    #[must_use]
    pub fn runs_under_way(&self) -> usize {
        lock(&self.state).schedule.under_way()
    }

    /// Opens a content for reading and fetching; the same content gives the same handle. Touches the disk.
    ///
    /// # Errors
    /// What [`Store::content`] says.
    pub fn open(&self, table: &Arc<PieceTable>) -> Result<Arc<ContentHandle>, StoreError> {
        let content = self.store.content(Arc::clone(table))?;
        if content.is_complete() && !content.is_sealed() {
            content.seal()?;
        }
        let mut state = lock(&self.state);
        if let Some(handle) = state.by_id.get(&table.content()).and_then(Weak::upgrade) {
            return Ok(handle);
        }
        let stored = (0..content.piece_count()).map(|n| content.has(PieceIndex(n)));
        let slot = state.schedule.add(stored);
        let make = |networked| {
            Arc::new(ContentHandle {
                slot,
                content: Arc::clone(&content),
                arrived: Notify::new(),
                waiting: AtomicUsize::new(0),
                fetched_bytes: AtomicU64::new(0),
                peer_bytes: AtomicU64::new(0),
                networked,
                touched: std::sync::OnceLock::new(),
                last_error: Mutex::new(None),
            })
        };
        let networked = self.network.get().map(|network| (network, make(true)));
        let joined = networked.filter(|(network, handle)| network.join(handle)).map(|(_, handle)| handle);
        let handle = joined.unwrap_or_else(|| make(false));
        state.by_id.insert(table.content(), Arc::downgrade(&handle));
        state.by_slot.insert(slot, Arc::clone(&handle));
        Ok(handle)
    }

    /// Gives up the engine's hold on contents that nobody else holds and for which nothing is under way.
    pub fn forget_unused(&self) {
        let mut state = lock(&self.state);
        let State { schedule, by_slot, by_id } = &mut *state;
        let mut cache = lock(&self.cache);
        by_slot.retain(|&slot, handle| {
            let keep = Arc::strong_count(handle) > 1 || !schedule.is_idle(slot);
            if !keep {
                if handle.networked
                    && let Some(network) = self.network.get()
                {
                    network.leave(handle.content.id());
                }
                schedule.remove(slot);
                cache.remove_slot(slot);
                by_id.remove(&handle.content.id());
            }
            keep
        });
    }

    /// Fetches all of `parts` behind what readers ask for.
    pub fn start_fill(&self, parts: &[(Arc<ContentHandle>, Range<u32>)]) -> FillId {
        let (theirs, ours): (Vec<_>, Vec<_>) = parts.iter().partition(|(handle, _)| handle.networked);
        let ours: Vec<_> = ours.into_iter().map(|(handle, range)| (handle.slot, range.clone())).collect();
        let id = FillId(lock(&self.state).schedule.add_fill(ours));
        if let Some(network) = self.network.get() {
            let within = |(handle, range): &(Arc<ContentHandle>, Range<u32>)| {
                (handle.content.id(), range.start..range.end.min(handle.content.piece_count()))
            };
            network.start_fill(id, theirs.into_iter().map(within).collect());
        }
        self.wake.notify_one();
        id
    }

    /// Ends a fill; what is under way arrives all the same.
    pub fn stop_fill(&self, id: FillId) {
        lock(&self.state).schedule.remove_fill(id.0);
        if let Some(network) = self.network.get() {
            network.stop_fill(id);
        }
    }

    /// Reads without waiting for any network: `None` when a byte is not here.
    ///
    /// `offset` and `len` may reach past the end of the file; what lies beyond is left out.
    #[must_use]
    pub fn try_read(
        &self,
        handle: &ContentHandle,
        offset: u64,
        len: u32,
    ) -> Option<Result<ReadBytes, ReadError>> {
        let end = offset.saturating_add(u64::from(len)).min(handle.content.len());
        if offset >= end {
            return Some(Ok(ReadBytes::Owned(Vec::new())));
        }
        let (first, last) = (PieceIndex::containing(offset), PieceIndex::containing(end - 1));
        if first == last
            && let Some(piece) = lock(&self.cache).get(handle.slot, first)
        {
            let from = usize::try_from(offset - first.offset()).expect("within a piece");
            let to = usize::try_from(end - first.offset()).expect("within a piece");
            return Some(Ok(ReadBytes::Memory(piece.bytes().slice(from..to))));
        }
        if (first.0..=last.0).all(|n| handle.content.has(PieceIndex(n))) {
            let mut bytes = vec![0; usize::try_from(end - offset).expect("at most a u32")];
            return match handle.content.read_at(offset, &mut bytes) {
                // A failed sync took the piece back since the look at its bit: it is fetched again, as if never there.
                Err(StoreError::Missing { .. }) => None,
                read => Some(read.map(|()| ReadBytes::Owned(bytes)).map_err(ReadError::Store)),
            };
        }
        if first != last {
            return self.read_pieces(handle, offset, end);
        }
        let (start, end) = (offset - first.offset(), end - first.offset());
        let block = lock(&self.cache).block(handle.slot, first, start..end)?;
        Some(Ok(ReadBytes::Memory(block)))
    }

    /// A read over a border of pieces of which some are only in memory.
    fn read_pieces(
        &self,
        handle: &ContentHandle,
        offset: u64,
        end: u64,
    ) -> Option<Result<ReadBytes, ReadError>> {
        let mut bytes = Vec::with_capacity(usize::try_from(end - offset).ok()?);
        let mut at = offset;
        while at < end {
            let index = PieceIndex::containing(at);
            let piece_end = (index.offset() + handle.table().piece_len(index).get()).min(end);
            let len = u32::try_from(piece_end - at).expect("at most a piece");
            match self.try_read(handle, at, len)? {
                Ok(part) => bytes.extend_from_slice(part.as_ref()),
                Err(error) => return Some(Err(error)),
            }
            at = piece_end;
        }
        Some(Ok(ReadBytes::Owned(bytes)))
    }

    /// Tells where a reader is, so that what follows is fetched before it asks.
    pub fn reader_at(&self, handle: &ContentHandle, offset: u64) {
        if handle.content.is_complete() || offset >= handle.content.len() {
            return;
        }
        if let Some(network) = self.network_of(handle) {
            self.ahead(network, handle, PieceIndex::containing(offset).0 + 1);
        } else {
            lock(&self.state).schedule.reader_at(handle.slot, PieceIndex::containing(offset).0);
            self.wake.notify_one();
        }
    }

    /// Tells the network that a reader comes near `first` and what follows it.
    fn ahead(&self, network: &Arc<dyn Network>, handle: &ContentHandle, first: u32) {
        let end = first.saturating_add(self.options.limits.window_pieces).min(handle.content.piece_count());
        network.ahead(handle.content.id(), first.min(end)..end);
    }

    /// Whether a read has asked for bytes of this content that were not there.
    #[must_use]
    pub fn is_touched(&self, handle: &ContentHandle) -> bool {
        handle.touched.get().is_some()
    }

    /// Reads, waiting for pieces until the read timeout.
    ///
    /// # Errors
    /// [`ReadError`]; failed fetches are tried again while the reader waits and do not fail the read by themselves.
    pub async fn read(&self, handle: &ContentHandle, offset: u64, len: u32) -> Result<ReadBytes, ReadError> {
        let started = Instant::now();
        handle.touched.get_or_init(|| started);
        let deadline = tokio::time::sleep(self.options.read_timeout);
        tokio::pin!(deadline);
        if let Some(result) = self.try_read(handle, offset, len) {
            return result;
        }
        let _waiting = Waiting::new(&handle.waiting);
        loop {
            let arrived = handle.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(result) = self.try_read(handle, offset, len) {
                return result;
            }
            self.demand(handle, offset, len);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(ReadError::Stopping),
                () = &mut deadline => {
                    self.stats.timed_out_reads.fetch_add(1, Ordering::Relaxed);
                    return Err(ReadError::TimedOut { waited: started.elapsed() });
                }
                () = arrived => {}
            }
        }
    }

    fn network_of(&self, handle: &ContentHandle) -> Option<&Arc<dyn Network>> {
        self.network.get().filter(|_| handle.networked)
    }

    fn demand(&self, handle: &ContentHandle, offset: u64, len: u32) {
        let end = offset.saturating_add(u64::from(len)).min(handle.content.len());
        let (first, last) = (PieceIndex::containing(offset), PieceIndex::containing(end - 1));
        if let Some(network) = self.network_of(handle) {
            return self.demand_of(network, handle, offset..end);
        }
        let mut state = lock(&self.state);
        for piece in first.0..=last.0 {
            if !handle.content.has(PieceIndex(piece)) {
                state.schedule.lost(handle.slot, piece);
                state.schedule.demand(handle.slot, piece);
            }
        }
        state.schedule.reader_at(handle.slot, last.0);
        drop(state);
        self.wake.notify_one();
    }

    /// Starts runs until [`Self::stop`]; then ends those under way.
    pub async fn run(self: Arc<Self>) {
        let mut runs = JoinSet::new();
        loop {
            let now = Instant::now();
            let deadline = {
                let mut state = lock(&self.state);
                while let Some(run) = state.schedule.next(now) {
                    let handle = Arc::clone(&state.by_slot[&run.slot]);
                    let engine = Arc::clone(&self);
                    runs.spawn(async move { engine.fetch(run, handle).await });
                }
                state.schedule.next_deadline(now)
            };
            let rest = deadline.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
            while runs.try_join_next().is_some() {}
        }
        runs.shutdown().await;
    }

    /// Ends the dispatcher; waiting reads fail.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    async fn fetch(self: &Arc<Self>, run: Run, handle: Arc<ContentHandle>) {
        self.stats.runs.fetch_add(1, Ordering::Relaxed);
        // A panic on what a source sent ends the run, not its place in the schedule: its readers would wait for ever.
        let fetched = AssertUnwindSafe(self.fetch_from_origin(&handle, run.pieces.clone(), || {}, |_, _| {}))
            .catch_unwind()
            .await;
        let result = fetched.unwrap_or_else(|_| Err(FetchError::broken("fetch panicked".to_owned())));
        let now = Instant::now();
        let rest = result.as_ref().err().and_then(FetchError::retry_after);
        let wait = lock(&self.state).schedule.ended(&run, result.is_err(), now, rest);
        *lock(&handle.last_error) = match &result {
            Ok(()) => None,
            Err(error) => {
                self.stats.failed_runs.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    content = %handle.content.id(), piece = run.pieces.start, cause = ?run.cause, %error,
                    wait_ms = wait.as_millis() as u64, "fetch failed, will be tried again"
                );
                Some(error.to_string())
            }
        };
        // Readers whose piece did not come must ask again.
        handle.arrived.notify_waiters();
        self.wake.notify_one();
    }

    /// Fetches consecutive pieces, at least one, from the origin, and takes them, each while the next one is received.
    ///
    /// `progress` is called as bytes come. `taken` hears of each piece as of [`Self::take`].
    ///
    /// # Errors
    /// What the source says, [`FetchError::Short`], and [`FetchError::Corrupt`] for the first piece that did not match. The
    /// pieces before it are taken.
    pub async fn fetch_from_origin(
        self: &Arc<Self>,
        handle: &Arc<ContentHandle>,
        pieces: Range<u32>,
        mut progress: impl FnMut(),
        taken: impl Fn(PieceIndex, &Result<bool, Corrupt>) + Clone + Send + 'static,
    ) -> Result<(), FetchError> {
        let table = handle.table();
        let last = PieceIndex(pieces.end - 1);
        let bytes = PieceIndex(pieces.start).offset()..last.offset() + table.piece_len(last).get();
        let asking = self.source.fetch(table, bytes.clone());
        let mut stream = self.in_time(asking).await??;
        let mut missing = bytes.end - bytes.start;
        let mut chunk = Bytes::new();
        let mut being_taken = None;
        for index in pieces.map(PieceIndex) {
            let mut assembly = Assembly::new(table, index);
            while !assembly.take(&mut chunk) {
                chunk = self.in_time(stream.next()).await?.ok_or(FetchError::Short { missing })??;
                self.stats.fetched_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                handle.fetched_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                missing = missing.saturating_sub(chunk.len() as u64);
                progress();
            }
            let (taken, bytes) = (taken.clone(), assembly.bytes.into());
            let taking = self.take(handle, index, bytes, Supplier::Origin, move |piece| taken(index, piece));
            if let Some(previous) = being_taken.replace(taking) {
                join(previous).await?;
            }
        }
        if let Some(last) = being_taken {
            join(last).await?;
        }
        Ok(())
    }

    async fn in_time<T>(&self, wait: impl Future<Output = T>) -> Result<T, FetchError> {
        let limit = self.options.idle_timeout;
        let silent = || FetchError::broken(format!("source was silent for {} s", limit.as_secs()));
        tokio::time::timeout(limit, wait).await.map_err(|_| silent())
    }

    /// Takes a received piece, on a thread that may block: verifies it, shows it to readers, writes it, seals the content after
    /// the last one.
    ///
    /// `taken` hears on that thread how it went, before the content is sealed, which may wait for the disk for seconds: true,
    /// or false if the store could not take the piece, which is then in memory only, and not for long. [`Corrupt`]: nobody has
    /// seen the bytes, and the registry that sent them, if it was one, is no longer asked first. That all is done whether
    /// anybody waits for the handle or not.
    pub fn take(
        self: &Arc<Self>,
        handle: &Arc<ContentHandle>,
        index: PieceIndex,
        bytes: Bytes,
        from: Supplier,
        taken: impl FnOnce(&Result<bool, Corrupt>) + Send + 'static,
    ) -> JoinHandle<Result<(), Corrupt>> {
        let (engine, handle) = (Arc::clone(self), Arc::clone(handle));
        tokio::task::spawn_blocking(move || {
            let delivered = engine.deliver(&handle, index, bytes, from);
            taken(&delivered);
            delivered?;
            engine.finish(&handle);
            Ok(())
        })
    }

    /// Seals a content that is complete; does nothing otherwise.
    fn finish(&self, handle: &ContentHandle) {
        if !handle.content.is_complete() || handle.content.is_sealed() {
            return;
        }
        let (id, len) = (handle.content.id(), handle.content.len());
        match handle.content.seal() {
            Ok(()) => tracing::info!(content = %id, len, "content is complete"),
            Err(error) => tracing::error!(content = %id, %error, "content could not be sealed"),
        }
    }

    fn deliver(
        &self,
        handle: &ContentHandle,
        index: PieceIndex,
        bytes: Bytes,
        from: Supplier,
    ) -> Result<bool, Corrupt> {
        let id = handle.content.id();
        let len = bytes.len() as u64;
        let piece = match handle.table().verify(index, bytes) {
            Ok(piece) => piece,
            Err(corrupt) => {
                self.stats.corrupt_pieces.fetch_add(1, Ordering::Relaxed);
                if from == Supplier::Origin {
                    self.source.corrupt(id);
                }
                return Err(corrupt);
            }
        };
        if from == Supplier::Peer {
            self.stats.peer_bytes.fetch_add(len, Ordering::Relaxed);
            handle.peer_bytes.fetch_add(len, Ordering::Relaxed);
        }
        // Readers have a piece before the disk has it. Others are not kept in memory when the disk has them.
        let waited = handle.waiting.load(Ordering::SeqCst) > 0;
        if waited {
            lock(&self.cache).insert(handle.slot, piece.clone());
            handle.arrived.notify_waiters();
        }
        let stored = self.store_piece(handle, &piece);
        if !waited {
            if !stored {
                lock(&self.cache).insert(handle.slot, piece.clone());
            }
            handle.arrived.notify_waiters();
        }
        lock(&self.state).schedule.delivered(handle.slot, piece.index().0, stored);
        Ok(stored)
    }

    /// A piece that is here, to be sent to a peer.
    #[must_use]
    pub fn piece(&self, handle: &ContentHandle, index: PieceIndex) -> Option<PieceBytes> {
        let stored = handle.content.file_with(index).map(PieceBytes::File);
        stored.or_else(|| lock(&self.cache).get(handle.slot, index).map(PieceBytes::Memory))
    }

    fn store_piece(&self, handle: &ContentHandle, piece: &VerifiedPiece) -> bool {
        let Err(error) = handle.content.commit(piece) else { return true };
        if self.stats.unstored_pieces.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(%error, "store cannot take pieces; reads are served from memory");
        }
        lock(&self.state).schedule.store_full(Instant::now() + STORE_FULL_PAUSE);
        false
    }
}

async fn join(taking: JoinHandle<Result<(), Corrupt>>) -> Result<(), FetchError> {
    match taking.await {
        Ok(taken) => Ok(taken?),
        Err(panic) => Err(FetchError::broken(format!("piece could not be taken: {panic}"))),
    }
}

/// A piece whose bytes are arriving.
struct Assembly {
    len: NonZeroU64,
    bytes: Vec<u8>,
}

impl Assembly {
    fn new(table: &PieceTable, index: PieceIndex) -> Self {
        let len = table.piece_len(index);
        Self { len, bytes: Vec::with_capacity(usize::try_from(len.get()).expect("at most a piece")) }
    }

    /// Takes from the front of `chunk`; true when the piece is full.
    fn take(&mut self, chunk: &mut Bytes) -> bool {
        let room = usize::try_from(self.len.get()).expect("at most a piece") - self.bytes.len();
        let part = chunk.split_to(room.min(chunk.len()));
        self.bytes.extend_from_slice(&part);
        self.bytes.len() as u64 == self.len.get()
    }
}
