//! Which pieces this node brings into its zone: as their owner, in an owner's stead, or because it was asked to.

use std::time::Duration;

use crate::swarm::{Flight, Target};
use crate::{Ask, Effect, PeerId, Swarm, Time};

/// Unseen pieces looked at per call, so that a call stays short however long the window is.
const SCAN: usize = 512;
/// Of these, the most for which this node works out its rank (a hash per participant each).
const RANKS: usize = 8;
/// Participants of a zone from which on each makes one request to the origin at a time.
const MANY: usize = 3;
/// Requests of readers and peers looked at per call.
const PULLS: usize = 64;

impl Swarm {
    /// Whether this node has listened long enough to tell that nobody near has what it would go to the origin for.
    pub(crate) fn is_settled(&self, slot: usize, for_pull: bool, now: Time) -> bool {
        let Some(c) = &self.contents[slot] else { return false };
        let age = now.since(c.added);
        let others = c.owners.count() - 1;
        if others == 0 {
            return for_pull || age >= if c.introduced { self.limits.settle.0 } else { self.limits.settle.1 };
        }
        if self.is_owner_only() {
            return age >= if c.introduced { self.limits.settle.0 } else { self.limits.settle.1 };
        }
        let linked = c.links.len() - c.offers();
        age >= self.limits.settle.1
            || (age >= self.limits.settle.0 && linked * 2 >= others.min(self.limits.links_sought))
    }

    /// Starts what this node should bring in now.
    pub(crate) fn drive_sources(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        let Some(c) = &self.contents[slot] else { return };
        if c.open.count() == 0 {
            return;
        }
        let mut ranks = RANKS;
        if !c.pulls.is_empty() && self.is_settled(slot, true, now) {
            let near = |piece: u32| {
                c.links.iter().any(|link| link.have.has(piece) && self.peers.is_usable(link.peer, now))
            };
            let pulls = c.pulls.iter().take(PULLS).copied();
            let absent: Vec<u32> = pulls.filter(|&piece| c.open.has(piece) && !near(piece)).collect();
            for piece in absent {
                self.bring(slot, piece, true, &mut ranks, now, out);
            }
        }
        let c = self.content(slot);
        if !c.fill && c.ahead.is_empty() {
            return;
        }
        if !self.is_settled(slot, false, now) {
            return;
        }
        let limits = self.limits;
        let c = self.content(slot);
        let end = c.window_end(&limits);
        let mut piece = c.seen.first_absent(0);
        for _ in 0..SCAN {
            if piece >= end {
                break;
            }
            if self.content(slot).open.has(piece) {
                self.bring(slot, piece, false, &mut ranks, now, out);
            }
            piece = self.content(slot).seen.first_absent(piece + 1);
        }
    }

    /// The time that the first in line for a piece has before the next: longer when the origin is slow.
    pub(crate) fn takeover(&self, slot: usize, pulled: bool) -> Duration {
        let patience = self.contents[slot].as_ref().map_or(1.0, |c| c.patience);
        let pace = self.peers.pace();
        let (least, guess) = if pulled {
            (2 * self.limits.hedge, 3.0 * pace)
        } else {
            (self.limits.takeover, 4.0 * self.origin.pace(pace).max(pace))
        };
        least.max(Duration::from_secs_f64(guess.min(60.0))).mul_f64(patience)
    }

    /// Gets a piece that nobody near is known to have, if it is this node's turn.
    ///
    /// The owner goes at once: to the origin if it owns the piece among all zones, else to that owner in another zone.
    /// Others ask the owner, then the one after it, once a reader waits or the owner had its time. Then they go
    /// themselves, at first those next in line and with each further takeover time twice as many, under the lease.
    fn bring(
        &mut self,
        slot: usize,
        piece: u32,
        pulled: bool,
        ranks: &mut usize,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let step = self.takeover(slot, pulled);
        let (me, paused_until) = (self.me.id, self.origin.paused_until());
        let c = self.content(slot);
        let elapsed = c.due_for(piece, paused_until, now);
        if c.lent.get(&piece).is_some_and(|&until| until > now) {
            return;
        }
        let mine = c.owners.owner(piece, 0) == Some(me);
        let urgent = c.is_urgent(piece);
        let fetched = c.is_fetched_by_link(piece);
        if fetched && elapsed < 2 * step {
            // For a reader also from who fetches it for its fill: it then hurries, and sends it before anybody hears of it.
            if urgent && !mine && !c.tries.contains_key(&piece) && !self.is_owner_only() {
                self.ask_owner(slot, piece, urgent, now, out);
            }
            return;
        }
        if fetched {
            c.note_idle_talk(piece);
        }
        if self.is_owner_only() {
            let late = elapsed >= crate::owner_only::OWNER_PATIENCE;
            if self.brings_as_owner(slot, piece, now) && !self.ask_far(slot, piece, urgent, late, now, out) {
                self.ask_origin(slot, piece, pulled, false, now, out);
            }
            return;
        }
        let turns = (elapsed.as_secs_f64() / step.as_secs_f64()) as u32;
        if !mine && !pulled && turns == 0 {
            return;
        }
        if !mine && !fetched && self.ask_owner(slot, piece, urgent, now, out) {
            return;
        }
        if !mine && !self.is_next(slot, piece, turns, ranks) {
            return;
        }
        if self.ask_far(slot, piece, urgent, elapsed >= step, now, out) {
            return;
        }
        self.ask_origin(slot, piece, pulled, !mine, now, out);
    }

    /// Asks the owner of a piece in this zone, or who stands in for it; false when all have been asked.
    fn ask_owner(&mut self, slot: usize, piece: u32, urgent: bool, now: Time, out: &mut Vec<Effect>) -> bool {
        let me = self.me.id;
        loop {
            let c = self.content(slot);
            let tries = c.tries.get(&piece).copied().unwrap_or(0);
            if tries >= 2 {
                return false;
            }
            let owner = c.owners.owner(piece, usize::from(tries));
            // It must not be asked for what it asked of this node.
            let asks_me =
                |id: PeerId| c.parked.get(&piece).is_some_and(|all| all.iter().any(|one| one.from == id));
            let askable = owner.filter(|&id| id != me && !asks_me(id));
            c.tries.insert(piece, tries + 1);
            if owner == Some(me) {
                self.content(slot).tries.insert(piece, 2);
                return false;
            }
            if let Some(owner) = askable
                && self.peers.is_usable(owner, now)
            {
                self.ask_peer(slot, piece, owner, Ask::Owner { forwarded: false }, urgent, now, out);
                return true;
            }
        }
    }

    /// Whether this node may go out of turn: its rank is among those whose time has come.
    fn is_next(&self, slot: usize, piece: u32, turns: u32, ranks: &mut usize) -> bool {
        let Some(c) = &self.contents[slot] else { return false };
        // A peer asked this node because the first in line did not answer it: that counts as one more turn.
        let turns = turns + u32::from(c.parked.contains_key(&piece));
        if turns == 0 || *ranks == 0 {
            return false;
        }
        *ranks -= 1;
        turns >= 31 || c.owners.my_rank(piece) < 1 << turns
    }

    /// Asks another zone for a piece that is owned there. True when it was asked or is to be waited for.
    fn ask_far(
        &mut self,
        slot: usize,
        piece: u32,
        urgent: bool,
        late: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(c) = &self.contents[slot] else { return false };
        let Some(owner) = c.owners.first_owner(piece) else { return false };
        let owner_far = c.owners.zone_of(owner) != Some(self.me.zone);
        let limit = self.limits.requests.1;
        if self.peer_flights >= limit {
            return true;
        }
        let usable = |peer: PeerId| {
            self.peers.is_usable(peer, now)
                && self
                    .peers
                    .get(peer)
                    .is_none_or(|peer| peer.outstanding < 2 * self.limits.requests_per_peer)
        };
        let holder = c.links.iter().find(|link| link.far && link.have.has(piece) && usable(link.peer));
        let ask = match holder.map(|link| link.peer) {
            Some(peer) => Some((peer, Ask::Holder)),
            None if !owner_far => return false,
            None => {
                let first = c.tries.get(&piece).copied().unwrap_or(0) < 3;
                (first && self.peers.is_usable(owner, now))
                    .then_some((owner, Ask::Owner { forwarded: false }))
            }
        };
        let Some((peer, ask)) = ask else { return !late };
        let c = self.content(slot);
        if ask != Ask::Holder {
            c.tries.insert(piece, 3);
        }
        self.note_fetching(slot, piece);
        self.ask_peer(slot, piece, peer, ask, urgent, now, out);
        true
    }

    fn note_fetching(&mut self, slot: usize, piece: u32) {
        let most = self.limits.fetching_list;
        let c = self.content(slot);
        if !c.fetching.contains(&piece) {
            if c.fetching.len() >= most {
                return;
            }
            c.fetching.push(piece);
        }
        // Also when only where it comes from is new.
        c.fetching_changed = true;
    }

    pub(crate) fn ask_origin(
        &mut self,
        slot: usize,
        piece: u32,
        pulled: bool,
        out_of_turn: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(c) = &self.contents[slot] else { return };
        let most = match self.limits.origin_requests {
            few if pulled => 2 * few,
            // Two pieces that come side by side both come late. And what the others have is better taken from them while their
            // links idle, than from the origin and then to be exchanged when the links are wanted for those who came later.
            _ if c.owners.near().len() >= MANY => 1,
            few => few,
        };
        if self.origin.is_paused(now)
            || self.origin.busy(now) >= most
            || self.origin.requests() >= self.limits.origin_pipeline
            || (out_of_turn && !self.origin.try_lease(now, &self.limits))
        {
            return;
        }
        let run = if pulled { 1 } else { self.limits.origin_run };
        let c = self.content(slot);
        let urgent = c.is_urgent(piece);
        let limit = c.pieces.min(piece + run);
        // The rest of the group; of who is alone, a whole run. (With two, long runs of the first keep what the second could bring.)
        let turn = |next: u32| c.owners.group(next) == c.owners.group(piece) || c.owners.count() == 1;
        let more =
            |&next: &u32| c.open.has(next) && !c.seen.has(next) && !c.is_fetched_by_link(next) && turn(next);
        let pieces = piece..piece + 1 + (piece + 1..limit).take_while(more).count() as u32;
        let content = c.id;
        pieces.clone().for_each(|piece| self.note_fetching(slot, piece));
        // An idle connection is noticed by who holds it; this only guards against one that never ends.
        let patience = self.limits.request_timeout_max;
        let deadline = now + patience;
        let flight = Flight {
            slot,
            pieces: pieces.clone(),
            target: Target::Origin,
            urgent_since: urgent.then_some(now),
            alone: urgent,
            sent: now,
            deadline,
            patience,
            moving: false,
            load: 1,
        };
        let request = self.launch(flight);
        out.push(Effect::AskOrigin { request, content, pieces, deadline });
    }
}
