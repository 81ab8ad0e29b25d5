//! What follows when a request does not bring its piece: bans, doubts, pauses.

use std::time::Duration;

use crate::swarm::{Flight, Target};
use crate::{Ask, Effect, Failure, OriginFailure, PeerId, Refusal, RequestId, Swarm, Time};

impl Swarm {
    pub(crate) fn corrupt(&mut self, request: RequestId, now: Time, out: &mut Vec<Effect>) {
        let Some(flight) = self.end_flight(request) else { return };
        self.counts.corrupt += 1;
        match flight.target {
            Target::Peer(peer, _) => self.ban(peer, now, out),
            Target::Origin => self.origin.failed(OriginFailure::Broken, now, &self.limits, &mut self.rng),
        }
        self.advance(flight.slot, now, out);
    }

    pub(crate) fn ban(&mut self, peer: PeerId, now: Time, out: &mut Vec<Effect>) {
        let until = self.peers.ban(peer, now, &self.limits);
        out.push(Effect::Ban { peer, until });
        for slot in 0..self.contents.len() {
            if self.contents[slot].is_some() {
                self.content(slot).owners.leave(peer);
                self.drop_link(slot, peer, true, now, out);
            }
        }
        self.cancel_all(None, peer, out);
    }

    /// Ends all requests to a peer, of one content or of all.
    pub(crate) fn cancel_all(&mut self, slot: Option<usize>, peer: PeerId, out: &mut Vec<Effect>) {
        let to_peer = |flight: &Flight| matches!(flight.target, Target::Peer(to, _) if to == peer);
        let requests: Vec<RequestId> = self
            .flights
            .iter()
            .filter(|(_, flight)| to_peer(flight) && slot.is_none_or(|slot| flight.slot == slot))
            .map(|(&id, _)| id)
            .collect();
        for request in requests {
            self.end_flight(request);
            out.push(Effect::Cancel { request });
        }
    }

    pub(crate) fn failed(&mut self, request: RequestId, why: Failure, now: Time, out: &mut Vec<Effect>) {
        let Some(flight) = self.end_flight(request) else { return };
        let Target::Peer(peer, ask) = flight.target else { return };
        let piece = flight.pieces.start;
        self.counts.failed += 1;
        match why {
            Failure::Refused(Refusal::NotOwner { better }) => {
                let forward = better.filter(|&better| {
                    ask == Ask::Owner { forwarded: false }
                        && better != self.me.id
                        && better != peer
                        && self.peers.is_usable(better, now)
                        && self.content(flight.slot).owners.zone_of(better).is_some()
                });
                if let Some(better) = forward
                    && self.content(flight.slot).open.has(piece)
                {
                    let ask = Ask::Owner { forwarded: true };
                    self.ask_peer(flight.slot, piece, better, ask, flight.is_urgent(), now, out);
                    return;
                }
            }
            // Were the peer lying, the origin would serve a reader's piece once more.
            Failure::Refused(Refusal::Lent) => {
                let c = self.content(flight.slot);
                if flight.is_urgent() && matches!(ask, Ask::Owner { .. }) && c.open.has(piece) {
                    self.ask_origin(flight.slot, piece, true, false, now, out);
                }
            }
            Failure::Refused(Refusal::NotHere) => {
                self.content(flight.slot).unlearn(peer, piece);
                self.doubt(flight.slot, peer, now, out);
            }
            Failure::Broken => self.doubt(flight.slot, peer, now, out),
            // It is there and says so: it rests, and its word stands.
            Failure::Refused(Refusal::Busy) => self.peers.rest(peer, now, &self.limits),
        }
        self.advance(flight.slot, now, out);
    }

    pub(crate) fn origin_failed(
        &mut self,
        request: RequestId,
        why: OriginFailure,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.end_flight(request) else { return };
        if flight.target == Target::Origin {
            self.origin.failed(why, now, &self.limits, &mut self.rng);
            match why {
                OriginFailure::Throttled { .. } => self.content(flight.slot).throttled(),
                OriginFailure::Denied => self.deny(now, out),
                OriginFailure::Gone | OriginFailure::Broken => {}
            }
            self.advance(flight.slot, now, out);
        }
    }

    /// The origin refuses this node's credentials: it gives up ownership for a while, and says so.
    pub(crate) fn deny(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.denied_until = Some(now + self.limits.origin_pause_max);
        for slot in 0..self.contents.len() {
            if self.contents[slot].is_some() {
                self.content(slot).owners.set_my_weight(0);
                self.tell_all(slot, now, out);
            }
        }
    }

    pub(crate) fn end_denial(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.denied_until.is_some_and(|until| until <= now) {
            self.denied_until = None;
            for slot in 0..self.contents.len() {
                if self.contents[slot].is_some() {
                    let weight = self.me.weight;
                    self.content(slot).owners.set_my_weight(weight);
                    self.tell_all(slot, now, out);
                }
            }
        }
    }

    /// Gives up requests that got no answer in time.
    pub(crate) fn give_up_stalled(&mut self, now: Time, out: &mut Vec<Effect>) {
        let late: Vec<RequestId> =
            self.flights.iter().filter(|(_, flight)| flight.deadline <= now).map(|(&id, _)| id).collect();
        for request in late {
            let Some(flight) = self.end_flight(request) else { continue };
            out.push(Effect::Cancel { request });
            match flight.target {
                // An owner may wait itself; that is no fault.
                Target::Peer(peer, Ask::Owner { .. })
                    if self.is_excused(flight.slot, peer, flight.pieces.start, now) => {}
                Target::Peer(peer, _) => self.doubt(flight.slot, peer, now, out),
                Target::Origin => self.origin.failed(OriginFailure::Broken, now, &self.limits, &mut self.rng),
            }
            self.counts.stalled += 1;
        }
    }

    /// A peer failed. After a few times in a row its link ends, and what only it claimed to have is unseen again.
    pub(crate) fn doubt(&mut self, slot: usize, peer: PeerId, now: Time, out: &mut Vec<Effect>) {
        if self.peers.failed(peer, now, &self.limits) {
            self.drop_link(slot, peer, true, now, out);
            // Nor is it to be relied on as an owner, until it links or is announced again.
            self.content(slot).owners.set_denied(peer, true);
        }
    }

    /// Whether a peer that does not answer as an owner may well be waiting itself, and says so.
    pub(crate) fn is_excused(&self, slot: usize, peer: PeerId, piece: u32, now: Time) -> bool {
        let Some(c) = &self.contents[slot] else { return false };
        let link = c.link_of.get(&peer).map(|&at| &c.links[at]);
        self.origin.is_paused(now) || link.is_some_and(|link| link.brings(piece))
    }

    /// How long a request to a peer may go without a byte. A peer's line is part of it, so it grows with the load.
    pub(crate) fn peer_patience(&self, peer: PeerId, ask: Ask, urgent: bool) -> Duration {
        let expected = Duration::from_secs_f64((5.0 * self.peers.expected(peer)).min(600.0));
        let least = match ask {
            Ask::Holder if !self.peers.is_proven(peer) => self.limits.request_timeout / 2,
            Ask::Holder => self.limits.request_timeout,
            Ask::Owner { .. } if urgent => self.limits.request_timeout / 2,
            Ask::Owner { .. } => self.limits.takeover.max(self.limits.request_timeout),
        };
        if self.is_owner_only() {
            return crate::owner_only::OWNER_PATIENCE;
        }
        expected.max(least).min(self.limits.request_timeout_max.max(least))
    }
}
