//! The task that decides: it feeds the swarm with what happens and does what the swarm says.
//!
//! It owns the swarm, the plan of fills and what is known of who takes part in what. It waits for events only; everything
//! it starts is another task, a message that is queued, or quick.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, PieceIndex};
use towline_modelfs::{ContentHandle, ProvenBlock};
use towline_swarm::{
    Bitmap, BlockEnd, BlockId, Counts, Effect, Event, Peer, PeerId, Refusal, RequestId, Swarm, Time, UploadId,
};

use crate::directory::Connected;
use crate::fetch::{FetchEvent, Fetcher, PeerFetch};
use crate::link::{LinkEvent, LinkSender};
use crate::net::Command;
use crate::plan::{Change, Plan};
use crate::server::{UploadEvent, Verdict};
use crate::wire::{BlockRequest, MAX_INTEREST, MAX_MEMBERS, Member, Message, encode};
use crate::wishes::{Gathered, Step, Wishes};

/// Contents that one peer may say it takes part in; as many as four times what a node takes part in.
const MAX_INTERESTS: usize = 16_384;
/// After the start, and after each new peer until then, fills wait so long: who starts together should know each other
/// before one of them goes to the origin.
const SETTLE: Duration = Duration::from_millis(500);
/// The longest time that they wait.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// How long fills rest when the disk is full.
const FULL_DISK_REST: Duration = Duration::from_secs(30);
/// Blocks that are read and proven at once, each with its piece in memory; beyond it they are refused.
const PROVING: usize = 8;
/// How often the hash table is asked who else takes part, in clusters beyond the limit of connections.
const FIND: Duration = Duration::from_secs(5);

/// A peer's control stream as this task knows it.
struct Linked {
    peer: Arc<Connected>,
    sender: LinkSender,
    interests: BTreeSet<ContentId>,
}

/// What others may look at.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) counts: Counts,
    pub(crate) contents: usize,
    pub(crate) common: HashMap<PeerId, usize>,
    pub(crate) banned: HashMap<PeerId, (String, Instant)>,
}

/// Its inputs.
pub(crate) struct Inputs {
    pub(crate) links: mpsc::Receiver<LinkEvent>,
    pub(crate) uploads: mpsc::Receiver<UploadEvent>,
    pub(crate) fetches: mpsc::Receiver<FetchEvent>,
}

pub(crate) struct Core {
    swarm: Swarm,
    started: Instant,
    fetcher: Arc<Fetcher>,
    wishes: Arc<Wishes>,
    net: mpsc::Sender<Command>,
    board: Arc<Mutex<Board>>,
    max_connections: usize,
    contents: HashMap<ContentId, Weak<ContentHandle>>,
    plan: Plan,
    links: HashMap<PeerId, Linked>,
    /// Who takes part in what, of connected peers, whether this node does or not.
    interested: HashMap<ContentId, BTreeSet<PeerId>>,
    /// Under way, and whether a reader waits for it.
    fetches: HashMap<RequestId, (AbortHandle, watch::Sender<bool>)>,
    uploads: HashMap<UploadId, oneshot::Sender<Verdict>>,
    /// Being sent.
    serving: BTreeSet<UploadId>,
    proving: Arc<Semaphore>,
    tasks: JoinSet<()>,
    settled_at: Option<Instant>,
    full_until: Option<Instant>,
    find_at: Instant,
    queue: VecDeque<Event>,
}

impl Core {
    /// `alone` if there is nobody to find: then nothing waits for others.
    pub(crate) fn new(
        swarm: Swarm,
        fetcher: Arc<Fetcher>,
        wishes: Arc<Wishes>,
        net: mpsc::Sender<Command>,
        board: Arc<Mutex<Board>>,
        max_connections: usize,
        alone: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            swarm,
            started: now,
            fetcher,
            wishes,
            net,
            board,
            max_connections,
            contents: HashMap::new(),
            plan: Plan::default(),
            links: HashMap::new(),
            interested: HashMap::new(),
            fetches: HashMap::new(),
            uploads: HashMap::new(),
            serving: BTreeSet::new(),
            proving: Arc::new(Semaphore::new(PROVING)),
            tasks: JoinSet::new(),
            settled_at: (!alone).then_some(now + SETTLE),
            full_until: None,
            find_at: now,
            queue: VecDeque::new(),
        }
    }

    /// Decides until it is stopped; then gives everything up.
    pub(crate) async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let wishes = Arc::clone(&self.wishes);
        loop {
            let wake = self.next_wake().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => self.wake(),
                () = wishes.told() => { let gathered = wishes.take(); self.wished(gathered); }
                Some(event) = inputs.fetches.recv() => self.fetched(event),
                Some(event) = inputs.links.recv() => self.linked(event),
                Some(event) = inputs.uploads.recv() => self.upload(event),
            }
            self.settle_down();
            while self.tasks.try_join_next().is_some() {}
        }
        self.tasks.shutdown().await;
    }

    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn next_wake(&self) -> Option<Instant> {
        let tick = self.swarm.next_deadline().map(|at| self.started + Duration::from_micros(at.micros()));
        [tick, self.settled_at, self.full_until].into_iter().flatten().min()
    }

    fn wake(&mut self) {
        let now = Instant::now();
        if self.settled_at.is_some_and(|at| at <= now) {
            self.settled_at = None;
        }
        if self.full_until.is_some_and(|at| at <= now) {
            self.full_until = None;
        }
        self.queue.push_back(Event::Tick);
        if self.links.len() >= self.max_connections && self.find_at <= now {
            self.find_at = now + FIND;
            for content in self.plan.active() {
                self.command(Command::Find(content));
            }
        }
    }

    /// Does all that follows from the events in the queue, and goes on with the fills.
    fn settle_down(&mut self) {
        self.plan.pause(self.settled_at.is_some() || self.full_until.is_some());
        let mut effects = Vec::new();
        loop {
            while let Some(event) = self.queue.pop_front() {
                let now = self.now();
                self.swarm.apply(event, now, &mut effects);
                for effect in effects.drain(..) {
                    self.perform(effect);
                }
            }
            self.advance_fills();
            if self.queue.is_empty() {
                break;
            }
        }
        self.fetcher.gate.set_closed(self.swarm.is_urgent(self.now()));
        self.lock_board().counts = self.swarm.counts();
    }

    fn advance_fills(&mut self) {
        if self.plan.is_idle() {
            return;
        }
        let swarm = &self.swarm;
        let missing = |content, range: &std::ops::Range<u32>| {
            let have = swarm.have(content)?;
            let end = range.end.min(have.len());
            if (range.start, end) == (0, have.len()) {
                return Some(have.len() - have.count());
            }
            Some((range.start..end).filter(|&piece| !have.has(piece)).count() as u32)
        };
        let changes = self.plan.advance(missing, |content| swarm.have(content).map(Bitmap::len));
        for change in changes {
            match change {
                Change::Whole(content) => self.queue.push_back(Event::Fill { content, on: true }),
                Change::Part(content, pieces) => self.queue.push_back(Event::Ahead { content, pieces }),
                Change::Nothing(content) => {
                    self.queue.push_back(Event::Ahead { content, pieces: 0..0 });
                    self.queue.push_back(Event::Fill { content, on: false });
                }
            }
        }
    }

    fn wished(&mut self, gathered: Gathered) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for step in gathered.steps {
            match step {
                Step::Join(handle) => added.extend(self.join(&handle)),
                Step::Leave(content) => {
                    self.contents.remove(&content);
                    self.plan.forget(content);
                    self.queue.push_back(Event::Remove { content });
                    self.command(Command::Unprovide(content));
                    removed.push(content);
                }
                Step::StartFill(id, parts) => self.plan.start(id, parts),
                Step::StopFill(id) => self.plan.stop(id),
            }
        }
        if !added.is_empty() || !removed.is_empty() {
            // What left and came back in one go is taken part in.
            removed.retain(|content| !self.contents.contains_key(content));
            self.broadcast_interest(&added, &removed);
            self.lock_board().contents = self.contents.len();
            self.links.keys().for_each(|&id| self.count_common(id));
        }
        for (content, piece) in gathered.demand {
            self.look_for(content, piece);
            self.queue.push_back(Event::Demand { content, piece });
        }
        for (content, piece, bytes) in gathered.blocks {
            self.look_for(content, piece);
            self.queue.push_back(Event::DemandBlock { content, piece, bytes });
        }
        // Read-ahead that the disk cannot keep would be fetched for nothing.
        let ahead = gathered.ahead.into_iter().filter(|_| self.full_until.is_none());
        for (content, pieces) in ahead {
            self.queue.push_back(Event::Ahead { content, pieces });
        }
    }

    fn join(&mut self, handle: &Arc<ContentHandle>) -> Option<ContentId> {
        let content = handle.content().id();
        let count = handle.content().piece_count();
        let have =
            Bitmap::from_words(count, handle.content().have_words()).unwrap_or_else(|| Bitmap::new(count));
        self.contents.insert(content, Arc::downgrade(handle));
        self.queue.push_back(Event::Add { content, have });
        let peers = self.interested.get(&content).into_iter().flatten();
        let peers: Vec<Peer> = peers.filter_map(|id| Some(self.links.get(id)?.peer.peer)).collect();
        self.queue.push_back(Event::Joined { content, peers });
        self.command(Command::Provide(content));
        Some(content)
    }

    /// Notes that a piece is gone which a reader has not found.
    fn look_for(&mut self, content: ContentId, piece: u32) {
        let thought_here = self.swarm.have(content).is_some_and(|have| have.has(piece));
        if thought_here && self.piece(content, piece).is_none() {
            // The disk took it back, or it was only in memory.
            self.queue.push_back(Event::Lost { content, piece });
        }
    }

    fn piece(&self, content: ContentId, piece: u32) -> Option<towline_modelfs::PieceBytes> {
        let handle = self.contents.get(&content)?.upgrade()?;
        self.fetcher.engine.piece(&handle, PieceIndex(piece))
    }

    fn fetched(&mut self, event: FetchEvent) {
        match event {
            FetchEvent::Progress { request } => self.queue.push_back(Event::Progress { request }),
            FetchEvent::Verified { request, content, piece, stored, last } => {
                if last {
                    self.fetches.remove(&request);
                }
                self.queue.push_back(Event::Verified { request, content, piece });
                if !stored {
                    // Readers have it from memory. Nothing but what they wait for may be wanted before it counts as lost, or it
                    // would be fetched again at once, and again.
                    self.full_until = Some(Instant::now() + FULL_DISK_REST);
                    self.queue.push_back(Event::Ahead { content, pieces: 0..0 });
                    self.queue.push_back(Event::Fill { content, on: false });
                    self.settle_down();
                    self.queue.push_back(Event::Lost { content, piece });
                }
            }
            FetchEvent::Corrupt { request } => {
                self.fetches.remove(&request);
                self.queue.push_back(Event::Corrupt { request });
            }
            FetchEvent::Failed { request, why } => {
                self.fetches.remove(&request);
                self.queue.push_back(Event::Failed { request, why });
            }
            FetchEvent::OriginFailed { request, why } => {
                self.fetches.remove(&request);
                self.queue.push_back(Event::OriginFailed { request, why });
            }
        }
    }

    fn upload(&mut self, event: UploadEvent) {
        match event {
            UploadEvent::Requested { upload, request, verdict } => {
                self.uploads.insert(upload, verdict);
                self.queue.push_back(Event::UploadRequested {
                    upload,
                    from: request.from,
                    content: request.content,
                    piece: request.piece,
                    ask: request.ask,
                    urgent: request.urgent,
                });
            }
            UploadEvent::Ended { upload } => {
                let waited = self.uploads.remove(&upload).is_some();
                if self.serving.remove(&upload) || waited {
                    self.queue.push_back(Event::UploadEnded { upload });
                }
            }
        }
    }

    fn linked(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(peer, sender) => self.link_up(peer, sender),
            LinkEvent::Message(peer, message) => self.message(&peer, message),
            LinkEvent::Down(peer) => {
                if self.links.get(&peer.peer.id).is_some_and(|linked| Arc::ptr_eq(&linked.peer, &peer)) {
                    self.link_down(peer.peer.id);
                }
                self.fetcher.directory.remove(&peer);
            }
        }
    }

    fn link_up(&mut self, peer: Arc<Connected>, sender: LinkSender) {
        let id = peer.peer.id;
        if self.links.contains_key(&id) {
            self.link_down(id);
        }
        if self.swarm.is_banned(id, self.now()) {
            sender.end();
            return;
        }
        let others = self.links.values().take(MAX_MEMBERS).map(|linked| Member {
            id: linked.peer.libp2p_id,
            address: linked.peer.control.ip(),
            port: linked.peer.control.port(),
        });
        sender.send(encode(&Message::Members(others.collect())));
        let own: Vec<ContentId> = self.contents.keys().copied().collect();
        for part in own.chunks(MAX_INTEREST) {
            sender.send(encode(&Message::Interest { added: part.to_vec(), removed: Vec::new() }));
        }
        self.fetcher.directory.put(Arc::clone(&peer));
        self.links.insert(id, Linked { peer, sender, interests: BTreeSet::new() });
        if self.settled_at.is_some() {
            self.settled_at = Some((Instant::now() + SETTLE).min(self.started + SETTLE_MAX));
        }
    }

    fn link_down(&mut self, id: PeerId) {
        let Some(linked) = self.links.remove(&id) else { return };
        linked.sender.end();
        self.fetcher.directory.remove(&linked.peer);
        self.fetcher.pool.forget(id);
        for content in linked.interests {
            self.leave(content, id);
        }
        self.lock_board().common.remove(&id);
    }

    fn leave(&mut self, content: ContentId, id: PeerId) {
        if let Some(peers) = self.interested.get_mut(&content) {
            peers.remove(&id);
            if peers.is_empty() {
                self.interested.remove(&content);
            }
        }
        self.queue.push_back(Event::Left { content, peer: id });
    }

    fn message(&mut self, peer: &Arc<Connected>, message: Message) {
        let id = peer.peer.id;
        let Some(linked) = self.links.get_mut(&id).filter(|linked| Arc::ptr_eq(&linked.peer, peer)) else {
            return;
        };
        match message {
            // The link ends with a second one; see `link`.
            Message::Hello(_) => {}
            Message::Interest { added, removed } => {
                let room = MAX_INTERESTS.saturating_sub(linked.interests.len());
                let added: Vec<ContentId> = added
                    .into_iter()
                    .take(room)
                    .filter(|content| linked.interests.insert(*content))
                    .collect();
                let removed: Vec<ContentId> =
                    removed.into_iter().filter(|content| linked.interests.remove(content)).collect();
                for content in added {
                    self.interested.entry(content).or_default().insert(id);
                    if self.contents.contains_key(&content) {
                        self.queue.push_back(Event::Joined { content, peers: vec![peer.peer] });
                    }
                }
                removed.into_iter().for_each(|content| self.leave(content, id));
                self.count_common(id);
            }
            Message::Have { content, have } => self.queue.push_back(Event::Have { content, from: id, have }),
            Message::Unlink { content } => self.queue.push_back(Event::Unlinked { content, peer: id }),
            Message::Members(members) => {
                let addresses = members.iter().map(|member| (member.address, member.port).into()).collect();
                self.command(Command::Add(addresses));
            }
            Message::BlockRequest(request) => {
                let sender = linked.sender.clone();
                self.send_block(peer, sender, request);
            }
            Message::Block { block, sent } => self.block(peer, block, sent),
        }
    }

    /// Answers a request for a block, on a thread that may wait for the disk.
    fn send_block(&mut self, peer: &Arc<Connected>, sender: LinkSender, request: BlockRequest) {
        let BlockRequest { block, content, piece, bytes } = request;
        let handle = self.contents.get(&content).and_then(Weak::upgrade);
        let (Some(handle), Ok(permit)) = (handle, Arc::clone(&self.proving).try_acquire_owned()) else {
            return sender.send(encode(&Message::Block { block, sent: None }));
        };
        self.queue.push_back(Event::BlockSent { len: bytes.end - bytes.start });
        let (fetcher, peer) = (Arc::clone(&self.fetcher), Arc::clone(peer));
        self.tasks.spawn_blocking(move || {
            let sent = fetcher.engine.prove(&handle, PieceIndex(piece), &bytes);
            drop(permit);
            if let Some(sent) = &sent {
                fetcher.directory.sent(&peer, sent.bytes.len() as u64);
            }
            sender.send(encode(&Message::Block { block, sent }));
        });
    }

    /// A peer answers a request for a block. It is checked here and now: it is short.
    fn block(&mut self, peer: &Connected, block: BlockId, sent: Option<ProvenBlock>) {
        let Some((to, content, piece, bytes)) = self.swarm.block(block) else { return };
        if to != peer.peer.id {
            return;
        }
        let handle = self.contents.get(&content).and_then(Weak::upgrade);
        let end = match (sent, handle) {
            (Some(sent), Some(handle)) => {
                self.fetcher.directory.received(peer, sent.bytes.len() as u64);
                match self.fetcher.engine.take_block(&handle, PieceIndex(piece), &bytes, sent) {
                    Ok(()) => BlockEnd::Verified,
                    Err(corrupt) => {
                        tracing::warn!(%corrupt, "wrong bytes of a block thrown away");
                        BlockEnd::Corrupt
                    }
                }
            }
            _ => BlockEnd::Refused,
        };
        self.queue.push_back(Event::BlockEnded { block, end });
    }

    fn broadcast_interest(&self, added: &[ContentId], removed: &[ContentId]) {
        let mut messages = Vec::new();
        for part in removed.chunks(MAX_INTEREST) {
            messages.push(encode(&Message::Interest { added: Vec::new(), removed: part.to_vec() }));
        }
        for part in added.chunks(MAX_INTEREST) {
            messages.push(encode(&Message::Interest { added: part.to_vec(), removed: Vec::new() }));
        }
        for linked in self.links.values() {
            messages.iter().for_each(|message| linked.sender.send(message.clone()));
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Request { request, to, content, piece, ask, urgent, .. } => {
                let handle = self.contents.get(&content).and_then(Weak::upgrade);
                let (Some(peer), Some(handle)) = (self.fetcher.directory.get(to), handle) else {
                    let why = towline_swarm::Failure::Broken;
                    self.queue.push_back(Event::Failed { request, why });
                    return;
                };
                let (urge, urgent) = watch::channel(urgent);
                let fetch = PeerFetch { request, peer, handle, piece, ask, urgent };
                let task = self.tasks.spawn(Arc::clone(&self.fetcher).from_peer(fetch));
                self.fetches.insert(request, (task, urge));
            }
            Effect::AskOrigin { request, content, pieces, .. } => {
                let Some(handle) = self.contents.get(&content).and_then(Weak::upgrade) else {
                    let why = towline_swarm::OriginFailure::Broken;
                    self.queue.push_back(Event::OriginFailed { request, why });
                    return;
                };
                let task = self.tasks.spawn(Arc::clone(&self.fetcher).from_origin(request, handle, pieces));
                // It stands still for nobody.
                self.fetches.insert(request, (task, watch::Sender::new(true)));
            }
            Effect::RequestBlock { block, to, content, piece, bytes } => match self.links.get(&to) {
                Some(linked) => {
                    let request = BlockRequest { block, content, piece, bytes };
                    linked.sender.send(encode(&Message::BlockRequest(request)));
                }
                None => self.queue.push_back(Event::BlockEnded { block, end: BlockEnd::Refused }),
            },
            Effect::Hurry { request } => {
                if let Some((_, urge)) = self.fetches.get(&request) {
                    urge.send_replace(true);
                }
            }
            Effect::Cancel { request } => {
                if let Some((task, _)) = self.fetches.remove(&request) {
                    task.abort();
                }
            }
            Effect::SendHave { content, to, have } => {
                let frame = encode(&Message::Have { content, have });
                for linked in to.iter().filter_map(|id| self.links.get(id)) {
                    linked.sender.send(frame.clone());
                }
            }
            Effect::Unlink { content, peer } => {
                if let Some(linked) = self.links.get(&peer) {
                    linked.sender.send(encode(&Message::Unlink { content }));
                }
            }
            Effect::Serve { upload, content, piece, .. } => self.serve(upload, content, piece),
            Effect::Refuse { upload, why, .. } => self.refuse(upload, why),
            Effect::Ban { peer, until } => self.ban(peer, until),
            Effect::Complete { content } => tracing::debug!(%content, "all pieces are here"),
        }
    }

    fn serve(&mut self, upload: UploadId, content: ContentId, piece: u32) {
        let Some(verdict) = self.uploads.remove(&upload) else {
            // Its connection ended meanwhile, and that was told.
            self.queue.push_back(Event::UploadEnded { upload });
            return;
        };
        let file_len =
            self.contents.get(&content).and_then(Weak::upgrade).map(|handle| handle.content().len());
        let (Some(piece_bytes), Some(file_len)) = (self.piece(content, piece), file_len) else {
            // Who asked is gone if nobody hears it.
            let _ = verdict.send(Verdict::Refuse(Refusal::NotHere));
            self.queue.push_back(Event::UploadEnded { upload });
            self.queue.push_back(Event::Lost { content, piece });
            return;
        };
        self.serving.insert(upload);
        // The server tells the end of it in any case.
        let _ = verdict.send(Verdict::Send { piece: piece_bytes, file_len });
    }

    fn refuse(&mut self, upload: UploadId, why: Refusal) {
        if let Some(verdict) = self.uploads.remove(&upload) {
            let _ = verdict.send(Verdict::Refuse(why));
        }
    }

    fn ban(&mut self, id: PeerId, until: Time) {
        let until = self.started + Duration::from_micros(until.micros());
        let Some(linked) = self.links.get(&id) else { return };
        let (peer, rest) = (Arc::clone(&linked.peer), until.saturating_duration_since(Instant::now()));
        tracing::error!(peer = %id, node = peer.name, address = %peer.control, rest_s = rest.as_secs(), "peer sent wrong bytes and is banned");
        let mut board = self.lock_board();
        board.banned.retain(|_, ban| ban.1 > Instant::now());
        board.banned.insert(id, (peer.name.clone(), until));
        drop(board);
        self.command(Command::Block(peer.libp2p_id, until));
        self.link_down(id);
    }

    fn command(&self, command: Command) {
        if self.net.try_send(command).is_err() {
            tracing::debug!("the network is behind; a hint to it is dropped");
        }
    }

    /// Notes how many contents a peer has in common with this node.
    fn count_common(&self, id: PeerId) {
        let Some(linked) = self.links.get(&id) else { return };
        let common = linked.interests.iter().filter(|content| self.contents.contains_key(content)).count();
        self.lock_board().common.insert(id, common);
    }

    fn lock_board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
