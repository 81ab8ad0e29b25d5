//! The answer to one read, which may be given later and from any thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::Errno;
use crate::stats::Counters;

/// The answer to one read.
///
/// Dropped without an answer, the reader gets `EIO`: a reader never hangs because somebody forgot it. An answer of
/// another length than asked becomes `EIO` too, because the kernel would take a short one for the end of the file,
/// shrink the file to it and show zeros (fs/fuse/file.c, `fuse_short_read`).
#[must_use = "dropping it answers EIO"]
pub struct ReadReply {
    reply: Option<fuser::ReplyData>,
    len: u32,
    counters: Arc<Counters>,
}

impl ReadReply {
    pub(crate) fn new(reply: fuser::ReplyData, len: u32, counters: Arc<Counters>) -> Self {
        counters.reads_in_flight.fetch_add(1, Relaxed);
        Self { reply: Some(reply), len, counters }
    }

    /// How many bytes the answer must have.
    #[must_use]
    pub fn expected_len(&self) -> u32 {
        self.len
    }

    /// Answers with the bytes asked for. They are handed to the kernel from where they lie, without another copy here.
    pub fn data(mut self, bytes: &[u8]) {
        if bytes.len() != self.len as usize {
            tracing::error!(
                op = "read",
                len = self.len,
                given_len = bytes.len(),
                "read answered with another length"
            );
            return; // the drop answers
        }
        self.counters.bytes_read.fetch_add(u64::from(self.len), Relaxed);
        self.take(|reply| reply.data(bytes));
    }

    /// Answers with an error.
    pub fn error(mut self, errno: Errno) {
        self.take(|reply| reply.error(errno.to_fuser()));
    }

    fn take(&mut self, answer: impl FnOnce(fuser::ReplyData)) {
        if let Some(reply) = self.reply.take() {
            // Before the answer, so that whoever has read the last byte sees nothing in flight.
            self.counters.reads_in_flight.fetch_sub(1, Relaxed);
            answer(reply);
        }
    }
}

impl Drop for ReadReply {
    fn drop(&mut self) {
        let counters = Arc::clone(&self.counters);
        self.take(|reply| {
            counters.bad_replies.fetch_add(1, Relaxed);
            reply.error(fuser::Errno::EIO);
        });
    }
}

impl fmt::Debug for ReadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadReply").field("len", &self.len).finish_non_exhaustive()
    }
}
