//! The state of one content: which pieces are here, wanted, under way, and at whom.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use towline_artifact::ContentId;

use crate::blocks::Wanted;
use crate::owners::Owners;
use crate::rng::IdMap;
use crate::{Bitmap, HavePieces, Limits, Peer, PeerId, RequestId, Strategy, Time, UploadId};

/// The least part of the window that an origin which throttles leaves.
const THROTTLE_MIN: f64 = 1.0 / 64.0;
/// Time in which a window that shrank to nothing is whole again.
const THROTTLE_SECONDS: f64 = 60.0;

/// Pieces beyond twice what this node sees that the word of others may move the window to: the first window and some.
const TOLD_BEYOND: u32 = 16;
/// Messages of a link that are taken at once, and later a second. An honest one sends one per `Limits::have_gap`, and one
/// for each piece it loses.
const HAVE_BURST: f64 = 256.0;
const HAVE_RATE: f64 = 64.0;

/// A peer that tells what it has.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    pub(crate) far: bool,
    /// It failed before and has not served since: its word makes nothing count as seen.
    pub(crate) doubted: bool,
    pub(crate) have: Bitmap,
    pub(crate) fetching: Arc<[u32]>,
    pub(crate) awaiting: Arc<[u32]>,
    /// By how many uploads more it wants to count as busy.
    pub(crate) given: u16,
    /// It said to be fetching a piece that then did not come: its word on that counts no more.
    pub(crate) talks: bool,
    /// Messages it may still send now, and when that was worked out.
    pub(crate) allowance: (f64, Time),
    /// Offered by this node at that time and not answered yet.
    pub(crate) offered: Option<Time>,
}

/// A peer that asked this node as an owner and waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    pub(crate) upload: UploadId,
    pub(crate) from: PeerId,
    pub(crate) urgent: bool,
}

impl Link {
    /// Whether it says to be bringing a piece into its zone.
    pub(crate) fn brings(&self, piece: u32) -> bool {
        self.fetching.contains(&piece) || self.awaiting.contains(&piece)
    }

    /// Counts a message; false when there are too many.
    pub(crate) fn may_tell(&mut self, now: Time) -> bool {
        let (left, at) = self.allowance;
        let left = (left + HAVE_RATE * now.since(at).as_secs_f64()).min(HAVE_BURST);
        self.allowance = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
    }

    /// Whether what it has counts as being in this zone.
    pub(crate) fn is_near(&self) -> bool {
        !self.far && !self.doubted
    }
}

#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) id: ContentId,
    pub(crate) pieces: u32,
    pub(crate) have: Bitmap,
    pub(crate) fill: bool,
    /// What is to be fetched, had or not: everything during a fill.
    pub(crate) wanted: Bitmap,
    /// Wanted, not here and not under way.
    pub(crate) open: Bitmap,
    /// Requests under way, by piece. Few at a time, so the order of a map costs nothing.
    pub(crate) under_way: BTreeMap<u32, Vec<RequestId>>,
    /// How many links have a piece.
    pub(crate) copies: Vec<u16>,
    /// Of these, how many are in this zone.
    near: Vec<u16>,
    /// Pieces that were seen in this zone, here included, and whose holders are not all gone.
    pub(crate) seen: Bitmap,
    /// The most pieces that anybody said to have seen in this zone.
    pub(crate) told: u32,
    pub(crate) owners: Owners,
    /// When this node learned of each participant.
    pub(crate) joined: IdMap<PeerId, Time>,
    /// Whether the membership was told at all, be it of nobody.
    pub(crate) introduced: bool,
    pub(crate) links: Vec<Link>,
    pub(crate) link_of: IdMap<PeerId, usize>,
    /// Peers that turned a link down, and until when they are left in peace.
    pub(crate) declined: BTreeMap<PeerId, Time>,
    /// Pieces that readers wait for, oldest first, and those that this node was asked for as their owner.
    pub(crate) pulls: VecDeque<u32>,
    /// Of `pulls`, those of readers.
    pub(crate) demand: VecDeque<u32>,
    pub(crate) ahead: Range<u32>,
    pub(crate) parked: BTreeMap<u32, Vec<Parked>>,
    /// Pieces of this node that a reader's node brings from the origin, and until when they are left to it.
    pub(crate) lent: BTreeMap<u32, Time>,
    /// Of which pieces that are not here readers wanted blocks.
    pub(crate) blocks: BTreeMap<u32, Wanted>,
    /// When a piece first could have been at its owner, in milliseconds since `added` plus one; zero for not yet.
    due: Vec<u32>,
    /// How many owners were asked in vain for a piece.
    pub(crate) tries: BTreeMap<u32, u8>,
    pub(crate) added: Time,
    pub(crate) changed_link: Time,
    /// Pieces that came since the links were told.
    pub(crate) unsent: Vec<u32>,
    /// Pieces under way from the origin or another zone.
    pub(crate) fetching: Vec<u32>,
    pub(crate) fetching_changed: bool,
    pub(crate) last_sent: Time,
    pub(crate) sent_known: u32,
    pub(crate) sent_queue: usize,
    pub(crate) sent_given: u16,
    /// Pieces sent to peers.
    pub(crate) given: u64,
    /// Pieces a second that become known, smoothed over about the window's time.
    rate: f64,
    rate_at: Time,
    rate_known: u32,
    /// When another piece last became known.
    moved: Time,
    /// What part of the window is used, since the origin throttles.
    throttle: f64,
    /// What the contents that this node fetches at the same time add to the rate, and what those before this one take of
    /// the window that all have in common.
    pub(crate) beside: (f64, u32),
    /// Spreads what nodes do at the same time: in 1.0..1.5, fixed.
    pub(crate) patience: f64,
}

impl Content {
    pub(crate) fn new(
        id: ContentId,
        have: Bitmap,
        me: Peer,
        limits: &Limits,
        now: Time,
        patience: f64,
    ) -> Self {
        let pieces = have.len();
        Self {
            id,
            pieces,
            seen: have.clone(),
            told: 0,
            rate_known: have.count(),
            sent_known: have.count(),
            sent_queue: 0,
            sent_given: 0,
            given: 0,
            have,
            fill: false,
            wanted: Bitmap::new(pieces),
            open: Bitmap::new(pieces),
            under_way: BTreeMap::new(),
            copies: vec![0; pieces as usize],
            near: vec![0; pieces as usize],
            owners: Owners::new(id, pieces, limits.origin_group, me, limits.participants),
            joined: IdMap::default(),
            introduced: false,
            links: Vec::new(),
            link_of: IdMap::default(),
            declined: BTreeMap::new(),
            pulls: VecDeque::new(),
            demand: VecDeque::new(),
            ahead: 0..0,
            parked: BTreeMap::new(),
            lent: BTreeMap::new(),
            blocks: BTreeMap::new(),
            due: vec![0; pieces as usize],
            tries: BTreeMap::new(),
            added: now,
            changed_link: now,
            unsent: Vec::new(),
            fetching: Vec::new(),
            fetching_changed: false,
            last_sent: Time::ZERO,
            rate: 0.0,
            rate_at: now,
            moved: now,
            throttle: 1.0,
            beside: (0.0, 0),
            patience,
        }
    }

    /// Whether there is something to wait for: pieces, answers, news to tell.
    pub(crate) fn is_busy(&self) -> bool {
        let missing = !self.have.is_full() && (self.fill || self.open.count() > 0 || self.lonely());
        missing
            || !self.unsent.is_empty()
            || self.fetching_changed
            || !self.parked.is_empty()
            || self.offers() > 0
    }

    /// When this node learned of a participant; now, if it did not.
    pub(crate) fn joined(&self, peer: PeerId, now: Time) -> Time {
        self.joined.get(&peer).copied().unwrap_or(now)
    }

    /// Whether there are others, and a link with none of them.
    fn lonely(&self) -> bool {
        self.links.is_empty() && self.owners.count() > 1
    }

    /// Links offered and not answered.
    pub(crate) fn offers(&self) -> usize {
        self.links.iter().filter(|link| link.offered.is_some()).count()
    }

    /// Whether a reader waits for a piece, here or at a peer that asked this node as its owner.
    pub(crate) fn is_urgent(&self, piece: u32) -> bool {
        let asked = || self.parked.get(&piece).is_some_and(|all| all.iter().any(|one| one.urgent));
        self.demand.contains(&piece) || asked()
    }

    /// A piece is to be fetched.
    pub(crate) fn want(&mut self, piece: u32) {
        self.wanted.set(piece);
        self.reopen(piece);
    }

    /// A request for a piece ended without it, or it is wanted anew.
    pub(crate) fn reopen(&mut self, piece: u32) {
        if self.wanted.has(piece) && !self.have.has(piece) && !self.under_way.contains_key(&piece) {
            self.open.set(piece);
        }
    }

    pub(crate) fn set_fill(&mut self, on: bool) {
        self.fill = on;
        if on {
            self.wanted = Bitmap::full(self.pieces);
            (0..self.pieces).for_each(|piece| self.reopen(piece));
        } else {
            let (pulls, ahead) = (self.pulls.clone(), self.ahead.clone());
            self.wanted = Bitmap::new(self.pieces);
            self.open = Bitmap::new(self.pieces);
            pulls.into_iter().chain(ahead).for_each(|piece| self.want(piece));
        }
    }

    pub(crate) fn started(&mut self, piece: u32, request: RequestId) {
        self.open.clear(piece);
        self.under_way.entry(piece).or_default().push(request);
    }

    pub(crate) fn ended(&mut self, piece: u32, request: RequestId) {
        if let Some(requests) = self.under_way.get_mut(&piece) {
            requests.retain(|&other| other != request);
            if requests.is_empty() {
                self.under_way.remove(&piece);
            }
        }
        self.reopen(piece);
    }

    /// Notes a verified piece; false if it was here.
    pub(crate) fn arrived(&mut self, piece: u32) -> bool {
        if !self.have.set(piece) {
            return false;
        }
        self.open.clear(piece);
        self.seen.set(piece);
        self.unsent.push(piece);
        self.tries.remove(&piece);
        self.lent.remove(&piece);
        self.blocks.remove(&piece);
        self.pulls.retain(|&other| other != piece);
        self.demand.retain(|&other| other != piece);
        true
    }

    /// A piece is here no longer. Links are told by a whole bitmap.
    pub(crate) fn lost(&mut self, piece: u32) -> bool {
        let lost = self.have.clear(piece);
        self.unsent.retain(|&other| other != piece);
        self.unsee(piece);
        self.reopen(piece);
        lost
    }

    /// Takes in what a link has. Returns whether something of it is wanted here.
    pub(crate) fn learn(&mut self, link: usize, pieces: &HavePieces) -> bool {
        let (mut news, mut gone_now) = (false, Vec::new());
        let Self { links, copies, near, seen, open, .. } = self;
        let link = &mut links[link];
        if let HavePieces::All(all) = pieces {
            let gone: Vec<u32> = link.have.iter().filter(|&piece| !all.has(piece)).collect();
            for &piece in &gone {
                link.have.clear(piece);
                copies[piece as usize] -= 1;
                near[piece as usize] -= u16::from(link.is_near());
            }
            gone_now = gone;
        }
        let mut add = |piece: u32| {
            if link.have.set(piece) {
                copies[piece as usize] += 1;
                if link.is_near() {
                    near[piece as usize] += 1;
                    seen.set(piece);
                }
                news |= open.has(piece);
            }
        };
        match pieces {
            HavePieces::More(more) => more.iter().copied().for_each(&mut add),
            HavePieces::All(all) => all.iter().for_each(add),
        }
        gone_now.into_iter().for_each(|piece| self.unsee(piece));
        news
    }

    /// A link turned out not to have a piece.
    pub(crate) fn unlearn(&mut self, peer: PeerId, piece: u32) {
        if let Some(&at) = self.link_of.get(&peer)
            && self.links[at].have.clear(piece)
        {
            self.copies[piece as usize] -= 1;
            self.near[piece as usize] -= u16::from(self.links[at].is_near());
            self.unsee(piece);
        }
    }

    /// What is held of a link changed: its zone, or whether its word is doubted.
    pub(crate) fn judge(&mut self, peer: PeerId, far: Option<bool>, doubted: bool) {
        let Some(&at) = self.link_of.get(&peer) else { return };
        let link = &mut self.links[at];
        let before = link.is_near();
        (link.far, link.doubted) = (far.unwrap_or(link.far), doubted);
        let after = link.is_near();
        if before == after {
            return;
        }
        let pieces: Vec<u32> = link.have.iter().collect();
        for piece in pieces {
            if after {
                self.near[piece as usize] += 1;
                self.seen.set(piece);
            } else {
                self.near[piece as usize] -= 1;
                self.unsee(piece);
            }
        }
    }

    /// A holder of a piece is gone. If no link of this zone has it any more, it must come from a source again.
    fn unsee(&mut self, piece: u32) {
        if self.near[piece as usize] == 0 && !self.have.has(piece) && self.seen.clear(piece) {
            self.due[piece as usize] = 0;
            self.tries.remove(&piece);
        }
    }

    pub(crate) fn add_link(
        &mut self,
        peer: PeerId,
        far: bool,
        doubted: bool,
        offered: Option<Time>,
    ) -> usize {
        let link = Link {
            peer,
            far,
            doubted,
            have: Bitmap::new(self.pieces),
            fetching: Arc::default(),
            awaiting: Arc::default(),
            given: 0,
            talks: false,
            allowance: (HAVE_BURST, Time::ZERO),
            offered,
        };
        self.link_of.insert(peer, self.links.len());
        self.links.push(link);
        self.links.len() - 1
    }

    pub(crate) fn remove_link(&mut self, peer: PeerId) -> bool {
        let Some(at) = self.link_of.remove(&peer) else { return false };
        let link = self.links.swap_remove(at);
        if let Some(moved) = self.links.get(at) {
            self.link_of.insert(moved.peer, at);
        }
        for piece in link.have.iter() {
            self.copies[piece as usize] -= 1;
            self.near[piece as usize] -= u16::from(link.is_near());
            self.unsee(piece);
        }
        true
    }

    /// Pieces known to be in this zone.
    pub(crate) fn known(&self) -> u32 {
        // Of others' word only what is not far from what this node sees: one liar must not open the window for all.
        let seen = self.seen.count();
        seen.max(self.told.min(2 * seen + TOLD_BEYOND))
    }

    pub(crate) fn update_rate(&mut self, now: Time, window: Duration) {
        let passed = now.since(self.rate_at).as_secs_f64();
        if passed < 0.05 {
            return;
        }
        let known = self.known();
        let rate = f64::from(known.saturating_sub(self.rate_known)) / passed;
        let weight = (passed / window.as_secs_f64().max(0.1)).min(1.0);
        self.rate += weight * (rate - self.rate);
        if known != self.rate_known {
            self.moved = now;
        }
        (self.rate_at, self.rate_known) = (now, known);
        self.throttle = (self.throttle + passed / THROTTLE_SECONDS).min(1.0);
    }

    /// Where not everybody links with everybody, news takes a second hop.
    pub(crate) fn window_time(&self, limits: &Limits) -> Duration {
        limits.window_time * if self.owners.near().len() > limits.links { 2 } else { 1 }
    }

    /// Pieces of it that may be under way at the origin: what those fetched before it leave of the window of all.
    fn window(&self, limits: &Limits) -> u32 {
        let (least, most) = limits.window_first;
        let first = ((self.owners.near().len() / 16) as u32).clamp(least, most.max(least));
        let rate = self.rate + self.beside.0;
        let window = (rate * self.window_time(limits).as_secs_f64()).ceil() as u32;
        let window = f64::from(window.max(first).min(limits.window_max)) * self.throttle;
        (window as u32).max(1).saturating_sub(self.beside.1)
    }

    /// One past the last piece that its owner may fetch without being asked.
    ///
    /// Pieces go to the zone in their own order, a window of them at a time, like segments of a connection: what
    /// becomes known (by links and by their word on what they know) moves it, and its length follows the rate. So the
    /// origin serves few requests quickly rather than all slowly, and pieces come in the order a loader reads.
    pub(crate) fn window_end(&self, limits: &Limits) -> u32 {
        if limits.strategy == Strategy::OwnerOnly {
            return self.pieces;
        }
        self.known().saturating_add(self.window(limits)).min(self.pieces)
    }

    /// Pieces a second that become known, while this node wants more of it.
    pub(crate) fn fetch_rate(&self) -> f64 {
        if self.missing() > 0 { self.rate } else { 0.0 }
    }

    /// What it takes of the window: pieces that this node wants and nobody is known to have. Nothing, if none of them came for a
    /// while: others shall not wait for what does not come.
    pub(crate) fn takes(&self, limits: &Limits, now: Time) -> u32 {
        let absent = self.missing().min(self.pieces - self.known());
        if now.since(self.moved) > 2 * limits.takeover { 0 } else { absent.min(self.window(limits)) }
    }

    /// Pieces that this node wants and has not.
    fn missing(&self) -> u32 {
        self.open.count() + self.under_way.len() as u32
    }

    /// How long a piece has been due at its owner; starts counting at the first call.
    pub(crate) fn due_for(&mut self, piece: u32, not_before: Time, now: Time) -> Duration {
        let due = &mut self.due[piece as usize];
        if *due == 0 {
            *due = u32::try_from(now.since(self.added).as_millis()).unwrap_or(u32::MAX - 1) + 1;
        }
        let since = self.added + Duration::from_millis(u64::from(*due - 1));
        now.since(since.max(not_before))
    }

    /// The origin had too many requests: the window shrinks to half and grows back over some seconds.
    pub(crate) fn throttled(&mut self) {
        self.throttle = (self.throttle / 2.0).max(THROTTLE_MIN);
    }

    /// Starts the clock of [`Self::due_for`] anew.
    pub(crate) fn forget_due(&mut self, piece: u32) {
        self.due[piece as usize] = 0;
    }

    /// A piece that links say they fetch did not come for long.
    pub(crate) fn note_idle_talk(&mut self, piece: u32) {
        for link in self.links.iter_mut().filter(|link| link.brings(piece)) {
            link.talks = true;
        }
    }

    /// Whether a link says that it is bringing a piece to where this node can get it.
    ///
    /// For whom other zones ask (the first owner) that is who went to the origin, in whatever zone; not who asked another zone, for
    /// that may in the end be waiting for this node. For all others it is anybody of their zone.
    pub(crate) fn is_fetched_by_link(&self, piece: u32) -> bool {
        let first = self.owners.is_first(piece);
        let brings = |link: &Link| match first {
            true => link.fetching.contains(&piece),
            false => !link.far && link.brings(piece),
        };
        self.links.iter().any(|link| !link.talks && brings(link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zone;

    #[test]
    fn one_liar_does_not_open_the_window() {
        let (limits, me) = (Limits::default(), Peer { id: PeerId(1), zone: Zone(0), weight: 1 });
        let mut c = Content::new(ContentId([3; 32]), Bitmap::new(4000), me, &limits, Time::ZERO, 1.0);
        c.told = 4000;
        assert!(c.window_end(&limits) <= TOLD_BEYOND + limits.window_first.0);
        (0..100).for_each(|piece| assert!(c.arrived(piece)));
        // Two nodes that see different halves of the zone still get on.
        assert!((200..300).contains(&c.window_end(&limits)));
    }
}
