//! What to ask of which peer: readers' pieces, then those ahead of readers, then the rarest.

use std::time::Duration;

use crate::content::Link;
use crate::swarm::{Flight, Target};
use crate::{Ask, Effect, PeerId, RequestId, Swarm, Time};

/// Pieces that are compared for rarity. A sample finds one of the rarest 4 % with a probability of 0.86 and keeps the
/// choice independent of the size of the content.
const SAMPLE: usize = 48;
/// Requests to peers that one to the origin stands for.
const YIELDED: usize = 4;
/// One choice in this many starts from the front of the file: what loaders read first comes a little earlier.
const LOADER_BIAS: u32 = 8;
/// How many times longer the line must be that a waiting request leaves: on news, and at a tick.
const MOVE_GAIN: f64 = 2.0;
const IDLE_GAIN: f64 = 1.5;
/// One chance in this many to move a request is taken: all links hear the same news.
const MOVE_CHANCE: u32 = 2;
/// A reader's piece is asked of a second peer after so many times what one takes with an uplink to itself.
const HEDGE_AFTER: f64 = 3.0;
/// Peers over which requests are spread, if there are so many.
const SPREAD: usize = 4;
/// Duplicates that are started per tick while nothing else is left to ask.
const HEDGES_PER_TICK: usize = 4;
/// Readers' pieces that are looked at per choice.
const DEMAND_SCAN: usize = 64;

impl Swarm {
    /// Asks peers for as much as the limits allow, readers' pieces first.
    pub(crate) fn pump(&mut self, now: Time, out: &mut Vec<Effect>) {
        for for_readers in [true, false] {
            // While a reader's piece is under way nothing new is asked for but readers' pieces and those ahead of them.
            let yields = !for_readers && self.is_urgent(now);
            let limit = self.request_limit(for_readers, now);
            let mut next = 0;
            while let Some(slot) = self.next_active(&mut next) {
                if self.peer_flights >= limit {
                    break;
                }
                let Some(c) = &self.contents[slot] else { continue };
                let wanted = c.open.count() > 0 && (c.fill || for_readers);
                if wanted && self.is_owner_only() {
                    self.ask_owners(slot, for_readers, now, out);
                } else if c.open.count() > 0 && !c.links.is_empty() && (!for_readers || !c.demand.is_empty())
                {
                    self.pump_content(slot, (for_readers, yields), now, out);
                }
            }
        }
    }

    /// Requests to peers that may be under way.
    pub(crate) fn request_limit(&self, for_readers: bool, now: Time) -> usize {
        // What comes from the origin is new to everybody and shares this node's downlink with what peers send.
        let yielded = YIELDED * self.origin.busy(now);
        let depth = (self.depth as usize).saturating_sub(yielded).max(self.limits.requests_per_peer);
        depth + if for_readers { self.limits.requests_for_demand } else { 0 }
    }

    /// Asks for more at once while answers come quickly, for less when they take long. Once per tick.
    ///
    /// All who share uploaders see about the same delay, so adding a constant and taking away a part makes their
    /// depths, and with them their shares, equal. (A depth that follows the rate leaves who is behind behind.)
    pub(crate) fn adapt_depth(&mut self) {
        let (least, most) = self.limits.requests;
        // Without an answer nothing new is known.
        let answers = self.counts.from_peers;
        if std::mem::replace(&mut self.adapted_at, answers) == answers {
            return;
        }
        let ratio = self.peers.pace() / self.limits.request_time.as_secs_f64();
        if ratio > 1.0 {
            self.depth *= if ratio > 2.0 { 0.8 } else { 0.97 };
        } else if self.peer_flights + 1 >= self.depth as usize {
            self.depth += if ratio < 0.25 { self.depth / 10.0 } else { 0.25 };
        }
        self.depth = self.depth.clamp(least as f64, most.max(least) as f64);
    }

    fn per_peer_limit(&self, peer: PeerId, for_readers: bool, now: Time) -> usize {
        // Of few peers each may be asked for more, a single one for all that its line takes; but not before it has sent something.
        let peers = if self.peers.is_proven(peer) { self.peers.linked(SPREAD).max(1) } else { SPREAD };
        let depth = self.request_limit(false, now) / peers;
        // What its line does not take is refused, and a peer that refuses rests.
        let line = self.limits.upload_queue_per_peer.saturating_sub(1);
        depth.min(line).max(self.limits.requests_per_peer) + usize::from(for_readers)
    }

    fn pump_content(
        &mut self,
        slot: usize,
        (for_readers, yields): (bool, bool),
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let limit = self.request_limit(for_readers, now);
        let mut order: Vec<(f64, usize)> = Vec::with_capacity(self.limits.links);
        let Some(c) = &self.contents[slot] else { return };
        for (at, link) in c.links.iter().enumerate() {
            if self.has_room(link.peer, for_readers, now) && c.open.meets(&link.have) {
                // A little chance, so that nodes with equal knowledge do not all turn to the same peer.
                order.push((self.cost(link) * (0.8 + 0.4 * self.rng.unit()), at));
            }
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        loop {
            let mut asked = false;
            for &(_, at) in &order {
                if self.peer_flights >= limit {
                    return;
                }
                let peer = self.content(slot).links[at].peer;
                if self.has_room(peer, for_readers, now)
                    && let Some(piece) = self.pick(slot, at, (for_readers, yields))
                {
                    self.ask_peer(slot, piece, peer, Ask::Holder, for_readers, now, out);
                    asked = true;
                }
            }
            if !asked {
                return;
            }
        }
    }

    /// Seconds until one more piece would come over a link, and more from one that wants to be spared: at the pace of all, for
    /// it is often quick because it has little to do.
    pub(crate) fn cost(&self, link: &Link) -> f64 {
        self.peers.expected(link.peer) + self.peers.pace_alone() * f64::from(link.given)
    }

    pub(crate) fn has_room(&self, peer: PeerId, for_readers: bool, now: Time) -> bool {
        let outstanding = self.peers.get(peer).map_or(0, |standing| standing.outstanding);
        outstanding < self.per_peer_limit(peer, for_readers, now) && self.peers.is_usable(peer, now)
    }

    /// The piece to ask of a link next.
    fn pick(&mut self, slot: usize, at: usize, (for_readers, yields): (bool, bool)) -> Option<u32> {
        let c = self.contents[slot].as_ref()?;
        let link = &c.links[at];
        if for_readers {
            let mut wanted = c.demand.iter().take(DEMAND_SCAN).copied();
            return wanted.find(|&piece| c.open.has(piece) && link.have.has(piece));
        }
        let me = Some(self.me.id);
        let end = if link.far { c.window_end(&self.limits) } else { c.pieces };
        // From another zone only what this zone has it from this node for.
        let may = |piece: u32| !link.far || (piece < end && c.owners.owner(piece, 0) == me);
        // What peers ask of this node as its owner, a reader may wait for.
        let mut first = c.pulls.iter().take(DEMAND_SCAN).copied().chain(c.ahead.clone());
        let first = first.find(|&piece| c.open.has(piece) && link.have.has(piece) && may(piece));
        if first.is_some() || yields {
            return first;
        }
        let front = self.rng.below(LOADER_BIAS) == 0;
        let from = if front { c.have.first_absent(0) } else { self.rng.below(c.pieces.max(1)) };
        // Among equals any, but with `front` the first. (Not the first after a place by chance: what follows a gap would be
        // everybody's choice.)
        let (mut best, mut equals): (Option<(u16, u32)>, u32) = (None, 0);
        for piece in c.open.common(&link.have, from).filter(|&piece| may(piece)).take(SAMPLE) {
            let copies = c.copies[piece as usize];
            let rarer = best.is_none_or(|(least, _)| copies < least);
            let equal = best.is_some_and(|(least, _)| copies == least);
            equals = if rarer { 1 } else { equals + u32::from(equal) };
            if rarer || equal && !front && self.rng.below(equals) == 0 {
                best = Some((copies, piece));
            }
        }
        best.map(|(_, piece)| piece)
    }

    #[expect(clippy::too_many_arguments, reason = "one request, spelled out")]
    pub(crate) fn ask_peer(
        &mut self,
        slot: usize,
        piece: u32,
        to: PeerId,
        ask: Ask,
        urgent: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let patience = self.peer_patience(to, ask, urgent);
        let load = 1 + self.peers.line(to);
        let (deadline, target) = (now + patience, Target::Peer(to, ask));
        let pieces = piece..piece + 1;
        let moving = false;
        let request = self.launch(Flight {
            slot,
            pieces,
            target,
            urgent_since: urgent.then_some(now),
            alone: urgent,
            sent: now,
            deadline,
            patience,
            moving,
            load,
        });
        let content = self.content(slot).id;
        out.push(Effect::Request { request, to, content, piece, ask, urgent, deadline });
    }

    /// A link has something new and is less busy than a peer at which a request for it still waits: the request moves.
    ///
    /// Without this, what everybody asks of the first holder of a piece stays in its line while later holders idle.
    pub(crate) fn move_waiting(&mut self, slot: usize, at: usize, now: Time, out: &mut Vec<Effect>) {
        let Some(c) = &self.contents[slot] else { return };
        let link = &c.links[at];
        let peer = link.peer;
        if link.far || self.rng.below(MOVE_CHANCE) != 0 || !self.has_room(peer, false, now) {
            return;
        }
        let here = MOVE_GAIN * self.cost(link);
        let waits = |flight: &Flight| match flight.target {
            Target::Peer(other, Ask::Holder) if other != peer => {
                let fits = flight.slot == slot && !flight.moving && link.have.has(flight.pieces.start);
                let alone = c.under_way.get(&flight.pieces.start).is_some_and(|requests| requests.len() == 1);
                (fits && alone).then(|| self.peers.waiting(other)).filter(|&there| there > here)
            }
            _ => None,
        };
        let found = self.flights.iter().filter_map(|(&id, flight)| Some((waits(flight)?, id)));
        let Some((_, request)) = found.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        let Some(flight) = self.end_flight(request) else { return };
        out.push(Effect::Cancel { request });
        self.ask_peer(slot, flight.pieces.start, peer, Ask::Holder, flight.is_urgent(), now, out);
    }

    /// Requests that wait in a long line move to links that are less busy by now. Once per tick.
    pub(crate) fn rebalance(&mut self, now: Time, out: &mut Vec<Effect>) {
        let waits = |flight: &Flight| !flight.moving && now.since(flight.sent) >= 2 * self.limits.have_gap;
        let waiting: Vec<RequestId> =
            self.flights.iter().filter(|(_, flight)| waits(flight)).map(|(&id, _)| id).collect();
        for request in waiting {
            if self.rng.below(MOVE_CHANCE) == 0
                && let Some((piece, peer)) = self.less_busy(request, now)
                && let Some(flight) = self.end_flight(request)
            {
                out.push(Effect::Cancel { request });
                self.ask_peer(flight.slot, piece, peer, Ask::Holder, flight.is_urgent(), now, out);
            }
        }
    }

    /// The piece of a request that waits at a holder, and a link that would send it sooner.
    fn less_busy(&self, request: RequestId, now: Time) -> Option<(u32, PeerId)> {
        let flight = self.flights.get(&request)?;
        let Target::Peer(other, Ask::Holder) = flight.target else { return None };
        let (c, piece) = (self.contents[flight.slot].as_ref()?, flight.pieces.start);
        let alone = c.under_way.get(&piece).is_some_and(|requests| requests.len() == 1);
        let fits = |peer: PeerId| peer != other && self.has_room(peer, false, now);
        let holders = c.links.iter().filter(|link| !link.far && link.have.has(piece) && fits(link.peer));
        let expected = holders.map(|link| (self.cost(link), link.peer));
        let (here, peer) = expected.min_by(|a, b| a.0.total_cmp(&b.0))?;
        // From one that just failed, whatever its line.
        let there = if self.peers.is_usable(other, now) { self.peers.waiting(other) } else { f64::MAX };
        (alone && IDLE_GAIN * here < there).then_some((piece, peer))
    }

    /// Asks a second peer for what takes long: a reader's piece soon, others when nothing else is left to ask.
    pub(crate) fn hedge(&mut self, now: Time, out: &mut Vec<Effect>) {
        let pace = self.peers.pace();
        let alone = HEDGE_AFTER * self.peers.pace_alone();
        let urgent_after = self.limits.hedge.max(Duration::from_secs_f64(alone.min(5.0)));
        let fill_after = self.limits.hedge.max(Duration::from_secs_f64((2.5 * pace).min(30.0)));
        let late: Vec<(RequestId, usize, u32, bool)> = self
            .flights
            .iter()
            .filter(|(_, flight)| {
                now.since(flight.sent) > if flight.is_urgent() { urgent_after } else { fill_after }
            })
            .filter_map(|(&id, flight)| {
                let c = self.contents[flight.slot].as_ref()?;
                // Of a run, what did not come from elsewhere, and what the reader waits for.
                let due = |&piece: &u32| !c.have.has(piece) && (!flight.is_urgent() || c.is_urgent(piece));
                Some((id, flight.slot, flight.pieces.clone().find(due)?, flight.is_urgent()))
            })
            .collect();
        let mut started = 0;
        for (request, slot, piece, urgent) in late {
            let idle = self.peer_flights < self.request_limit(urgent, now) && started < HEDGES_PER_TICK;
            let copies = self.content(slot).under_way.get(&piece).map_or(0, Vec::len);
            let at_peer = matches!(self.flights[&request].target, Target::Peer(..));
            if copies >= self.limits.copies || !(urgent || idle && at_peer) {
                continue;
            }
            // Another owner would go to the origin a second time: only if it did not answer this one for long.
            let owners =
                urgent && (at_peer || now.since(self.flights[&request].sent) >= self.takeover(slot, true));
            if let Some((peer, ask)) = self.other_source(slot, piece, (urgent, owners), now) {
                self.ask_peer(slot, piece, peer, ask, urgent, now, out);
                started += 1;
            }
        }
    }

    /// A peer to ask for a piece besides those asked already.
    fn other_source(
        &self,
        slot: usize,
        piece: u32,
        (urgent, owners): (bool, bool),
        now: Time,
    ) -> Option<(PeerId, Ask)> {
        let c = self.contents[slot].as_ref()?;
        let requests = c.under_way.get(&piece)?;
        let asked = |peer: PeerId| {
            requests
                .iter()
                .any(|request| matches!(self.flights[request].target, Target::Peer(to, _) if to == peer))
        };
        let holders = c.links.iter().filter(|link| {
            link.have.has(piece)
                && (!link.far || urgent)
                && !asked(link.peer)
                && self.has_room(link.peer, urgent, now)
        });
        let best = holders.min_by(|a, b| self.cost(a).total_cmp(&self.cost(b)));
        if let Some(link) = best {
            return Some((link.peer, Ask::Holder));
        }
        if !owners {
            return None;
        }
        let owners = (0..crate::owners::CHOICES).filter_map(|nth| c.owners.owner(piece, nth));
        let usable = |&peer: &PeerId| peer != self.me.id && !asked(peer) && self.has_room(peer, true, now);
        owners.filter(|peer| usable(peer)).map(|peer| (peer, Ask::Owner { forwarded: false })).next()
    }
}
