//! Blocks: parts of a piece that readers get before the piece is here.
//!
//! A reader of a page waits for a piece five hundred times as long, on a link that is full of others. So a holder is asked for the
//! block that it reads, small enough to need no place in a line, and the piece comes in its turn. The piece itself is demanded
//! where that does not serve: nobody near has it, nobody answers, or the reader reads on in it.

use std::ops::Range;

use crate::{BlockEnd, BlockId, Effect, PeerId, Swarm, Time};

/// What readers wanted of a piece that is not here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// So many blocks.
    Blocks(u32),
    /// A block that nobody sent: only the piece serves.
    Piece,
}

/// A request for a block under way.
#[derive(Clone, Debug)]
pub(crate) struct BlockFlight {
    slot: usize,
    piece: u32,
    bytes: Range<u32>,
    to: PeerId,
    sent: Time,
    /// Whether it took so long that the piece was demanded.
    late: bool,
}

impl BlockFlight {
    fn is_for(&self, slot: usize, piece: u32, bytes: &Range<u32>) -> bool {
        self.slot == slot && self.piece == piece && self.bytes == *bytes
    }
}

impl Swarm {
    /// A reader waits for these bytes of a piece. Told again while it waits.
    pub(crate) fn demand_block(
        &mut self,
        slot: usize,
        piece: u32,
        bytes: Range<u32>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let c = self.content(slot);
        if piece >= c.pieces || c.have.has(piece) {
            return;
        }
        if self.blocks.values().any(|flight| flight.is_for(slot, piece, &bytes)) {
            return;
        }
        let per_piece = self.limits.blocks_per_piece;
        let wanted = self.content(slot).blocks.entry(piece).or_insert(Wanted::Blocks(0));
        let (refused, reads_on) = match wanted {
            Wanted::Piece => (true, false),
            Wanted::Blocks(count) => {
                *count = count.saturating_add(1);
                (false, *count > per_piece)
            }
        };
        let asks = !refused && self.ask_for_block(slot, piece, &bytes, now, out);
        if !asks || reads_on {
            self.demand(slot, piece, now, out);
        }
    }

    /// Asks holders for a block, those near that would send a piece soonest. False if there is none to ask.
    fn ask_for_block(
        &mut self,
        slot: usize,
        piece: u32,
        bytes: &Range<u32>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        let most = if bytes.end - bytes.start <= self.limits.short_block { 2 } else { 1 };
        let room = self.limits.blocks.saturating_sub(self.blocks.len()).min(most);
        let Some(c) = &self.contents[slot] else { return false };
        let holders =
            c.links.iter().filter(|link| link.have.has(piece) && self.peers.is_usable(link.peer, now));
        let mut holders: Vec<(bool, f64, PeerId)> =
            holders.map(|link| (!link.is_near(), self.cost(link), link.peer)).collect();
        // All readers know the same, and should not all turn to the same peer.
        holders.iter_mut().for_each(|(_, cost, _)| *cost *= 0.8 + 0.4 * self.rng.unit());
        holders.sort_by(|a, b| (a.0, a.1).partial_cmp(&(b.0, b.1)).expect("costs are numbers"));
        holders.truncate(room);
        let content = c.id;
        for &(_, _, to) in &holders {
            let block = BlockId(self.next_block);
            self.next_block += 1;
            let flight = BlockFlight { slot, piece, bytes: bytes.clone(), to, sent: now, late: false };
            self.blocks.insert(block, flight);
            out.push(Effect::RequestBlock { block, to, content, piece, bytes: bytes.clone() });
        }
        !holders.is_empty()
    }

    /// The peer, the content, the piece and the bytes of a request for a block that is under way.
    #[must_use]
    pub fn block(&self, block: BlockId) -> Option<(PeerId, towline_artifact::ContentId, u32, Range<u32>)> {
        let flight = self.blocks.get(&block)?;
        let content = self.contents[flight.slot].as_ref()?.id;
        Some((flight.to, content, flight.piece, flight.bytes.clone()))
    }

    pub(crate) fn block_ended(&mut self, block: BlockId, end: BlockEnd, now: Time, out: &mut Vec<Effect>) {
        let Some(BlockFlight { slot, piece, bytes, to, .. }) = self.blocks.remove(&block) else { return };
        match end {
            BlockEnd::Verified => {
                self.counts.blocks += 1;
                self.blocks.retain(|_, other| !other.is_for(slot, piece, &bytes));
                return;
            }
            BlockEnd::Refused => {}
            BlockEnd::Corrupt => {
                self.counts.corrupt += 1;
                self.ban(to, now, out);
            }
        }
        // The reader has the other answer to wait for, or needs the piece.
        if !self.blocks.values().any(|flight| flight.is_for(slot, piece, &bytes)) {
            self.content(slot).blocks.insert(piece, Wanted::Piece);
            self.demand(slot, piece, now, out);
        }
    }

    /// Demands the pieces of blocks that take long. Once per tick.
    pub(crate) fn give_up_blocks(&mut self, now: Time, out: &mut Vec<Effect>) {
        let limits = self.limits;
        let age = |flight: &BlockFlight| now.since(flight.sent);
        self.blocks.retain(|_, flight| age(flight) < limits.request_timeout);
        let late = self.blocks.values_mut().filter(|flight| !flight.late && age(flight) >= limits.hedge);
        let pieces: Vec<(usize, u32)> = late
            .map(|flight| {
                flight.late = true;
                (flight.slot, flight.piece)
            })
            .collect();
        for (slot, piece) in pieces {
            self.demand(slot, piece, now, out);
        }
    }

    /// Ends the requests for blocks of a piece that is here, or of a whole content.
    pub(crate) fn forget_blocks(&mut self, slot: usize, piece: Option<u32>) {
        self.blocks
            .retain(|_, flight| flight.slot != slot || piece.is_some_and(|piece| flight.piece != piece));
    }
}
