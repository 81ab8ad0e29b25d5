//! When to try again, and when to stop: pure decisions.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// How often and how patiently a request is repeated.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Attempts for one request, the first included. At least 1.
    pub attempts: u32,
    /// Mean wait before the second attempt; it doubles with each further one.
    pub base: Duration,
    /// The longest wait of our own choice.
    pub cap: Duration,
    /// The longest `Retry-After` we obey. A registry that asks for more ends the request: its caller decides.
    pub retry_after_cap: Duration,
    /// Repetitions the whole client may have outstanding beyond a tenth of its successes, so that a registry that
    /// fails everywhere sees at most that many extra requests.
    pub budget: u32,
}

impl Default for RetryPolicy {
    /// Five attempts within about 10 s, enough for a registry's restart behind a load balancer.
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_millis(300),
            cap: Duration::from_secs(10),
            retry_after_cap: Duration::from_secs(60),
            budget: 200,
        }
    }
}

impl RetryPolicy {
    /// How long to wait after `failed` failed attempts, or `None` to give up.
    ///
    /// `jitter` is drawn from `0.0..1.0`; the wait lies between half and one and a half of the nominal one.
    pub(crate) fn wait(&self, failed: u32, retry_after: Option<Duration>, jitter: f64) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << failed.saturating_sub(1).min(20));
        let own = doubled.mul_f64(0.5 + jitter).min(self.cap);
        match retry_after {
            Some(asked) if asked > self.retry_after_cap => None,
            Some(asked) => Some(asked.max(own)),
            None => Some(own),
        }
    }
}

/// Reads `Retry-After`: seconds or an HTTP date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// What is left of a client's repetitions, in tenths.
#[derive(Debug)]
pub(crate) struct Budget {
    tenths: AtomicU32,
    full: u32,
}

impl Budget {
    pub(crate) fn new(retries: u32) -> Self {
        let full = retries.saturating_mul(10);
        Self { tenths: AtomicU32::new(full), full }
    }

    /// Takes one repetition; `false` when there is none.
    pub(crate) fn take(&self) -> bool {
        self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(10)).is_ok()
    }

    /// A success gives a tenth of a repetition back.
    pub(crate) fn succeeded(&self) {
        // The common case is a full budget: read before writing, to keep the line shared.
        if self.tenths.load(Ordering::Relaxed) < self.full {
            let _ = self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left < self.full).then_some(left + 1)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_and_end() {
        let policy = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
        assert_eq!(policy.wait(1, None, 0.5), Some(Duration::from_millis(300)));
        assert_eq!(policy.wait(2, None, 0.5), Some(Duration::from_millis(600)));
        assert_eq!(policy.wait(3, None, 0.5), None);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(7)), 0.5), Some(Duration::from_secs(7)));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(61)), 0.5), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let later = httpdate::fmt_http_date(now + Duration::from_secs(9));
        assert_eq!(read(&later), Some(Duration::from_secs(9)));
        let earlier = httpdate::fmt_http_date(now - Duration::from_secs(9));
        assert_eq!(read(&earlier), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_budget_is_spent_and_earned() {
        let budget = Budget::new(1);
        assert!(budget.take());
        assert!(!budget.take());
        (0..9).for_each(|_| budget.succeeded());
        assert!(!budget.take());
        budget.succeeded();
        assert!(budget.take());
    }

    proptest! {
        #[test]
        fn waits_are_bounded(failed in 1u32..2000, after in prop::option::of(0u64..1000), jitter in 0.0..1.0f64) {
            let policy = RetryPolicy { attempts: u32::MAX, ..RetryPolicy::default() };
            if let Some(wait) = policy.wait(failed, after.map(Duration::from_secs), jitter) {
                prop_assert!(wait <= policy.retry_after_cap.max(policy.cap));
                prop_assert!(wait >= Duration::from_secs(after.unwrap_or(0)));
            }
        }
    }
}
