//! Counters of a mount. Written without locks from every session thread, read for metrics and status.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident => $name:literal),* $(,)?) => {
        /// A kind of request, as far as it is worth counting apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op { $($(#[$doc])* $variant),* }

        impl Op {
            /// All kinds.
            pub const ALL: &'static [Op] = &[$(Op::$variant),*];

            /// Name of the kind, for a metric label.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Op::$variant => $name),* }
            }
        }
    };
}

ops! {
    /// A name looked up in a directory.
    Lookup => "lookup",
    /// `stat`.
    Getattr => "getattr",
    /// A file opened.
    Open => "open",
    /// Bytes read through the daemon.
    Read => "read",
    /// An open file's last descriptor and mapping gone.
    Release => "release",
    /// A directory opened.
    Opendir => "opendir",
    /// Names listed, with or without attributes.
    Readdir => "readdir",
    /// `statfs`.
    Statfs => "statfs",
    /// Anything that would modify; refused.
    Modify => "modify",
    /// The rest: extended attributes, flush, seek and so on.
    Other => "other",
}

const OPS: usize = Op::ALL.len();

/// What a mount has done since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    requests: [u64; OPS],
    /// Bytes given in answer to reads. What passes through, or comes from the kernel's cache, is not seen here.
    pub bytes_read: u64,
    /// Reads the tree has been asked for and has not answered.
    pub reads_in_flight: u64,
    /// Opens answered in cached mode.
    pub cached_opens: u64,
    /// Opens answered in passthrough mode.
    pub passthrough_opens: u64,
    /// Sealed files the kernel did not take for passthrough; they were opened in cached mode.
    pub passthrough_refusals: u64,
    /// Files open now, in either mode.
    pub files_open: u64,
    /// Requests whose handler panicked; the reader got `EIO`.
    pub panics: u64,
    /// Reads dropped without an answer, or answered with another length than asked; the reader got `EIO`.
    pub bad_replies: u64,
}

impl Stats {
    /// How many requests of this kind arrived.
    #[must_use]
    pub fn requests(&self, op: Op) -> u64 {
        self.requests[op as usize]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: [AtomicU64; OPS],
    pub(crate) bytes_read: AtomicU64,
    pub(crate) reads_in_flight: AtomicU64,
    pub(crate) cached_opens: AtomicU64,
    pub(crate) passthrough_opens: AtomicU64,
    pub(crate) passthrough_refusals: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) bad_replies: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, op: Op) {
        self.requests[op as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self, files_open: u64) -> Stats {
        Stats {
            requests: std::array::from_fn(|op| self.requests[op].load(Relaxed)),
            bytes_read: self.bytes_read.load(Relaxed),
            reads_in_flight: self.reads_in_flight.load(Relaxed),
            cached_opens: self.cached_opens.load(Relaxed),
            passthrough_opens: self.passthrough_opens.load(Relaxed),
            passthrough_refusals: self.passthrough_refusals.load(Relaxed),
            files_open,
            panics: self.panics.load(Relaxed),
            bad_replies: self.bad_replies.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_request_has_its_own_counter() {
        let counters = Counters::default();
        for (times, op) in Op::ALL.iter().enumerate() {
            (0..=times).for_each(|_| counters.count(*op));
        }
        let stats = counters.snapshot(7);
        for (times, op) in Op::ALL.iter().enumerate() {
            assert_eq!(stats.requests(*op), times as u64 + 1, "{}", op.name());
        }
        assert_eq!(stats.files_open, 7);
    }
}
