//! The state machine: events in, effects out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use towline_artifact::ContentId;

use crate::blocks::BlockFlight;
use crate::content::Content;
use crate::origin::Origin;
use crate::peers::Peers;
use crate::rng::Rng;
use crate::uploads::Uploads;
use crate::{Ask, BlockId, Effect, Event, Limits, Peer, PeerId, Refusal, RequestId, Time};

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Peer(PeerId, Ask),
    Origin,
}

/// A request under way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) slot: usize,
    /// From the first to the last that has not come yet.
    pub(crate) pieces: Range<u32>,
    pub(crate) target: Target,
    /// Since when a reader waits for it.
    pub(crate) urgent_since: Option<Time>,
    /// Whether the rest stands still for it meanwhile. Not for what a reader in order finds under way, one piece after the other:
    /// the peer sends it beside others, and the link would idle.
    pub(crate) alone: bool,
    /// When it was asked, or when its last piece came.
    pub(crate) sent: Time,
    pub(crate) deadline: Time,
    /// The longest silence.
    pub(crate) patience: Duration,
    /// Whether bytes have come.
    pub(crate) moving: bool,
    /// Requests under way to that peer, this one included, when it was sent.
    pub(crate) load: usize,
}

impl Flight {
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent_since.is_some()
    }
}

/// What happened so far, for metrics. All are counts of pieces unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Verified, from peers.
    pub from_peers: u64,
    /// Verified, from the origin.
    pub from_origin: u64,
    /// Blocks that were proven, and that readers had before their pieces.
    pub blocks: u64,
    /// Verified, but already here: the price of hedging.
    pub twice: u64,
    /// Answers that did not match their digest.
    pub corrupt: u64,
    /// Requests to peers given up for want of an answer.
    pub stalled: u64,
    /// Requests refused by peers or broken off.
    pub failed: u64,
    /// Messages of peers that broke a limit and were not taken.
    pub absurd: u64,
}

/// All decisions of one node about its peers. See the crate's documentation.
#[derive(Debug)]
pub struct Swarm {
    pub(crate) me: Peer,
    pub(crate) limits: Limits,
    pub(crate) rng: Rng,
    pub(crate) contents: Vec<Option<Content>>,
    by_id: HashMap<ContentId, usize>,
    /// Slots that something happened to since they came to rest: what ticks and requests look at.
    pub(crate) active: BTreeSet<usize>,
    pub(crate) peers: Peers,
    pub(crate) origin: Origin,
    pub(crate) uploads: Uploads,
    pub(crate) flights: BTreeMap<RequestId, Flight>,
    /// Of `flights`, those to peers.
    pub(crate) peer_flights: usize,
    /// While the origin is held to refuse this node's credentials.
    pub(crate) denied_until: Option<Time>,
    /// Requests to peers that may be under way for what no reader waits for.
    pub(crate) depth: f64,
    /// Pieces that had come from peers when `depth` was last worked out.
    pub(crate) adapted_at: u64,
    next_request: u64,
    pub(crate) blocks: BTreeMap<BlockId, BlockFlight>,
    pub(crate) next_block: u64,
    next_tick: Time,
    pub(crate) counts: Counts,
}

impl Swarm {
    /// A swarm of a node that takes part in nothing yet. Equal seeds and events give equal effects.
    #[must_use]
    pub fn new(me: Peer, limits: Limits, seed: u64) -> Self {
        Self {
            me,
            limits,
            rng: Rng::new(seed ^ me.id.0),
            contents: Vec::new(),
            by_id: HashMap::new(),
            active: BTreeSet::new(),
            peers: Peers::default(),
            origin: Origin::new(),
            uploads: Uploads::new(),
            flights: BTreeMap::new(),
            peer_flights: 0,
            denied_until: None,
            depth: limits.requests.0 as f64,
            adapted_at: 0,
            next_request: 0,
            blocks: BTreeMap::new(),
            next_block: 0,
            next_tick: Time::ZERO,
            counts: Counts::default(),
        }
    }

    /// Takes in an event; what is to be done is appended to `out`.
    pub fn apply(&mut self, event: Event, now: Time, out: &mut Vec<Effect>) {
        match event {
            Event::Tick => {
                if now >= self.next_tick {
                    self.next_tick = now + self.limits.have_gap;
                    self.tick(now, out);
                }
            }
            Event::Add { content, have } => self.add(content, have, now, out),
            Event::Remove { content } => self.remove(content, now, out),
            Event::Joined { content, peers } => self.joined(content, &peers, now, out),
            Event::Left { content, peer } => self.left(content, peer, now, out),
            Event::Fill { content, on } => {
                self.with(content, |swarm, slot| {
                    swarm.content(slot).set_fill(on);
                    swarm.share_window(now);
                    swarm.advance(slot, now, out);
                });
            }
            Event::Demand { content, piece } => {
                self.with(content, |swarm, slot| swarm.demand(slot, piece, now, out));
            }
            Event::DemandBlock { content, piece, bytes } => {
                self.with(content, |swarm, slot| swarm.demand_block(slot, piece, bytes, now, out));
            }
            Event::BlockSent { len } => self.uploads.spend(len, &self.limits),
            Event::BlockEnded { block, end } => self.block_ended(block, end, now, out),
            Event::Ahead { content, pieces } => {
                self.with(content, |swarm, slot| {
                    let c = swarm.content(slot);
                    c.ahead = pieces.start.min(c.pieces)..pieces.end.min(c.pieces);
                    c.ahead.clone().for_each(|piece| c.want(piece));
                    swarm.pump(now, out);
                });
            }
            Event::Verified { request, content, piece } => self.verified(request, content, piece, now, out),
            Event::Progress { request } => {
                if let Some(flight) = self.flights.get_mut(&request) {
                    // Bytes that came once are told of every second: their end is noticed sooner than a long line is.
                    let patience = match flight.target {
                        Target::Peer(..) => flight.patience.min(self.limits.request_timeout),
                        Target::Origin => {
                            self.origin.moves(request, now);
                            flight.patience
                        }
                    };
                    flight.deadline = now + patience;
                    flight.moving = true;
                }
            }
            Event::Corrupt { request } => self.corrupt(request, now, out),
            Event::Failed { request, why } => self.failed(request, why, now, out),
            Event::OriginFailed { request, why } => self.origin_failed(request, why, now, out),
            Event::Lost { content, piece } => {
                self.with(content, |swarm, slot| swarm.piece_lost(slot, piece, now, out));
            }
            Event::Have { content, from, have } => self.heard(content, from, &have, now, out),
            Event::Unlinked { content, peer } => self.unlinked(content, peer, now, out),
            Event::UploadRequested { upload, from, content, piece, ask, urgent } => {
                let slot = self.by_id.get(&content).copied();
                self.upload_requested((upload, from, slot, piece), ask, urgent, now, out);
            }
            Event::UploadEnded { upload } => {
                if !self.uploads.ended(upload, now) {
                    self.unpark(upload);
                }
                self.serve(now, out);
            }
        }
    }

    /// When [`Event::Tick`] is due; none while there is nothing to wait for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let busy = !self.flights.is_empty()
            || !self.blocks.is_empty()
            || self.uploads.waiting() > 0
            || self.active.iter().filter_map(|&slot| self.contents[slot].as_ref()).any(Content::is_busy);
        busy.then_some(self.next_tick)
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The pieces of a content that are here.
    #[must_use]
    pub fn have(&self, content: ContentId) -> Option<&crate::Bitmap> {
        self.contents[*self.by_id.get(&content)?].as_ref().map(|content| &content.have)
    }

    /// Requests under way: to peers, to the origin.
    #[must_use]
    pub fn under_way(&self) -> (usize, usize) {
        (self.peer_flights, self.origin.requests())
    }

    /// Whether a piece that a reader waits for, here or at a peer that asked this node as its owner, is under way and should
    /// not share the link with what nobody waits for. Only for a few seconds each: what does not come must not hold up the rest.
    #[must_use]
    pub fn is_urgent(&self, now: Time) -> bool {
        self.flights
            .values()
            .filter_map(|flight| flight.urgent_since.filter(|_| flight.alone))
            .any(|since| now.since(since) < self.limits.request_timeout)
    }

    /// Links of a content.
    #[must_use]
    pub fn links(&self, content: ContentId) -> usize {
        let slot = self.by_id.get(&content);
        slot.and_then(|&slot| self.contents[slot].as_ref()).map_or(0, |content| content.links.len())
    }

    /// Whether a peer is banned at this moment.
    #[must_use]
    pub fn is_banned(&self, peer: PeerId, now: Time) -> bool {
        self.peers.is_banned(peer, now)
    }

    pub(crate) fn with(&mut self, content: ContentId, act: impl FnOnce(&mut Self, usize)) {
        if let Some(&slot) = self.by_id.get(&content) {
            act(self, slot);
        }
    }

    /// The content in a slot, which is active from now on.
    pub(crate) fn content(&mut self, slot: usize) -> &mut Content {
        self.active.insert(slot);
        self.contents[slot].as_mut().expect("slots in use hold a content")
    }

    /// The first active slot from `next` on, which moves past it.
    pub(crate) fn next_active(&self, next: &mut usize) -> Option<usize> {
        let slot = *self.active.range(*next..).next()?;
        *next = slot + 1;
        Some(slot)
    }

    /// Contents that a tick looks at. The others are at rest and cost nothing.
    #[must_use]
    pub fn active_contents(&self) -> usize {
        self.active.len()
    }

    fn add(&mut self, id: ContentId, have: crate::Bitmap, now: Time, out: &mut Vec<Effect>) {
        if self.by_id.contains_key(&id) || self.by_id.len() >= self.limits.contents {
            return;
        }
        let patience = 1.0 + self.rng.unit() / 2.0;
        let mut me = self.me;
        if self.denied_until.is_some() {
            me.weight = 0;
        }
        let content = Content::new(id, have, me, &self.limits, now, patience);
        if content.have.is_full() {
            out.push(Effect::Complete { content: id });
        }
        let slot = self.contents.iter().position(Option::is_none).unwrap_or_else(|| {
            self.contents.push(None);
            self.contents.len() - 1
        });
        self.contents[slot] = Some(content);
        self.active.insert(slot);
        self.by_id.insert(id, slot);
    }

    fn remove(&mut self, id: ContentId, now: Time, out: &mut Vec<Effect>) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let flights: Vec<RequestId> =
            self.flights.iter().filter(|(_, flight)| flight.slot == slot).map(|(&id, _)| id).collect();
        for request in flights {
            out.push(Effect::Cancel { request });
            self.end_flight(request);
        }
        self.forget_blocks(slot, None);
        let why = Refusal::NotHere;
        for upload in self.uploads.drain_slot(slot) {
            out.push(Effect::Refuse { upload: upload.id, to: upload.to, why });
        }
        let content = self.contents[slot].take().expect("named slots hold a content");
        self.active.remove(&slot);
        for parked in content.parked.values().flatten() {
            out.push(Effect::Refuse { upload: parked.upload, to: parked.from, why });
        }
        for link in &content.links {
            self.peers.entry(link.peer).links -= 1;
            self.peers.forget_idle(link.peer);
            out.push(Effect::Unlink { content: id, peer: link.peer });
        }
        self.pump(now, out);
    }

    pub(crate) fn demand(&mut self, slot: usize, piece: u32, now: Time, out: &mut Vec<Effect>) {
        let c = self.content(slot);
        if piece >= c.pieces || c.have.has(piece) {
            return;
        }
        c.want(piece);
        let expected = c.ahead.contains(&piece);
        if !c.demand.contains(&piece) {
            c.demand.push_back(piece);
        }
        if !c.pulls.contains(&piece) {
            c.pulls.push_back(piece);
        }
        self.hurry(slot, piece, expected, now, out);
        self.advance(slot, now, out);
    }

    /// A reader waits for a piece, here or at a peer. What is under way for the fill counts as urgent from now on and is hedged;
    /// what waits in a peer's line, where nobody knows that it is urgent, is asked for anew.
    pub(crate) fn hurry(
        &mut self,
        slot: usize,
        piece: u32,
        expected: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let requests = self.content(slot).under_way.get(&piece).cloned().unwrap_or_default();
        for request in requests {
            let Some(flight) = self.flights.get_mut(&request) else { continue };
            let news = !flight.is_urgent();
            let waits = news && !flight.moving && matches!(flight.target, Target::Peer(_, Ask::Holder));
            flight.urgent_since.get_or_insert(now);
            flight.alone |= !expected;
            if waits && self.end_flight(request).is_some() {
                out.push(Effect::Cancel { request });
            } else if news {
                out.push(Effect::Hurry { request });
            }
        }
    }

    /// Starts whatever may start for a content, at peers and at sources.
    pub(crate) fn advance(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        self.pump(now, out);
        self.drive_sources(slot, now, out);
    }

    pub(crate) fn launch(&mut self, flight: Flight) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        match flight.target {
            Target::Peer(peer, _) => {
                self.peers.entry(peer).outstanding += 1;
                self.peer_flights += 1;
            }
            Target::Origin => self.origin.asked(id, flight.pieces.len() as u32, flight.sent),
        }
        let slot = flight.slot;
        flight.pieces.clone().for_each(|piece| self.content(slot).started(piece, id));
        self.flights.insert(id, flight);
        id
    }

    /// Ends a request; what it did not bring is wanted again.
    pub(crate) fn end_flight(&mut self, id: RequestId) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        match flight.target {
            Target::Peer(peer, _) => {
                self.peers.entry(peer).outstanding -= 1;
                self.peers.forget_idle(peer);
                self.peer_flights -= 1;
            }
            Target::Origin => self.origin.ended(id),
        }
        let c = self.content(flight.slot);
        for piece in flight.pieces.clone() {
            c.ended(piece, id);
            if c.fetching.contains(&piece) && !c.under_way.contains_key(&piece) {
                c.fetching.retain(|&other| other != piece);
                c.fetching_changed = true;
            }
        }
        Some(flight)
    }

    fn verified(&mut self, request: RequestId, id: ContentId, piece: u32, now: Time, out: &mut Vec<Effect>) {
        let Some(&slot) = self.by_id.get(&id) else { return };
        let ours =
            self.flights.get(&request).filter(|flight| flight.slot == slot && flight.pieces.contains(&piece));
        let mut at_source = false;
        match ours.map(|flight| (flight.target, now.since(flight.sent), flight.load)) {
            Some((Target::Peer(peer, _), took, load)) => {
                if self.peers.is_doubted(peer) {
                    self.content(slot).judge(peer, None, false);
                    self.content(slot).owners.set_denied(peer, false);
                }
                self.peers.served(peer, took, load);
                self.counts.from_peers += 1;
            }
            Some((Target::Origin, ..)) => {
                self.origin.served(request, now);
                self.counts.from_origin += 1;
                at_source = true;
            }
            None => {}
        }
        let c = self.contents[slot].as_mut().expect("named slots hold a content");
        if let Some(flight) = self.flights.get_mut(&request)
            && flight.slot == slot
            && ends_with(flight, piece, now, c, request)
        {
            self.end_flight(request);
        }
        let c = self.content(slot);
        if c.fetching.contains(&piece) {
            c.fetching.retain(|&other| other != piece);
            c.fetching_changed = true;
        }
        if piece >= c.pieces || !c.arrived(piece) {
            self.counts.twice += 1;
            return;
        }
        self.forget_blocks(slot, Some(piece));
        let c = self.content(slot);
        for copy in c.under_way.get(&piece).cloned().unwrap_or_default() {
            self.drop_copy(copy, piece, out);
        }
        let c = self.content(slot);
        c.open.clear(piece);
        if c.have.is_full() {
            out.push(Effect::Complete { content: id });
        }
        self.serve_parked(slot, piece, now, out);
        if now.since(self.content(slot).last_sent) >= self.limits.have_gap {
            self.tell(slot, now, out);
        }
        self.pump(now, out);
        if at_source {
            self.drive_sources(slot, now, out);
        }
    }

    /// Another request for a piece that came: it ends, unless it brings more (then the piece comes twice).
    fn drop_copy(&mut self, request: RequestId, piece: u32, out: &mut Vec<Effect>) {
        let Some(flight) = self.flights.get_mut(&request) else { return };
        if flight.pieces.len() == 1 && flight.pieces.contains(&piece) {
            self.end_flight(request);
            out.push(Effect::Cancel { request });
        }
    }

    fn piece_lost(&mut self, slot: usize, piece: u32, now: Time, out: &mut Vec<Effect>) {
        if self.content(slot).lost(piece) {
            self.content(slot).forget_due(piece);
            self.tell_all(slot, now, out);
            self.advance(slot, now, out);
        }
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.adapt_depth();
        self.peers.sweep(now);
        self.end_denial(now, out);
        self.give_up_stalled(now, out);
        self.rebalance(now, out);
        self.hedge(now, out);
        self.give_up_blocks(now, out);
        self.share_window(now);
        let mut next = 0;
        while let Some(slot) = self.next_active(&mut next) {
            self.seek_links(slot, now, out);
            self.drive_sources(slot, now, out);
            self.tell(slot, now, out);
            if self.contents[slot].as_ref().is_some_and(|c| !c.is_busy() && c.known() == c.sent_known) {
                self.active.remove(&slot);
            }
        }
        self.pump(now, out);
        self.serve(now, out);
    }

    /// Contents have their window at the origin in common, the first the most of it: files of a model then come one after the
    /// other, and not all of them slowly.
    fn share_window(&mut self, now: Time) {
        let limits = self.limits;
        let slots: Vec<usize> = self.active.iter().copied().collect();
        let mut rate = 0.0;
        for &slot in &slots {
            let c = self.content(slot);
            c.update_rate(now, c.window_time(&limits));
            rate += c.fetch_rate();
        }
        let mut taken = 0;
        for &slot in &slots {
            let c = self.content(slot);
            c.beside = (rate - c.fetch_rate(), taken);
            taken += c.takes(&limits, now);
        }
    }
}

/// Notes that a piece of a request came. Whether that was its last. (Pieces of a run are verified side by side, so one may be
/// told of before the one that came before it.)
fn ends_with(flight: &mut Flight, piece: u32, now: Time, c: &mut Content, id: RequestId) -> bool {
    if !flight.pieces.contains(&piece) {
        return false;
    }
    c.ended(piece, id);
    let awaited = |piece: &u32| c.under_way.get(piece).is_some_and(|requests| requests.contains(&id));
    let mut rest = flight.pieces.clone().filter(awaited);
    let Some(first) = rest.next() else { return true };
    flight.pieces = first..rest.next_back().unwrap_or(first) + 1;
    (flight.sent, flight.deadline) = (now, now + flight.patience);
    false
}
