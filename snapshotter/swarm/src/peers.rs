//! What this node holds of each peer: how fast it answers, whether it rests, whether it is banned.
//!
//! Wrong bytes are proof and lead to a ban. Everything else (stalls, refusals, broken connections) can befall an
//! honest peer: it rests for a while that doubles, and is asked last.

use std::time::Duration;

use crate::rng::IdMap;
use crate::{Limits, PeerId, Time};

#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Requests under way to it.
    pub(crate) outstanding: usize,
    /// Links with it, over all contents.
    pub(crate) links: usize,
    /// Seconds per piece of its uplink, smoothed; none before its first.
    pace: Option<f64>,
    /// Its last word on how many uploads it has.
    pub(crate) queue: u16,
    rest_until: Time,
    /// Rests since it last served.
    rests: u32,
    failures: u32,
    banned_until: Time,
    bans: u32,
    hint_until: Time,
    throttle_until: Time,
    /// Changes of its word on whether the origin refuses it that may be taken now, and when that was worked out.
    denials: (f64, Time),
}

impl Standing {
    fn doubt_at(&self) -> u32 {
        if self.pace.is_none() { DOUBT_UNPROVEN } else { DOUBT }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: IdMap<PeerId, Standing>,
    /// Seconds from asking to having over all peers, smoothed.
    pace: Option<f64>,
    /// Seconds per piece of a peer's uplink over all peers, smoothed.
    each: Option<f64>,
}

/// What a piece is thought to take before any came: 2 MiB at 170 Mb/s.
const FIRST_PACE: f64 = 0.1;
/// Failures in a row after which a link is ended, for peers that have and have not served before.
const DOUBT: u32 = 4;
const DOUBT_UNPROVEN: u32 = 2;
/// Peers remembered without need; beyond it, those neither linked nor resting nor banned are forgotten.
const REMEMBERED: usize = 4096;
/// Changes of a peer's word on its credentials that are taken at once; then one per `Limits::origin_hint_max`. Each costs
/// a pass over the owners.
const DENIALS: f64 = 16.0;
/// How much a new observation counts.
const SMOOTHING: f64 = 0.2;

impl Peers {
    pub(crate) fn get(&self, id: PeerId) -> Option<&Standing> {
        self.known.get(&id)
    }

    pub(crate) fn entry(&mut self, id: PeerId) -> &mut Standing {
        self.known.entry(id).or_default()
    }

    /// Peers with links, but no more than `most` are counted.
    pub(crate) fn linked(&self, most: usize) -> usize {
        self.known.values().filter(|peer| peer.links > 0).take(most).count()
    }

    /// Seconds that a piece takes from the peers of this node.
    pub(crate) fn pace(&self) -> f64 {
        self.pace.unwrap_or(FIRST_PACE)
    }

    pub(crate) fn is_banned(&self, id: PeerId, now: Time) -> bool {
        self.known.get(&id).is_some_and(|peer| peer.banned_until > now)
    }

    /// Whether it may be asked at all.
    pub(crate) fn is_usable(&self, id: PeerId, now: Time) -> bool {
        self.known.get(&id).is_none_or(|peer| peer.banned_until <= now && peer.rest_until <= now)
    }

    /// Uploads of a peer that a new request would have to share its uplink with or wait for.
    pub(crate) fn line(&self, id: PeerId) -> usize {
        self.known.get(&id).map_or(0, |peer| peer.outstanding.max(usize::from(peer.queue)))
    }

    /// Seconds that a piece takes from a peer that sends nothing else.
    pub(crate) fn pace_alone(&self) -> f64 {
        self.each.unwrap_or(FIRST_PACE)
    }

    fn each(&self, id: PeerId) -> f64 {
        let own = self.known.get(&id).and_then(|peer| peer.pace);
        own.or(self.each).unwrap_or(FIRST_PACE)
    }

    /// Seconds until one more piece would come from it.
    pub(crate) fn expected(&self, id: PeerId) -> f64 {
        self.each(id) * (1.0 + self.line(id) as f64)
    }

    /// Seconds until the last request under way to it is answered, as far as one can tell.
    pub(crate) fn waiting(&self, id: PeerId) -> f64 {
        self.each(id) * self.line(id) as f64
    }

    /// A piece came `took` after it was asked for, when the peer's line was `load` long, itself included.
    pub(crate) fn served(&mut self, id: PeerId, took: Duration, load: usize) {
        let each = took.as_secs_f64() / load.max(1) as f64;
        self.pace = Some(smooth(self.pace, took.as_secs_f64()));
        let peer = self.entry(id);
        peer.pace = Some(smooth(peer.pace, each));
        (peer.failures, peer.rests) = (0, 0);
        self.each = Some(smooth(self.each, each));
    }

    /// It stalled, refused or broke off: it rests. True when its word on what it has is no longer to be relied on.
    pub(crate) fn failed(&mut self, id: PeerId, now: Time, limits: &Limits) -> bool {
        self.rest(id, now, limits);
        let peer = self.entry(id);
        peer.failures = peer.failures.saturating_add(1);
        peer.failures >= peer.doubt_at()
    }

    /// It is not asked for a while, longer each time in a row. All requests that were under way to it when the rest began may fail with
    /// the first, and are not another time: thirty at once would make it thirty seconds.
    pub(crate) fn rest(&mut self, id: PeerId, now: Time, limits: &Limits) {
        let general = self.pace();
        let peer = self.entry(id);
        if peer.rest_until > now {
            return;
        }
        let rest = Duration::from_millis(500).saturating_mul(1 << peer.rests.min(10)).min(limits.rest_max);
        peer.rests = peer.rests.saturating_add(1);
        peer.rest_until = now + rest;
        peer.pace = peer.pace.map(|pace| (pace * 1.5).min(60.0));
        self.pace = Some((general * 1.05).min(60.0));
    }

    /// Whether it failed often enough, and has not served since, that its word is not relied on.
    pub(crate) fn is_doubted(&self, id: PeerId) -> bool {
        self.known.get(&id).is_some_and(|peer| peer.failures >= peer.doubt_at())
    }

    /// Whether it ever answered with a piece.
    pub(crate) fn is_proven(&self, id: PeerId) -> bool {
        self.known.get(&id).is_some_and(|peer| peer.pace.is_some())
    }

    /// It sent wrong bytes. Returns when the ban ends.
    pub(crate) fn ban(&mut self, id: PeerId, now: Time, limits: &Limits) -> Time {
        let peer = self.entry(id);
        let time = limits.ban.saturating_mul(1 << peer.bans.min(20)).min(limits.ban_max);
        peer.bans = peer.bans.saturating_add(1);
        peer.banned_until = now + time;
        peer.banned_until
    }

    /// Whether its word that the origin throttles counts now; if so, not again for a moment.
    pub(crate) fn take_hint(&mut self, id: PeerId, now: Time, limits: &Limits) -> bool {
        let peer = self.entry(id);
        let counts = peer.throttle_until <= now;
        if counts {
            peer.throttle_until = now + limits.origin_hint_max;
        }
        counts
    }

    /// Whether its word that the origin wants a long pause counts now; if so, not again for a while.
    pub(crate) fn take_pause(&mut self, id: PeerId, now: Time, limits: &Limits) -> bool {
        let peer = self.entry(id);
        let counts = peer.hint_until <= now;
        if counts {
            peer.hint_until = now + limits.origin_pause_max;
        }
        counts
    }

    /// Whether a change of its word on its credentials counts now.
    pub(crate) fn take_denial(&mut self, id: PeerId, now: Time, limits: &Limits) -> bool {
        let (spent, at) = self.entry(id).denials;
        let healed = now.since(at).as_secs_f64() / limits.origin_hint_max.as_secs_f64().max(0.1);
        let spent = (spent - healed).max(0.0);
        let counts = spent + 1.0 <= DENIALS;
        self.entry(id).denials = (if counts { spent + 1.0 } else { spent }, now);
        counts
    }

    /// Forgets who is not needed once there are many: failures and ended bans of nodes that are long gone.
    pub(crate) fn sweep(&mut self, now: Time) {
        if self.known.len() > REMEMBERED {
            let needed = |peer: &Standing| {
                peer.outstanding > 0 || peer.links > 0 || peer.rest_until > now || peer.banned_until > now
            };
            self.known.retain(|_, peer| needed(peer));
        }
    }

    /// Forgets a peer of whom nothing is worth remembering. A ban is.
    pub(crate) fn forget_idle(&mut self, id: PeerId) {
        if self.known.get(&id).is_some_and(|peer| {
            peer.outstanding == 0 && peer.links == 0 && peer.bans == 0 && peer.failures == 0
        }) {
            self.known.remove(&id);
        }
    }
}

fn smooth(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + SMOOTHING * (new - old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_double_and_end() {
        let (mut peers, limits, id) = (Peers::default(), Limits::default(), PeerId(1));
        let first = peers.ban(id, Time::ZERO, &limits);
        assert!(peers.is_banned(id, Time::ZERO) && !peers.is_banned(id, first));
        let second = peers.ban(id, first, &limits);
        assert_eq!(second.since(first), 2 * first.since(Time::ZERO));
        for _ in 0..100 {
            peers.ban(id, first, &limits);
        }
        assert_eq!(peers.ban(id, first, &limits).since(first), limits.ban_max);
        peers.forget_idle(id);
        assert!(peers.is_banned(id, first), "a ban is remembered");
    }

    #[test]
    fn those_long_gone_are_forgotten_and_those_banned_are_not() {
        let (mut peers, limits) = (Peers::default(), Limits::default());
        let until = peers.ban(PeerId(0), Time::ZERO, &limits);
        for id in 1..20_000 {
            peers.failed(PeerId(id), Time::ZERO, &limits);
        }
        peers.sweep(Time::ZERO + Duration::from_secs(5));
        assert!(peers.is_banned(PeerId(0), Time::ZERO) && peers.known.len() == 1);
        (1..20_000).for_each(|id| peers.entry(PeerId(id)).failures = 1);
        peers.sweep(until);
        assert_eq!(peers.known.len(), 0);
    }

    #[test]
    fn failures_rest_a_peer_and_never_ban_it() {
        let (mut peers, limits, id) = (Peers::default(), Limits::default(), PeerId(1));
        let mut now = Time::ZERO;
        let mut rests = Vec::new();
        while rests.last() != Some(&limits.rest_max) {
            // All that is under way fails at once, and once more while it rests.
            for millis in [0, 0, 0, 499] {
                peers.failed(id, now + Duration::from_millis(millis), &limits);
            }
            assert!(!peers.is_banned(id, now) && !peers.is_usable(id, now));
            let until = peers.entry(id).rest_until;
            rests.push(until.since(now));
            now = until;
            assert!(peers.is_usable(id, now));
        }
        let millis: Vec<u128> = rests.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
        peers.served(id, Duration::from_millis(10), 1);
        peers.rest(id, now, &limits);
        assert!(peers.is_usable(id, now + Duration::from_millis(500)) && !peers.is_doubted(id));
    }
}
