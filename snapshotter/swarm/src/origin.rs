//! When this node may go to the origin, as far as the origin itself is concerned: pauses, and trips out of turn.

use std::time::Duration;

use crate::rng::Rng;
use crate::{Limits, OriginFailure, RequestId, Time};

/// A request under way.
#[derive(Debug)]
struct Asked {
    id: RequestId,
    /// Pieces that have not come.
    pieces: u32,
    /// When it was asked, or when its last piece came.
    since: Time,
    /// When its first byte or its last piece came.
    moved: Option<Time>,
}

#[derive(Debug)]
pub(crate) struct Origin {
    under_way: Vec<Asked>,
    /// Seconds from a request to its first byte, smoothed; pulled down quickly and up slowly, for what the nodes make the origin
    /// wait with their own requests is no reason for more of them.
    first_byte: Option<f64>,
    /// Seconds that a piece then takes, smoothed.
    transfer: Option<f64>,
    paused_until: Time,
    /// The part of the pause that other nodes should keep, too.
    shared_until: Time,
    failures: u32,
    /// Seconds per piece, smoothed.
    pace: Option<f64>,
    lease: f64,
    lease_at: Time,
}

impl Origin {
    pub(crate) fn new() -> Self {
        let (paused_until, shared_until) = (Time::ZERO, Time::ZERO);
        Self {
            under_way: Vec::new(),
            first_byte: None,
            transfer: None,
            paused_until,
            shared_until,
            failures: 0,
            pace: None,
            lease: 1.0,
            lease_at: Time::ZERO,
        }
    }

    pub(crate) fn is_paused(&self, now: Time) -> bool {
        self.paused_until > now
    }

    pub(crate) fn paused_until(&self) -> Time {
        self.paused_until
    }

    /// How long others should stay away.
    pub(crate) fn shared_pause(&self, now: Time) -> Duration {
        self.shared_until.since(now)
    }

    /// Seconds that a piece takes from the origin; a guess of `otherwise` before the first.
    pub(crate) fn pace(&self, otherwise: f64) -> f64 {
        self.pace.unwrap_or(otherwise)
    }

    pub(crate) fn asked(&mut self, id: RequestId, pieces: u32, since: Time) {
        self.under_way.push(Asked { id, pieces, since, moved: None });
    }

    /// Bytes of a request arrive.
    pub(crate) fn moves(&mut self, id: RequestId, now: Time) {
        let Some(asked) = self.under_way.iter_mut().find(|asked| asked.id == id && asked.moved.is_none())
        else {
            return;
        };
        asked.moved = Some(now);
        let took = now.since(asked.since).as_secs_f64();
        let pull = |old: f64| if took < old { 0.3 } else { 0.03 };
        self.first_byte = Some(self.first_byte.map_or(took, |old| old + pull(old) * (took - old)));
    }

    /// A piece of a request came.
    pub(crate) fn served(&mut self, id: RequestId, now: Time) {
        let Some(asked) = self.under_way.iter_mut().find(|asked| asked.id == id) else { return };
        let smooth = |old: &mut Option<f64>, took: Duration| {
            let took = took.as_secs_f64();
            *old = Some(old.map_or(took, |old| old + 0.3 * (took - old)));
        };
        smooth(&mut self.transfer, now.since(asked.moved.unwrap_or(asked.since)));
        // Of the first piece of a request, the wait for its first byte is part of what it takes.
        smooth(&mut self.pace, now.since(asked.since));
        (asked.since, asked.moved) = (now, Some(now));
        asked.pieces = asked.pieces.saturating_sub(1);
        self.failures = 0;
    }

    pub(crate) fn ended(&mut self, id: RequestId) {
        self.under_way.retain(|asked| asked.id != id);
    }

    /// Requests under way.
    pub(crate) fn requests(&self) -> usize {
        self.under_way.len()
    }

    /// Of these, those that are in the way of another: not those that will be over about when its first byte would come, or an
    /// origin that takes long to begin would do nothing most of the time.
    pub(crate) fn busy(&self, now: Time) -> usize {
        let (Some(first_byte), Some(transfer)) = (self.first_byte, self.transfer) else {
            return self.under_way.len();
        };
        let ends = |asked: &Asked| {
            let moved = asked.moved.unwrap_or(asked.since + Duration::from_secs_f64(first_byte));
            moved + Duration::from_secs_f64(transfer).saturating_mul(asked.pieces)
        };
        let soon = |asked: &&Asked| ends(asked) <= now + Duration::from_secs_f64(first_byte);
        // What is late by as much is slower than was thought.
        let late = |asked: &&Asked| ends(asked) + Duration::from_secs_f64(first_byte / 2.0) < now;
        self.under_way.iter().filter(|asked| !soon(asked) || late(asked)).count()
    }

    pub(crate) fn failed(&mut self, why: OriginFailure, now: Time, limits: &Limits, rng: &mut Rng) {
        let doubled =
            limits.origin_pause.saturating_mul(1 << self.failures.min(16)).min(limits.origin_pause_max);
        self.failures = self.failures.saturating_add(1);
        // Spread over half of the time again, so that those who failed together do not return together.
        let doubled = doubled.mul_f64(1.0 + rng.unit() / 2.0);
        let pause = match why {
            OriginFailure::Throttled { retry_after } => retry_after.unwrap_or_default().max(doubled),
            OriginFailure::Broken => doubled,
            OriginFailure::Denied | OriginFailure::Gone => doubled.max(limits.rest_max),
        };
        self.paused_until = self.paused_until.max(now + pause);
        if matches!(why, OriginFailure::Throttled { .. }) {
            self.shared_until = self.paused_until;
        }
    }

    /// A peer says that the origin asked for a pause.
    pub(crate) fn hinted(&mut self, pause: Duration, now: Time, limits: &Limits, rng: &mut Rng) {
        let pause = pause.min(limits.origin_hint_max).mul_f64(1.0 + rng.unit() / 2.0);
        self.paused_until = self.paused_until.max(now + pause);
    }

    /// Takes the right to one trip out of turn, if there is one.
    pub(crate) fn try_lease(&mut self, now: Time, limits: &Limits) -> bool {
        let burst = limits.lease_rate.max(1.0);
        self.lease = (self.lease + now.since(self.lease_at).as_secs_f64() * limits.lease_rate).min(burst);
        self.lease_at = now;
        let granted = self.lease >= 1.0;
        if granted {
            self.lease -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_keep_to_retry_after() {
        let (limits, mut rng) = (Limits::default(), Rng::new(1));
        let mut origin = Origin::new();
        let retry_after = Some(Duration::from_secs(100));
        origin.failed(OriginFailure::Broken, Time::ZERO, &limits, &mut rng);
        assert!(!origin.is_paused(Time::ZERO + limits.origin_pause.mul_f64(1.5)));
        assert_eq!(origin.shared_pause(Time::ZERO), Duration::ZERO);
        origin.failed(OriginFailure::Throttled { retry_after }, Time::ZERO, &limits, &mut rng);
        assert!(origin.is_paused(Time::ZERO + Duration::from_secs(99)));
        assert_eq!(origin.shared_pause(Time::ZERO), Duration::from_secs(100));
        let mut other = Origin::new();
        other.hinted(Duration::MAX, Time::ZERO, &limits, &mut rng);
        assert!(!other.is_paused(Time::ZERO + limits.origin_hint_max.mul_f64(1.5)), "a hint is bounded");
    }

    #[test]
    fn who_waits_for_an_answer_that_takes_long_to_begin_is_not_in_the_way_of_the_next() {
        let at = |millis: u64| Time::from_micros(millis * 1000);
        // A piece takes 10 ms; the answer begins after `first`, and a second request is of use from `room` on until `late`.
        for (first, room, late) in [(100, 10, 161), (1, 10, 12)] {
            let mut origin = Origin::new();
            origin.asked(RequestId(1), 1, at(0));
            assert_eq!(origin.busy(at(first)), 1, "nothing is known yet");
            origin.moves(RequestId(1), at(first));
            origin.served(RequestId(1), at(first + 10));
            origin.ended(RequestId(1));
            let now = |millis: u64| at(1000 + millis);
            origin.asked(RequestId(2), 1, now(0));
            assert_eq!((origin.busy(now(room - 1)), origin.busy(now(room))), (1, 0));
            assert_eq!((origin.busy(now(late - 1)), origin.busy(now(late))), (0, 1), "slower than thought");
            origin.moves(RequestId(2), now(late));
            assert_eq!(origin.requests(), 1);
        }
        // A run of four takes the link for as long as four.
        let mut origin = Origin::new();
        origin.asked(RequestId(1), 4, at(0));
        origin.moves(RequestId(1), at(20));
        origin.served(RequestId(1), at(30));
        assert_eq!((origin.busy(at(39)), origin.busy(at(41))), (1, 0));
    }

    #[test]
    fn leases_are_one_a_second() {
        let (limits, mut origin) = (Limits::default(), Origin::new());
        let granted = (0..1000).filter(|n| origin.try_lease(Time::from_micros(n * 10_000), &limits)).count();
        assert!((10..=11).contains(&granted), "{granted} in ten seconds");
    }
}
