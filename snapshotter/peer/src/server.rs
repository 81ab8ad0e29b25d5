//! Serves pieces to other nodes.
//!
//! One task per connection. Who proves to be a connected peer has its request told to the decisions, and the connection
//! waits for their verdict; while it waits, its end is noticed and told, too. A piece goes from the page cache to the socket
//! by `sendfile`.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towline_modelfs::PieceBytes;
use towline_swarm::{Refusal, UploadId};

use crate::auth::PieceRequest;
use crate::client::WITHDRAW;
use crate::directory::{Connected, Directory};
use crate::gate::Gate;
use crate::http::{Asked, BadHead, MAX_HEAD_LEN, read_request, write_error, write_piece, write_refusal};
use crate::page_cache;
use crate::socket::hold_at_most;
use crate::turns::{Place, Turns};

/// Connections at once. A peer opens at most some 40 to one node.
const MAX_CONNECTIONS: usize = 4096;
/// How long a connection may be without a request; longer than clients keep idle ones.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a new connection has for its first request, and a request for the rest of its head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest time in which a receiver may take not a byte.
const STALL: Duration = Duration::from_secs(30);
/// Bytes for one call of `sendfile`: few calls, and other tasks of the thread get their turn.
const SEND_LEN: usize = 512 << 10;
/// Bytes of a piece that the kernel holds and has not sent: what goes out in this time, within bounds. With all it likes to take
/// (megabytes), an upload counts as ended long before it is, and many more share the link than were decided; with little,
/// fast links cost many wake-ups.
const HOLD_TIME: Duration = Duration::from_millis(20);
const HOLD_LEN: (usize, usize) = (128 << 10, 4 << 20);

/// How long an upload whose receiver takes nothing keeps its turn: as long as what the kernel holds of it lasts.
const TURN_TIME: Duration = HOLD_TIME;

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The piece is sent. Its file is so long.
    Send {
        piece: PieceBytes,
        file_len: u64,
    },
    Refuse(Refusal),
}

/// What the server tells the decisions.
#[derive(Debug)]
pub(crate) enum UploadEvent {
    Requested { upload: UploadId, request: PieceRequest, verdict: oneshot::Sender<Verdict> },
    Ended { upload: UploadId },
}

/// Serves until `stop`; then ends every connection.
pub(crate) async fn serve(
    listener: TcpListener,
    directory: Arc<Directory>,
    events: mpsc::Sender<UploadEvent>,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        directory,
        events,
        next: AtomicU64::new(1),
        gate: Gate::default(),
        turns: Turns::default(),
    });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Ok(place), Ok((stream, from))) => {
                connections.spawn(Arc::clone(&server).connection(stream, from, place));
            }
            (_, Err(error)) => {
                // Out of descriptors, most likely: that passes when connections end.
                tracing::warn!(%error, "connection of a peer not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => break,
        }
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
}

struct Server {
    directory: Arc<Directory>,
    events: mpsc::Sender<UploadEvent>,
    next: AtomicU64,
    /// Closed while a piece that a reader waits for is sent.
    gate: Gate,
    turns: Turns,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        from: SocketAddr,
        _place: OwnedSemaphorePermit,
    ) {
        let ended = self.requests(&mut stream).await;
        if let Err(error) = ended {
            tracing::debug!(peer = %from, %error, "connection of a peer ended");
        }
    }

    async fn requests(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut held = HOLD_LEN.0;
        hold_at_most(stream, held);
        let mut patience = HEAD_TIME;
        loop {
            let asked = match read_head(stream, patience).await? {
                Ok(Some(asked)) => asked,
                Ok(None) => return Ok(()),
                Err(bad) => {
                    self.directory.strangers.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%bad, "request refused");
                    return stream.write_all(write_error(400).as_bytes()).await;
                }
            };
            let Some(peer) = self.authenticate(&asked) else {
                self.directory.strangers.fetch_add(1, Ordering::Relaxed);
                return stream.write_all(write_error(401).as_bytes()).await;
            };
            let Some(rate) = self.answer(stream, &peer, asked).await? else { return Ok(()) };
            let hold = hold_len(rate);
            if hold > 2 * held || 2 * hold < held {
                held = hold;
                hold_at_most(stream, held);
            }
            patience = IDLE_TIME;
        }
    }

    /// The connected peer that the request is from, if it proves that, and has not been made before.
    fn authenticate(&self, asked: &Asked) -> Option<Arc<Connected>> {
        let peer = self.directory.get(asked.request.from)?;
        let proven = peer.ours.sign_request(&asked.request) == asked.mac;
        (proven && peer.taken.take(asked.request.number)).then_some(peer)
    }

    /// Bytes a second that went out, zero for a refusal; none if the connection cannot go on.
    async fn answer(
        &self,
        stream: &mut TcpStream,
        peer: &Connected,
        asked: Asked,
    ) -> io::Result<Option<f64>> {
        let upload = UploadId(self.next.fetch_add(1, Ordering::Relaxed));
        let (number, range) = (asked.request.number, asked.range);
        let urgent = asked.request.urgent;
        let (verdict, waiting) = oneshot::channel();
        let requested = UploadEvent::Requested { upload, request: asked.request, verdict };
        if self.events.send(requested).await.is_err() {
            return Ok(None);
        }
        // Ended also when this future is dropped, or its place in the line would stay taken.
        let _ended = Ended { upload, events: &self.events };
        let mut early = [0; WITHDRAW.len()];
        let verdict = tokio::select! {
            biased;
            verdict = waiting => verdict,
            came = stream.peek(&mut early) => {
                if came? < early.len() || early != *WITHDRAW {
                    // The peer gave up, or sends what it must not send now.
                    return Ok(None);
                }
                stream.read_exact(&mut early).await?;
                stream.write_all(write_refusal(number, Refusal::Busy, &peer.ours).as_bytes()).await?;
                return Ok(Some(0.0));
            }
        };
        match verdict {
            Ok(Verdict::Send { piece, file_len }) => {
                if range.end > file_len
                    || (range.end < file_len && range.end - range.start < towline_artifact::PIECE_LEN)
                {
                    let refusal = write_refusal(number, Refusal::NotHere, &peer.ours);
                    stream.write_all(refusal.as_bytes()).await?;
                    return Ok(Some(0.0));
                }
                let head = write_piece(number, &range, file_len, &peer.ours);
                let started = Instant::now();
                let closed = urgent.then(|| self.gate.close());
                let others = (!urgent).then(|| (&self.gate, self.turns.place()));
                send_head(stream, head.as_bytes()).await?;
                send_piece(stream, piece, range.clone(), others).await?;
                drop(closed);
                self.directory.sent(peer, range.end - range.start);
                Ok(Some((range.end - range.start) as f64 / started.elapsed().as_secs_f64()))
            }
            Ok(Verdict::Refuse(why)) => {
                stream.write_all(write_refusal(number, why, &peer.ours).as_bytes()).await?;
                Ok(Some(0.0))
            }
            Err(_) => Ok(None),
        }
    }
}

/// Tells the end of an upload when it goes.
struct Ended<'a> {
    upload: UploadId,
    events: &'a mpsc::Sender<UploadEvent>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let ended = UploadEvent::Ended { upload: self.upload };
        if let Err(mpsc::error::TrySendError::Full(ended)) = self.events.try_send(ended) {
            let events = self.events.clone();
            tokio::spawn(async move {
                // The receiver is gone only when everything ends.
                let _ = events.send(ended).await;
            });
        }
    }
}

/// Reads a head. `None`: the connection ended before one began. Before it may stand a withdrawal that crossed with the refusal of
/// what it was to withdraw.
async fn read_head(stream: &mut TcpStream, patience: Duration) -> io::Result<Result<Option<Asked>, BadHead>> {
    let mut head = Vec::with_capacity(MAX_HEAD_LEN);
    let (mut patience, mut crossed) = (patience, false);
    loop {
        let read = tokio::time::timeout(patience, stream.read_buf(&mut head));
        match read.await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(if head.is_empty() { Ok(None) } else { Err(BadHead("head is cut off")) });
                }
            }
            Err(_) if head.is_empty() => return Ok(Ok(None)),
            Err(_) => return Ok(Err(BadHead("head comes too slowly"))),
        }
        if !crossed && head.starts_with(WITHDRAW) {
            head.drain(..WITHDRAW.len());
            crossed = true;
            if head.is_empty() {
                continue;
            }
        }
        match read_request(&head) {
            Ok(None) if head.len() < MAX_HEAD_LEN => patience = HEAD_TIME,
            Ok(None) => return Ok(Err(BadHead("head is too long"))),
            done => return Ok(done),
        }
    }
}

/// What the kernel should hold of an upload at `rate` bytes a second.
fn hold_len(rate: f64) -> usize {
    ((rate * HOLD_TIME.as_secs_f64()) as usize).clamp(HOLD_LEN.0, HOLD_LEN.1)
}

/// Sends a head so that it leaves together with what follows.
async fn send_head(stream: &TcpStream, mut head: &[u8]) -> io::Result<()> {
    use rustix::net::{SendFlags, send};
    while !head.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || {
            Ok(send(stream.as_fd(), head, SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
        });
        head = &head[in_time(sent).await?..];
    }
    Ok(())
}

/// Sends a piece. Unless a reader waits for it (no `others`), it stands still while the gate is closed, and older ones go first.
async fn send_piece(
    stream: &TcpStream,
    piece: PieceBytes,
    range: Range<u64>,
    others: Option<(&Gate, Place)>,
) -> io::Result<()> {
    use rustix::net::{SendFlags, send};
    let len = usize::try_from(range.end - range.start).expect("at most a piece");
    let piece = match piece {
        PieceBytes::File(file) => PieceBytes::File(into_page_cache(file, range.clone()).await?),
        memory @ PieceBytes::Memory(_) => memory,
    };
    let write = |sent: usize| -> io::Result<usize> {
        let part = (len - sent).min(SEND_LEN);
        Ok(match &piece {
            PieceBytes::File(file) => {
                rustix::fs::sendfile(stream, file, Some(&mut (range.start + sent as u64)), part)?
            }
            PieceBytes::Memory(piece) => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                send(stream, &piece.bytes()[sent..sent + part], flags)?
            }
        })
    };
    let (mut sent, mut turn) = (0, None);
    while sent < len {
        if let Some((gate, place)) = &others {
            gate.pass().await;
            if turn.is_none() || place.gives_way() {
                drop(turn.take());
                turn = Some(place.turn().await);
            }
        }
        let writing = stream.async_io(Interest::WRITABLE, || write(sent));
        let patience = if turn.is_some() { TURN_TIME } else { STALL };
        match tokio::time::timeout(patience, writing).await {
            // The file is shorter than its content: somebody has cut it.
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(written) => sent += written?,
            Err(_) if turn.is_some() => {
                drop(turn.take());
                in_time(stream.writable()).await?;
            }
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}

/// Sees to it that sending the range does not wait for the disk, which would hold up everything on its thread of the runtime.
async fn into_page_cache(file: Arc<File>, range: Range<u64>) -> io::Result<Arc<File>> {
    if page_cache::holds(&file, &range) {
        return Ok(file);
    }
    let brought = tokio::task::spawn_blocking(move || {
        page_cache::bring(&file, &range);
        file
    });
    brought.await.map_err(io::Error::other)
}

async fn in_time<T>(sent: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests;
