//! How fast a link is.

use std::fmt;

use serde::Serialize;

/// Payload of a full TCP segment, and what it takes on Ethernet: 1500 bytes of IP packet less 52 of IP and TCP headers
/// with timestamps, and 14 of Ethernet header more, which the shaper counts.
const SEGMENT_PAYLOAD: f64 = 1448.0;
const SEGMENT_ON_WIRE: f64 = 1514.0;

/// Smallest bucket of a shaper: two segments of 64 KiB as the kernel hands them down. A smaller one makes it cut them.
const MIN_BURST_BYTES: u64 = 128 << 10;

/// A link's rate in bits per second of Ethernet frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Rate(pub u64);

impl Rate {
    /// So many 10^6 bits per second.
    #[must_use]
    pub const fn mbit(count: u64) -> Self {
        Self(count * 1_000_000)
    }

    /// Bytes of TCP payload per second that fit.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
    pub fn payload(self) -> f64 {
        self.0 as f64 / 8.0 * SEGMENT_PAYLOAD / SEGMENT_ON_WIRE
    }

    /// The arguments of `tc qdisc` that shape to this rate. The bucket holds at least 2 ms, below which the kernel's
    /// timer cannot keep up; 50 ms of queue are what a switch port has, in order of magnitude.
    #[must_use]
    pub fn tbf(self) -> String {
        let burst = (self.0 / 8 / 500).max(MIN_BURST_BYTES);
        format!("tbf rate {}bit burst {burst} latency 50ms", self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1_000_000_000) {
            write!(f, "{} Gb/s", self.0 / 1_000_000_000)
        } else {
            write!(f, "{} Mb/s", self.0 / 1_000_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    #[test]
    fn payload_is_what_was_measured_on_shaped_links() {
        let payload_mbit = Rate::mbit(200).payload() * 8.0 / 1e6;
        assert!((190.0..192.0).contains(&payload_mbit), "{payload_mbit}");
    }

    #[test]
    fn rates_read_as_people_write_them() {
        assert_eq!(Rate::mbit(200).to_string(), "200 Mb/s");
        assert_eq!(Rate::mbit(1000).to_string(), "1 Gb/s");
    }
}
