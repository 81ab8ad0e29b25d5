//! The thread that makes pieces durable: every so many bytes of a content, and every so often.
//!
//! A content with pieces that are not durable is in the queue, which keeps it (and its descriptor) alive until they
//! are, whether or not somebody still has it open. A content whose checkpoint fails stays and is tried again at the
//! next interval.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towline_artifact::ContentId;

use crate::error::StoreError;
use crate::opened::Opened;
use crate::slot::lock;

/// Contents with pieces that are not durable yet.
#[derive(Debug)]
pub(crate) struct Queue {
    /// A content with this many bytes that are not durable does not wait for the interval.
    threshold: u64,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    dirty: HashMap<ContentId, Arc<Opened>>,
    /// Some content crossed the threshold since the thread last looked.
    urgent: bool,
    /// Nobody will look again: entries would only keep contents alive.
    stopped: bool,
}

impl Queue {
    pub(crate) fn new(threshold: u64) -> Self {
        Self { threshold, waiting: Mutex::default(), changed: Condvar::new() }
    }

    /// Called after `opened` went from `before` to `after` bytes that are not durable.
    pub(crate) fn grew(&self, opened: &Arc<Opened>, before: u64, after: u64) {
        let crossed = before < self.threshold && after >= self.threshold;
        if before > 0 && !crossed {
            return;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.stopped {
            return;
        }
        waiting.dirty.insert(opened.id(), Arc::clone(opened));
        if crossed {
            waiting.urgent = true;
            self.changed.notify_one();
        }
    }

    /// Forgets `opened` if all its pieces are durable. A commit adds its bytes first and enters the queue after, so one
    /// that comes in between is seen here or enters again.
    pub(crate) fn settle(&self, opened: &Opened) {
        let mut waiting = lock(&self.waiting);
        if opened.dirty_bytes() == 0 {
            waiting.dirty.remove(&opened.id());
        }
    }

    /// Forgets a content that is being removed.
    pub(crate) fn forget(&self, id: ContentId) {
        lock(&self.waiting).dirty.remove(&id);
    }

    pub(crate) fn dirty(&self) -> Vec<Arc<Opened>> {
        lock(&self.waiting).dirty.values().cloned().collect()
    }

    /// Checkpoints all that waits; goes on after a failure and returns the first.
    pub(crate) fn checkpoint_all(&self) -> Result<(), StoreError> {
        self.dirty().iter().map(|opened| opened.checkpoint()).fold(Ok(()), Result::and)
    }

    fn stop(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.stopped = true;
        self.changed.notify_all();
    }

    /// Waits for `deadline`, a content above the threshold, or the end. True to go on.
    fn wait(&self, deadline: Instant) -> bool {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.stopped {
                return false;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if std::mem::take(&mut waiting.urgent) || left.is_zero() {
                return true;
            }
            (waiting, _) = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, interval: Duration) {
        let mut next_round = Instant::now() + interval;
        while self.wait(next_round) {
            let round = Instant::now() >= next_round;
            for opened in self.dirty() {
                if round || opened.dirty_bytes() >= self.threshold {
                    // The content counts and logs its failures; it stays queued for the next round.
                    let went_well = opened.checkpoint().is_ok();
                    if went_well && opened.dirty_bytes() >= self.threshold {
                        // That much came in meanwhile: no commit will cross the threshold again.
                        lock(&self.waiting).urgent = true;
                    }
                }
            }
            if round {
                next_round = Instant::now() + interval;
            }
        }
    }
}

/// The running thread; stops and joins when dropped.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpointer {
    pub(crate) fn start(queue: Arc<Queue>, interval: Duration) -> std::io::Result<Self> {
        let work = Arc::clone(&queue);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || work.run(interval))?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread after the checkpoint it is at.
    pub(crate) fn stop(&self) {
        self.queue.stop();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the thread was reported by the panic hook; what it left behind is not durable, no more.
            let _ = thread.join();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop();
        // Contents in the queue hold the queue: break the circle.
        lock(&self.queue.waiting).dirty.clear();
    }
}
