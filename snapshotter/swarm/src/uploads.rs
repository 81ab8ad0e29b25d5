//! Who is served next: readers, then other zones and those who ask an owner, then the rarest piece.

use std::cmp::Reverse;
use std::time::Duration;

use towline_artifact::PIECE_LEN;

use crate::rng::IdMap;
use crate::{Limits, PeerId, Time, UploadId};

/// How a waiting request ranks, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A reader waits.
    Urgent,
    /// It was asked of an owner: others depend on it.
    Owner,
    /// A fill.
    Fill,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Upload {
    pub(crate) id: UploadId,
    pub(crate) to: PeerId,
    pub(crate) slot: usize,
    pub(crate) piece: u32,
    pub(crate) class: Class,
    pub(crate) since: Time,
    /// When this node learned that the receiver takes part.
    pub(crate) joined: Time,
}

#[derive(Debug)]
pub(crate) struct Uploads {
    waiting: Vec<Upload>,
    /// Being sent, since when.
    active: Vec<Upload>,
    per_peer: IdMap<PeerId, (usize, usize)>,
    /// Uploads ever started.
    sent: usize,
    /// Seconds per upload and upload at the same time, smoothed: what a piece takes if it has the link to itself.
    pace: Option<f64>,
    /// Bytes that may be sent now; below zero after a piece that was sent in advance.
    tokens: f64,
    tokens_at: Time,
}

/// A piece that so many others have is no longer rare: requests for those are served in the order they came. (With
/// rarity alone, who has fallen behind asks for what is common and falls further behind.)
const FRESH: u16 = 2;
/// Bytes sent in advance that are counted, at most: blocks are sent without asking, and who asks for many shall not hold up others
/// for long.
const MAX_DEBT: f64 = 8.0 * PIECE_LEN as f64;
/// Uploads at once at the start; one more with every second upload.
const FIRST: usize = 2;
/// Uploads that end within this many seconds leave room for as many again: their number evens out.
const BRIEF: f64 = 0.3;
/// Who takes part for so much longer is served first.
const WAVE: Duration = Duration::from_secs(2);
/// But only for the first places that it has at once, for it may not be honest.
const SENIOR_PLACES: usize = 2;
/// A request that waited this long ranks with a reader's.
const STARVED: Duration = Duration::from_secs(5);

impl Uploads {
    pub(crate) fn new() -> Self {
        let tokens_at = Time::ZERO;
        Self {
            waiting: Vec::new(),
            active: Vec::new(),
            per_peer: IdMap::default(),
            pace: None,
            sent: 0,
            tokens: 0.0,
            tokens_at,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Under way and waiting.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.active.len()
    }

    pub(crate) fn is_known(&self, id: UploadId) -> bool {
        self.waiting.iter().chain(&self.active).any(|upload| upload.id == id)
    }

    /// Lines a request up. False when the line, or the peer's part of it, is full.
    pub(crate) fn push(&mut self, upload: Upload, limits: &Limits) -> bool {
        let waiting = self.waiting.len();
        let entry = self.per_peer.entry(upload.to).or_default();
        // A reader's request finds room where a fill does not.
        let room =
            if upload.class == Class::Urgent { limits.upload_queue } else { limits.upload_queue * 3 / 4 };
        if waiting >= room || entry.0 >= limits.upload_queue_per_peer {
            if *entry == (0, 0) {
                self.per_peer.remove(&upload.to);
            }
            return false;
        }
        entry.0 += 1;
        self.waiting.push(upload);
        true
    }

    /// The next to serve, if one may start now. `rarity` counts how
    /// many others are known to have a piece.
    pub(crate) fn next(
        &mut self,
        now: Time,
        limits: &Limits,
        rarity: impl Fn(usize, u32) -> u16,
    ) -> Option<Upload> {
        if self.waiting.is_empty() || self.active.len() >= limits.uploads_max || !self.may_send(now, limits) {
            return None;
        }
        // One whose receiver is slow leaves most of its share of the link to others, so it holds no place. What takes
        // long because this node sends so much at once is not slow.
        let share = self.pace.unwrap_or(1.0) * self.active.len().max(1) as f64;
        let slow = Duration::from_secs_f64((2.0 * share).min(120.0));
        let quick = self.active.iter().filter(|upload| now.since(upload.since) <= slow).count();
        // At the very start few pieces at a time go out, so that there soon are others who can pass them on.
        let brief = self.pace.map(|pace| pace * limits.uploads as f64).is_some_and(|pace| pace < BRIEF);
        let places = limits.uploads + if brief { limits.uploads } else { 0 };
        let full = quick >= places.min(FIRST + self.sent / 2);
        // A reader's request need not wait for a place, up to as many again.
        let urgent = |upload: &&Upload| upload.class == Class::Urgent;
        let readers = full && self.active.iter().filter(urgent).count() < limits.uploads;
        if full && !(readers && self.waiting.iter().any(|upload| urgent(&upload))) {
            return None;
        }
        let rank = |upload: &Upload| {
            let starved = now.since(upload.since) >= STARVED;
            let class = if starved { Class::Urgent } else { upload.class };
            let active = self.per_peer.get(&upload.to).map_or(0, |counts| counts.1);
            let behind = Reverse(now.since(upload.joined).as_secs() / WAVE.as_secs());
            (
                class,
                active >= SENIOR_PLACES,
                behind,
                active,
                self.copies(upload, rarity(upload.slot, upload.piece)).min(FRESH),
                upload.since,
                upload.id,
            )
        };
        let fits = |at: &usize| !full || self.waiting[*at].class == Class::Urgent;
        let at = (0..self.waiting.len()).filter(fits).min_by_key(|&at| rank(&self.waiting[at]))?;
        let mut upload = self.waiting.swap_remove(at);
        if let Some(counts) = self.per_peer.get_mut(&upload.to) {
            *counts = (counts.0 - 1, counts.1 + 1);
        }
        upload.since = now;
        self.active.push(upload);
        self.sent += 1;
        self.spend(PIECE_LEN as u32, limits);
        Some(upload)
    }

    /// Copies of a piece that there are, as far as is known, and those on their way from here.
    fn copies(&self, upload: &Upload, known: u16) -> u16 {
        let same = |other: &&Upload| (other.slot, other.piece) == (upload.slot, upload.piece);
        known.saturating_add(self.active.iter().filter(same).count() as u16)
    }

    /// Counts bytes that are sent to a peer.
    pub(crate) fn spend(&mut self, len: u32, limits: &Limits) {
        if limits.upload_rate.is_some() {
            self.tokens = (self.tokens - f64::from(len)).max(-MAX_DEBT);
        }
    }

    fn may_send(&mut self, now: Time, limits: &Limits) -> bool {
        let Some(rate) = limits.upload_rate else { return true };
        let earned = now.since(self.tokens_at).as_secs_f64() * rate as f64;
        self.tokens_at = now;
        self.tokens = (self.tokens + earned).min(PIECE_LEN as f64);
        self.tokens >= 0.0
    }

    /// An upload ended or was withdrawn.
    pub(crate) fn ended(&mut self, id: UploadId, now: Time) -> bool {
        if let Some(at) = self.active.iter().position(|upload| upload.id == id) {
            let upload = self.active[at];
            let each = now.since(upload.since).as_secs_f64() / self.active.len() as f64;
            self.active.swap_remove(at);
            // Pulled down quickly, up slowly: the pace is that of receivers that are not slow.
            let pull = |old: f64| if each < old { 0.3 } else { 0.03 };
            self.pace = Some(self.pace.map_or(each, |old| old + pull(old) * (each - old)));
            self.uncount(upload.to, false);
            return true;
        }
        let Some(at) = self.waiting.iter().position(|upload| upload.id == id) else { return false };
        let upload = self.waiting.swap_remove(at);
        self.uncount(upload.to, true);
        true
    }

    /// Takes out everything of a content that waits.
    pub(crate) fn drain_slot(&mut self, slot: usize) -> Vec<Upload> {
        let (gone, kept) =
            std::mem::take(&mut self.waiting).into_iter().partition(|upload| upload.slot == slot);
        self.waiting = kept;
        let gone: Vec<Upload> = gone;
        gone.iter().for_each(|upload| self.uncount(upload.to, true));
        gone
    }

    fn uncount(&mut self, to: PeerId, waiting: bool) {
        if let Some(counts) = self.per_peer.get_mut(&to) {
            if waiting {
                counts.0 -= 1;
            } else {
                counts.1 -= 1;
            }
            if *counts == (0, 0) {
                self.per_peer.remove(&to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(id: u64, to: u64, piece: u32, class: Class) -> Upload {
        Upload {
            id: UploadId(id),
            to: PeerId(to),
            slot: 0,
            piece,
            class,
            since: Time::ZERO,
            joined: Time::ZERO,
        }
    }

    fn order(uploads: &mut Uploads, limits: &Limits) -> Vec<u64> {
        std::iter::from_fn(|| uploads.next(Time::ZERO, limits, |_, piece| piece as u16))
            .map(|u| u.id.0)
            .collect()
    }

    #[test]
    fn readers_then_owners_then_rarity_and_all_peers_alike() {
        let limits = Limits { uploads: 9, uploads_max: 9, ..Limits::default() };
        let mut uploads = Uploads { sent: 100, ..Uploads::new() };
        for (id, to, piece, class) in [
            (1, 1, 5, Class::Fill),
            (2, 1, 1, Class::Fill),
            (3, 2, 3, Class::Fill),
            (4, 3, 9, Class::Urgent),
            (5, 4, 9, Class::Owner),
        ] {
            assert!(uploads.push(upload(id, to, piece, class), &limits));
        }
        assert_eq!(order(&mut uploads, &limits), [4, 5, 2, 3, 1]);
        assert!(uploads.ended(UploadId(4), Time::ZERO) && !uploads.ended(UploadId(4), Time::ZERO));
    }

    #[test]
    fn who_came_seconds_earlier_is_served_first_and_a_crowd_alike() {
        let limits = Limits { uploads: 9, uploads_max: 9, ..Limits::default() };
        let now = Time::from_micros(11_000_000);
        for (joined, first) in [(100_000, 1), (7_000_000, 2)] {
            let mut uploads = Uploads { sent: 100, ..Uploads::new() };
            let late =
                Upload { joined: Time::from_micros(joined), since: now, ..upload(1, 1, 0, Class::Fill) };
            assert!(uploads.push(late, &limits));
            assert!(uploads.push(Upload { since: now, ..upload(2, 2, 5, Class::Fill) }, &limits));
            // The piece of the first is rarer.
            assert_eq!(
                uploads.next(now, &limits, |_, piece| piece as u16).map(|next| next.id.0),
                Some(first)
            );
        }
    }

    #[test]
    fn who_came_earlier_does_not_take_every_place() {
        let limits = Limits { uploads: 9, uploads_max: 9, ..Limits::default() };
        let now = Time::from_micros(11_000_000);
        let mut uploads = Uploads { sent: 100, ..Uploads::new() };
        (1..5).for_each(|id| {
            assert!(uploads.push(Upload { since: now, ..upload(id, 1, 0, Class::Fill) }, &limits));
        });
        let late = Upload { joined: now, since: now, ..upload(9, 2, 0, Class::Fill) };
        assert!(uploads.push(late, &limits));
        let served = std::iter::from_fn(|| uploads.next(now, &limits, |_, _| 0)).map(|next| next.id.0);
        assert_eq!(served.collect::<Vec<_>>(), [1, 2, 9, 3, 4]);
    }

    #[test]
    fn a_reader_finds_a_place_where_fills_find_none() {
        let limits = Limits { uploads: 2, ..Limits::default() };
        let mut uploads = Uploads { sent: 100, pace: Some(1.0), ..Uploads::new() };
        (1..9).for_each(|id| assert!(uploads.push(upload(id, id, 0, Class::Fill), &limits)));
        assert_eq!(order(&mut uploads, &limits).len(), 2);
        (10..19).for_each(|id| assert!(uploads.push(upload(id, id, 0, Class::Urgent), &limits)));
        assert_eq!(order(&mut uploads, &limits), [10, 11], "not without bound either");
    }

    #[test]
    fn a_flood_is_refused_and_others_are_not() {
        let limits = Limits::default();
        let mut uploads = Uploads::new();
        let taken = (0..1000).filter(|&id| uploads.push(upload(id, 1, 0, Class::Fill), &limits)).count();
        assert_eq!(taken, limits.upload_queue_per_peer);
        assert!(uploads.push(upload(2000, 2, 0, Class::Fill), &limits));
        let more = (3000..4000).filter(|&id| uploads.push(upload(id, id, 0, Class::Fill), &limits)).count();
        assert_eq!(taken + 1 + more, limits.upload_queue * 3 / 4);
        assert!(uploads.push(upload(5000, 3, 0, Class::Urgent), &limits), "room is kept for readers");
    }

    #[test]
    fn the_pods_share_of_the_link_is_left_alone() {
        let rate = PIECE_LEN; // one piece a second
        let limits = Limits {
            upload_rate: Some(rate),
            upload_queue: 1000,
            upload_queue_per_peer: 1000,
            ..Limits::default()
        };
        let mut uploads = Uploads::new();
        (0..100).for_each(|id| assert!(uploads.push(upload(id, 1, 0, Class::Fill), &limits)));
        let mut sent = 0;
        for n in 0..100 {
            let now = Time::from_micros(n * 100_000);
            while let Some(upload) = uploads.next(now, &limits, |_, _| 0) {
                sent += 1;
                uploads.ended(upload.id, now);
            }
        }
        assert!((9..=12).contains(&sent), "{sent} pieces in ten seconds");
    }
}
