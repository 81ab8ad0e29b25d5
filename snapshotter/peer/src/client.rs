//! Asks other nodes for pieces.
//!
//! A connection carries one request at a time and is kept for the next. A request that is given up while it waits in the peer's
//! line is withdrawn ([`WITHDRAW`]); one that is being answered takes its connection with it: that is how the other side
//! learns of it. (A quarter of all requests move to another peer while they wait, and a new connection on a link that is full
//! takes half a second to get its share.)

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use towline_swarm::{PeerId, Refusal};

use crate::auth::PieceRequest;
use crate::buffers::{Buffer, Buffers};
use crate::directory::Connected;
use crate::gate::Gate;
use crate::http::{Answer, BadHead, MAX_HEAD_LEN, read_answer, write_request};
use crate::socket::{wake_at, window_at_most};

/// Limit for connecting. Peers are near; who does not answer within it is better asked later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle connections kept per peer: as many as requests are under way to one.
const IDLE_PER_PEER: usize = 32;
/// Idle connections kept in all.
const IDLE: usize = 512;
/// How long an idle connection is kept; the server keeps it longer.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// The least bytes of a piece that wake the receiver: on a link of 1 Mb/s still two times a second.
const WAKE_LEN: usize = 64 << 10;
/// On fast links, what arrives in this time: with 64 KiB a receiver of 1 GB/s spends as much on waking up as on hashing. Within it a gate
/// that closes is noticed, and what then still moves holds up a reader's piece.
const WAKE_TIME: Duration = Duration::from_millis(10);
/// If it has not come by then, the link is not that fast any more.
const WAKE_PATIENCE: Duration = Duration::from_millis(50);
/// What a connection that stands still lets its sender send: a kernel's buffers would take megabytes more of the link.
const PAUSED_WINDOW: usize = 2048;
/// More than any window.
const ANY_WINDOW: usize = 1 << 30;
/// Takes back the request that waits: an empty line, which RFC 9112 section 2.2 has servers ignore that know nothing of this.
pub(crate) const WITHDRAW: &[u8; 2] = b"\r\n";
/// Limit for the answer to it.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(3);
/// How often progress is told after the first byte.
pub(crate) const PROGRESS: Duration = Duration::from_secs(1);

/// Why no piece came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("peer does not serve the piece: {0:?}")]
    Refused(Refusal),
    #[error("connection to the peer failed")]
    Io(#[from] io::Error),
    #[error("answer of the peer: {0}")]
    Head(#[from] BadHead),
    #[error("peer answers with status {0}")]
    Status(u16),
}

/// Connections that wait for their next request, of each peer, and apart those that carried a reader's piece last.
///
/// Readers find one that knows its path: a new one stays at a fraction of a link that is full, and one of the fill's may have
/// just stood still, with a window that must grow again.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Idle>);

/// By peer and whether they are the readers', those used last at the end, with since when they are idle.
type Idle = HashMap<(PeerId, bool), Vec<(TcpStream, Instant)>>;

impl Pool {
    /// A connection for a reader's piece if `urgent`; readers may take one of the fill's, but not the other way round.
    fn take(&self, peer: PeerId, urgent: bool) -> Option<TcpStream> {
        let mut pool = self.lock();
        for kind in [urgent, false] {
            let Some(idle) = pool.get_mut(&(peer, kind)) else { continue };
            while let Some((stream, since)) = idle.pop() {
                if since.elapsed() < IDLE_TIME && is_open(&stream) {
                    return Some(stream);
                }
            }
            pool.remove(&(peer, kind));
        }
        None
    }

    fn put(&self, peer: PeerId, urgent: bool, stream: TcpStream) {
        let mut pool = self.lock();
        if pool.values().map(Vec::len).sum::<usize>() >= IDLE {
            pool.retain(|_, idle| {
                idle.retain(|(_, since)| since.elapsed() < IDLE_TIME);
                !idle.is_empty()
            });
        }
        let room = pool.values().map(Vec::len).sum::<usize>() < IDLE;
        let idle = pool.entry((peer, urgent)).or_default();
        if room && idle.len() < IDLE_PER_PEER {
            idle.push((stream, Instant::now()));
        }
    }

    /// Connections kept.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    /// Closes what is kept for a peer.
    pub(crate) fn forget(&self, peer: PeerId) {
        self.lock().retain(|(of, _), _| *of != peer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an idle connection is still good: nothing to read, not even its end.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Asks `peer` for a piece, whose bytes in the file are `range`. `progress` is called at the first byte of it and then about once a
/// second. Until a reader waits for it (`urgent`) it stands still while `gate` is closed. The bytes are what the peer sent, unverified, as many as asked for.
///
/// # Errors
/// [`AskError`]. Cancel-safe in the sense that dropping it gives the request up.
pub(crate) async fn ask(
    (pool, buffers, gate): (&Arc<Pool>, &Buffers, &Gate),
    peer: &Arc<Connected>,
    mut request: PieceRequest,
    range: &Range<u64>,
    urgent: &mut watch::Receiver<bool>,
    mut progress: impl FnMut(),
) -> Result<Buffer, AskError> {
    let id = peer.peer.id;
    if let Some(stream) = pool.take(id, request.urgent) {
        match ask_on(stream, (pool, buffers, gate), peer, &request, range, urgent, &mut progress).await {
            // It was closed while it was idle; nothing of an answer came.
            Err(Tried::Unanswered(_)) => request.number = peer.numbers.next(),
            Err(Tried::Failed(error)) => return Err(error),
            Ok(bytes) => return Ok(bytes),
        }
    }
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(peer.bulk)).await;
    let stream = connecting.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    match ask_on(stream, (pool, buffers, gate), peer, &request, range, urgent, &mut progress).await {
        Ok(bytes) => Ok(bytes),
        Err(Tried::Unanswered(error)) => Err(error.into()),
        Err(Tried::Failed(error)) => Err(error),
    }
}

enum Tried {
    Unanswered(io::Error),
    Failed(AskError),
}

impl<E: Into<AskError>> From<E> for Tried {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A request that was sent and has no answer yet. Withdrawn when this is dropped.
struct Waiting {
    stream: Option<TcpStream>,
    pool: Arc<Pool>,
    peer: Arc<Connected>,
    number: u64,
    urgent: bool,
    range: Range<u64>,
}

impl Waiting {
    /// Waits for the first bytes of the answer and appends them to `head`; none at the end of the connection.
    async fn answered(mut self, head: &mut Vec<u8>) -> io::Result<TcpStream> {
        loop {
            let stream = self.stream.as_ref().expect("taken only at the end");
            let read = match stream.readable().await {
                Ok(()) => stream.try_read_buf(head),
                Err(error) => Err(error),
            };
            match read {
                // Was readable before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    let stream = self.stream.take().expect("taken only here");
                    return read.map(|_| stream);
                }
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (pool, peer) = (Arc::clone(&self.pool), Arc::clone(&self.peer));
            let (number, urgent, range) = (self.number, self.urgent, self.range.clone());
            runtime.spawn(async move {
                let withdrawn = withdraw(stream, number, &range, &peer);
                if let Ok(Some(stream)) = tokio::time::timeout(WITHDRAW_TIMEOUT, withdrawn).await {
                    pool.put(peer.peer.id, urgent, stream);
                }
            });
        }
    }
}

/// Takes back the request that waits on a connection. `None` if the piece is on its way or the connection is of no more use.
async fn withdraw(
    mut stream: TcpStream,
    number: u64,
    range: &Range<u64>,
    peer: &Connected,
) -> Option<TcpStream> {
    stream.write_all(WITHDRAW).await.ok()?;
    let mut head = Vec::with_capacity(MAX_HEAD_LEN);
    while head.len() < head.capacity() && stream.read_buf(&mut head).await.ok()? > 0 {
        match read_answer(&head, number, range, &peer.theirs).ok()? {
            Some((Answer::Refused(_), len)) if len == head.len() => return Some(stream),
            Some(_) => return None,
            None => {}
        }
    }
    None
}

async fn ask_on(
    mut stream: TcpStream,
    (pool, buffers, gate): (&Arc<Pool>, &Buffers, &Gate),
    peer: &Arc<Connected>,
    request: &PieceRequest,
    range: &Range<u64>,
    urgent: &mut watch::Receiver<bool>,
    progress: &mut impl FnMut(),
) -> Result<Buffer, Tried> {
    let head = write_request(request, range, &peer.theirs);
    stream.write_all(head.as_bytes()).await.map_err(Tried::Unanswered)?;
    let waiting = Waiting {
        stream: Some(stream),
        pool: Arc::clone(pool),
        peer: Arc::clone(peer),
        number: request.number,
        urgent: request.urgent,
        range: range.clone(),
    };
    let mut head = Vec::with_capacity(MAX_HEAD_LEN);
    let mut stream = waiting.answered(&mut head).await.map_err(Tried::Unanswered)?;
    if head.is_empty() {
        return Err(Tried::Unanswered(io::ErrorKind::UnexpectedEof.into()));
    }
    let (answer, head_len) = loop {
        if let Some(answer) = read_answer(&head, request.number, range, &peer.theirs)? {
            break answer;
        }
        if head.len() == head.capacity() {
            return Err(BadHead("head is too long").into());
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    let len = match answer {
        Answer::Piece(len) => usize::try_from(len).expect("at most a piece"),
        Answer::Refused(why) => {
            pool.put(peer.peer.id, request.urgent, stream);
            return Err(AskError::Refused(why).into());
        }
        Answer::Other(status) => return Err(AskError::Status(status).into()),
    };
    progress();
    let begun = Instant::now();
    let mut told = begun;
    let mut wake_len = wake_len(peer.rate.load(Ordering::Relaxed));
    let mut buffer = buffers.take();
    buffer.end().extend_from_slice(&head[head_len..]);
    if buffer.len() > len {
        return Err(BadHead("more than the piece came").into());
    }
    let mut wakes_at = 1;
    while buffer.len() < len {
        let missing = len - buffer.len();
        if wakes_at != missing.min(wake_len) {
            wakes_at = missing.min(wake_len);
            wake_at(&stream, wakes_at);
        }
        if gate.is_closed() && !*urgent.borrow() {
            window_at_most(&stream, PAUSED_WINDOW);
            tokio::select! {
                () = gate.pass() => {}
                // Fails when the request is given up, and this with it.
                _ = urgent.wait_for(|urgent| *urgent) => {}
            }
            window_at_most(&stream, ANY_WINDOW);
        }
        let mut rest = (&mut stream).take(missing as u64);
        let reading = rest.read_buf(buffer.end());
        let read = if wakes_at > WAKE_LEN {
            let Ok(read) = tokio::time::timeout(WAKE_PATIENCE, reading).await else {
                wake_len = WAKE_LEN;
                peer.rate.store(0, Ordering::Relaxed);
                continue;
            };
            read?
        } else {
            reading.await?
        };
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if told.elapsed() >= PROGRESS {
            progress();
            told = Instant::now();
        }
    }
    if wakes_at != 1 {
        wake_at(&stream, 1);
    }
    peer.rate.store((len as f64 / begun.elapsed().as_secs_f64()) as u64, Ordering::Relaxed);
    pool.put(peer.peer.id, request.urgent, stream);
    Ok(buffer)
}

/// How many bytes wake the receiver of a piece, when the last one came with so many a second.
fn wake_len(rate: u64) -> usize {
    ((rate as f64 * WAKE_TIME.as_secs_f64()) as usize).max(WAKE_LEN)
}
