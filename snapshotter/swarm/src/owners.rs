//! Who owns what: weighted rendezvous hashing over groups of pieces, one owner set per zone.
//!
//! Every node computes this for itself from the participants it knows. Two nodes with the same view agree; with views
//! that differ in a few entries they disagree about few groups.

use std::collections::BTreeMap;

use towline_artifact::ContentId;

use crate::rng::{GOLDEN, IdMap, mix};
use crate::{Peer, PeerId, Zone};

/// Owners that are known in order per zone and group: the first and two to stand in for it.
pub(crate) const CHOICES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    score: f64,
    id: PeerId,
}

#[derive(Debug, Default)]
struct ZoneOwners {
    peers: Vec<Peer>,
    /// Best first; shorter than `CHOICES` only when the zone has fewer owners.
    best: Vec<Vec<Choice>>,
}

/// The participants of one content, this node among them.
#[derive(Debug)]
pub(crate) struct Owners {
    seed: u64,
    group_len: u32,
    groups: u32,
    me: Peer,
    zones: BTreeMap<Zone, ZoneOwners>,
    place: IdMap<PeerId, (Zone, usize)>,
    /// Participants that the origin refuses, and the weight they had.
    denied: BTreeMap<PeerId, u16>,
    capacity: usize,
}

/// Pieces that have their owner in common: the more pieces, the more, up to `most`.
///
/// A function of the content alone, so that all nodes agree. 256 groups are enough to spread ownership; larger groups
/// make larger requests to the origin.
pub(crate) fn group_len(pieces: u32, most: u32) -> u32 {
    (pieces / 256).clamp(1, most.max(1))
}

impl Owners {
    pub(crate) fn new(content: ContentId, pieces: u32, group_most: u32, me: Peer, capacity: usize) -> Self {
        let group_len = group_len(pieces, group_most);
        let seed = content
            .0
            .chunks_exact(8)
            .fold(0, |seed, part| mix(seed ^ u64::from_le_bytes(part.try_into().expect("chunks of eight"))));
        let groups = pieces.div_ceil(group_len);
        let (zones, place) = (BTreeMap::new(), IdMap::default());
        let mut owners =
            Self { seed, group_len, groups, me, zones, place, denied: BTreeMap::new(), capacity };
        owners.join(me);
        owners
    }

    pub(crate) fn group(&self, piece: u32) -> u32 {
        piece / self.group_len
    }

    /// Participants, this node included.
    pub(crate) fn count(&self) -> usize {
        self.place.len()
    }

    /// Participants of this node's zone, itself included, in no particular order.
    pub(crate) fn near(&self) -> &[Peer] {
        self.zones.get(&self.me.zone).map_or(&[], |zone| &zone.peers)
    }

    /// Other zones that have participants.
    pub(crate) fn far(&self) -> impl Iterator<Item = &[Peer]> {
        let near = self.me.zone;
        self.zones.iter().filter(move |&(&zone, _)| zone != near).map(|(_, owners)| &owners.peers[..])
    }

    pub(crate) fn zone_of(&self, id: PeerId) -> Option<Zone> {
        self.place.get(&id).map(|place| place.0)
    }

    /// Larger is better: `weight / -ln(u)` for a hash `u` in (0, 1). With it each participant wins a share of the
    /// groups in proportion to its weight, and one that leaves gives its groups to all others alike.
    fn score(&self, peer: &Peer, group: u32) -> f64 {
        let hash = mix(mix(self.seed ^ peer.id.0).wrapping_add(u64::from(group).wrapping_mul(GOLDEN)));
        let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        if peer.weight == 0 {
            // After everybody with a weight, in an order of its own: somebody must be next even if nobody has one.
            return unit.ln();
        }
        f64::from(peer.weight) / -unit.ln()
    }

    /// Adds a participant or notes that it changed. False when there are too many already.
    pub(crate) fn join(&mut self, mut peer: Peer) -> bool {
        if let Some(weight) = self.denied.get_mut(&peer.id) {
            *weight = peer.weight;
            peer.weight = 0;
        }
        self.put(peer)
    }

    fn put(&mut self, peer: Peer) -> bool {
        if let Some(&(zone, at)) = self.place.get(&peer.id) {
            if self.zones[&zone].peers[at] == peer {
                return true;
            }
            self.take_out(peer.id);
        }
        if self.place.len() >= self.capacity {
            return false;
        }
        let mut owners = self.zones.remove(&peer.zone).unwrap_or_default();
        owners.best.resize(self.groups as usize, Vec::new());
        if peer.weight > 0 {
            for (best, group) in owners.best.iter_mut().zip(0..) {
                insert(best, Choice { score: self.score(&peer, group), id: peer.id });
            }
        }
        self.place.insert(peer.id, (peer.zone, owners.peers.len()));
        owners.peers.push(peer);
        self.zones.insert(peer.zone, owners);
        true
    }

    /// Takes a participant out. This node itself stays.
    pub(crate) fn leave(&mut self, id: PeerId) -> bool {
        if id == self.me.id {
            return false;
        }
        self.denied.remove(&id);
        self.take_out(id)
    }

    /// This node's share changed.
    pub(crate) fn set_my_weight(&mut self, weight: u16) {
        self.me.weight = weight;
        self.join(self.me);
    }

    pub(crate) fn is_denied(&self, id: PeerId) -> bool {
        self.denied.contains_key(&id)
    }

    /// A participant says that the origin refuses it (or no longer): it owns nothing meanwhile.
    pub(crate) fn set_denied(&mut self, id: PeerId, denied: bool) {
        let Some(&(zone, at)) = self.place.get(&id) else { return };
        let peer = self.zones[&zone].peers[at];
        if denied && !self.denied.contains_key(&id) {
            self.denied.insert(id, peer.weight);
            self.put(Peer { weight: 0, ..peer });
        } else if !denied && let Some(weight) = self.denied.remove(&id) {
            self.put(Peer { weight, ..peer });
        }
    }

    fn take_out(&mut self, id: PeerId) -> bool {
        let Some((zone, at)) = self.place.remove(&id) else { return false };
        let mut owners = self.zones.remove(&zone).expect("a place is in a known zone");
        owners.peers.swap_remove(at);
        if let Some(moved) = owners.peers.get(at) {
            self.place.insert(moved.id, (zone, at));
        }
        for (best, group) in owners.best.iter_mut().zip(0..) {
            if best.iter().any(|choice| choice.id == id) {
                best.clear();
                for peer in owners.peers.iter().filter(|peer| peer.weight > 0) {
                    insert(best, Choice { score: self.score(peer, group), id: peer.id });
                }
            }
        }
        if !owners.peers.is_empty() {
            self.zones.insert(zone, owners);
        }
        true
    }

    /// The owner of a piece in this node's zone (`nth` 0) or who stands in for it.
    pub(crate) fn owner(&self, piece: u32, nth: usize) -> Option<PeerId> {
        let best = self.zones.get(&self.me.zone)?.best.get(self.group(piece) as usize)?;
        best.get(nth).map(|choice| choice.id)
    }

    /// The owner among all zones: the one that goes to the origin.
    pub(crate) fn first_owner(&self, piece: u32) -> Option<PeerId> {
        let group = self.group(piece) as usize;
        let firsts = self.zones.values().filter_map(|zone| zone.best.get(group)?.first());
        firsts.max_by(|a, b| a.score.total_cmp(&b.score)).map(|choice| choice.id)
    }

    /// Whether that is this node.
    pub(crate) fn is_first(&self, piece: u32) -> bool {
        self.first_owner(piece) == Some(self.me.id)
    }

    /// How many of this node's zone would own a piece before this node.
    pub(crate) fn my_rank(&self, piece: u32) -> usize {
        let group = self.group(piece);
        let Some(zone) = self.zones.get(&self.me.zone) else { return 0 };
        let best = zone.best.get(group as usize).map_or(&[][..], Vec::as_slice);
        if let Some(at) = best.iter().position(|choice| choice.id == self.me.id) {
            return at;
        }
        let mine = self.score(&self.me, group);
        zone.peers.iter().filter(|peer| self.score(peer, group) > mine).count()
    }
}

fn insert(best: &mut Vec<Choice>, choice: Choice) {
    let at = best.iter().position(|other| {
        // Equal scores are as good as impossible; the id decides so that nodes agree even then.
        choice.score.total_cmp(&other.score).then(choice.id.cmp(&other.id)).is_gt()
    });
    let at = at.unwrap_or(best.len());
    if at < CHOICES {
        best.truncate(CHOICES - 1);
        best.insert(at, choice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTENT: ContentId = ContentId([7; 32]);

    fn peer(id: u64, zone: u32, weight: u16) -> Peer {
        Peer { id: PeerId(mix(id)), zone: Zone(zone), weight }
    }

    fn owners(me: Peer, others: &[Peer], pieces: u32) -> Owners {
        let mut owners = Owners::new(CONTENT, pieces, 4, me, 10_000);
        others.iter().for_each(|&other| assert!(owners.join(other)));
        owners
    }

    #[test]
    fn groups_grow_with_the_content() {
        for (pieces, len) in [(0, 1), (1, 1), (511, 1), (512, 2), (1023, 3), (1024, 4), (4_000_000, 4)] {
            assert_eq!(group_len(pieces, 4), len, "{pieces} pieces");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let peers: Vec<_> = (0..10).map(|n| peer(n, 0, if n < 5 { 1 } else { 3 })).collect();
        let owners = owners(peers[0], &peers, 40_000);
        let heavy = (0..10_000)
            .filter(|group| {
                let owner = owners.owner(group * 4, 0).unwrap();
                peers[5..].iter().any(|peer| peer.id == owner)
            })
            .count();
        assert!((7_300..7_700).contains(&heavy), "{heavy} of 10000 for three quarters of the weight");
    }

    #[test]
    fn without_weight_nothing_is_owned() {
        let owners = owners(peer(0, 0, 0), &[peer(1, 0, 0)], 10);
        assert_eq!(owners.owner(3, 0), None);
        assert_eq!(owners.first_owner(3), None);
    }

    proptest! {
        /// However it was reached, the same set of participants gives the same owners: those of a slow model.
        #[test]
        fn agrees_with_sorting_everybody(
            ops in prop::collection::vec((any::<bool>(), 1..24u64, 0..3u32, 0..4u16), 0..60),
            piece in 0..900u32,
        ) {
            let me = peer(0, 0, 1);
            let mut owners = owners(me, &[], 900);
            let mut model: BTreeMap<PeerId, Peer> = BTreeMap::from([(me.id, me)]);
            for (join, id, zone, weight) in ops {
                let other = peer(id, zone, weight);
                if join {
                    owners.join(other);
                    model.insert(other.id, other);
                } else {
                    prop_assert_eq!(owners.leave(other.id), model.remove(&other.id).is_some());
                }
            }
            prop_assert_eq!(owners.count(), model.len());
            let group = owners.group(piece);
            let ranked = |zone: Option<Zone>| {
                let mut all: Vec<_> = model.values()
                    .filter(|peer| peer.weight > 0 && zone.is_none_or(|zone| peer.zone == zone))
                    .map(|peer| (owners.score(peer, group), peer.id)).collect();
                all.sort_by(|a, b| b.0.total_cmp(&a.0));
                all.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
            };
            let near = ranked(Some(me.zone));
            let before = model.values().filter(|peer| peer.zone == me.zone && peer.id != me.id);
            let before = before.filter(|peer| owners.score(peer, group) > owners.score(&me, group)).count();
            prop_assert_eq!(owners.my_rank(piece), before);
            for nth in 0..CHOICES {
                prop_assert_eq!(owners.owner(piece, nth), near.get(nth).copied());
            }
            prop_assert_eq!(owners.first_owner(piece), ranked(None).first().copied());
            prop_assert_eq!(Some(owners.my_rank(piece)), near.iter().position(|&id| id == me.id));
        }
    }
}
