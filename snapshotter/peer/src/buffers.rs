//! Memory for pieces that arrive, used again: a fresh 2 MiB would cost five hundred page faults each time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use towline_artifact::PIECE_LEN;

/// Buffers kept for the next pieces: 64 MiB, what arrives within a tenth of a second at 5 Gb/s.
const KEPT: usize = 32;

/// Buffers begin at a multiple of this. What a peer sends by `sendfile` lies in whole pages, and then the kernel copies from and to
/// the same offset of a page. Large allocations begin 16 bytes into one, which `rep movsb` of AMD's Zen 3 and 4 is slow with
/// (measured: 1.5 instead of 8 GB/s).
const PAGE: usize = 4096;
const CAPACITY: usize = PIECE_LEN as usize + PAGE;

/// Buffers of one piece each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for a piece.
    pub(crate) fn take(&self) -> Buffer {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = bytes.unwrap_or_else(|| Vec::with_capacity(CAPACITY));
        let start = bytes.as_ptr().align_offset(PAGE);
        bytes.resize(start, 0);
        Buffer { bytes, start, home: self.clone() }
    }
}

/// A buffer that goes back when it is dropped, also as [`Bytes`] and by whoever holds the last of these.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where the piece begins in it.
    start: usize,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// What takes the bytes that come next. Room for a piece in all.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What it holds, to be shared.
    pub(crate) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && bytes.capacity() == CAPACITY {
            kept.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_not_without_end() {
        let buffers = Buffers::default();
        let mut one = buffers.take();
        assert_eq!((one.len(), one.as_ref().as_ptr().addr() % PAGE), (0, 0));
        one.end().extend_from_slice(b"piece");
        let place = one.as_ref().as_ptr();
        let shared = one.share();
        let also = shared.clone();
        drop(shared);
        assert_eq!(&also[..], b"piece");
        drop(also);
        let again = buffers.take();
        assert!(again.len() == 0 && again.as_ref().as_ptr() == place);
        let mut whole = again;
        whole.end().extend_from_slice(&vec![1; PIECE_LEN as usize]);
        assert_eq!(whole.as_ref().as_ptr(), place, "there is room for a piece");
        drop((0..2 * KEPT).map(|_| buffers.take()).collect::<Vec<_>>());
        assert_eq!(buffers.0.lock().unwrap().len(), KEPT);
    }
}
