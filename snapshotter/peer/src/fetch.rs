//! Brings one piece from a peer, or a few from the origin, to the engine.
//!
//! A request that is given up ends with its task. Bytes that came whole are verified and kept all the same, on a thread that
//! may block, and told.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use towline_artifact::{ContentId, Corrupt, PieceIndex};
use towline_modelfs::{ContentHandle, Engine, Fault, Supplier};
use towline_swarm::{Ask, Failure, OriginFailure, PeerId, RequestId};

use crate::auth::PieceRequest;
use crate::buffers::Buffers;
use crate::client::{self, AskError, PROGRESS, Pool};
use crate::directory::{Connected, Directory};
use crate::gate::Gate;
use crate::http::piece_range;

/// How a request goes.
#[derive(Debug)]
pub(crate) enum FetchEvent {
    Progress {
        request: RequestId,
    },
    /// A piece matched. `stored` if the disk took it; `last` if the request asked for no more.
    Verified {
        request: RequestId,
        content: ContentId,
        piece: u32,
        stored: bool,
        last: bool,
    },
    Corrupt {
        request: RequestId,
    },
    Failed {
        request: RequestId,
        why: Failure,
    },
    OriginFailed {
        request: RequestId,
        why: OriginFailure,
    },
}

/// What every fetch needs.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub(crate) own: PeerId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) buffers: Buffers,
    /// Closed while a piece that a reader waits for is under way to this node.
    pub(crate) gate: Gate,
    pub(crate) events: mpsc::Sender<FetchEvent>,
}

/// A request to a peer.
#[derive(Debug)]
pub(crate) struct PeerFetch {
    pub(crate) request: RequestId,
    pub(crate) peer: Arc<Connected>,
    pub(crate) handle: Arc<ContentHandle>,
    pub(crate) piece: u32,
    pub(crate) ask: Ask,
    /// Whether a reader waits for it.
    pub(crate) urgent: watch::Receiver<bool>,
}

impl Fetcher {
    pub(crate) async fn from_peer(self: Arc<Self>, fetch: PeerFetch) {
        let PeerFetch { request, peer, handle, piece, ask, mut urgent } = fetch;
        let content = handle.content().id();
        let number = peer.numbers.next();
        let asked = PieceRequest { from: self.own, number, content, piece, ask, urgent: *urgent.borrow() };
        let range = piece_range(piece, handle.content().len());
        // A full channel only means that the news comes with the next byte.
        let progress = || drop(self.events.try_send(FetchEvent::Progress { request }));
        let tools = (&self.pool, &self.buffers, &self.gate);
        let why = match client::ask(tools, &peer, asked, &range, &mut urgent, progress).await {
            Ok(bytes) => {
                self.directory.received(&peer, bytes.len() as u64);
                let events = self.events.clone();
                let taken = move |taken: &Result<bool, Corrupt>| {
                    tell_taken(&events, request, (content, piece), taken, true);
                };
                // Its end is told by itself; nobody waits for it.
                drop(self.engine.take(&handle, PieceIndex(piece), bytes.share(), Supplier::Peer, taken));
                return;
            }
            Err(AskError::Refused(why)) => Failure::Refused(why),
            Err(error) => {
                tracing::debug!(peer = %peer.peer.id, %content, piece, error = %crate::chain(&error), "piece not had of a peer");
                Failure::Broken
            }
        };
        self.tell(FetchEvent::Failed { request, why }).await;
    }

    pub(crate) async fn from_origin(
        self: Arc<Self>,
        request: RequestId,
        handle: Arc<ContentHandle>,
        pieces: Range<u32>,
    ) {
        let (content, last) = (handle.content().id(), pieces.end - 1);
        let mut told: Option<Instant> = None;
        let progress = || {
            if told.is_none_or(|told| told.elapsed() >= PROGRESS) {
                let _ = self.events.try_send(FetchEvent::Progress { request });
                told = Some(Instant::now());
            }
        };
        let events = self.events.clone();
        let taken = move |index: PieceIndex, taken: &Result<bool, Corrupt>| {
            tell_taken(&events, request, (content, index.0), taken, index.0 == last);
        };
        let error = match self.engine.fetch_from_origin(&handle, pieces, progress, taken).await {
            Ok(()) => return handle.note_fetch(None),
            Err(error) => error,
        };
        tracing::warn!(%content, piece = last, %error, "fetch from the origin failed, will be tried again");
        handle.note_fetch(Some(error.to_string()));
        let why = match error.fault() {
            Fault::Throttled => OriginFailure::Throttled { retry_after: error.retry_after() },
            Fault::Denied => OriginFailure::Denied,
            Fault::Gone => OriginFailure::Gone,
            Fault::Broken => OriginFailure::Broken,
        };
        self.tell(FetchEvent::OriginFailed { request, why }).await;
    }

    async fn tell(&self, event: FetchEvent) {
        let _ = self.events.send(event).await;
    }
}

/// Tells how a piece was taken; called on threads that may block. `last` if its request brings no more.
fn tell_taken(
    events: &mpsc::Sender<FetchEvent>,
    request: RequestId,
    (content, piece): (ContentId, u32),
    taken: &Result<bool, Corrupt>,
    last: bool,
) {
    let event = match taken {
        Ok(stored) => FetchEvent::Verified { request, content, piece, stored: *stored, last },
        Err(corrupt) => {
            tracing::warn!(%corrupt, "wrong bytes thrown away");
            FetchEvent::Corrupt { request }
        }
    };
    // The receiver is gone only when everything ends.
    let _ = events.blocking_send(event);
}
