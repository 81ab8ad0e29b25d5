//! Who brings the pieces of a content, where it is not the engine's own schedule: the seam to the peer network.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use towline_artifact::{ContentId, VerifiedPiece};

use crate::engine::ContentHandle;
use crate::fill::FillId;

/// Decides where the pieces of contents come from, and brings them to [`crate::Engine::take`].
///
/// No method waits: they are called by threads that answer the kernel. Engines that only are another source of ranges (a
/// mirror, a Dragonfly daemon) are a [`crate::PieceSource`] instead, and the engine's schedule stays.
pub trait Network: Send + Sync + 'static {
    /// Takes part in a content. False if there is no room for it: then the engine fetches it by its own schedule.
    fn join(&self, content: &Arc<ContentHandle>) -> bool;
    /// Takes part in it no longer.
    fn leave(&self, content: ContentId);
    /// Readers wait for these pieces. Told again while they wait.
    fn demand(&self, content: ContentId, pieces: Range<u32>);
    /// A reader waits for part of a piece: `bytes` is a block of it. Told again while it waits.
    fn demand_block(&self, content: ContentId, piece: u32, bytes: Range<u32>);
    /// A reader will soon want these pieces, in this order; replaces what was said of the content before.
    fn ahead(&self, content: ContentId, pieces: Range<u32>);
    /// All of `parts` are wanted, in order, behind what readers want.
    fn start_fill(&self, id: FillId, parts: Vec<(ContentId, Range<u32>)>);
    /// Ends a fill; what is under way arrives all the same.
    fn stop_fill(&self, id: FillId);
}

/// Who sent a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplier {
    /// A registry.
    Origin,
    /// Another node.
    Peer,
}

/// A verified piece, to be sent to a peer.
#[derive(Clone, Debug)]
pub enum PieceBytes {
    /// In memory.
    Memory(VerifiedPiece),
    /// In a file, from the piece's own offset on.
    File(Arc<File>),
}
