//! What goes into the swarm and what comes out: its whole seam to sockets, disks and clocks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use towline_artifact::ContentId;

use crate::{Bitmap, BlockId, Peer, PeerId, RequestId, Time, UploadId};

/// What a node says about a content to its links: which pieces it has, and hints.
///
/// Everything in it comes from a stranger; a lie costs time, never bytes. Idempotent, so a replay does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// The pieces.
    pub pieces: HavePieces,
    /// Pieces that the sender is getting from the origin now. At most `Limits::fetching_list`.
    pub fetching: Arc<[u32]>,
    /// Pieces that it has asked another zone for. At most as many.
    pub awaiting: Arc<[u32]>,
    /// Uploads of the sender, under way and waiting.
    pub queue: u16,
    /// By how many uploads more it should count as busy: it has everything and gave it away before.
    pub given: u16,
    /// How many distinct pieces the sender knows to be in its zone; moves the origin window.
    pub known: u32,
    /// How long the origin asked the sender to stay away; zero for not at all.
    pub origin_pause: Duration,
    /// Whether the origin refuses the sender's credentials: then it owns nothing.
    pub denied: bool,
}

impl Have {
    /// Pieces and no hints.
    #[must_use]
    pub fn new(pieces: HavePieces) -> Self {
        Self {
            pieces,
            fetching: Arc::default(),
            awaiting: Arc::default(),
            queue: 0,
            given: 0,
            known: 0,
            origin_pause: Duration::ZERO,
            denied: false,
        }
    }
}

/// The pieces of a [`Have`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HavePieces {
    /// Exactly these. To a node that is no link yet it is an offer; answered with the same it makes a link.
    All(Arc<Bitmap>),
    /// These in addition. At most `Limits::have_list`.
    More(Arc<[u32]>),
}

/// On what ground a peer is asked for a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It said it has the piece.
    Holder,
    /// It is held to own the piece: if it has it not, it gets it. `forwarded` after another has pointed to it.
    Owner {
        /// A node asked by mistake named this one; it must not name a third.
        forwarded: bool,
    },
}

/// Why a node does not serve a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many wait already.
    Busy,
    /// It has not got the piece.
    NotHere,
    /// It does not hold itself an owner, but holds this one to be.
    NotOwner {
        /// Who should know better.
        better: Option<PeerId>,
    },
    /// It owns the piece and has it not, and lets who asked for a reader get it from the origin in its stead.
    Lent,
}

/// Why a request to a peer ended without a verified piece, other than by wrong bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer refused.
    Refused(Refusal),
    /// The connection failed, or the answer was short.
    Broken,
}

/// How a request for a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEnd {
    /// It was proven, and the reader has it.
    Verified,
    /// The peer did not serve it, or cannot be asked.
    Refused,
    /// What came is not in the piece.
    Corrupt,
}

/// Why a request to the origin ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginFailure {
    /// 429 or 503: it asks for a pause. Shared with other nodes.
    Throttled {
        /// `Retry-After`, if there was one.
        retry_after: Option<Duration>,
    },
    /// 401 or 403: this node's credentials are refused; another's may not be.
    Denied,
    /// 404 or 410: it no longer has the content. Tried again now and then.
    Gone,
    /// No connection, a timeout, a short answer or wrong bytes.
    Broken,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time went by; due at [`crate::Swarm::next_deadline`].
    Tick,
    /// The node takes part in a content of `have.len()` pieces, of which it has `have`.
    Add {
        /// The content.
        content: ContentId,
        /// What is verified on disk.
        have: Bitmap,
    },
    /// The node no longer takes part.
    Remove {
        /// The content.
        content: ContentId,
    },
    /// Nodes take part in a content, or changed zone or weight. Tell it once even if there are none: a node that has
    /// been told nothing waits a moment for others before it goes to the origin.
    Joined {
        /// The content.
        content: ContentId,
        /// The nodes; this one is left out.
        peers: Vec<Peer>,
    },
    /// A node takes part no longer.
    Left {
        /// The content.
        content: ContentId,
        /// The node.
        peer: PeerId,
    },
    /// All of the content is to be fetched (or no longer: then what readers want goes on).
    Fill {
        /// The content.
        content: ContentId,
        /// Whether to.
        on: bool,
    },
    /// A reader waits for a piece.
    Demand {
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
    },
    /// A reader waits for part of a piece. Told again while it waits.
    DemandBlock {
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
        /// The block that the reader reads, in bytes of the piece; half-open.
        bytes: Range<u32>,
    },
    /// A reader will soon want these pieces, in this order; replaces what was said before.
    Ahead {
        /// The content.
        content: ContentId,
        /// Half-open.
        pieces: Range<u32>,
    },
    /// A piece of a request matched its digest and is here. The last piece of a request ends it.
    Verified {
        /// The request; one that has been cancelled is no matter.
        request: RequestId,
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
    },
    /// Bytes of a request arrive: its deadline moves, and it is not moved to another peer. Told at the first byte and
    /// then once a second; without it, a piece that takes longer than the deadline on a slow link is given up.
    Progress {
        /// The request.
        request: RequestId,
    },
    /// A piece of a request did not match its digest. Ends the request.
    Corrupt {
        /// The request.
        request: RequestId,
    },
    /// A request to a peer ended without the piece.
    Failed {
        /// The request.
        request: RequestId,
        /// Why.
        why: Failure,
    },
    /// A request to the origin ended before its last piece.
    OriginFailed {
        /// The request.
        request: RequestId,
        /// Why.
        why: OriginFailure,
    },
    /// A request for a block ended.
    BlockEnded {
        /// The request; one that is under way no longer is no matter.
        block: BlockId,
        /// How.
        end: BlockEnd,
    },
    /// A block is being sent to a peer. Nobody asks whether it may: it only counts.
    BlockSent {
        /// Its length in bytes.
        len: u32,
    },
    /// A piece is gone from the disk (evicted, or the disk failed).
    Lost {
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
    },
    /// A peer told what it has.
    Have {
        /// The content.
        content: ContentId,
        /// Who told.
        from: PeerId,
        /// What.
        have: Have,
    },
    /// A peer ended or turned down a link, or its connection broke.
    Unlinked {
        /// The content.
        content: ContentId,
        /// The peer.
        peer: PeerId,
    },
    /// A peer asks for a piece.
    UploadRequested {
        /// The caller's name for it.
        upload: UploadId,
        /// Who asks.
        from: PeerId,
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
        /// On what ground.
        ask: Ask,
        /// Whether a reader waits there.
        urgent: bool,
    },
    /// A served upload ended, or a peer withdrew a request that waits.
    UploadEnded {
        /// Which.
        upload: UploadId,
    },
}

/// What is to be done. None needs an answer at once; none may be dropped without the matching event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask a peer for a piece; answered by `Verified`, `Corrupt` or `Failed`, or ended by `Cancel`.
    Request {
        /// Its name.
        request: RequestId,
        /// Whom.
        to: PeerId,
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
        /// On what ground.
        ask: Ask,
        /// Whether a reader waits.
        urgent: bool,
        /// When it will be cancelled, unless bytes arrive.
        deadline: Time,
    },
    /// Get consecutive pieces from the origin, in order; answered by `Verified` for each, or `OriginFailed`.
    AskOrigin {
        /// Its name.
        request: RequestId,
        /// The content.
        content: ContentId,
        /// Half-open, not empty.
        pieces: Range<u32>,
        /// When it will be cancelled, unless bytes arrive.
        deadline: Time,
    },
    /// Ask a peer for a block; answered by `BlockEnded`, or never. Nothing cancels it.
    RequestBlock {
        /// Its name.
        block: BlockId,
        /// Whom.
        to: PeerId,
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
        /// The block, in bytes of the piece; half-open.
        bytes: Range<u32>,
    },
    /// A reader waits for a piece that is asked for already, and moves: others shall not hold it up.
    Hurry {
        /// The request.
        request: RequestId,
    },
    /// End a request. An event for it that is already on its way does no harm, and a verified piece is taken.
    Cancel {
        /// Which.
        request: RequestId,
    },
    /// Tell peers what is here.
    SendHave {
        /// The content.
        content: ContentId,
        /// Whom; never empty.
        to: Vec<PeerId>,
        /// What.
        have: Have,
    },
    /// End or turn down a link.
    Unlink {
        /// The content.
        content: ContentId,
        /// With whom.
        peer: PeerId,
    },
    /// Send a piece to who asked for it; ended by `UploadEnded`.
    Serve {
        /// Which.
        upload: UploadId,
        /// To whom.
        to: PeerId,
        /// The content.
        content: ContentId,
        /// The piece.
        piece: u32,
    },
    /// Refuse a request.
    Refuse {
        /// Which.
        upload: UploadId,
        /// To whom.
        to: PeerId,
        /// Why.
        why: Refusal,
    },
    /// A peer sent wrong bytes: have nothing to do with it until then.
    Ban {
        /// Whom.
        peer: PeerId,
        /// Until when.
        until: Time,
    },
    /// All pieces of a content are here.
    Complete {
        /// The content.
        content: ContentId,
    },
}
