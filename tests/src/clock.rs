//! The machine's monotonic clock, which the harness and the programs in its pods share.

use std::ops::Sub;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// An instant in nanoseconds of `CLOCK_MONOTONIC`.
///
/// Unlike `std::time::Instant` it can be printed by a program in a container and compared here: containers have
/// the machine's clock unless they have a time namespace of their own, which CRI does not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let at = clock_gettime(ClockId::Monotonic);
        let secs = u64::try_from(at.tv_sec).expect("the monotonic clock starts at zero");
        let nanos = u64::try_from(at.tv_nsec).expect("nanoseconds are between 0 and 10^9");
        Self(secs * 1_000_000_000 + nanos)
    }

    /// The time since `self`.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero where `earlier` is in fact later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
