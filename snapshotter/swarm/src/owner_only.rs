//! The baseline that measurements compare with: every piece is asked of its owner, and of nobody else.
//!
//! An owner is waited for as long as [`OWNER_PATIENCE`]; after that, or when it fails, who stands in for it is asked.

use std::time::Duration;

use crate::{Ask, Effect, PeerId, Strategy, Swarm, Time};

/// How long an owner may take: it may have all its pieces to fetch before this one.
pub(crate) const OWNER_PATIENCE: Duration = Duration::from_secs(15);
/// Places looked at for a piece to ask for, per call.
const DRAWS: usize = 32;

impl Swarm {
    pub(crate) fn is_owner_only(&self) -> bool {
        self.limits.strategy == Strategy::OwnerOnly
    }

    /// Asks owners for as much as the limits allow: readers' pieces, then others in an order by chance.
    ///
    /// What this node owns itself `drive_sources` gets from the origin. Once an owner fails it rests, and who stands in
    /// for it is asked.
    pub(crate) fn ask_owners(&mut self, slot: usize, for_readers: bool, now: Time, out: &mut Vec<Effect>) {
        if !self.is_settled(slot, for_readers, now) {
            return;
        }
        let limit = self.request_limit(for_readers, now);
        for draw in 0..DRAWS {
            if self.peer_flights >= limit {
                return;
            }
            let Some(c) = &self.contents[slot] else { return };
            let piece = if for_readers {
                let mut wanted = c.demand.iter().copied().filter(|&piece| c.open.has(piece));
                wanted.nth(draw)
            } else if c.pieces > 0 {
                c.open.common(&c.open, self.rng.below(c.pieces)).next()
            } else {
                None
            };
            let Some(mut piece) = piece else { return };
            if !for_readers {
                // The set gives words of 64 pieces in order: go on from a place by chance.
                let (from, len) = (self.rng.below(c.pieces), c.pieces);
                piece = (0..64).map(|n| (from + n) % len).find(|&near| c.open.has(near)).unwrap_or(piece);
            }
            if let Some(owner) = self.usable_owner(slot, piece, for_readers, now) {
                let ask = Ask::Owner { forwarded: false };
                self.ask_peer(slot, piece, owner, ask, for_readers, now, out);
            }
        }
    }

    /// Whom to ask for a piece; none if this node is to bring it.
    fn usable_owner(&self, slot: usize, piece: u32, for_readers: bool, now: Time) -> Option<PeerId> {
        let first = self.first_in_line(slot, piece, now)?;
        (first != self.me.id && self.has_room(first, for_readers, now)).then_some(first)
    }

    /// The owner of a piece or, while that rests, who stands in for it.
    fn first_in_line(&self, slot: usize, piece: u32, now: Time) -> Option<PeerId> {
        let c = self.contents[slot].as_ref()?;
        let mut line = (0..crate::owners::CHOICES).filter_map(|nth| c.owners.owner(piece, nth));
        line.find(|&peer| peer == self.me.id || self.peers.is_usable(peer, now))
    }

    /// Whether this node gets a piece for its zone. If all in line fail, each gets what it wants for itself.
    pub(crate) fn brings_as_owner(&self, slot: usize, piece: u32, now: Time) -> bool {
        self.first_in_line(slot, piece, now).is_none_or(|peer| peer == self.me.id)
    }
}
