//! How busy the machine's processors are.

use std::fs;

use anyhow::{Context, Result};

/// From here on a run says more of the processors than of the links.
pub const BOUND: f64 = 0.85;

/// Processor time since the machine started, in ticks of all processors together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    all: u64,
    idle: u64,
}

impl Ticks {
    /// Until now.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn now() -> Result<Self> {
        parse(&fs::read_to_string("/proc/stat").context("read /proc/stat")?)
            .context("/proc/stat says something new")
    }

    /// The share of all processors that could not be had since `earlier`, whoever used them.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn busy_since(self, earlier: Self) -> f64 {
        let (all, idle) = (self.all - earlier.all, self.idle.saturating_sub(earlier.idle));
        1.0 - idle as f64 / all.max(1) as f64
    }
}

/// The first line: user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in user already. Time in
/// which a processor waited for a disk is idle, time that was stolen is busy: it cannot be had.
fn parse(stat: &str) -> Option<Ticks> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let fields: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    Some(Ticks { all: fields.iter().sum(), idle: fields.get(1)? + fields.get(3)? + fields.get(4)? })
}

#[cfg(test)]
mod tests {
    use super::{Ticks, parse};

    #[test]
    fn what_yields_is_not_busy() {
        let before = parse("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n").unwrap();
        assert_eq!(before, Ticks { all: 36, idle: 11 });
        let after = Ticks { all: 136, idle: 36 };
        assert!((after.busy_since(before) - 0.75).abs() < 1e-9);
        assert_eq!(parse("cpu0 1 2"), None);
    }
}
