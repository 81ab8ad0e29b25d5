//! What lies ahead, in order of time and, at the same moment, in the order it was put there.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::Time;

#[derive(Debug)]
struct Entry<T>(Time, u64, T);

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest: the heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// A queue by time.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    pushed: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0 }
    }

    pub(crate) fn push(&mut self, when: Time, what: T) {
        self.pushed += 1;
        self.heap.push(Entry(when, self.pushed, what));
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, T)> {
        self.heap.pop().map(|Entry(when, _, what)| (when, what))
    }

    /// How many entries there ever were.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed
    }
}
