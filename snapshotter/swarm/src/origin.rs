//! When this node may go to the origin, as far as the origin itself is concerned: pauses, and trips out of turn.

use std::time::Duration;

use crate::rng::Rng;
use crate::{Limits, OriginFailure, Time};

#[derive(Debug)]
pub(crate) struct Origin {
    /// Requests under way.
    pub(crate) under_way: usize,
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
            under_way: 0,
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

    pub(crate) fn served(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.pace = Some(self.pace.map_or(took, |old| old + 0.3 * (took - old)));
        self.failures = 0;
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
    fn leases_are_one_a_second() {
        let (limits, mut origin) = (Limits::default(), Origin::new());
        let granted = (0..1000).filter(|n| origin.try_lease(Time::from_micros(n * 10_000), &limits)).count();
        assert!((10..=11).contains(&granted), "{granted} in ten seconds");
    }
}
