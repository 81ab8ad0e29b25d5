//! What readers and fills want, on its way to the task that decides.
//!
//! Those who tell it answer the kernel and must not wait, and what they tell repeats itself: so it is not queued but
//! gathered. Its size is bounded by the pieces that readers wait for and the contents that are open.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use towline_artifact::ContentId;
use towline_modelfs::{ContentHandle, FillId, Network};

/// What changes in which contents there are and what is fetched whole; in the order in which it was told.
#[derive(Debug)]
pub(crate) enum Step {
    Join(Arc<ContentHandle>),
    Leave(ContentId),
    StartFill(u64, Vec<(ContentId, Range<u32>)>),
    StopFill(u64),
}

/// Everything gathered since the last look.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) steps: Vec<Step>,
    pub(crate) demand: HashSet<(ContentId, u32)>,
    /// Parts of pieces.
    pub(crate) blocks: HashSet<(ContentId, u32, Range<u32>)>,
    pub(crate) ahead: HashMap<ContentId, Range<u32>>,
}

/// The engine's side of the peer network.
#[derive(Debug)]
pub(crate) struct Wishes {
    gathered: Mutex<Gathered>,
    told: Notify,
    joined: AtomicUsize,
    max_contents: usize,
}

impl Wishes {
    pub(crate) fn new(max_contents: usize) -> Self {
        Self { gathered: Mutex::default(), told: Notify::new(), joined: AtomicUsize::new(0), max_contents }
    }

    /// Waits until something was told.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// Takes what was told.
    pub(crate) fn take(&self) -> Gathered {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, step: Step) {
        self.lock().steps.push(step);
        self.told.notify_one();
    }
}

impl Network for Wishes {
    fn join(&self, content: &Arc<ContentHandle>) -> bool {
        let room = |joined: usize| (joined < self.max_contents).then_some(joined + 1);
        if self.joined.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            tracing::warn!(content = %content.content().id(), limit = self.max_contents, "content is fetched without peers");
            return false;
        }
        self.step(Step::Join(Arc::clone(content)));
        true
    }

    fn leave(&self, content: ContentId) {
        self.joined.fetch_sub(1, Ordering::Relaxed);
        self.step(Step::Leave(content));
    }

    fn demand(&self, content: ContentId, pieces: Range<u32>) {
        self.lock().demand.extend(pieces.map(|piece| (content, piece)));
        self.told.notify_one();
    }

    fn demand_block(&self, content: ContentId, piece: u32, bytes: Range<u32>) {
        self.lock().blocks.insert((content, piece, bytes));
        self.told.notify_one();
    }

    fn ahead(&self, content: ContentId, pieces: Range<u32>) {
        self.lock().ahead.insert(content, pieces);
        self.told.notify_one();
    }

    fn start_fill(&self, id: FillId, parts: Vec<(ContentId, Range<u32>)>) {
        self.step(Step::StartFill(id.number(), parts));
    }

    fn stop_fill(&self, id: FillId) {
        self.step(Step::StopFill(id.number()));
    }
}
