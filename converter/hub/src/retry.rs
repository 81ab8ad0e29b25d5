//! When to ask a hub again. Deciding is pure but for the dice; sleeping is left to the caller.

use std::time::{Duration, SystemTime};

use rand::Rng;

/// The most times one request is sent. Faults that outlast five repeats are outages.
const MAX_ATTEMPTS: u32 = 6;

/// First wait; doubled from then on.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait of our own accord.
const MAX_OWN_WAIT: Duration = Duration::from_secs(30);

/// The longest wait a hub may ask for. Hugging Face counts in windows of five minutes and wants one second more.
const MAX_ASKED_WAIT: Duration = Duration::from_secs(330);

/// The longest one request may wait in all: two windows.
const WAIT_BUDGET: Duration = Duration::from_secs(660);

/// Attempts and waits of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    attempts: u32,
    budget: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { attempts: 1, budget: WAIT_BUDGET }
    }

    /// Attempts begun so far, the first included.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait before the next attempt, after a fault; `asked` is what the hub wants. `None` gives up: the
    /// attempts or the budget are spent, or the hub asks for more than can be granted.
    pub(crate) fn next_wait(&mut self, asked: Option<Duration>) -> Option<Duration> {
        if self.attempts >= MAX_ATTEMPTS {
            return None;
        }
        let own = MAX_OWN_WAIT.min(FIRST_WAIT * 2u32.pow(self.attempts - 1));
        self.attempts += 1;
        let jittered = own.mul_f64(rand::rng().random_range(0.5..1.0));
        let wait = match asked {
            Some(asked) if asked > MAX_ASKED_WAIT => return None,
            // Nobody comes back early; a little late spreads those who were all told the same.
            Some(asked) => asked + jittered.min(Duration::from_secs(1)),
            None => jittered,
        };
        self.budget = self.budget.checked_sub(wait)?;
        Some(wait)
    }
}

/// Whether the status is one that passes by itself (both hubs' clients repeat these).
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long the hub wants us to wait.
///
/// `rate_limit` is Hugging Face's `RateLimit` header, such as `"api";r=0;t=55`: with no requests left, the window ends in
/// `t` seconds. Otherwise `Retry-After` counts, in seconds or as a date (RFC 9110, 10.2.3).
pub(crate) fn asked_wait(
    rate_limit: Option<&str>,
    retry_after: Option<&str>,
    now: SystemTime,
) -> Option<Duration> {
    if let Some(header) = rate_limit {
        let value = |key: &str| -> Option<u64> {
            let parameters = header.split(';').filter_map(|part| part.trim().split_once('='));
            parameters.into_iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok())
        };
        if let (Some(0), Some(seconds)) = (value("r"), value("t")) {
            return Some(Duration::from_secs(seconds.saturating_add(1)));
        }
    }
    let text = retry_after?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_obeyed_within_bounds() {
        let now = SystemTime::UNIX_EPOCH;
        let check = |rate_limit, retry_after, seconds: Option<u64>| {
            assert_eq!(asked_wait(rate_limit, retry_after, now), seconds.map(Duration::from_secs));
        };
        check(Some("\"api\";r=0;t=55"), None, Some(56));
        check(Some("\"api\"; r=0; t=55"), Some("3"), Some(56));
        check(Some("\"api\";r=10;t=55"), Some("3"), Some(3));
        check(None, Some("Thu, 01 Jan 1970 00:01:00 GMT"), Some(60));
        check(None, Some("Wed, 31 Dec 1969 00:00:00 GMT"), None);
        check(Some("r=0;t=x"), Some("soon"), None);
        check(Some("r=0;t=18446744073709551615"), None, Some(u64::MAX));
        check(None, None, None);

        let hour = Some(Duration::from_secs(3600));
        assert_eq!(Backoff::new().next_wait(hour), None, "an hour is more than anybody waits");
        let asked = Duration::from_secs(20);
        assert!(Backoff::new().next_wait(Some(asked)).is_some_and(|wait| wait >= asked));
    }

    #[test]
    fn attempts_and_budget_run_out() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = std::iter::from_fn(|| backoff.next_wait(None)).collect();
        assert_eq!(waits.len(), 5);
        assert!(waits.iter().all(|wait| *wait <= MAX_OWN_WAIT));
        assert!(waits[0] >= FIRST_WAIT / 2 && waits[4] > waits[0]);

        let mut backoff = Backoff::new();
        let window = Some(Duration::from_secs(301));
        let count = std::iter::from_fn(|| backoff.next_wait(window)).count();
        assert_eq!(count, 2, "two windows fit the budget");
    }
}
