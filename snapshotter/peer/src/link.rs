//! The control stream with one peer: introductions, then messages both ways.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::auth::RequestKey;
use crate::directory::Connected;
use crate::wire::{Hello, MAX_FRAME_LEN, Message, decode, encode};

/// How long both sides have to introduce themselves.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Frames that may wait to be sent.
const QUEUE_FRAMES: usize = 4096;
/// Bytes that may wait to be sent. A link that stays full is ended: its peer reads too slowly to be of use.
const QUEUE_BYTES: usize = 8 << 20;
/// How long a write may make no progress.
const STALL: Duration = Duration::from_secs(20);

/// What is told of links to who decides.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Up(Arc<Connected>, LinkSender),
    Message(Arc<Connected>, Message),
    Down(Arc<Connected>),
}

/// Sends to one peer, without waiting.
#[derive(Clone, Debug)]
pub(crate) struct LinkSender {
    frames: mpsc::Sender<Bytes>,
    queued: Arc<AtomicUsize>,
    end: CancellationToken,
}

impl LinkSender {
    fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (frames, receiver) = mpsc::channel(QUEUE_FRAMES);
        (Self { frames, queued: Arc::default(), end: CancellationToken::new() }, receiver)
    }

    /// Queues a frame. When the queue is full the link ends.
    pub(crate) fn send(&self, frame: Bytes) {
        let len = frame.len();
        let queued = self.queued.fetch_add(len, Ordering::Relaxed) + len;
        if queued > QUEUE_BYTES || self.frames.try_send(frame).is_err() {
            self.end.cancel();
        }
    }

    /// Ends the link.
    pub(crate) fn end(&self) {
        self.end.cancel();
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("stream")]
    Io(#[from] std::io::Error),
    #[error("message of the peer: {0}")]
    Wire(#[from] crate::wire::WireError),
    #[error("{0}")]
    Rule(&'static str),
}

/// Introduces this node on a new stream and hears who the peer is. `remote` is where the connection leads.
///
/// # Errors
/// [`LinkError`] when the peer does not introduce itself in time, or wrongly.
pub(crate) async fn introduce(
    stream: &mut Stream,
    id: libp2p::PeerId,
    remote: IpAddr,
    mut own: Hello,
) -> Result<(Connected, Option<IpAddr>), LinkError> {
    let ours = RequestKey::random();
    own.request_key = ours.clone();
    own.seen_address = Some(remote);
    let exchange = async {
        stream.write_all(&encode(&Message::Hello(own))).await?;
        stream.flush().await?;
        read_frame(stream).await
    };
    let hello = tokio::time::timeout(HELLO_TIME, exchange)
        .await
        .map_err(|_| LinkError::Rule("no introduction in time"))??;
    let Message::Hello(hello) = hello else { return Err(LinkError::Rule("no introduction")) };
    let seen = hello.seen_address;
    Ok((Connected::new(id, remote, &hello, ours), seen))
}

/// Passes messages both ways until either side ends. `events` hears of its beginning and end, whatever happens between.
pub(crate) async fn run(
    stream: Stream,
    peer: Arc<Connected>,
    events: mpsc::Sender<LinkEvent>,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let (sender, frames) = LinkSender::new();
    let (end, queued) = (sender.end.clone(), Arc::clone(&sender.queued));
    if events.send(LinkEvent::Up(Arc::clone(&peer), sender)).await.is_err() {
        return Ok(());
    }
    let (mut reader, writer) = stream.split();
    let reading = async {
        loop {
            let message = read_frame(&mut reader).await?;
            if matches!(message, Message::Hello(_)) {
                return Err(LinkError::Rule("second introduction"));
            }
            if events.send(LinkEvent::Message(Arc::clone(&peer), message)).await.is_err() {
                return Ok(());
            }
        }
    };
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = end.cancelled() => Err(LinkError::Rule("ended by this node")),
        ended = reading => ended,
        ended = write(writer, frames, &queued) => ended,
    };
    // The receiver is gone only when everything ends.
    let _ = events.send(LinkEvent::Down(peer)).await;
    ended
}

async fn write(
    mut writer: impl futures_util::AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Bytes>,
    queued: &AtomicUsize,
) -> Result<(), LinkError> {
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            in_time(writer.write_all(&frame)).await?;
            queued.fetch_sub(frame.len(), Ordering::Relaxed);
            next = frames.try_recv().ok();
        }
        in_time(writer.flush()).await?;
    }
    Ok(())
}

async fn in_time<T>(written: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(STALL, written)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

async fn read_frame(reader: &mut (impl futures_util::AsyncRead + Unpin)) -> Result<Message, LinkError> {
    let mut len = [0; 4];
    reader.read_exact(&mut len).await?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MAX_FRAME_LEN {
        return Err(LinkError::Rule("message is too long"));
    }
    let mut frame = vec![0; len];
    reader.read_exact(&mut frame).await?;
    Ok(decode(&frame)?)
}
