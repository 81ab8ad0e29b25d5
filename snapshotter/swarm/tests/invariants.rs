//! One node under arbitrary events, against a slow model of what it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use towline_artifact::ContentId;
use towline_swarm::{
    Ask, Bitmap, BlockEnd, BlockId, Effect, Event, Failure, Have, HavePieces, Limits, OriginFailure, Peer,
    PeerId, Refusal, RequestId, Swarm, Time, UploadId, Zone,
};

const CONTENT: ContentId = ContentId([9; 32]);
const PIECES: u32 = 40;
const PEERS: u64 = 12;

#[derive(Clone, Debug)]
enum Op {
    Pass(u32),
    Join(u64, u32),
    Leave(u64),
    Tell(u64, Vec<u32>, bool),
    Absurd(u64, u32),
    Unlink(u64),
    Fill(bool),
    Demand(u32),
    Ahead(u32, u32),
    /// A reader of a page of a piece.
    Read(u32, u32),
    AnswerBlock(usize, BlockEnd),
    /// The oldest, or a later, request is answered.
    Answer(usize, Answer),
    Upload(u64, u32, bool, bool),
    EndUpload(usize),
    Lose(u32),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Right,
    Wrong,
    Busy,
    NotHere,
    NotOwner(u64),
    Lent,
    Broken,
    Moves,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let peer = || 1..=PEERS;
    let answer = prop_oneof![
        6 => Just(Answer::Right), 1 => Just(Answer::Wrong), 1 => Just(Answer::Busy), 1 => Just(Answer::NotHere),
        1 => Just(Answer::Lent), 1 => (1..=PEERS).prop_map(Answer::NotOwner), 1 => Just(Answer::Broken), 1 => Just(Answer::Moves),
    ];
    let block_end = prop_oneof![2 => Just(BlockEnd::Verified), 1 => Just(BlockEnd::Refused), 1 => Just(BlockEnd::Corrupt)];
    let op = prop_oneof![
        4 => (1..3000u32).prop_map(Op::Pass),
        3 => (peer(), 0..2u32).prop_map(|(id, zone)| Op::Join(id, zone)),
        1 => peer().prop_map(Op::Leave),
        6 => (peer(), prop::collection::vec(0..PIECES, 0..12), any::<bool>()).prop_map(|(p, n, all)| Op::Tell(p, n, all)),
        1 => (peer(), 0..4u32).prop_map(|(p, n)| Op::Absurd(p, n)),
        1 => peer().prop_map(Op::Unlink),
        1 => any::<bool>().prop_map(Op::Fill),
        2 => (0..PIECES + 2).prop_map(Op::Demand),
        1 => (0..PIECES, 0..9u32).prop_map(|(at, len)| Op::Ahead(at, len)),
        4 => (0..PIECES + 2, 0..4u32).prop_map(|(piece, page)| Op::Read(piece, page)),
        4 => (0..6usize, block_end).prop_map(|(n, end)| Op::AnswerBlock(n, end)),
        12 => (0..8usize, answer).prop_map(|(n, answer)| Op::Answer(n, answer)),
        3 => (peer(), 0..PIECES + 2, any::<bool>(), any::<bool>()).prop_map(|(p, n, o, u)| Op::Upload(p, n, o, u)),
        2 => (0..4usize).prop_map(Op::EndUpload),
        1 => (0..PIECES).prop_map(Op::Lose),
    ];
    prop::collection::vec(op, 0..250)
}

/// What the node may believe and must have done, kept the slow way.
struct Model {
    swarm: Swarm,
    limits: Limits,
    now: Time,
    have: BTreeSet<u32>,
    told: BTreeMap<PeerId, BTreeSet<u32>>,
    requests: BTreeMap<RequestId, (Option<PeerId>, BTreeSet<u32>)>,
    members: BTreeSet<PeerId>,
    banned: BTreeMap<PeerId, Time>,
    wrong: BTreeSet<PeerId>,
    wanted: BTreeSet<u32>,
    blocks: BTreeMap<BlockId, (PeerId, u32, u32)>,
    /// Pages that a reader waits for.
    reads: BTreeSet<(u32, u32)>,
    uploads_open: BTreeSet<UploadId>,
    serving: Vec<UploadId>,
    next_upload: u64,
    complete: bool,
}

fn page_of(page: u32) -> std::ops::Range<u32> {
    page * 4096..(page + 1) * 4096
}

fn name(n: u64) -> PeerId {
    PeerId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Model {
    fn new(limits: Limits) -> Self {
        let me = Peer { id: name(0), zone: Zone(0), weight: 4 };
        let mut model = Self {
            swarm: Swarm::new(me, limits, 1),
            limits,
            now: Time::ZERO,
            have: BTreeSet::new(),
            told: BTreeMap::new(),
            requests: BTreeMap::new(),
            members: BTreeSet::new(),
            banned: BTreeMap::new(),
            wrong: BTreeSet::new(),
            wanted: BTreeSet::new(),
            blocks: BTreeMap::new(),
            reads: BTreeSet::new(),
            uploads_open: BTreeSet::new(),
            serving: Vec::new(),
            next_upload: 0,
            complete: false,
        };
        model.apply(Event::Add { content: CONTENT, have: Bitmap::new(PIECES) });
        model
    }

    fn apply(&mut self, event: Event) {
        let mut out = Vec::new();
        self.swarm.apply(event, self.now, &mut out);
        for effect in out {
            self.check(effect);
        }
        let to_peers = self.requests.values().filter(|(to, _)| to.is_some()).count();
        let to_origin = self.requests.len() - to_peers;
        assert_eq!(self.swarm.under_way(), (to_peers, to_origin), "the node's count of its requests");
        let most = self.limits.requests.1 + self.limits.requests_for_demand;
        assert!(to_peers <= most, "{to_peers} requests to peers, {most} allowed");
        assert!(to_origin <= self.limits.origin_pipeline);
        assert!(self.serving.len() <= self.limits.uploads_max);
        assert!(self.swarm.links(CONTENT) <= self.limits.links);
    }

    fn under_way(&self, piece: u32) -> usize {
        self.requests.values().filter(|(_, pieces)| pieces.contains(&piece)).count()
    }

    fn check(&mut self, effect: Effect) {
        match effect {
            Effect::Request { request, to, piece, ask, deadline, .. } => {
                assert!(
                    piece < PIECES && !self.have.contains(&piece),
                    "asks for piece {piece}, which is here"
                );
                assert!(to != name(0) && deadline > self.now);
                assert!(self.banned.get(&to).is_none_or(|until| *until <= self.now), "asks the banned {to}");
                let twice =
                    self.requests.values().any(|(peer, pieces)| *peer == Some(to) && pieces.contains(&piece));
                assert!(!twice, "two requests for piece {piece} to {to}");
                assert!(self.under_way(piece) < self.limits.copies, "too many copies of {piece}");
                match ask {
                    Ask::Holder => {
                        let told = self.told.get(&to).is_some_and(|told| told.contains(&piece));
                        assert!(told, "{to} never said it has piece {piece}");
                    }
                    Ask::Owner { .. } => assert!(self.members.contains(&to), "{to} takes no part"),
                }
                assert!(self.requests.insert(request, (Some(to), BTreeSet::from([piece]))).is_none());
            }
            Effect::AskOrigin { request, pieces, .. } => {
                assert!(!pieces.is_empty() && pieces.end <= PIECES);
                assert!(pieces.len() <= self.limits.origin_run as usize);
                for piece in pieces.clone() {
                    assert!(!self.have.contains(&piece) && self.under_way(piece) == 0);
                }
                assert!(self.requests.insert(request, (None, pieces.collect())).is_none());
            }
            Effect::RequestBlock { block, to, piece, bytes, .. } => {
                let page = bytes.start / 4096;
                assert!(
                    self.reads.contains(&(piece, page)) && bytes == page_of(page),
                    "nobody reads {bytes:?} of {piece}"
                );
                assert!(self.banned.get(&to).is_none_or(|until| *until <= self.now), "asks the banned {to}");
                assert!(
                    self.told.get(&to).is_some_and(|told| told.contains(&piece)),
                    "{to} never said it has {piece}"
                );
                let same = self.blocks.iter().filter(|(id, flight)| {
                    (flight.1, flight.2) == (piece, page) && self.swarm.block(**id).is_some()
                });
                assert!(same.count() < 2, "more than two for one block");
                assert!(self.blocks.insert(block, (to, piece, page)).is_none());
            }
            Effect::Hurry { request } => assert!(self.requests.contains_key(&request), "hurries what is not"),
            Effect::Cancel { request } => {
                assert!(self.requests.remove(&request).is_some(), "cancels what is not")
            }
            Effect::SendHave { to, have, .. } => {
                assert!(!to.is_empty());
                for (list, at_origin) in [(&have.fetching, true), (&have.awaiting, false)] {
                    assert!(list.len() <= self.limits.fetching_list);
                    let under_way = |piece: &u32| {
                        let mut all = self.requests.values();
                        all.any(|(peer, pieces)| peer.is_none() == at_origin && pieces.contains(piece))
                    };
                    assert!(list.iter().all(under_way), "tells of what is not under way");
                }
                let pieces: Vec<u32> = match &have.pieces {
                    HavePieces::All(all) => all.iter().collect(),
                    HavePieces::More(more) => more.to_vec(),
                };
                assert!(pieces.iter().all(|piece| self.have.contains(piece)), "offers what is not here");
            }
            Effect::Unlink { peer, .. } => {
                self.told.remove(&peer);
            }
            Effect::Serve { upload, piece, .. } => {
                assert!(self.have.contains(&piece), "serves what is not here");
                assert!(self.uploads_open.contains(&upload) && !self.serving.contains(&upload));
                self.serving.push(upload);
            }
            Effect::Refuse { upload, .. } => assert!(self.uploads_open.remove(&upload), "refuses twice"),
            Effect::Ban { peer, until } => {
                assert!(self.wrong.contains(&peer), "bans {peer}, which never sent wrong bytes");
                self.banned.insert(peer, until);
                self.told.remove(&peer);
            }
            Effect::Complete { .. } => {
                assert_eq!(self.have.len() as u32, PIECES);
                self.complete = true;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.swarm.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.apply(Event::Tick);
            assert!(self.swarm.next_deadline().is_none_or(|next| next > at), "a tick must move the deadline");
        }
        self.now = end;
    }

    fn tell(&mut self, peer: u64, pieces: &[u32], all: bool) {
        let from = name(peer);
        let known = pieces.len() as u32;
        let pieces = if all {
            let mut map = Bitmap::new(PIECES);
            pieces.iter().for_each(|&piece| {
                map.set(piece);
            });
            // What it says counts for as long as it is linked; it can only lose by a new whole list.
            self.told.insert(from, pieces.iter().copied().collect());
            HavePieces::All(Arc::new(map))
        } else {
            self.told.entry(from).or_default().extend(pieces);
            HavePieces::More(pieces.into())
        };
        let have = Have { queue: 3, known, ..Have::new(pieces) };
        self.apply(Event::Have { content: CONTENT, from, have });
    }

    fn right(&mut self, request: RequestId) {
        let Some((_, pieces)) = self.requests.get(&request).cloned() else { return };
        // Neighbours of a run are verified side by side: each second one is told of before the one it came after.
        let mut pieces: Vec<u32> = pieces.into_iter().collect();
        pieces.chunks_exact_mut(2).for_each(|two| two.swap(0, 1));
        for piece in pieces {
            let Some(entry) = self.requests.get_mut(&request) else { return };
            // The bytes are here before the node is told.
            self.have.insert(piece);
            entry.1.remove(&piece);
            if entry.1.is_empty() {
                self.requests.remove(&request);
            }
            self.apply(Event::Verified { request, content: CONTENT, piece });
        }
    }

    fn answer(&mut self, nth: usize, answer: Answer) {
        let Some((&request, &(to, _))) = self.requests.iter().nth(nth % self.requests.len().max(1)) else {
            return;
        };
        match (answer, to) {
            (Answer::Right, _) => self.right(request),
            (Answer::Moves, _) => self.apply(Event::Progress { request }),
            (Answer::Wrong, _) => {
                self.requests.remove(&request);
                self.wrong.extend(to);
                self.apply(Event::Corrupt { request });
            }
            (_, None) => {
                self.requests.remove(&request);
                let why = match answer {
                    Answer::Busy => OriginFailure::Throttled { retry_after: Some(Duration::from_secs(2)) },
                    Answer::NotHere => OriginFailure::Gone,
                    Answer::NotOwner(_) | Answer::Lent => OriginFailure::Denied,
                    _ => OriginFailure::Broken,
                };
                self.apply(Event::OriginFailed { request, why });
            }
            (_, Some(_)) => {
                self.requests.remove(&request);
                let why = match answer {
                    Answer::Busy => Failure::Refused(Refusal::Busy),
                    Answer::NotHere => Failure::Refused(Refusal::NotHere),
                    Answer::Lent => Failure::Refused(Refusal::Lent),
                    Answer::NotOwner(other) => {
                        Failure::Refused(Refusal::NotOwner { better: Some(name(other)) })
                    }
                    _ => Failure::Broken,
                };
                self.apply(Event::Failed { request, why });
            }
        }
    }

    fn answer_block(&mut self, nth: usize, end: BlockEnd) {
        let Some((&block, &(to, piece, page))) = self.blocks.iter().nth(nth % self.blocks.len().max(1))
        else {
            return;
        };
        self.blocks.remove(&block);
        // The bytes of one that was given up are not looked at.
        if self.swarm.block(block).is_none() {
            return;
        }
        match end {
            BlockEnd::Verified => assert!(self.reads.remove(&(piece, page)), "an answer to nobody"),
            BlockEnd::Corrupt => assert!(self.wrong.insert(to) || self.wrong.contains(&to)),
            BlockEnd::Refused => {}
        }
        self.apply(Event::BlockEnded { block, end });
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Pass(millis) => self.pass(Duration::from_millis(millis.into())),
            Op::Join(id, zone) => {
                self.members.insert(name(id));
                let peers = vec![Peer { id: name(id), zone: Zone(zone), weight: 4 }];
                self.apply(Event::Joined { content: CONTENT, peers });
            }
            Op::Leave(id) => {
                self.members.remove(&name(id));
                self.apply(Event::Left { content: CONTENT, peer: name(id) });
            }
            Op::Tell(peer, pieces, all) => self.tell(peer, &pieces, all),
            Op::Absurd(peer, kind) => {
                let before = self.swarm.counts().absurd;
                let pieces = match kind {
                    0 => HavePieces::More(vec![PIECES; 1].into()),
                    1 => HavePieces::More(vec![0; self.limits.have_list + 1].into()),
                    2 => HavePieces::All(Arc::new(Bitmap::full(PIECES + 1))),
                    _ => HavePieces::More(vec![u32::MAX].into()),
                };
                let (fetching, origin_pause): (Arc<[u32]>, _) = (vec![7; 3].into(), Duration::MAX);
                let have = Have {
                    pieces,
                    awaiting: Arc::clone(&fetching),
                    fetching,
                    queue: u16::MAX,
                    given: u16::MAX,
                    known: u32::MAX,
                    origin_pause,
                    denied: true,
                };
                self.apply(Event::Have { content: CONTENT, from: name(peer), have });
                assert!(self.swarm.counts().absurd > before || self.banned.contains_key(&name(peer)));
            }
            Op::Unlink(peer) => {
                self.told.remove(&name(peer));
                self.apply(Event::Unlinked { content: CONTENT, peer: name(peer) });
            }
            Op::Fill(on) => self.apply(Event::Fill { content: CONTENT, on }),
            Op::Demand(piece) => {
                self.wanted.insert(piece);
                self.apply(Event::Demand { content: CONTENT, piece });
            }
            Op::Read(piece, page) => {
                self.reads.insert((piece, page));
                self.apply(Event::DemandBlock { content: CONTENT, piece, bytes: page_of(page) });
            }
            Op::AnswerBlock(nth, end) => self.answer_block(nth, end),
            Op::Ahead(at, len) => self.apply(Event::Ahead { content: CONTENT, pieces: at..at + len }),
            Op::Answer(nth, answer) => self.answer(nth, answer),
            Op::Upload(peer, piece, owner, urgent) => {
                let upload = UploadId(self.next_upload);
                self.next_upload += 1;
                self.uploads_open.insert(upload);
                let ask = if owner { Ask::Owner { forwarded: urgent } } else { Ask::Holder };
                let from = name(peer);
                self.apply(Event::UploadRequested { upload, from, content: CONTENT, piece, ask, urgent });
            }
            Op::EndUpload(nth) => {
                if let Some(&upload) = self.serving.get(nth) {
                    self.serving.remove(nth);
                    self.uploads_open.remove(&upload);
                    self.apply(Event::UploadEnded { upload });
                }
            }
            Op::Lose(piece) => {
                if self.have.remove(&piece) {
                    self.complete = false;
                    self.apply(Event::Lost { content: CONTENT, piece });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, the node keeps to its limits and its word; and once the world is kind again, all that is
    /// wanted comes, and everybody who asked is answered.
    #[test]
    fn keeps_its_limits_and_ends_complete(ops in ops()) {
        let limits = Limits { links: 8, links_sought: 5, ..Limits::default() };
        let mut model = Model::new(limits);
        for op in ops {
            model.act(op);
        }
        model.act(Op::Fill(true));
        for _ in 0..4000 {
            model.pass(Duration::from_millis(500));
            while let Some(&request) = model.requests.keys().next() {
                model.right(request);
            }
            while !model.serving.is_empty() {
                model.act(Op::EndUpload(0));
            }
            if model.have.len() as u32 == PIECES {
                break;
            }
        }
        prop_assert_eq!(model.have.len() as u32, PIECES);
        prop_assert!(model.complete);
        model.pass(Duration::from_secs(30));
        while !model.serving.is_empty() {
            model.act(Op::EndUpload(0));
        }
        prop_assert!(model.uploads_open.is_empty(), "{:?} were never answered", model.uploads_open);
        prop_assert_eq!(model.swarm.under_way(), (0, 0));
    }
}
