//! Brings one piece from a peer, or a few from the origin, to the engine.
//!
//! A request that is given up ends with its task. Bytes that came whole are verified and kept all the same, on a thread that
//! may block, and told.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use towline_artifact::{ContentId, PieceIndex};
use towline_modelfs::{ContentHandle, Engine, Fault, FetchError, Supplier};
use towline_swarm::{Ask, Failure, OriginFailure, PeerId, RequestId};

use crate::auth::PieceRequest;
use crate::buffers::Buffers;
use crate::client::{self, AskError, Pool};
use crate::directory::{Connected, Directory};
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
    pub(crate) pool: Pool,
    pub(crate) buffers: Buffers,
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
    pub(crate) urgent: bool,
}

impl Fetcher {
    pub(crate) async fn from_peer(self: Arc<Self>, fetch: PeerFetch) {
        let PeerFetch { request, peer, handle, piece, ask, urgent } = fetch;
        let content = handle.content().id();
        let number = peer.numbers.next();
        let asked = PieceRequest { from: self.own, number, content, piece, ask, urgent };
        let range = piece_range(piece, handle.content().len());
        // A full channel only means that the news comes with the next byte.
        let progress = || drop(self.events.try_send(FetchEvent::Progress { request }));
        let why = match client::ask((&self.pool, &self.buffers), &peer, asked, &range, progress).await {
            Ok(bytes) => {
                self.directory.received(&peer, bytes.bytes.len() as u64);
                // Its end is told by itself; nobody waits for it.
                drop(self.deliver(request, &handle, piece, bytes.share(), Supplier::Peer, true));
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

    /// Pieces are verified one behind the one that arrives.
    pub(crate) async fn from_origin(
        self: Arc<Self>,
        request: RequestId,
        handle: Arc<ContentHandle>,
        pieces: Range<u32>,
    ) {
        let last = pieces.end - 1;
        let len = handle.content().len();
        let fetched = async {
            let range = piece_range(pieces.start, len).start..piece_range(last, len).end;
            let mut missing = range.end - range.start;
            let mut stream = self.engine.fetch_from_origin(&handle, range).await?;
            let mut rest = Bytes::new();
            let mut told = std::time::Instant::now();
            let mut before: Option<JoinHandle<bool>> = None;
            for piece in pieces {
                let range = piece_range(piece, len);
                let piece_len = usize::try_from(range.end - range.start).expect("at most a piece");
                let mut buffer = self.buffers.take();
                loop {
                    let bytes = &mut buffer.bytes;
                    let part = rest.split_to(rest.len().min(piece_len - bytes.len()));
                    bytes.extend_from_slice(&part);
                    if bytes.len() == piece_len {
                        break;
                    }
                    rest = stream.next().await.ok_or(FetchError::Short { missing })??;
                    missing = missing.saturating_sub(rest.len() as u64);
                    if told.elapsed() >= std::time::Duration::from_secs(1) {
                        let _ = self.events.try_send(FetchEvent::Progress { request });
                        told = std::time::Instant::now();
                    }
                }
                let taken =
                    self.deliver(request, &handle, piece, buffer.share(), Supplier::Origin, piece == last);
                if let Some(before) = before.replace(taken)
                    && !before.await.unwrap_or(false)
                {
                    return Ok(());
                }
            }
            Ok(())
        };
        let error = match fetched.await {
            Ok(()) => return handle.note_fetch(None),
            Err(error) => error,
        };
        let error: FetchError = error;
        let content = handle.content().id();
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

    /// Verifies and keeps a piece on a thread that may block, and tells how that went. True if it matched.
    fn deliver(
        &self,
        request: RequestId,
        handle: &Arc<ContentHandle>,
        piece: u32,
        bytes: Bytes,
        from: Supplier,
        last: bool,
    ) -> JoinHandle<bool> {
        let (engine, handle, events) = (Arc::clone(&self.engine), Arc::clone(handle), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let content = handle.content().id();
            let delivered = engine.deliver(&handle, PieceIndex(piece), bytes, from);
            let event = match &delivered {
                Ok(stored) => FetchEvent::Verified { request, content, piece, stored: *stored, last },
                Err(corrupt) => {
                    tracing::warn!(%corrupt, ?from, "wrong bytes thrown away");
                    FetchEvent::Corrupt { request }
                }
            };
            // The receiver is gone only when everything ends.
            let _ = events.blocking_send(event);
            delivered.is_ok()
        })
    }

    async fn tell(&self, event: FetchEvent) {
        let _ = self.events.send(event).await;
    }
}
