//! Single decisions, told as stories of one node.

use std::sync::Arc;
use std::time::Duration;

use towline_artifact::ContentId;
use towline_swarm::{
    Ask, Bitmap, BlockEnd, BlockId, Effect, Event, Failure, Have, HavePieces, Limits, OriginFailure, Peer,
    PeerId, Refusal, RequestId, Swarm, Time, UploadId, Zone,
};

const CONTENT: ContentId = ContentId([3; 32]);
const ME: PeerId = PeerId(1);

struct Node {
    swarm: Swarm,
    now: Time,
}

impl Node {
    /// A node of a content of 32 pieces, in a zone with `others`, that has settled.
    fn new(others: &[u64]) -> Self {
        let me = Peer { id: ME, zone: Zone(0), weight: 1 };
        let mut node = Self { swarm: Swarm::new(me, Limits::default(), 5), now: Time::ZERO };
        node.apply(Event::Add { content: CONTENT, have: Bitmap::new(32) });
        let peers = others.iter().map(|&id| Peer { id: PeerId(id), zone: Zone(0), weight: 1 }).collect();
        node.apply(Event::Joined { content: CONTENT, peers });
        for &id in others {
            node.tell(id, &[]);
        }
        node.pass(600);
        node
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.swarm.apply(event, self.now, &mut out);
        out
    }

    fn tell(&mut self, id: u64, pieces: &[u32]) -> Vec<Effect> {
        let mut map = Bitmap::new(32);
        pieces.iter().for_each(|&piece| {
            map.set(piece);
        });
        self.say(id, HavePieces::All(Arc::new(map)), Duration::ZERO)
    }

    fn say(&mut self, id: u64, pieces: HavePieces, origin_pause: Duration) -> Vec<Effect> {
        let have = Have { origin_pause, ..Have::new(pieces) };
        self.apply(Event::Have { content: CONTENT, from: PeerId(id), have })
    }

    fn demand(&mut self, piece: u32) -> Vec<Effect> {
        self.apply(Event::Demand { content: CONTENT, piece })
    }

    /// A peer asks this node as the owner of a piece.
    fn asked_as_owner(&mut self, piece: u32, from: u64, urgent: bool) -> Vec<Effect> {
        let (upload, ask) = (UploadId(u64::from(piece) << 8 | from), Ask::Owner { forwarded: false });
        self.apply(Event::UploadRequested {
            upload,
            from: PeerId(from),
            content: CONTENT,
            piece,
            ask,
            urgent,
        })
    }

    /// Lets time go by in steps of 100 ms.
    fn pass(&mut self, millis: u64) -> Vec<Effect> {
        let mut all = Vec::new();
        for _ in 0..millis / 100 {
            self.now = self.now + Duration::from_millis(100);
            all.extend(self.apply(Event::Tick));
        }
        all
    }

    /// A piece that another node owns, and that owner.
    fn owned_by_another(&mut self) -> (u32, PeerId, RequestId) {
        for piece in 0..32 {
            if let Some((id, to, Ask::Owner { forwarded: false })) =
                requests(&self.demand(piece)).first().copied()
            {
                return (piece, to, id);
            }
        }
        panic!("three nodes and one of them owns everything");
    }
}

fn requests(effects: &[Effect]) -> Vec<(RequestId, PeerId, Ask)> {
    let request = |effect: &Effect| match *effect {
        Effect::Request { request, to, ask, .. } => Some((request, to, ask)),
        _ => None,
    };
    effects.iter().filter_map(request).collect()
}

fn is_lent(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Refuse { why: Refusal::Lent, .. }))
}

fn origin(effects: &[Effect]) -> Option<(RequestId, u32)> {
    effects.iter().find_map(|effect| match effect {
        Effect::AskOrigin { request, pieces, .. } => Some((*request, pieces.start)),
        _ => None,
    })
}

#[test]
fn alone_a_reader_goes_to_the_origin_at_once() {
    let me = Peer { id: ME, zone: Zone(0), weight: 1 };
    let mut node = Node { swarm: Swarm::new(me, Limits::default(), 5), now: Time::ZERO };
    node.apply(Event::Add { content: CONTENT, have: Bitmap::new(32) });
    assert_eq!(origin(&node.demand(9)).map(|(_, piece)| piece), Some(9));
}

#[test]
fn who_is_alone_asks_the_origin_for_a_run_and_who_is_not_for_its_group() {
    let run = |others: &[u64]| {
        let mut node = Node::new(others);
        let effects = node.apply(Event::Fill { content: CONTENT, on: true });
        asked_of(&effects, CONTENT).into_iter().map(|(_, pieces)| pieces).collect::<Vec<_>>()
    };
    assert_eq!(run(&[]), [0..4, 4..8]);
    // Groups of so short a content are of one piece.
    let some = run(&[2, 3]);
    assert!(!some.is_empty() && some.iter().all(|pieces| pieces.len() == 1), "{some:?}");
}

#[test]
fn nothing_is_fetched_unasked() {
    let mut node = Node::new(&[2, 3]);
    let effects = node.tell(2, &[1, 2, 3]);
    assert!(requests(&effects).is_empty() && origin(&node.pass(60_000)).is_none());
}

#[test]
fn a_reader_is_served_by_a_holder_first() {
    let mut node = Node::new(&[2, 3]);
    node.tell(3, &[7]);
    let asked = requests(&node.demand(7));
    assert!(matches!(asked[..], [(_, PeerId(3), Ask::Holder)]), "{asked:?}");
}

#[test]
fn who_gave_much_is_asked_after_who_is_a_little_busy_but_not_after_any_line() {
    for (queue, asked) in [(3, 3), (60, 2)] {
        let mut node = Node::new(&[2, 3]);
        for (id, queue, given) in [(2, 0, 24), (3, queue, 0)] {
            let mut has = Bitmap::new(32);
            has.set(9);
            let have = Have { queue, given, known: 1, ..Have::new(HavePieces::All(Arc::new(has))) };
            node.apply(Event::Have { content: CONTENT, from: PeerId(id), have });
        }
        let out = node.demand(9);
        assert_eq!(requests(&out).first().map(|request| request.1), Some(PeerId(asked)), "line of {queue}");
    }
}

#[test]
fn a_node_says_how_often_it_gave_all_away_once_it_has_all() {
    let given = |have: Bitmap| {
        let me = Peer { id: ME, zone: Zone(0), weight: 1 };
        let mut node = Node { swarm: Swarm::new(me, Limits::default(), 5), now: Time::ZERO };
        node.apply(Event::Add { content: CONTENT, have });
        let peer = Peer { id: PeerId(2), zone: Zone(0), weight: 1 };
        node.apply(Event::Joined { content: CONTENT, peers: vec![peer] });
        node.tell(2, &[]);
        let mut said = Vec::new();
        for upload in 0..64 {
            let (upload, piece) = (UploadId(upload), upload as u32 % 31);
            let (from, ask, urgent) = (PeerId(2), Ask::Holder, false);
            let asked = Event::UploadRequested { upload, from, content: CONTENT, piece, ask, urgent };
            assert!(node.apply(asked).iter().any(|effect| matches!(effect, Effect::Serve { .. })));
            node.apply(Event::UploadEnded { upload });
            said.extend(node.pass(100).into_iter().filter_map(|effect| match effect {
                Effect::SendHave { have, .. } => Some(have.given),
                _ => None,
            }));
        }
        said.last().copied()
    };
    let mut most = Bitmap::full(32);
    most.clear(31);
    assert!(given(Bitmap::full(32)).is_some_and(|given| given > 10), "twice the content");
    assert!(given(most).is_none_or(|given| given == 0), "while it fetches");
}

#[test]
fn a_wrongly_asked_node_forwards_once() {
    let mut node = Node::new(&[2, 3]);
    let (_, owner, request) = node.owned_by_another();
    let other = if owner == PeerId(2) { PeerId(3) } else { PeerId(2) };
    let why = Failure::Refused(Refusal::NotOwner { better: Some(other) });
    let asked = requests(&node.apply(Event::Failed { request, why }));
    let [(request, to, Ask::Owner { forwarded: true })] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(to, other);
    let why = Failure::Refused(Refusal::NotOwner { better: Some(owner) });
    let asked = requests(&node.apply(Event::Failed { request, why }));
    assert!(asked.iter().all(|(_, _, ask)| *ask != Ask::Owner { forwarded: true }), "{asked:?}");
}

#[test]
fn a_silent_owner_is_hedged_and_then_passed_over() {
    let mut node = Node::new(&[2, 3]);
    let (piece, owner, _) = node.owned_by_another();
    let soon = node.pass(700);
    let second = requests(&soon);
    assert!(second.iter().all(|&(_, to, _)| to != owner), "not the same again: {second:?}");
    assert!(!second.is_empty() || origin(&soon).is_some(), "somebody else within 0.7 s");
    // Everybody is silent: the node goes itself, under its lease.
    let later = node.pass(20_000);
    assert!(origin(&soon).or_else(|| origin(&later)).is_some(), "piece {piece} is fetched in the end");
}

#[test]
fn an_unknown_holder_gone_makes_its_piece_missing_again() {
    let mut node = Node::new(&[]);
    node.apply(Event::Fill { content: CONTENT, on: true });
    node.tell(2, &(0..32).collect::<Vec<_>>());
    node.apply(Event::Joined {
        content: CONTENT,
        peers: vec![Peer { id: PeerId(2), zone: Zone(0), weight: 1 }],
    });
    node.apply(Event::Left { content: CONTENT, peer: PeerId(2) });
    assert!(origin(&node.pass(5_000)).is_some() || node.swarm.under_way().1 > 0);
}

#[test]
fn the_origin_is_left_alone_when_it_asks_for_it() {
    let mut node = Node::new(&[]);
    let (request, piece) = origin(&node.demand(4)).unwrap();
    let retry_after = Some(Duration::from_secs(30));
    let effects = node.apply(Event::OriginFailed { request, why: OriginFailure::Throttled { retry_after } });
    assert!(origin(&effects).is_none() && origin(&node.pass(29_000)).is_none());
    assert_eq!(origin(&node.pass(20_000)).map(|(_, piece)| piece), Some(piece), "no want is lost");
}

#[test]
fn a_peer_s_word_delays_the_origin_by_seconds_and_not_for_good() {
    let mut node = Node::new(&[2]);
    node.say(2, HavePieces::More(Arc::from([])), Duration::MAX);
    node.apply(Event::Fill { content: CONTENT, on: true });
    assert!(origin(&node.pass(4_000)).is_none());
    for _ in 0..4 {
        node.say(2, HavePieces::More(Arc::from([])), Duration::MAX);
    }
    assert!(origin(&node.pass(8_000)).is_some(), "the same peer is not believed again so soon");
}

#[test]
fn strangers_cannot_make_a_node_go_to_the_origin_for_what_it_does_not_own() {
    let mut node = Node::new(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let mut refused = 0;
    for piece in 0..32 {
        let ask = Ask::Owner { forwarded: true };
        let upload = UploadId(piece.into());
        let event =
            Event::UploadRequested { upload, from: PeerId(2), content: CONTENT, piece, ask, urgent: true };
        for effect in node.apply(event) {
            match effect {
                Effect::Refuse { why: Refusal::NotOwner { better: None }, .. } => refused += 1,
                Effect::AskOrigin { .. } | Effect::Request { .. } | Effect::Cancel { .. } => {}
                Effect::Refuse { why: Refusal::Lent, .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // One of twelve nodes is among the first three for about a quarter of the pieces.
    assert!((16..=31).contains(&refused), "{refused} of 32 refused");
    assert!(node.swarm.under_way().1 <= 2 * Limits::default().origin_requests);
}

#[test]
fn who_says_to_fetch_and_does_not_is_waited_for_once() {
    let mut node = Node::new(&[2]);
    // The other owns nothing, so all is this node's to fetch.
    let peers = vec![Peer { id: PeerId(2), zone: Zone(0), weight: 0 }];
    node.apply(Event::Joined { content: CONTENT, peers });
    let mut first = None;
    for step in 0..600 {
        let mut effects = Vec::new();
        if step == 1 {
            effects = node.apply(Event::Fill { content: CONTENT, on: true });
        }
        let from = node.swarm.have(CONTENT).unwrap().first_absent(0);
        let fetching: Vec<u32> = (from..32).take(16).collect();
        let pieces = HavePieces::More(Arc::from([]));
        let have = Have { fetching: fetching.into(), ..Have::new(pieces) };
        effects.extend(node.apply(Event::Have { content: CONTENT, from: PeerId(2), have }));
        effects.extend(node.pass(100));
        while let Some(effect) = effects.pop() {
            let Effect::AskOrigin { request, pieces, .. } = effect else { continue };
            first.get_or_insert(step);
            for piece in pieces {
                effects.extend(node.apply(Event::Verified { request, content: CONTENT, piece }));
            }
        }
        if node.swarm.have(CONTENT).unwrap().is_full() {
            let first = first.expect("all came from the origin");
            assert!(first > 10, "it is believed at first");
            assert!(step < 2 * first, "waited {first} steps, and then {} more", step - first);
            return;
        }
    }
    panic!("not complete in a minute");
}

/// A node of zone 0 that is the first owner of all pieces but those that `other` of zone 1 owns, with a link to both it and
/// `neighbour` of its own zone, which owns nothing.
fn node_between(other: u64, neighbour: u64) -> Node {
    let mut node = Node::new(&[]);
    let peer = |id, zone, weight| Peer { id: PeerId(id), zone: Zone(zone), weight };
    let peers = vec![peer(other, 1, 1), peer(neighbour, 0, 0)];
    node.apply(Event::Joined { content: CONTENT, peers });
    node.tell(other, &[]);
    node.tell(neighbour, &[]);
    node
}

#[test]
fn the_first_owner_waits_for_who_is_at_the_origin_and_not_for_who_may_wait_for_it() {
    let pieces: Arc<[u32]> = (0..16).collect();
    // Who fetches and in which list, whether it is waited for.
    for (from, is_awaiting, waits) in [(3, false, true), (3, true, false), (2, false, true), (2, true, false)]
    {
        let mut node = node_between(2, 3);
        let none = || Have::new(HavePieces::More(Arc::from([])));
        let have = match is_awaiting {
            true => Have { awaiting: pieces.clone(), ..none() },
            false => Have { fetching: pieces.clone(), ..none() },
        };
        node.apply(Event::Have { content: CONTENT, from: PeerId(from), have });
        // The other zone asks for what this node owns; a while passes that is much shorter than what a silent owner has.
        let mut effects = Vec::new();
        for piece in 0..16 {
            effects.extend(node.asked_as_owner(piece, 2, false));
        }
        effects.extend(node.pass(200));
        assert_eq!(
            asked_of(&effects, CONTENT).is_empty(),
            waits,
            "{from}, awaiting: {is_awaiting}: {effects:?}"
        );
    }
}

#[test]
fn what_another_zone_was_asked_for_is_told_apart_from_what_comes_from_the_origin() {
    let mut node = node_between(2, 3);
    let mut effects = node.apply(Event::Fill { content: CONTENT, on: true });
    effects.extend(node.pass(200));
    let asked: Vec<u32> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Request { to: PeerId(2), piece, .. } => Some(*piece),
            _ => None,
        })
        .collect();
    let fetched: Vec<u32> = asked_of(&effects, CONTENT).into_iter().flat_map(|(_, pieces)| pieces).collect();
    let told = effects.iter().rev().find_map(|effect| match effect {
        Effect::SendHave { have, .. } => Some(have),
        _ => None,
    });
    let told = told.expect("links are told");
    let sorted = |pieces: &[u32]| {
        let mut pieces = pieces.to_vec();
        pieces.sort_unstable();
        pieces
    };
    assert!(!asked.is_empty() && !fetched.is_empty(), "{effects:?}");
    assert_eq!((sorted(&told.fetching), sorted(&told.awaiting)), (sorted(&fetched), sorted(&asked)));
}

#[test]
fn a_reader_asks_the_owner_also_for_what_that_says_to_fetch() {
    let mut node = Node::new(&[2, 3]);
    let have = Have { fetching: (0..16).collect(), ..Have::new(HavePieces::More(Arc::from([]))) };
    node.apply(Event::Have { content: CONTENT, from: PeerId(2), have });
    let mut asked = 0;
    for piece in 0..16 {
        for effect in node.demand(piece) {
            let Effect::Request { ask, urgent, .. } = effect else { panic!("{effect:?}") };
            assert_eq!((ask, urgent), (Ask::Owner { forwarded: false }, true));
            asked += 1;
        }
    }
    assert!((5..16).contains(&asked), "two of three pieces are others': {asked}");
}

#[test]
fn a_flood_of_messages_is_cut_off() {
    let mut node = Node::new(&[2, 3]);
    for _ in 0..10_000 {
        node.say(2, HavePieces::More(Arc::from([])), Duration::ZERO);
    }
    assert!(node.swarm.counts().absurd > 9_000);
    node.say(3, HavePieces::More(Arc::from([])), Duration::ZERO);
    let before = node.swarm.counts().absurd;
    node.tell(3, &[4]);
    assert_eq!(node.swarm.counts().absurd, before, "others are heard");
}

#[test]
fn contents_at_rest_cost_nothing() {
    let mut node = Node::new(&[2, 3]);
    for n in 0..1000u32 {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        let content = ContentId(id);
        node.apply(Event::Add { content, have: Bitmap::full(32) });
        let peers = vec![Peer { id: PeerId(2), zone: Zone(0), weight: 1 }];
        node.apply(Event::Joined { content, peers });
    }
    assert!(node.swarm.active_contents() >= 1000);
    node.pass(1000);
    assert_eq!(node.swarm.active_contents(), 0);
    assert_eq!(node.swarm.next_deadline(), None);
    node.apply(Event::Fill { content: CONTENT, on: true });
    assert!(node.swarm.next_deadline().is_some());
    node.pass(1000);
    assert_eq!(node.swarm.active_contents(), 1);
}

#[test]
fn a_reader_s_piece_that_waits_for_the_fill_is_asked_for_anew() {
    let mut node = Node::new(&[2, 3]);
    node.apply(Event::Fill { content: CONTENT, on: true });
    let effects = node.tell(2, &[7]);
    let first = requests(&effects);
    let [(request, PeerId(2), Ask::Holder)] = first[..] else { panic!("{first:?}") };
    let effects = node.demand(7);
    assert!(effects.contains(&Effect::Cancel { request }));
    let urgent = |effect: &&Effect| matches!(effect, Effect::Request { piece: 7, urgent: true, .. });
    assert_eq!(effects.iter().filter(urgent).count(), 1, "{effects:?}");
    // Once bytes come, nothing is thrown away.
    let [(again, ..)] = requests(&effects)[..] else { panic!("{effects:?}") };
    node.apply(Event::Progress { request: again });
    assert!(node.demand(7).is_empty());
}

#[test]
fn a_reader_of_what_moves_for_the_fill_lets_it_move_first_once() {
    let mut node = Node::new(&[2, 3]);
    node.apply(Event::Fill { content: CONTENT, on: true });
    let [(request, ..)] = requests(&node.tell(2, &[7]))[..] else { panic!() };
    node.apply(Event::Progress { request });
    assert!(!node.swarm.is_urgent(node.now));
    // What the fill does besides is no matter here.
    let about_it = |effects: Vec<Effect>| -> Vec<Effect> {
        effects.into_iter().filter(|effect| !matches!(effect, Effect::AskOrigin { .. })).collect()
    };
    assert_eq!(about_it(node.demand(7)), [Effect::Hurry { request }]);
    assert!(node.swarm.is_urgent(node.now) && about_it(node.demand(7)).is_empty());
}

#[test]
fn a_reader_in_order_keeps_its_link_busy() {
    let mut node = Node::new(&[2, 3]);
    node.apply(Event::Ahead { content: CONTENT, pieces: 7..9 });
    let asked = requests(&node.tell(2, &[7, 8]));
    let [(request, ..), (other, ..)] = asked[..] else { panic!("{asked:?}") };
    for request in [request, other] {
        node.apply(Event::Progress { request });
    }
    assert!(matches!(node.demand(7)[..], [Effect::Hurry { .. }]));
    assert!(!node.swarm.is_urgent(node.now));
}

#[test]
fn the_first_reader_s_node_brings_a_piece_in_the_owner_s_stead_and_the_others_wait() {
    let mut node = Node::new(&[2, 3]);
    let piece =
        (0..32).find(|&piece| is_lent(&node.asked_as_owner(piece, 2, true))).expect("it owns a third");
    let second = node.asked_as_owner(piece, 3, true);
    assert!(second.is_empty(), "{second:?}");
    // It came there: this node gets it, and serves who waits.
    let mut effects = node.tell(2, &[piece]);
    effects.extend(node.pass(200));
    let of_it = |effect: &Effect| match *effect {
        Effect::Request { request, to: PeerId(2), piece: asked, .. } if asked == piece => Some(request),
        _ => None,
    };
    let request = effects.iter().find_map(of_it).expect("it is asked of who has it");
    let served = node.apply(Event::Verified { request, content: CONTENT, piece });
    assert!(served.iter().any(|effect| matches!(effect, Effect::Serve { to: PeerId(3), .. })), "{served:?}");
    assert_eq!(node.swarm.counts().from_origin, 0);
}

#[test]
fn a_piece_lent_in_vain_is_brought_by_its_owner() {
    let mut node = Node::new(&[2, 3]);
    let piece =
        (0..32).find(|&piece| is_lent(&node.asked_as_owner(piece, 2, true))).expect("it owns a third");
    node.asked_as_owner(piece, 3, true);
    assert_eq!(origin(&node.pass(5000)).map(|(_, piece)| piece), Some(piece));
}

#[test]
fn who_is_lent_a_reader_s_piece_goes_to_the_origin() {
    let mut node = Node::new(&[2, 3]);
    let (piece, _, request) = node.owned_by_another();
    let effects = node.apply(Event::Failed { request, why: Failure::Refused(Refusal::Lent) });
    assert_eq!(origin(&effects).map(|(_, piece)| piece), Some(piece));
    assert!(node.swarm.is_urgent(node.now));
}

/// Asks to the origin for each of two contents.
fn asked_of(effects: &[Effect], content: ContentId) -> Vec<(RequestId, std::ops::Range<u32>)> {
    let asks = effects.iter().filter_map(|effect| match effect {
        Effect::AskOrigin { request, content: of, pieces, .. } if *of == content => {
            Some((*request, pieces.clone()))
        }
        _ => None,
    });
    asks.collect()
}

#[test]
fn files_come_one_after_the_other_and_one_that_does_not_come_holds_up_nobody() {
    let next = ContentId([4; 32]);
    let me = Peer { id: ME, zone: Zone(0), weight: 1 };
    let limits = Limits { origin_requests: 64, origin_pipeline: 64, origin_run: 1, ..Limits::default() };
    let start = || {
        let mut node = Node { swarm: Swarm::new(me, limits, 5), now: Time::ZERO };
        for content in [CONTENT, next] {
            node.apply(Event::Add { content, have: Bitmap::new(32) });
            node.apply(Event::Joined { content, peers: Vec::new() });
        }
        node.pass(600);
        let mut effects = Vec::new();
        for content in [CONTENT, next] {
            effects.extend(node.apply(Event::Fill { content, on: true }));
        }
        effects.extend(node.pass(100));
        (node, effects)
    };
    let (mut node, mut effects) = start();
    let first = limits.window_first.0 as usize;
    assert_eq!((asked_of(&effects, CONTENT).len(), asked_of(&effects, next).len()), (first, 0));
    let mut of_next = 0;
    for _ in 0..100 {
        for (request, pieces) in asked_of(&std::mem::take(&mut effects), CONTENT) {
            let event = Event::Verified { request, content: CONTENT, piece: pieces.start };
            effects.extend(node.apply(event));
        }
        effects.extend(node.pass(100));
        of_next += asked_of(&effects, next).len();
    }
    assert!(node.swarm.have(CONTENT).unwrap().is_full() && of_next >= first, "{of_next}");

    let (mut node, _) = start();
    assert!(asked_of(&node.pass(3000), next).is_empty());
    assert!(!asked_of(&node.pass(2000), next).is_empty(), "the first does not come");
}

impl Node {
    fn read(&mut self, piece: u32, page: u32) -> Vec<Effect> {
        let bytes = page * 4096..(page + 1) * 4096;
        self.apply(Event::DemandBlock { content: CONTENT, piece, bytes })
    }
}

fn blocks(effects: &[Effect]) -> Vec<(BlockId, PeerId)> {
    let block = |effect: &Effect| match *effect {
        Effect::RequestBlock { block, to, .. } => Some((block, to)),
        _ => None,
    };
    effects.iter().filter_map(block).collect()
}

#[test]
fn a_page_is_asked_of_two_holders_and_its_piece_of_nobody() {
    let mut node = Node::new(&[2, 3, 4, 5]);
    [3, 4, 5].into_iter().for_each(|id| drop(node.tell(id, &[7])));
    let effects = node.read(7, 9);
    let [(first, one), (second, other)] = blocks(&effects)[..] else { panic!("{effects:?}") };
    assert!(one != other && one != PeerId(2) && other != PeerId(2));
    assert!(requests(&effects).is_empty() && origin(&effects).is_none());
    assert!(node.read(7, 9).is_empty(), "told again while it waits");
    let effects = node.apply(Event::BlockEnded { block: second, end: BlockEnd::Verified });
    assert!(effects.is_empty() && node.swarm.block(first).is_none() && node.swarm.counts().blocks == 1);
    assert!(requests(&node.pass(5000)).is_empty(), "nobody waits for it");
    let long = Event::DemandBlock { content: CONTENT, piece: 7, bytes: 0..65_536 };
    assert_eq!(blocks(&node.apply(long)).len(), 1, "a longer one is asked for once");
}

#[test]
fn a_piece_is_demanded_when_no_holder_serves_its_block() {
    let holders = |node: &mut Node| [3, 4].into_iter().for_each(|id| drop(node.tell(id, &[7])));
    let mut node = Node::new(&[2, 3, 4]);
    assert!(blocks(&node.read(8, 0)).is_empty() && node.swarm.is_urgent(node.now), "nobody has it");

    let mut node = Node::new(&[2, 3, 4]);
    holders(&mut node);
    let asked = blocks(&node.read(7, 0));
    let refused = |block| Event::BlockEnded { block, end: BlockEnd::Refused };
    assert!(node.apply(refused(asked[0].0)).is_empty(), "the other may serve it");
    assert_eq!(requests(&node.apply(refused(asked[1].0))).len(), 1);
    assert!(blocks(&node.read(7, 0)).is_empty(), "they are not asked again and again");

    let mut node = Node::new(&[2, 3, 4]);
    holders(&mut node);
    let asked = blocks(&node.read(7, 0));
    assert!(requests(&node.pass(100)).is_empty());
    assert_eq!(requests(&node.pass(200)).len(), 1, "nobody answers");
    let late = node.apply(Event::BlockEnded { block: asked[0].0, end: BlockEnd::Verified });
    assert!(late.is_empty() && node.swarm.counts().blocks == 1, "a late one serves all the same");
}

#[test]
fn wrong_bytes_of_a_block_ban_their_sender_and_the_reader_gets_the_piece() {
    let mut node = Node::new(&[2, 3]);
    node.tell(3, &[7]);
    let asked = blocks(&node.read(7, 0));
    let effects = node.apply(Event::BlockEnded { block: asked[0].0, end: BlockEnd::Corrupt });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Ban { peer: PeerId(3), .. })));
    assert!(node.swarm.is_urgent(node.now), "it is fetched");
    assert_eq!(node.swarm.counts().corrupt, 1);
}

#[test]
fn who_reads_on_in_a_piece_gets_all_of_it() {
    let mut node = Node::new(&[2, 3]);
    node.tell(3, &[7]);
    for page in 0..8 {
        let effects = node.read(7, page);
        let block = blocks(&effects)[0].0;
        assert_eq!(requests(&effects).len(), usize::from(page == 4), "page {page}");
        node.apply(Event::BlockEnded { block, end: BlockEnd::Verified });
    }
}

#[test]
fn blocks_come_from_this_zone_if_it_has_them() {
    let mut node = Node::new(&[2, 3]);
    let far = Peer { id: PeerId(4), zone: Zone(1), weight: 1 };
    node.apply(Event::Joined { content: CONTENT, peers: vec![far] });
    node.tell(4, &[7, 8]);
    node.tell(3, &[7]);
    let bytes = 0..65_536;
    let mut asked = |piece| {
        let bytes = bytes.clone();
        blocks(&node.apply(Event::DemandBlock { content: CONTENT, piece, bytes }))
    };
    assert_eq!(asked(7)[0].1, PeerId(3));
    assert_eq!(asked(8)[0].1, PeerId(4));
}

#[test]
fn the_only_peer_is_asked_for_what_its_line_takes_and_a_line_that_is_full_costs_a_moment() {
    const PIECES: u32 = 4096;
    let (limits, me, peer) = (Limits::default(), Peer { id: ME, zone: Zone(0), weight: 1 }, PeerId(2));
    let mut node = Node { swarm: Swarm::new(me, limits, 5), now: Time::ZERO };
    node.apply(Event::Add { content: CONTENT, have: Bitmap::new(PIECES) });
    node.apply(Event::Joined { content: CONTENT, peers: vec![Peer { id: peer, ..me }] });
    let all = Bitmap::from_words(PIECES, vec![u64::MAX; PIECES as usize / 64]).unwrap();
    node.say(peer.0, HavePieces::All(Arc::new(all)), Duration::ZERO);
    node.pass(600);
    let asked_in = |effects: Vec<Effect>| {
        effects.into_iter().filter_map(|effect| match effect {
            Effect::Request { request, piece, .. } => Some((request, piece)),
            _ => None,
        })
    };
    // A piece a millisecond.
    let mut asked: std::collections::VecDeque<_> =
        asked_in(node.apply(Event::Fill { content: CONTENT, on: true })).collect();
    let mut most = 0;
    for _ in 0..1000 {
        most = most.max(asked.len());
        let (request, piece) = asked.pop_front().expect("there is more to ask for");
        node.now = node.now + Duration::from_millis(1);
        let effects = node.apply(Event::Verified { request, content: CONTENT, piece });
        asked.extend(asked_in(effects));
        asked.extend(asked_in(node.apply(Event::Tick)));
    }
    assert_eq!(most, limits.upload_queue_per_peer - 1);
    for (request, _) in asked {
        let refused = Event::Failed { request, why: Failure::Refused(Refusal::Busy) };
        assert_eq!(asked_in(node.apply(refused)).count(), 0, "it rests");
    }
    assert!(asked_in(node.pass(700)).count() > 0, "and not for longer than after one refusal");
}
