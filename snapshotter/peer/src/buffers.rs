//! Memory for pieces that arrive, used again: a fresh 2 MiB would cost five hundred page faults each time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use towline_artifact::PIECE_LEN;

/// Buffers kept for the next pieces: 64 MiB, what arrives within a tenth of a second at 5 Gb/s.
const KEPT: usize = 32;

/// Buffers of one piece each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for a piece.
    pub(crate) fn take(&self) -> Buffer {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: bytes.unwrap_or_else(|| Vec::with_capacity(PIECE_LEN as usize)), home: self.clone() }
    }
}

/// A buffer that goes back when it is dropped, also as [`Bytes`] and by whoever holds the last of these.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    home: Buffers,
}

impl Buffer {
    /// What it holds, to be shared.
    pub(crate) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && bytes.capacity() == PIECE_LEN as usize {
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
        one.bytes.extend_from_slice(b"piece");
        let place = one.bytes.as_ptr();
        let shared = one.share();
        let also = shared.clone();
        drop(shared);
        assert_eq!(&also[..], b"piece");
        drop(also);
        let again = buffers.take();
        assert!(again.bytes.is_empty() && again.bytes.as_ptr() == place);
        drop((0..2 * KEPT).map(|_| buffers.take()).collect::<Vec<_>>());
        assert_eq!(buffers.0.lock().unwrap().len(), KEPT);
    }
}
