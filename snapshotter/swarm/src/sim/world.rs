//! The nodes, the messages between them, and the clock.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use towline_artifact::{ContentId, PIECE_LEN};

use super::fluid::{FlowId, Fluid, ResourceId};
use super::queue::Queue;
use super::{Fault, OriginDay, Report, Scenario};
use crate::rng::{IdMap, Rng, mix};
use crate::{
    Ask, Bitmap, Effect, Event, Failure, Have, HavePieces, OriginFailure, Peer, PeerId, Refusal, RequestId,
    Swarm, Time, UploadId, Zone,
};

mod incidents;
mod report;

/// The content of a file.
fn content_of(file: u32) -> ContentId {
    let mut id = [0x70; 32];
    id[..4].copy_from_slice(&file.to_be_bytes());
    ContentId(id)
}

/// A piece of a content.
type Part = (ContentId, u32);

/// How often nodes hear of changes in membership.
const MEMBERSHIP: Duration = Duration::from_millis(100);
/// A node's uploads that go first.
const TURNS: usize = 2;
/// What the others have of a link, where these have one share each.
const BESIDE: f64 = 0.05;

/// What lies ahead.
enum Happens {
    Start(usize),
    Membership,
    Wake(usize),
    Deliver(usize, Event),
    /// A request reaches a peer: (holder, asker, request, what, ask, urgent).
    Asked(usize, usize, RequestId, Part, Ask, bool),
    /// A request reaches the origin.
    OriginAsked(usize, RequestId),
    /// The first byte of an upload leaves: (holder, upload, what).
    FlowStarts(usize, UploadId, Part),
    FlowEnds(FlowId, u64),
    /// The reader wants a piece.
    Read,
    Fail,
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Unborn,
    Alive,
    Stopped,
    Dead,
}

/// Where a node's request is.
#[derive(Clone)]
enum Asked {
    Peer { holder: usize, urgent: bool },
    Origin { content: ContentId, pieces: std::ops::Range<u32> },
}

struct Node {
    peer: Peer,
    fault: Option<Fault>,
    swarm: Swarm,
    life: Life,
    born: Time,
    /// Files that are whole.
    whole: u32,
    ready: Option<Time>,
    up: ResourceId,
    down: ResourceId,
    asked: HashMap<RequestId, Asked>,
    wake_at: Option<Time>,
    verify_free: Time,
    progress_at: Time,
    uploaded: u64,
    received: u64,
}

/// A flow: to whom, for which request, from whom.
struct Carrying {
    from: Option<usize>,
    to: usize,
    request: RequestId,
    part: Part,
}

pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    seed: u64,
    rng: Rng,
    now: Time,
    queue: Queue<Happens>,
    nodes: Vec<Node>,
    by_peer: IdMap<PeerId, usize>,
    fluid: Fluid,
    origin: ResourceId,
    /// (into, out of) each zone.
    borders: Vec<(ResourceId, ResourceId)>,
    flows: HashMap<FlowId, Carrying>,
    /// By urgent flow, those that stand still meanwhile.
    halted: HashMap<FlowId, Vec<FlowId>>,
    by_ask: HashMap<(usize, RequestId), FlowId>,
    /// When the last message between two nodes arrives.
    arrivals: HashMap<(usize, usize), Time>,
    at_origin: usize,
    /// Pieces that the origin has sent to somebody.
    brought: HashSet<Part>,
    /// Pieces that the origin sent to nodes that lie: cut off by everybody, they help themselves.
    to_liars: u64,
    published: usize,
    buried: Vec<(Time, usize)>,
    faults_done: bool,
    verified: u64,
    events: u64,
    progress: Vec<(f64, f64)>,
    out: Vec<Effect>,
    /// Pieces that the reader waits for, since when, and how long it waited for others, in seconds.
    reading: Vec<(Part, Time)>,
    reads: Vec<f64>,
}

fn upload_id(asker: usize, request: RequestId) -> UploadId {
    UploadId((asker as u64) << 40 | request.0)
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let mut fluid = Fluid::default();
        let origin = fluid.add_resource(scenario.origin);
        let borders = (0..scenario.zones)
            .map(|_| {
                let rate = scenario.zone_rate.unwrap_or(1e15);
                (fluid.add_resource(rate), fluid.add_resource(rate))
            })
            .collect();
        let fastest = scenario.link.up;
        let nodes: Vec<Node> = (0..scenario.nodes)
            .map(|n| {
                let link = scenario.link_of(n);
                let weight = (16.0 * link.up / fastest).round() as u16;
                let zone = Zone(n as u32 % scenario.zones);
                let peer = Peer { id: PeerId(mix(seed ^ mix(n as u64 + 1))), zone, weight };
                Node {
                    peer,
                    fault: scenario.fault_of(n),
                    swarm: Swarm::new(peer, scenario.limits, seed),
                    life: Life::Unborn,
                    born: Time::ZERO,
                    whole: 0,
                    ready: None,
                    up: fluid.add_resource(link.up),
                    down: fluid.add_resource(link.down),
                    asked: HashMap::new(),
                    wake_at: None,
                    verify_free: Time::ZERO,
                    progress_at: Time::ZERO,
                    uploaded: 0,
                    received: 0,
                }
            })
            .collect();
        Self {
            scenario,
            seed,
            rng: Rng::new(seed),
            now: Time::ZERO,
            queue: Queue::new(),
            by_peer: nodes.iter().zip(0..).map(|(node, n)| (node.peer.id, n)).collect(),
            nodes,
            fluid,
            origin,
            borders,
            flows: HashMap::new(),
            halted: HashMap::new(),
            by_ask: HashMap::new(),
            arrivals: HashMap::new(),
            at_origin: 0,
            brought: HashSet::new(),
            to_liars: 0,
            published: 0,
            buried: Vec::new(),
            faults_done: false,
            verified: 0,
            events: 0,
            progress: Vec::new(),
            out: Vec::new(),
            reading: Vec::new(),
            reads: Vec::new(),
        }
    }

    fn at(&mut self, when: Time, happens: Happens) {
        self.queue.push(when, happens);
    }

    fn after(&mut self, wait: Duration, happens: Happens) {
        self.at(self.now + wait, happens);
    }

    pub(crate) fn run(mut self) -> Report {
        let spread = u32::try_from(self.scenario.within.as_micros()).unwrap_or(u32::MAX).max(1);
        for n in 0..self.nodes.len() {
            let wait = match self.scenario.apart {
                Some(apart) => apart * n as u32,
                None => Duration::from_micros(u64::from(self.rng.below(spread))),
            };
            self.after(wait, Happens::Start(n));
        }
        self.after(Duration::from_millis(20), Happens::Membership);
        if let Some(gap) = self.scenario.reads {
            self.after(gap, Happens::Read);
        }
        let apart = self.scenario.apart.unwrap_or_default() * self.nodes.len() as u32;
        let limit = self.scenario.bound().mul_f64(self.scenario.patience) + apart + Duration::from_secs(60);
        while let Some((when, happens)) = self.queue.pop() {
            self.now = when;
            if when.since(Time::ZERO) > limit || self.is_over() {
                break;
            }
            self.happen(happens);
            for (when, flow, stamp) in std::mem::take(&mut self.fluid.ends) {
                self.at(when, Happens::FlowEnds(flow, stamp));
            }
        }
        self.report()
    }

    fn sound(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.fault.is_none())
    }

    fn is_over(&self) -> bool {
        // Looked at now and then: it costs a pass over the nodes.
        self.queue.pushed().is_multiple_of(64) && self.sound().all(|node| node.ready.is_some())
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Start(n) => self.start(n),
            Happens::Membership => self.membership(),
            Happens::Wake(n) => {
                if self.nodes[n].wake_at == Some(self.now) {
                    self.nodes[n].wake_at = None;
                    self.report_progress(n);
                    self.apply(n, Event::Tick);
                }
            }
            Happens::Deliver(n, event) => self.apply(n, event),
            Happens::Asked(holder, asker, request, part, ask, urgent) => {
                self.asked(holder, asker, request, part, ask, urgent);
            }
            Happens::OriginAsked(n, request) => self.origin_asked(n, request),
            Happens::FlowStarts(n, upload, part) => self.start_flow(n, upload, part),
            Happens::FlowEnds(flow, stamp) => {
                if self.fluid.has_ended(flow, stamp, self.now) {
                    self.flow_ended(flow);
                }
            }
            Happens::Read => self.read(),
            Happens::Fail => self.fail(),
        }
    }

    fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.life, node.born) = (Life::Alive, self.now);
        let pretends = matches!(node.fault, Some(Fault::Stalling | Fault::Boasting));
        for file in 0..self.scenario.files {
            let (content, pieces) = (content_of(file), self.scenario.pieces_of(file));
            let have = if pretends { Bitmap::full(pieces) } else { Bitmap::new(pieces) };
            self.apply(n, Event::Add { content, have });
            if !pretends {
                self.apply(n, Event::Fill { content, on: true });
            }
        }
    }

    /// Tells everybody who came and who went.
    fn membership(&mut self) {
        let alive: Vec<Peer> =
            self.nodes.iter().filter(|node| node.life != Life::Unborn).map(|node| node.peer).collect();
        // Nodes are born in any order; who is told twice does not mind.
        if alive.len() != self.published {
            self.published = alive.len();
            for n in 0..self.nodes.len() {
                if self.nodes[n].life == Life::Alive {
                    let mut peers = alive.clone();
                    if self.scenario.view_gaps > 0.0 {
                        let (me, gaps) = (self.nodes[n].peer.id.0, self.scenario.view_gaps);
                        peers.retain(|peer| Rng::new(me ^ mix(peer.id.0)).unit() >= gaps);
                    }
                    for file in 0..self.scenario.files {
                        self.apply(n, Event::Joined { content: content_of(file), peers: peers.clone() });
                    }
                }
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = self.buried.iter().partition(|(when, _)| *when <= self.now);
        self.buried = later;
        for (_, gone) in due {
            let peer = self.nodes[gone].peer.id;
            for n in 0..self.nodes.len() {
                for file in 0..self.scenario.files {
                    self.apply(n, Event::Left { content: content_of(file), peer });
                }
            }
        }
        let all = self.nodes.len() as f64 * f64::from(self.scenario.pieces);
        self.progress.push((self.now.since(Time::ZERO).as_secs_f64(), self.verified as f64 / all));
        self.after(MEMBERSHIP, Happens::Membership);
    }

    fn apply(&mut self, n: usize, event: Event) {
        if self.nodes[n].life != Life::Alive {
            return;
        }
        self.events += 1;
        if n + 1 == self.nodes.len()
            && let Event::Verified { content, piece, .. } = event
            && let Some(at) = self.reading.iter().position(|read| read.0 == (content, piece))
        {
            self.reads.push(self.now.since(self.reading.swap_remove(at).1).as_secs_f64());
        }
        let mut out = std::mem::take(&mut self.out);
        self.nodes[n].swarm.apply(event, self.now, &mut out);
        for effect in out.drain(..) {
            self.perform(n, effect);
        }
        self.out = out;
        if let Some(deadline) = self.nodes[n].swarm.next_deadline() {
            let deadline = deadline.max(self.now + Duration::from_micros(1));
            if self.nodes[n].wake_at.is_none_or(|at| at > deadline) {
                self.nodes[n].wake_at = Some(deadline);
                self.at(deadline, Happens::Wake(n));
            }
        }
    }

    /// What a message from `a` to `b` takes that is sent now. None overtakes an earlier one.
    fn latency(&mut self, a: usize, b: usize) -> Duration {
        let wait = self.latency_now(a, b);
        if self.scenario.queue_latency.is_zero() {
            return wait;
        }
        let arrives = self.arrivals.entry((a, b)).or_default();
        *arrives = (*arrives).max(self.now + wait);
        arrives.since(self.now)
    }

    fn latency_now(&self, a: usize, b: usize) -> Duration {
        let same = self.nodes[a].peer.zone == self.nodes[b].peer.zone;
        let path = if same { self.scenario.latency } else { self.scenario.zone_latency };
        let busy = |link: ResourceId| u32::from(!self.fluid.flows_at(link).is_empty());
        path + self.scenario.queue_latency * (busy(self.nodes[a].up) + busy(self.nodes[b].down))
    }

    fn find(&self, peer: PeerId) -> Option<usize> {
        self.by_peer.get(&peer).copied()
    }

    fn perform(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Request { request, to, content, piece, ask, urgent, .. } => {
                let Some(holder) = self.find(to) else { return };
                self.nodes[n].asked.insert(request, Asked::Peer { holder, urgent });
                let wait = self.latency(n, holder);
                self.after(wait, Happens::Asked(holder, n, request, (content, piece), ask, urgent));
            }
            Effect::AskOrigin { request, content, pieces, .. } => {
                self.nodes[n].asked.insert(request, Asked::Origin { content, pieces });
                self.after(self.scenario.origin_latency, Happens::OriginAsked(n, request));
            }
            Effect::Cancel { request } => self.cancel(n, request),
            Effect::SendHave { content, to, mut have } => {
                if matches!(self.nodes[n].fault, Some(Fault::Stalling | Fault::Boasting))
                    && matches!(have.pieces, HavePieces::More(_))
                {
                    return;
                }
                have.queue = if self.nodes[n].fault.is_some() { 0 } else { have.queue };
                for peer in to {
                    let Some(to) = self.find(peer) else { continue };
                    let (wait, from) = (self.latency(n, to), self.nodes[n].peer.id);
                    let event = Event::Have { content, from, have: Have::clone(&have) };
                    self.after(wait, Happens::Deliver(to, event));
                }
            }
            Effect::Unlink { content, peer } => {
                let Some(to) = self.find(peer) else { return };
                let event = Event::Unlinked { content, peer: self.nodes[n].peer.id };
                let wait = self.latency(n, to);
                self.after(wait, Happens::Deliver(to, event));
            }
            Effect::Serve { upload, content, piece, .. } => self.serve(n, upload, (content, piece)),
            Effect::Refuse { upload, why, .. } => self.refuse(n, upload, why),
            Effect::Complete { .. } => {
                let node = &mut self.nodes[n];
                node.whole += 1;
                if node.whole == self.scenario.files {
                    node.ready = Some(self.now);
                }
            }
            // Here only what was asked for as urgent moves alone.
            // Readers of the simulation wait for whole pieces.
            Effect::RequestBlock { .. } | Effect::Hurry { .. } | Effect::Ban { .. } => {}
        }
    }

    fn cancel(&mut self, n: usize, request: RequestId) {
        let Some(asked) = self.nodes[n].asked.remove(&request) else { return };
        match asked {
            Asked::Peer { holder, .. } => {
                let upload = upload_id(n, request);
                if let Some(flow) = self.by_ask.remove(&(n, request)) {
                    self.end_flow(flow);
                }
                let wait = self.latency(n, holder);
                self.after(wait, Happens::Deliver(holder, Event::UploadEnded { upload }));
            }
            Asked::Origin { .. } => {
                if let Some(flow) = self.by_ask.remove(&(n, request)) {
                    self.end_flow(flow);
                    self.at_origin -= 1;
                }
            }
        }
    }

    fn asked(
        &mut self,
        holder: usize,
        asker: usize,
        request: RequestId,
        (content, piece): Part,
        ask: Ask,
        urgent: bool,
    ) {
        if !self.nodes[asker].asked.contains_key(&request) {
            return;
        }
        match (self.nodes[holder].life, self.nodes[holder].fault) {
            (Life::Dead | Life::Unborn, _) => {
                let wait = self.latency(holder, asker);
                self.fail_request(asker, request, Failure::Broken, wait);
            }
            (Life::Stopped, _) | (_, Some(Fault::Stalling)) => {}
            (_, Some(Fault::Boasting)) => {
                let why = Failure::Refused(Refusal::NotHere);
                let wait = self.latency(holder, asker);
                self.fail_request(asker, request, why, wait);
            }
            _ => {
                let (upload, from) = (upload_id(asker, request), self.nodes[asker].peer.id);
                let event = Event::UploadRequested { upload, from, content, piece, ask, urgent };
                self.apply(holder, event);
            }
        }
    }

    fn fail_request(&mut self, asker: usize, request: RequestId, why: Failure, wait: Duration) {
        self.nodes[asker].asked.remove(&request);
        self.after(wait, Happens::Deliver(asker, Event::Failed { request, why }));
    }

    fn refuse(&mut self, n: usize, upload: UploadId, why: Refusal) {
        let (asker, request) = ((upload.0 >> 40) as usize, RequestId(upload.0 & ((1 << 40) - 1)));
        if self.nodes[asker].asked.contains_key(&request) {
            let wait = self.latency(n, asker);
            self.fail_request(asker, request, Failure::Refused(why), wait);
        }
    }

    fn serve(&mut self, n: usize, upload: UploadId, part: Part) {
        let asker = (upload.0 >> 40) as usize;
        let wait =
            if self.scenario.queue_latency.is_zero() { Duration::ZERO } else { self.latency_now(n, asker) };
        if wait.is_zero() {
            self.start_flow(n, upload, part);
        } else {
            self.after(wait, Happens::FlowStarts(n, upload, part));
        }
    }

    fn start_flow(&mut self, n: usize, upload: UploadId, part: Part) {
        let (asker, request) = ((upload.0 >> 40) as usize, RequestId(upload.0 & ((1 << 40) - 1)));
        let waits = self.nodes[asker].asked.contains_key(&request) && self.nodes[asker].life != Life::Dead;
        if !waits || self.nodes[n].life == Life::Dead {
            self.after(Duration::from_micros(10), Happens::Deliver(n, Event::UploadEnded { upload }));
            return;
        }
        let mut resources = vec![self.nodes[n].up, self.nodes[asker].down];
        let (from, to) = (self.nodes[n].peer.zone, self.nodes[asker].peer.zone);
        if from != to {
            resources.push(self.borders[from.0 as usize].1);
            resources.push(self.borders[to.0 as usize].0);
        }
        let flow = self.fluid.start(resources, PIECE_LEN as f64, self.now);
        let urgent = matches!(self.nodes[asker].asked.get(&request), Some(Asked::Peer { urgent: true, .. }));
        if urgent && self.scenario.yields {
            self.halt_others(flow, n, asker);
        }
        self.flows.insert(flow, Carrying { from: Some(n), to: asker, request, part });
        self.take_turns(n);
        self.by_ask.insert((asker, request), flow);
        let wait = self.latency(n, asker);
        self.after(wait, Happens::Deliver(asker, Event::Progress { request }));
    }

    fn origin_asked(&mut self, n: usize, request: RequestId) {
        let Some(Asked::Origin { content, pieces }) = self.nodes[n].asked.get(&request).cloned() else {
            return;
        };
        let sent = self.brought.len() as f64 / f64::from(self.scenario.pieces);
        let age = self.now.since(Time::ZERO);
        let why = match self.scenario.day {
            OriginDay::Throttles(most, retry) if self.at_origin >= most => {
                Some(OriginFailure::Throttled { retry_after: Some(retry) })
            }
            OriginDay::Away(from, until) if (from..until).contains(&age) => Some(OriginFailure::Broken),
            OriginDay::GoneAfter(share) if sent >= share => Some(OriginFailure::Gone),
            OriginDay::DeniesHalf if n % 2 == 1 => Some(OriginFailure::Denied),
            _ => None,
        };
        if let Some(why) = why {
            self.nodes[n].asked.remove(&request);
            let event = Event::OriginFailed { request, why };
            self.after(self.scenario.origin_latency, Happens::Deliver(n, event));
            return;
        }
        let flow = self.fluid.start(vec![self.origin, self.nodes[n].down], PIECE_LEN as f64, self.now);
        self.flows.insert(flow, Carrying { from: None, to: n, request, part: (content, pieces.start) });
        self.by_ask.insert((n, request), flow);
        self.at_origin += 1;
        self.apply(n, Event::Progress { request });
    }

    /// Everything else that a sender sends and a receiver receives stands still while `flow` carries an urgent piece.
    fn halt_others(&mut self, flow: FlowId, from: usize, to: usize) {
        let mut others = self.fluid.flows_at(self.nodes[from].up).to_vec();
        others.extend(self.fluid.flows_at(self.nodes[to].down));
        others.retain(|&other| other != flow);
        others.sort_unstable();
        others.dedup();
        others.iter().for_each(|&other| self.fluid.pause(other, true, self.now));
        self.halted.insert(flow, others);
    }

    /// The oldest of a node's uploads have their turn, as in the engine.
    fn take_turns(&mut self, n: usize) {
        for (at, flow) in self.fluid.flows_at(self.nodes[n].up).to_vec().into_iter().enumerate() {
            self.fluid.weigh(flow, if at < TURNS { 1.0 } else { BESIDE }, self.now);
        }
    }

    fn end_flow(&mut self, flow: FlowId) {
        self.fluid.end(flow, self.now);
        if let Some(Carrying { from: Some(sender), .. }) = self.flows.remove(&flow) {
            self.take_turns(sender);
        }
        for other in self.halted.remove(&flow).unwrap_or_default() {
            if self.flows.contains_key(&other) {
                self.fluid.pause(other, false, self.now);
            }
        }
    }

    fn flow_ended(&mut self, flow: FlowId) {
        let Some(Carrying { from, to, request, part: (content, piece) }) =
            self.flows.get(&flow).map(|flow| Carrying { ..*flow })
        else {
            return;
        };
        let check = Duration::from_secs_f64(PIECE_LEN as f64 / self.scenario.verify);
        let done = self.nodes[to].verify_free.max(self.now) + check;
        self.nodes[to].verify_free = done;
        self.nodes[to].received += 1;
        let Some(sender) = from else {
            let Some(Asked::Origin { pieces, .. }) = self.nodes[to].asked.get(&request).cloned() else {
                return;
            };
            self.verified += 1;
            self.brought.insert((content, piece));
            self.to_liars += u64::from(self.nodes[to].fault == Some(Fault::Lying));
            self.at(done, Happens::Deliver(to, Event::Verified { request, content, piece }));
            if piece + 1 < pieces.end {
                self.fluid.extend(flow, PIECE_LEN as f64, self.now);
                self.flows.insert(flow, Carrying { from, to, request, part: (content, piece + 1) });
            } else {
                self.end_flow(flow);
                self.by_ask.remove(&(to, request));
                self.nodes[to].asked.remove(&request);
                self.at_origin -= 1;
            }
            return;
        };
        self.end_flow(flow);
        self.by_ask.remove(&(to, request));
        self.nodes[to].asked.remove(&request);
        self.nodes[sender].uploaded += 1;
        let event = if self.nodes[sender].fault == Some(Fault::Lying) {
            Event::Corrupt { request }
        } else {
            self.verified += 1;
            Event::Verified { request, content, piece }
        };
        self.at(done, Happens::Deliver(to, event));
        self.apply(sender, Event::UploadEnded { upload: upload_id(to, request) });
        if !self.faults_done
            && let Some(Fault::Killed(share) | Fault::Stopped(share)) = self.scenario.faults.1
            && self.verified as f64 >= share * self.nodes.len() as f64 * f64::from(self.scenario.pieces)
        {
            self.faults_done = true;
            self.after(Duration::ZERO, Happens::Fail);
        }
    }

    /// Tells a node which of its requests move.
    fn report_progress(&mut self, n: usize) {
        if self.now.since(self.nodes[n].progress_at) < Duration::from_secs(1) {
            return;
        }
        self.nodes[n].progress_at = self.now;
        for flow in self.fluid.flows_at(self.nodes[n].down).to_vec() {
            if self.fluid.is_moving(flow)
                && let Some(request) = self.flows.get(&flow).map(|flow| flow.request)
            {
                self.apply(n, Event::Progress { request });
            }
        }
    }
}
