//! Answers to peers that ask for pieces.

use crate::content::{Content, Parked};
use crate::owners::CHOICES;
use crate::uploads::{Class, Upload};
use crate::{Ask, Effect, PeerId, Refusal, Swarm, Time, UploadId};

impl Swarm {
    /// `request` is its name, who asks, the slot of the content if it is known, and the piece.
    pub(crate) fn upload_requested(
        &mut self,
        request: (UploadId, PeerId, Option<usize>, u32),
        ask: Ask,
        urgent: bool,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let (upload, from, slot, piece) = request;
        if self.uploads.is_known(upload) {
            return;
        }
        let known = slot.filter(|_| !self.peers.is_banned(from, now));
        let known = known.filter(|&slot| piece < self.content(slot).pieces);
        let Some(slot) = known else {
            out.push(Effect::Refuse { upload, to: from, why: Refusal::NotHere });
            return;
        };
        if self.content(slot).have.has(piece) {
            let class = match ask {
                _ if urgent => Class::Urgent,
                Ask::Owner { .. } => Class::Owner,
                Ask::Holder => Class::Fill,
            };
            self.line_up((upload, from, slot, piece), class, now, out);
            self.serve(now, out);
            return;
        }
        let why = match ask {
            Ask::Holder => Refusal::NotHere,
            Ask::Owner { .. } if urgent && self.lend(slot, piece, from, now) => Refusal::Lent,
            Ask::Owner { forwarded } => match self.park(slot, piece, Parked { upload, from, urgent }) {
                Ok(()) => {
                    if urgent {
                        self.hurry(slot, piece, false, now, out);
                    }
                    self.advance(slot, now, out);
                    return;
                }
                Err(Refusal::NotOwner { .. }) if forwarded => Refusal::NotOwner { better: None },
                Err(why) => why,
            },
        };
        out.push(Effect::Refuse { upload, to: from, why });
    }

    /// Whether a reader's node is to bring a piece that is this node's from the origin: then it has it after one transfer and not
    /// two. Only the first that asks, and only for what nobody else brings or waits for; so it comes from there once.
    fn lend(&mut self, slot: usize, piece: u32, to: PeerId, now: Time) -> bool {
        let time = self.takeover(slot, true);
        let settled = self.is_settled(slot, true, now) && !self.origin.is_paused(now);
        let c = self.content(slot);
        let link = c.link_of.get(&to).map(|&at| &c.links[at]);
        let near = link.is_some_and(|link| !link.far && !link.doubted);
        let mine = c.owners.is_first(piece);
        let idle = !c.under_way.contains_key(&piece)
            && !c.pulls.contains(&piece)
            && !c.lent.contains_key(&piece)
            && !c.is_fetched_by_link(piece)
            && c.copies[piece as usize] == 0;
        let lends = settled && near && mine && idle;
        if lends {
            c.lent.insert(piece, now + time);
        }
        lends
    }

    /// Lets an ask to this node as an owner wait for the piece, and wants it.
    fn park(&mut self, slot: usize, piece: u32, parked: Parked) -> Result<(), Refusal> {
        let me = self.me.id;
        let most = self.limits.parked_asks;
        let c = self.content(slot);
        // The first owner of all zones answers other zones, too; within a zone its first and who stands in for it.
        let mine = (0..CHOICES).any(|nth| c.owners.owner(piece, nth) == Some(me));
        if !mine {
            let far = c.owners.zone_of(parked.from) != c.owners.zone_of(me);
            let better = if far { c.owners.first_owner(piece) } else { c.owners.owner(piece, 0) };
            return Err(Refusal::NotOwner {
                better: better.filter(|&peer| peer != me && peer != parked.from),
            });
        }
        let waiting: usize = c.parked.values().map(Vec::len).sum();
        let from_peer = c.parked.values().flatten().filter(|other| other.from == parked.from).count();
        if waiting >= most || from_peer >= most / 4 {
            return Err(Refusal::Busy);
        }
        c.parked.entry(piece).or_default().push(parked);
        if !c.pulls.contains(&piece) {
            c.pulls.push_back(piece);
        }
        c.want(piece);
        Ok(())
    }

    /// A piece came: those who asked for it line up.
    pub(crate) fn serve_parked(&mut self, slot: usize, piece: u32, now: Time, out: &mut Vec<Effect>) {
        let Some(parked) = self.content(slot).parked.remove(&piece) else { return };
        for Parked { upload, from, urgent } in parked {
            let class = if urgent { Class::Urgent } else { Class::Owner };
            self.line_up((upload, from, slot, piece), class, now, out);
        }
        self.serve(now, out);
    }

    pub(crate) fn unpark(&mut self, upload: UploadId) {
        let mut next = 0;
        while let Some(slot) = self.next_active(&mut next) {
            let c = self.content(slot);
            c.parked.retain(|_, all| {
                all.retain(|parked| parked.upload != upload);
                !all.is_empty()
            });
        }
    }

    fn line_up(
        &mut self,
        (id, to, slot, piece): (UploadId, PeerId, usize, u32),
        class: Class,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let joined = self.content(slot).joined(to, now);
        let upload = Upload { id, to, slot, piece, class, since: now, joined };
        if !self.uploads.push(upload, &self.limits) {
            out.push(Effect::Refuse { upload: id, to, why: Refusal::Busy });
        }
    }

    /// Starts as many uploads as may start.
    pub(crate) fn serve(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Self { uploads, contents, limits, .. } = self;
        let rarity = |contents: &[Option<Content>], slot: usize, piece: u32| {
            contents[slot].as_ref().map_or(u16::MAX, |c| c.copies[piece as usize])
        };
        while let Some(next) = uploads.next(now, limits, |slot, piece| rarity(contents, slot, piece)) {
            let Upload { id: upload, to, slot, piece, .. } = next;
            match contents[slot].as_mut() {
                Some(c) if c.have.has(piece) => {
                    c.given += 1;
                    out.push(Effect::Serve { upload, to, content: c.id, piece });
                }
                _ => {
                    uploads.ended(upload, now);
                    out.push(Effect::Refuse { upload, to, why: Refusal::NotHere });
                }
            }
        }
    }
}
