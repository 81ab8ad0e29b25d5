//! Which pieces to ask for next. Pure: a function of what was asked, what is there and the time given.
//!
//! Three reasons to fetch, in this order: a reader waits (demand), a reader will soon want it (ahead), the model is to
//! become whole (fill). Demand may use every place for a run; ahead and fill leave some free, so that a read never
//! queues behind a full pipe of its own node's prefetching.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Names a content within the schedule.
pub type Slot = u32;

/// Bounds of what is under way.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Runs under way at once, for all reasons.
    pub runs: usize,
    /// Of these, places that only demand may use.
    pub reserved_for_demand: usize,
    /// The most pieces of a run.
    pub run_pieces: u32,
    /// Pieces ahead of a reader that are asked for before the fill.
    pub window_pieces: u32,
    /// First wait after a failed run; doubles with each failure in a row.
    pub backoff: Duration,
    /// The longest wait after a failed run.
    pub backoff_max: Duration,
}

impl Default for Limits {
    /// 16 runs of 2 pieces: 128 MiB under way, which at 20 ms per request still allows 6 GB/s. A window of 128 MiB.
    fn default() -> Self {
        Self {
            runs: 16,
            reserved_for_demand: 4,
            run_pieces: 2,
            window_pieces: 32,
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// A fill rests once as many of its runs in a row have failed, and twice as long for each as many more. A model may
/// have 100 000 contents, and if each only rested for itself, a registry that refuses would be asked without a pause.
const FILL_PATIENCE: u32 = 16;
/// The longest rest of a fill. Readers do not wait for it.
const FILL_REST_MAX: Duration = Duration::from_secs(60);

/// Why a run is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A reader waits for its first piece.
    Demand,
    /// A reader is close before it.
    Ahead,
    /// Nobody asked for it yet.
    Fill,
}

/// Consecutive pieces of one content to be fetched in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The content.
    pub slot: Slot,
    /// Half-open, not empty.
    pub pieces: Range<u32>,
    /// Why.
    pub cause: Cause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Missing,
    UnderWay,
    /// Delivered to readers, but the store could not take it.
    Unstored,
    Stored,
}

#[derive(Debug)]
struct Content {
    pieces: Vec<Piece>,
    /// Pieces before this one are all stored or under way; where the search for the next begins.
    first_missing: u32,
    ahead: Range<u32>,
    failures: u32,
    not_before: Option<Instant>,
    /// The fill that asked for pieces of it last.
    filled_by: Option<u64>,
}

#[derive(Debug)]
struct Fill {
    id: u64,
    /// Its failed runs since the last one that went well, and how long it rests for them.
    failures: u32,
    not_before: Option<Instant>,
    /// What is still to be looked at, in order.
    parts: VecDeque<(Slot, Range<u32>)>,
}

/// The state of all fetching on a node.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    contents: Vec<Option<Content>>,
    /// Places in `contents` that are empty.
    free: Vec<Slot>,
    demand: VecDeque<(Slot, u32)>,
    ahead: VecDeque<Slot>,
    fills: VecDeque<Fill>,
    next_fill: u64,
    under_way: usize,
    store_full_until: Option<Instant>,
}

impl Schedule {
    /// A schedule that knows no contents.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            contents: Vec::new(),
            free: Vec::new(),
            demand: VecDeque::new(),
            ahead: VecDeque::new(),
            fills: VecDeque::new(),
            next_fill: 0,
            under_way: 0,
            store_full_until: None,
        }
    }

    /// Adds a content of which `stored` says, piece by piece, what the store has.
    pub fn add(&mut self, stored: impl Iterator<Item = bool>) -> Slot {
        let pieces = stored.map(|has| if has { Piece::Stored } else { Piece::Missing }).collect();
        let content =
            Content { pieces, first_missing: 0, ahead: 0..0, failures: 0, not_before: None, filled_by: None };
        // A model may have 100 000 contents, so the empty places are remembered, not searched for.
        let slot = self.free.pop().unwrap_or_else(|| {
            self.contents.push(None);
            Slot::try_from(self.contents.len() - 1).expect("contents are bounded by the models on a node")
        });
        self.contents[slot as usize] = Some(content);
        slot
    }

    /// Forgets a content. It must have no run under way; see [`Self::is_idle`].
    pub fn remove(&mut self, slot: Slot) {
        debug_assert!(self.is_idle(slot));
        if self.contents.get_mut(slot as usize).and_then(Option::take).is_none() {
            return;
        }
        self.free.push(slot);
        self.demand.retain(|entry| entry.0 != slot);
        self.ahead.retain(|&entry| entry != slot);
        for fill in &mut self.fills {
            fill.parts.retain(|part| part.0 != slot);
        }
    }

    /// Whether no run of the content is under way.
    #[must_use]
    pub fn is_idle(&self, slot: Slot) -> bool {
        self.content(slot).is_none_or(|content| !content.pieces.contains(&Piece::UnderWay))
    }

    /// A reader waits for `piece`. Asking again while it waits changes nothing; the engine asks again after a failure.
    pub fn demand(&mut self, slot: Slot, piece: u32) {
        if self.state(slot, piece).is_some_and(|state| matches!(state, Piece::Missing | Piece::Unstored))
            && !self.demand.contains(&(slot, piece))
        {
            self.demand.push_back((slot, piece));
        }
    }

    /// A reader has read up to the end of `piece`: what follows will be wanted soon.
    pub fn reader_at(&mut self, slot: Slot, piece: u32) {
        let window = self.limits.window_pieces;
        let Some(content) = self.content_mut(slot) else { return };
        let end = content.pieces.len() as u32;
        content.ahead =
            piece.saturating_add(1).min(end)..piece.saturating_add(1).saturating_add(window).min(end);
        if !self.ahead.contains(&slot) {
            self.ahead.push_back(slot);
        }
    }

    /// Asks for all of `parts`, in order, after everything readers want. Fills of different models share the line.
    ///
    /// What lies beyond the end of a content is left out: lengths come from strangers, and an empty file has no head.
    pub fn add_fill(&mut self, parts: impl IntoIterator<Item = (Slot, Range<u32>)>) -> u64 {
        let id = self.next_fill;
        self.next_fill += 1;
        let within = |(slot, range): (Slot, Range<u32>)| {
            let count = self.content(slot)?.pieces.len() as u32;
            Some((slot, range.start..range.end.min(count)))
        };
        let parts = parts.into_iter().filter_map(within).collect();
        self.fills.push_back(Fill { id, failures: 0, not_before: None, parts });
        id
    }

    /// Ends a fill; what is under way arrives all the same.
    pub fn remove_fill(&mut self, id: u64) {
        self.fills.retain(|fill| fill.id != id);
    }

    /// The next run to start, if one may start now. It counts as under way from here on.
    pub fn next(&mut self, now: Instant) -> Option<Run> {
        if self.under_way >= self.limits.runs {
            return None;
        }
        let run = self.next_demand(now).or_else(|| {
            if self.under_way + self.limits.reserved_for_demand >= self.limits.runs {
                return None;
            }
            self.next_ahead(now).or_else(|| self.next_fill(now))
        })?;
        let content = self.content_mut(run.slot).expect("runs are made of known contents");
        for piece in run.pieces.clone() {
            content.pieces[piece as usize] = Piece::UnderWay;
        }
        self.under_way += 1;
        Some(run)
    }

    /// A piece of a run arrived and was verified. `stored` tells whether the store has it.
    pub fn delivered(&mut self, slot: Slot, piece: u32, stored: bool) {
        let Some(content) = self.content_mut(slot) else { return };
        content.pieces[piece as usize] = if stored { Piece::Stored } else { Piece::Unstored };
        content.failures = 0;
        content.not_before = None;
    }

    /// The store does not have a piece after all: it took it back when the disk refused to make it durable.
    pub fn lost(&mut self, slot: Slot, piece: u32) {
        if self.state(slot, piece) == Some(Piece::Stored)
            && let Some(content) = self.content_mut(slot)
        {
            content.pieces[piece as usize] = Piece::Missing;
            content.first_missing = content.first_missing.min(piece);
        }
    }

    /// The store could not take a piece: no fill until `retry`.
    pub fn store_full(&mut self, retry: Instant) {
        self.store_full_until = Some(retry);
    }

    /// A run ended. Its pieces that were not delivered are missing again; after a failure the content rests a while.
    ///
    /// `rest` is what the source asked for, if anything. Returns how long the content rests.
    pub fn ended(&mut self, run: &Run, failed: bool, now: Instant, rest: Option<Duration>) -> Duration {
        self.under_way -= 1;
        let limits = self.limits;
        let Some(content) = self.content_mut(run.slot) else { return Duration::ZERO };
        for piece in run.pieces.clone() {
            let state = &mut content.pieces[piece as usize];
            if *state == Piece::UnderWay {
                *state = Piece::Missing;
                content.first_missing = content.first_missing.min(piece);
            }
        }
        if run.cause == Cause::Fill
            && let Some(id) = content.filled_by
        {
            self.fill_ended(id, failed, now);
        }
        if !failed {
            return Duration::ZERO;
        }
        let Some(content) = self.content_mut(run.slot) else { return Duration::ZERO };
        let doubled = limits.backoff.saturating_mul(1 << content.failures.min(16));
        content.failures += 1;
        let wait =
            doubled.max(rest.unwrap_or_default()).min(limits.backoff_max.max(rest.unwrap_or_default()));
        content.not_before = Some(now + wait);
        wait
    }

    fn fill_ended(&mut self, id: u64, failed: bool, now: Instant) {
        let Some(fill) = self.fills.iter_mut().find(|fill| fill.id == id) else { return };
        fill.failures = if failed { fill.failures.saturating_add(1) } else { 0 };
        let rounds = fill.failures / FILL_PATIENCE;
        let rest = self.limits.backoff.saturating_mul(1 << rounds.min(16)).min(FILL_REST_MAX);
        fill.not_before = (rounds > 0).then(|| now + rest);
    }

    /// When something may start that may not now: the end of the earliest rest.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let rests = self.contents.iter().flatten().filter_map(|content| content.not_before);
        let fills = self.fills.iter().filter_map(|fill| fill.not_before);
        rests.chain(fills).chain(self.store_full_until).filter(|&at| at > now).min()
    }

    /// Runs under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether a run of this content failed last, and it rests.
    #[must_use]
    pub fn is_resting(&self, slot: Slot) -> bool {
        self.content(slot).is_some_and(|content| content.failures > 0)
    }

    fn content(&self, slot: Slot) -> Option<&Content> {
        self.contents.get(slot as usize)?.as_ref()
    }

    fn content_mut(&mut self, slot: Slot) -> Option<&mut Content> {
        self.contents.get_mut(slot as usize)?.as_mut()
    }

    fn state(&self, slot: Slot, piece: u32) -> Option<Piece> {
        self.content(slot)?.pieces.get(piece as usize).copied()
    }

    fn may_start(&self, slot: Slot, now: Instant) -> bool {
        self.content(slot).is_some_and(|content| content.not_before.is_none_or(|at| at <= now))
    }

    /// The oldest demand whose content does not rest, with the demands for the pieces right behind it.
    fn next_demand(&mut self, now: Instant) -> Option<Run> {
        let mut waiting = std::mem::take(&mut self.demand);
        waiting.retain(|&(slot, piece)| {
            matches!(self.state(slot, piece), Some(Piece::Missing | Piece::Unstored))
        });
        self.demand = waiting;
        let at = self.demand.iter().position(|&(slot, _)| self.may_start(slot, now))?;
        let (slot, first) = self.demand.remove(at).expect("a position in the queue");
        let mut end = first + 1;
        while end - first < self.limits.run_pieces {
            let Some(at) = self.demand.iter().position(|&entry| entry == (slot, end)) else { break };
            self.demand.remove(at);
            end += 1;
        }
        Some(Run { slot, pieces: first..end, cause: Cause::Demand })
    }

    /// What follows a reader, one reader after the other.
    fn next_ahead(&mut self, now: Instant) -> Option<Run> {
        for _ in 0..self.ahead.len() {
            let slot = self.ahead.pop_front().expect("counted");
            let rests = !self.may_start(slot, now);
            let run_pieces = self.limits.run_pieces;
            let Some(content) = self.content_mut(slot) else { continue };
            if rests {
                self.ahead.push_back(slot);
                continue;
            }
            let Some(pieces) = missing_run(&content.pieces, content.ahead.clone(), run_pieces) else {
                continue;
            };
            content.ahead.start = pieces.end;
            self.ahead.push_back(slot);
            return Some(Run { slot, pieces, cause: Cause::Ahead });
        }
        None
    }

    /// The next missing pieces of the fills, one model after the other.
    fn next_fill(&mut self, now: Instant) -> Option<Run> {
        if let Some(until) = self.store_full_until {
            if until > now {
                return None;
            }
            self.store_full_until = None;
            self.retry_unstored();
        }
        for _ in 0..self.fills.len() {
            let mut fill = self.fills.pop_front().expect("counted");
            let rests = fill.not_before.is_some_and(|at| at > now);
            let run = if rests { None } else { self.next_of_fill(&mut fill, now) };
            if !fill.parts.is_empty() {
                self.fills.push_back(fill);
            }
            if run.is_some() {
                return run;
            }
        }
        None
    }

    /// There may be room again for what the store could not take.
    fn retry_unstored(&mut self) {
        for content in self.contents.iter_mut().flatten() {
            for state in content.pieces.iter_mut().filter(|state| **state == Piece::Unstored) {
                *state = Piece::Missing;
            }
        }
    }

    fn next_of_fill(&mut self, fill: &mut Fill, now: Instant) -> Option<Run> {
        let mut at = 0;
        while at < fill.parts.len() {
            let (slot, range) = fill.parts[at].clone();
            let run_pieces = self.limits.run_pieces;
            let rests = !self.may_start(slot, now);
            let Some(content) = self.content_mut(slot) else {
                fill.parts.remove(at);
                continue;
            };
            // A part is done only when all of it is stored: what is under way may yet fail.
            let from = range.start.max(content.first_missing_from(range.start));
            if from >= range.end {
                fill.parts.remove(at);
                continue;
            }
            fill.parts[at].1.start = from;
            if !rests && let Some(pieces) = missing_run(&content.pieces, from..range.end, run_pieces) {
                content.filled_by = Some(fill.id);
                return Some(Run { slot, pieces, cause: Cause::Fill });
            }
            at += 1;
        }
        None
    }
}

impl Content {
    /// The first piece at or after `from` that is not stored.
    fn first_missing_from(&mut self, from: u32) -> u32 {
        while self.pieces.get(self.first_missing as usize) == Some(&Piece::Stored) {
            self.first_missing += 1;
        }
        let from = from.max(self.first_missing);
        let rest = self.pieces.iter().skip(from as usize);
        from + rest.take_while(|&&state| state == Piece::Stored).count() as u32
    }
}

/// The first missing pieces in `within`, at most `limit` in a row.
fn missing_run(pieces: &[Piece], within: Range<u32>, limit: u32) -> Option<Range<u32>> {
    let missing = |piece: &u32| pieces[*piece as usize] == Piece::Missing;
    let first = within.clone().find(missing)?;
    let count = (first..within.end).take(limit as usize).take_while(missing).count() as u32;
    Some(first..first + count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn limits(runs: usize) -> Limits {
        Limits { runs, reserved_for_demand: 1, run_pieces: 2, window_pieces: 3, ..Limits::default() }
    }

    fn run(slot: Slot, pieces: Range<u32>, cause: Cause) -> Option<Run> {
        Some(Run { slot, pieces, cause })
    }

    #[test]
    fn demand_comes_before_ahead_before_fill() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(10));
        let slot = s.add([false; 20].into_iter());
        s.add_fill([(slot, 0..20)]);
        s.reader_at(slot, 9);
        s.demand(slot, 15);
        s.demand(slot, 16);
        s.demand(slot, 18);
        assert_eq!(s.next(now), run(slot, 15..17, Cause::Demand));
        assert_eq!(s.next(now), run(slot, 18..19, Cause::Demand));
        assert_eq!(s.next(now), run(slot, 10..12, Cause::Ahead));
        assert_eq!(s.next(now), run(slot, 12..13, Cause::Ahead));
        assert_eq!(s.next(now), run(slot, 0..2, Cause::Fill));
        s.demand(slot, 0);
        assert_eq!(s.next(now), run(slot, 2..4, Cause::Fill), "piece 0 is under way");
    }

    #[test]
    fn prefetching_leaves_room_for_demand() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(3));
        let slot = s.add([false; 20].into_iter());
        s.add_fill([(slot, 0..20)]);
        assert!(s.next(now).is_some() && s.next(now).is_some());
        assert_eq!(s.next(now), None);
        s.demand(slot, 19);
        assert_eq!(s.next(now), run(slot, 19..20, Cause::Demand));
        s.demand(slot, 18);
        assert_eq!(s.next(now), None, "all places are taken");
    }

    #[test]
    fn a_failed_content_rests_and_others_go_on() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(10));
        let (bad, good) = (s.add([false; 2].into_iter()), s.add([false; 2].into_iter()));
        s.add_fill([(bad, 0..2), (good, 0..2)]);
        let first = s.next(now).unwrap();
        assert_eq!(first.slot, bad);
        let wait = s.ended(&first, true, now, None);
        assert_eq!(s.next(now), run(good, 0..2, Cause::Fill));
        assert_eq!(s.next(now), None);
        assert_eq!(s.next_deadline(now), Some(now + wait));
        s.demand(bad, 1);
        assert_eq!(s.next(now), None, "demand waits, too");
        assert_eq!(s.next(now + wait), run(bad, 1..2, Cause::Demand));
        let asked = Duration::from_secs(60);
        let again = Run { slot: bad, pieces: 1..2, cause: Cause::Demand };
        assert_eq!(s.ended(&again, true, now, Some(asked)), asked);
    }

    #[test]
    fn a_fill_of_many_contents_does_not_ask_without_a_pause() {
        let start = Instant::now();
        let mut s = Schedule::new(limits(10));
        let bad: Vec<Slot> = (0..1000).map(|_| s.add([false].into_iter())).collect();
        s.add_fill(bad.iter().map(|&slot| (slot, 0..1)));
        let good = s.add([false].into_iter());
        s.add_fill([(good, 0..1)]);
        let (mut now, mut asked, mut others) = (start, 0, 0);
        while now < start + Duration::from_secs(600) {
            while let Some(run) = s.next(now) {
                let failed = run.slot != good;
                (asked, others) = if failed { (asked + 1, others) } else { (asked, others + 1) };
                if !failed {
                    s.delivered(run.slot, 0, true);
                }
                s.ended(&run, failed, now, None);
            }
            now = s.next_deadline(now).unwrap();
        }
        assert!((100..300).contains(&asked), "{asked} times in ten minutes");
        assert_eq!(others, 1, "another model is not held up");
        s.demand(bad[0], 0);
        let resting = s.fills[0].not_before.unwrap() - Duration::from_secs(1);
        assert_eq!(s.next(resting), run(bad[0], 0..1, Cause::Demand), "readers do not wait for it");
        s.delivered(bad[0], 0, true);
        let well = s.next(s.fills[0].not_before.unwrap()).unwrap();
        s.delivered(well.slot, 0, true);
        s.ended(&well, false, now, None);
        assert!(s.next(now).is_some(), "no rest once a run went well");
    }

    #[test]
    fn a_full_store_stops_the_fill_only() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(10));
        let slot = s.add([false; 4].into_iter());
        s.add_fill([(slot, 0..4)]);
        let first = s.next(now).unwrap();
        s.delivered(slot, 0, false);
        s.delivered(slot, 1, true);
        s.ended(&first, false, now, None);
        let later = now + Duration::from_secs(30);
        s.store_full(later);
        assert_eq!(s.next(now), None);
        s.demand(slot, 0);
        assert_eq!(s.next(now), run(slot, 0..1, Cause::Demand), "gone from memory, asked for again");
        s.ended(&Run { slot, pieces: 0..1, cause: Cause::Demand }, false, now, None);
        assert_eq!(s.next(later), run(slot, 0..1, Cause::Fill), "there may be room again");
        assert_eq!(s.next(later), run(slot, 2..4, Cause::Fill));
    }

    #[test]
    fn a_fill_of_what_a_content_does_not_have_asks_for_nothing() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(10));
        let (empty, two) = (s.add([].into_iter()), s.add([false; 2].into_iter()));
        s.add_fill([(empty, 0..1), (two, 0..9), (two, 5..7)]);
        assert_eq!(s.next(now), run(two, 0..2, Cause::Fill));
        assert_eq!(s.next(now), None);
    }

    #[test]
    fn a_place_that_is_given_up_is_used_again_and_holds_nothing_of_the_old_content() {
        let now = Instant::now();
        let mut s = Schedule::new(limits(10));
        let (a, b) = (s.add([false; 2].into_iter()), s.add([false; 2].into_iter()));
        s.add_fill([(a, 0..2)]);
        s.demand(a, 1);
        s.remove(a);
        s.remove(a);
        let c = s.add([false].into_iter());
        assert_eq!(c, a);
        assert!(s.add([false].into_iter()) > b, "one place was free");
        assert_eq!(s.next(now), None, "nobody asked for the new content");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Demand(u32),
        ReaderAt(u32),
        Start,
        EndOldest(bool),
        DeliverOldest(bool),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (0..40u32).prop_map(Op::Demand),
            (0..40u32).prop_map(Op::ReaderAt),
            Just(Op::Start),
            Just(Op::Start),
            any::<bool>().prop_map(Op::EndOldest),
            any::<bool>().prop_map(Op::DeliverOldest),
        ];
        prop::collection::vec(op, 0..200)
    }

    proptest! {
        /// Against a slow model: never two runs for a piece, never one that is stored, never too many, and in the
        /// end everything is stored.
        #[test]
        fn every_piece_once_at_a_time_and_all_in_the_end(
            stored in prop::collection::vec(any::<bool>(), 1..40), ops in ops(),
        ) {
            let mut now = Instant::now();
            let mut s = Schedule::new(limits(4));
            let slot = s.add(stored.iter().copied());
            let count = stored.len() as u32;
            s.add_fill([(slot, 0..count.min(1)), (slot, 0..count)]);
            let mut have: BTreeSet<u32> = (0..count).filter(|&n| stored[n as usize]).collect();
            let mut under_way: VecDeque<Run> = VecDeque::new();
            let start = |s: &mut Schedule, have: &BTreeSet<u32>, under_way: &mut VecDeque<Run>, now| {
                if let Some(run) = s.next(now) {
                    assert!(!run.pieces.is_empty() && run.pieces.end <= count);
                    for piece in run.pieces.clone() {
                        assert!(!have.contains(&piece), "asked for stored piece {piece}");
                        assert!(!under_way.iter().any(|other| other.pieces.contains(&piece)), "piece {piece} twice");
                    }
                    under_way.push_back(run);
                    assert!(under_way.len() <= 4);
                    return true;
                }
                false
            };
            for op in ops {
                now += Duration::from_millis(50);
                match op {
                    Op::Demand(piece) => s.demand(slot, piece),
                    Op::ReaderAt(piece) => s.reader_at(slot, piece),
                    Op::Start => { start(&mut s, &have, &mut under_way, now); }
                    Op::EndOldest(failed) => if let Some(run) = under_way.pop_front() {
                        s.ended(&run, failed, now, None);
                    },
                    Op::DeliverOldest(stores) => if let Some(run) = under_way.pop_front() {
                        for piece in run.pieces.clone() {
                            s.delivered(slot, piece, stores);
                            if stores { have.insert(piece); }
                        }
                        s.ended(&run, false, now, None);
                    },
                }
            }
            for _ in 0..200 {
                now += Duration::from_secs(10);
                // What the store once refused comes back as a demand, as readers would have it.
                (0..count).filter(|piece| !have.contains(piece)).for_each(|piece| s.demand(slot, piece));
                while start(&mut s, &have, &mut under_way, now) {}
                while let Some(run) = under_way.pop_front() {
                    for piece in run.pieces.clone() {
                        s.delivered(slot, piece, true);
                        have.insert(piece);
                    }
                    s.ended(&run, false, now, None);
                }
            }
            prop_assert_eq!(have.len() as u32, count);
            prop_assert!(s.is_idle(slot));
        }
    }
}
