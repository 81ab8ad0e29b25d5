//! Blocks: what a reader gets before the piece it reads from is here.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use towline_artifact::{ChainingValue, Corrupt, PIECE_LEN, PieceIndex};

use super::{ContentHandle, Engine, lock};
use crate::network::{Network, PieceBytes};

/// A block and what proves it, to be sent to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenBlock {
    /// The bytes.
    pub bytes: Bytes,
    /// As of [`towline_artifact::PieceTable::prove`].
    pub hashes: Vec<ChainingValue>,
}

impl Engine {
    /// Tells the network that a reader waits for these bytes of the file: of each piece for a block, or for all of it where that is
    /// too long.
    pub(super) fn demand_of(&self, network: &Arc<dyn Network>, handle: &ContentHandle, bytes: Range<u64>) {
        let id = handle.content.id();
        let (first, last) = (PieceIndex::containing(bytes.start), PieceIndex::containing(bytes.end - 1));
        let mut near = None;
        for index in (first.0..=last.0).map(PieceIndex).filter(|&index| !handle.content.has(index)) {
            let within = |at: u64| {
                u32::try_from(at.saturating_sub(index.offset()).min(PIECE_LEN)).expect("at most a piece")
            };
            match handle.table().block_around(index, within(bytes.start)..within(bytes.end)) {
                // A few pages anywhere tell nothing of what is read next; at the start of a piece comes who reads in order.
                Some(block) => {
                    near = near.or((block.start == 0).then_some(index.0));
                    network.demand_block(id, index.0, block);
                }
                None => {
                    near = near.or(Some(last.0 + 1));
                    network.demand(id, index.0..index.0 + 1);
                }
            }
        }
        if let Some(near) = near {
            self.ahead(network, handle, near);
        }
    }

    /// Takes a block that a peer sent: readers that wait for it get it. It is not stored, and is not kept for long.
    ///
    /// # Errors
    /// [`Corrupt`]: nobody has seen the bytes.
    pub fn take_block(
        &self,
        handle: &ContentHandle,
        index: PieceIndex,
        block: &Range<u32>,
        sent: ProvenBlock,
    ) -> Result<(), Corrupt> {
        let verified = handle.table().verify_block(index, block, &sent.hashes, sent.bytes);
        let verified = verified.inspect_err(|_| {
            self.stats.corrupt_pieces.fetch_add(1, Ordering::Relaxed);
        })?;
        lock(&self.cache).insert_block(handle.slot, verified);
        handle.arrived.notify_waiters();
        Ok(())
    }

    /// A block of a piece that is here, with what proves it, to be sent to a peer. Reads and hashes the whole piece, so it may wait
    /// for the disk. `None` if the piece is not here or is no longer what it was.
    #[must_use]
    pub fn prove(
        &self,
        handle: &ContentHandle,
        index: PieceIndex,
        block: &Range<u32>,
    ) -> Option<ProvenBlock> {
        let table = handle.table();
        if !table.is_block(index, block) {
            return None;
        }
        let bytes = match self.piece(handle, index)? {
            PieceBytes::Memory(piece) => piece.bytes().clone(),
            PieceBytes::File(file) => {
                let mut bytes =
                    vec![0; usize::try_from(table.piece_len(index).get()).expect("at most a piece")];
                file.read_exact_at(&mut bytes, index.offset()).ok()?;
                bytes.into()
            }
        };
        let hashes = table.prove(index, &bytes, block)?;
        // Not a slice of the piece, which would stay in memory for as long as the block waits to be sent.
        let block = &bytes[block.start as usize..block.end as usize];
        Some(ProvenBlock { bytes: Bytes::copy_from_slice(block), hashes })
    }
}
