//! Participants and links: who takes part, who tells whom what it has.

use std::sync::Arc;
use std::time::Duration;

use towline_artifact::ContentId;

use crate::swarm::Target;
use crate::{Effect, Have, HavePieces, Peer, PeerId, Swarm, Time};

/// How long an offer may go without an answer, and how long one that was turned down is not repeated.
const OFFER_TIME: Duration = Duration::from_secs(5);
/// Links compared before one is given up, and wanted pieces that are counted at each.
const CANDIDATES: usize = 6;
const OFFERS_COUNTED: usize = 64;
/// Pauses at the origin up to this only shrink the window of those who hear of it.
const SHORT_PAUSE: Duration = Duration::from_secs(3);
/// Uploads that a node adds for each time it gave the whole content away, and the most of it.
const GIVEN: u64 = 12;
const GIVEN_MAX: u16 = 24;
/// Peers remembered as having turned down an offer.
const DECLINED: usize = 256;

impl Swarm {
    pub(crate) fn joined(&mut self, content: ContentId, peers: &[Peer], now: Time, out: &mut Vec<Effect>) {
        let me = self.me;
        self.with(content, |swarm, slot| {
            let Swarm { contents, peers: standing, .. } = swarm;
            let c = contents[slot].as_mut().expect("slots in use hold a content");
            c.introduced = true;
            for &peer in peers.iter().filter(|peer| peer.id != me.id && !standing.is_banned(peer.id, now)) {
                if c.owners.join(peer) {
                    c.joined.entry(peer.id).or_insert(now);
                    c.judge(peer.id, Some(peer.zone != me.zone), standing.is_doubted(peer.id));
                    if !standing.is_doubted(peer.id) {
                        c.owners.set_denied(peer.id, false);
                    }
                }
            }
            swarm.seek_links(slot, now, out);
        });
    }

    pub(crate) fn left(&mut self, content: ContentId, peer: PeerId, now: Time, out: &mut Vec<Effect>) {
        self.with(content, |swarm, slot| {
            swarm.content(slot).owners.leave(peer);
            swarm.content(slot).joined.remove(&peer);
            swarm.drop_link(slot, peer, false, now, out);
            swarm.cancel_all(Some(slot), peer, out);
            swarm.advance(slot, now, out);
        });
    }

    pub(crate) fn unlinked(&mut self, content: ContentId, peer: PeerId, now: Time, out: &mut Vec<Effect>) {
        self.with(content, |swarm, slot| swarm.drop_link(slot, peer, false, now, out));
    }

    /// Ends a link, telling the peer if `tell`. It is left in peace for a while.
    pub(crate) fn drop_link(
        &mut self,
        slot: usize,
        peer: PeerId,
        tell: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let c = self.content(slot);
        if !c.remove_link(peer) {
            return;
        }
        if c.declined.len() >= DECLINED {
            c.declined.retain(|_, until| *until > now);
        }
        if c.declined.len() < DECLINED {
            c.declined.insert(peer, now + OFFER_TIME);
        }
        let content = c.id;
        self.peers.entry(peer).links -= 1;
        self.peers.forget_idle(peer);
        if tell {
            out.push(Effect::Unlink { content, peer });
        }
    }

    /// Offers links to participants chosen by chance until there are enough, and gives up offers nobody answers.
    pub(crate) fn seek_links(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        if self.is_owner_only() {
            return;
        }
        let c = self.content(slot);
        let late = |since: Time| now.since(since) >= OFFER_TIME;
        let stale: Vec<PeerId> =
            c.links.iter().filter(|link| link.offered.is_some_and(late)).map(|link| link.peer).collect();
        for peer in stale {
            self.drop_link(slot, peer, true, now, out);
        }
        self.change_a_link(slot, now, out);
        let (whole, settled) = (self.limits.links_sought, self.limits.settle.1);
        let c = self.content(slot);
        // Those who come first must not link only with each other.
        let early = now.since(c.added) < settled && c.owners.near().len() > whole;
        let sought = if early { whole.div_ceil(2) } else { whole };
        // Who has everything waits to be found.
        if c.have.is_full() || c.links.len() >= sought.min(c.owners.count() - 1) {
            return;
        }
        c.declined.retain(|_, until| *until > now);
        let far = c.links.iter().filter(|link| link.far).count();
        let near_links = c.links.len() - far;
        let far_sought = self.limits.far_links.min(sought);
        let near_sought = sought - far_sought;
        let mut offers: Vec<PeerId> = Vec::new();
        let Some(c) = &self.contents[slot] else { return };
        let mut choose = |from: &[Peer], wanted: usize| {
            let start = offers.len();
            let fits = |peer: &Peer, offers: &[PeerId]| {
                peer.id != self.me.id
                    && !c.link_of.contains_key(&peer.id)
                    && !c.declined.contains_key(&peer.id)
                    && !offers.contains(&peer.id)
                    && self.peers.is_usable(peer.id, now)
            };
            if from.len() <= 2 * sought {
                let first = self.rng.below(from.len().max(1) as u32) as usize;
                let (head, tail) = from.split_at(first.min(from.len()));
                for peer in tail.iter().chain(head) {
                    if offers.len() - start < wanted && fits(peer, &offers) {
                        offers.push(peer.id);
                    }
                }
                return;
            }
            for _ in 0..4 * wanted {
                let peer = from[self.rng.below(from.len() as u32) as usize];
                if offers.len() - start < wanted && fits(&peer, &offers) {
                    offers.push(peer.id);
                }
            }
        };
        choose(c.owners.near(), near_sought.saturating_sub(near_links));
        let zones = c.owners.far().count();
        for zone in c.owners.far() {
            choose(zone, far_sought.div_ceil(zones.max(1)).saturating_sub(far / zones.max(1)));
        }
        offers.truncate(self.limits.links.saturating_sub(c.links.len()));
        if offers.is_empty() {
            return;
        }
        let me = self.me.zone;
        for &peer in &offers {
            let doubted = self.peers.is_doubted(peer);
            let c = self.content(slot);
            let far = c.owners.zone_of(peer) != Some(me);
            c.add_link(peer, far, doubted, Some(now));
            self.peers.entry(peer).links += 1;
        }
        self.send_all(slot, offers, now, out);
    }

    /// Now and then gives up the link that helps least, so that chance finds a better one: nodes that came together
    /// would stay among themselves, and fall behind together.
    fn change_a_link(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        let (sought, rest) = (self.limits.links_sought, self.limits.link_time);
        let Some(c) = &self.contents[slot] else { return };
        let due = now.since(c.changed_link) >= rest;
        if !due || c.have.is_full() || c.links.len() < sought || c.owners.near().len() <= c.links.len() + 1 {
            return;
        }
        let mut worst: Option<(u32, PeerId)> = None;
        for _ in 0..CANDIDATES {
            let link = &c.links[self.rng.below(c.links.len() as u32) as usize];
            if link.far || link.offered.is_some() {
                continue;
            }
            let offers = c.open.common(&link.have, 0).take(OFFERS_COUNTED).count() as u32;
            if worst.is_none_or(|(least, _)| offers < least) {
                worst = Some((offers, link.peer));
            }
        }
        self.content(slot).changed_link = now;
        if let Some((_, peer)) = worst {
            self.drop_link(slot, peer, true, now, out);
        }
    }

    /// Takes in what a peer says it has; from a stranger, an offer.
    pub(crate) fn heard(
        &mut self,
        content: ContentId,
        from: PeerId,
        have: &Have,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        self.with(content, |swarm, slot| {
            if from == swarm.me.id || swarm.peers.is_banned(from, now) || swarm.is_owner_only() {
                out.push(Effect::Unlink { content, peer: from });
            } else if swarm.is_absurd(slot, have) {
                swarm.counts.absurd += 1;
            } else if let Some(&at) = swarm.content(slot).link_of.get(&from) {
                if !swarm.content(slot).links[at].may_tell(now) {
                    swarm.counts.absurd += 1;
                    return;
                }
                swarm.learn(slot, at, have, now, out);
            } else if matches!(have.pieces, HavePieces::All(_)) && swarm.make_room(slot, have, now, out) {
                let me = swarm.me.zone;
                let doubted = swarm.peers.is_doubted(from);
                let c = swarm.content(slot);
                let far = c.owners.zone_of(from) != Some(me);
                let at = c.add_link(from, far, doubted, None);
                swarm.peers.entry(from).links += 1;
                swarm.send_all(slot, vec![from], now, out);
                swarm.learn(slot, at, have, now, out);
            } else {
                out.push(Effect::Unlink { content, peer: from });
            }
        });
    }

    fn is_absurd(&self, slot: usize, have: &Have) -> bool {
        let Some(c) = &self.contents[slot] else { return true };
        let pieces = match &have.pieces {
            HavePieces::All(all) => all.len() != c.pieces,
            HavePieces::More(more) => {
                more.len() > self.limits.have_list || more.iter().any(|&piece| piece >= c.pieces)
            }
        };
        pieces || have.fetching.len().max(have.awaiting.len()) > self.limits.fetching_list
    }

    /// Whether there is room for a link with a peer that has `have`: a link between two that have all gives way.
    fn make_room(&mut self, slot: usize, have: &Have, now: Time, out: &mut Vec<Effect>) -> bool {
        let most = self.limits.links;
        let c = self.content(slot);
        if c.links.len() < most {
            return true;
        }
        let whole = matches!(&have.pieces, HavePieces::All(all) if all.is_full());
        if whole || !c.have.is_full() {
            return false;
        }
        let useless = c.links.iter().find(|link| link.have.is_full()).map(|link| link.peer);
        if let Some(peer) = useless {
            self.drop_link(slot, peer, true, now, out);
        }
        useless.is_some()
    }

    fn learn(&mut self, slot: usize, at: usize, have: &Have, now: Time, out: &mut Vec<Effect>) {
        let c = self.content(slot);
        let news = c.learn(at, &have.pieces);
        let pieces = c.pieces;
        let link = &mut c.links[at];
        link.fetching = Arc::clone(&have.fetching);
        link.awaiting = Arc::clone(&have.awaiting);
        link.given = have.given.min(GIVEN_MAX);
        if matches!(have.pieces, HavePieces::All(_)) {
            link.offered = None;
        }
        let (peer, far) = (link.peer, link.far);
        if !far {
            c.told = c.told.max(have.known.min(pieces));
        }
        let longest = self.limits.uploads_max + self.limits.upload_queue;
        self.peers.entry(peer).queue = have.queue.min(u16::try_from(longest).unwrap_or(u16::MAX));
        let denied = have.denied || self.peers.is_doubted(peer);
        if self.content(slot).owners.is_denied(peer) != denied
            && self.peers.take_denial(peer, now, &self.limits)
        {
            self.content(slot).owners.set_denied(peer, denied);
        }
        if have.origin_pause > Duration::ZERO
            && !self.origin.is_paused(now)
            && self.peers.take_hint(peer, now, &self.limits)
        {
            self.content(slot).throttled();
        }
        // A short pause is the business of who was told; a long one is everybody's.
        if have.origin_pause > SHORT_PAUSE
            && !self.origin.is_paused(now)
            && self.peers.take_pause(peer, now, &self.limits)
        {
            self.origin.hinted(have.origin_pause, now, &self.limits, &mut self.rng);
        }
        if news {
            self.pump(now, out);
        }
        if let Some(&at) = self.content(slot).link_of.get(&peer) {
            self.move_waiting(slot, at, now, out);
        }
    }

    /// Tells all links what is new, unless they were told a moment ago.
    pub(crate) fn tell(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        let (gap, list) = (self.limits.have_gap, self.limits.have_list);
        let queue = self.uploads.len();
        let given = self.given(slot);
        let c = self.content(slot);
        let known = c.known();
        // How busy this node is matters to those who wait here, but only what changes their choice.
        let loaded =
            queue.abs_diff(c.sent_queue) >= 2.max(c.sent_queue / 2) || given.abs_diff(c.sent_given) >= 2;
        if c.unsent.is_empty() && !c.fetching_changed && known == c.sent_known && !loaded
            || now.since(c.last_sent) < gap
        {
            return;
        }
        if c.unsent.len() > list {
            self.tell_all(slot, now, out);
            return;
        }
        (c.fetching_changed, c.last_sent, c.sent_known) = (false, now, known);
        let pieces = HavePieces::More(std::mem::take(&mut c.unsent).into());
        let to: Vec<PeerId> = c.links.iter().map(|link| link.peer).collect();
        self.send(slot, to, pieces, now, out);
    }

    /// Tells all links everything, which also takes back what is gone.
    pub(crate) fn tell_all(&mut self, slot: usize, now: Time, out: &mut Vec<Effect>) {
        let c = self.content(slot);
        (c.fetching_changed, c.last_sent, c.sent_known) = (false, now, c.known());
        c.unsent.clear();
        let to = c.links.iter().map(|link| link.peer).collect();
        self.send_all(slot, to, now, out);
    }

    /// By how much more than its uploads this node says to be busy. Who has all of a content and gave it away a few times is
    /// asked when others are busy. (Not who still fetches: of nodes that came at once, all give as they get, and small
    /// differences between them say nothing.)
    fn given(&self, slot: usize) -> u16 {
        let Some(c) = self.contents[slot].as_ref().filter(|c| c.have.is_full()) else { return 0 };
        let times = GIVEN * c.given / u64::from(c.pieces.max(1));
        u16::try_from(times).unwrap_or(u16::MAX).min(GIVEN_MAX)
    }

    fn send_all(&mut self, slot: usize, to: Vec<PeerId>, now: Time, out: &mut Vec<Effect>) {
        let pieces = HavePieces::All(Arc::new(self.content(slot).have.clone()));
        self.send(slot, to, pieces, now, out);
    }

    fn send(&mut self, slot: usize, to: Vec<PeerId>, pieces: HavePieces, now: Time, out: &mut Vec<Effect>) {
        if to.is_empty() {
            return;
        }
        let uploads = self.uploads.len();
        let queue = u16::try_from(uploads).unwrap_or(u16::MAX);
        let (origin_pause, denied) = (self.origin.shared_pause(now), self.denied_until.is_some());
        let given = self.given(slot);
        let Self { contents, flights, .. } = self;
        let c = contents[slot].as_mut().expect("named slots hold a content");
        (c.sent_queue, c.sent_given) = (uploads, given);
        let at_origin = |piece: &u32| {
            let requests = c.under_way.get(piece).into_iter().flatten();
            requests.filter_map(|id| flights.get(id)).any(|flight| flight.target == Target::Origin)
        };
        let (fetching, awaiting): (Vec<u32>, Vec<u32>) =
            c.fetching.iter().partition(|piece| at_origin(piece));
        let have = Have {
            pieces,
            fetching: fetching.into(),
            awaiting: awaiting.into(),
            queue,
            given,
            known: c.known(),
            origin_pause,
            denied,
        };
        out.push(Effect::SendHave { content: c.id, to, have });
    }
}
