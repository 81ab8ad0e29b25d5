//! What is to happen in a run: the links, who starts when, and what goes wrong.

use std::time::Duration;

use serde::Serialize;

use super::bound::Links;
use super::network::{Plan, address};
use super::origin::{Faults, Refusal};
use super::rate::Rate;

/// Where nodes may get pieces from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Peers {
    /// The origin alone.
    None,
    /// Peers, as in production.
    Swarm,
    /// Peers, but a piece only from its owner.
    OwnerOnly,
}

/// A run. [`Scenario::new`] is a healthy flash crowd; the rest is set on it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// Bytes of the model.
    pub model: u64,
    /// Every node's link, up and down; not shaped: `None`.
    pub link: Option<Rate>,
    /// The origin's link.
    pub origin: Option<Rate>,
    /// How many zones, and the link of each where there are several.
    pub zones: usize,
    /// See above.
    pub zone_link: Option<Rate>,
    /// From one node's start to the next; zero for all at once.
    pub every: Duration,
    /// Where pieces come from.
    pub peers: Peers,
    /// A node with another link.
    pub slow: Option<(usize, Rate)>,
    /// A node whose disk has so many bytes, and which cannot end.
    pub small_disk: Option<(usize, u64)>,
    /// A node whose wall clock is ahead.
    pub clock: Option<(usize, Duration)>,
    /// Of 100 packets, so many are lost.
    pub loss_percent: u32,
    /// What the origin does from the start.
    pub faults: Faults,
    /// What happens meanwhile, in this order.
    pub events: Vec<Event>,
    /// Somebody without the key talks to every node's ports.
    pub stranger: bool,
    /// One node's link is recorded and searched for secrets.
    pub capture: bool,
    /// A process on the last node reads single blocks meanwhile.
    pub reader: bool,
    /// What must hold at the end.
    pub limits: Limits,
}

/// Something that happens once, when the events before it have happened and its time has come.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub when: When,
    /// What.
    pub action: Action,
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// When a node has received this share of the model.
    Received(Who, f64),
    /// When the origin has sent this many times the model.
    Sent(f64),
    /// So long after the event before.
    After(Duration),
    /// When all nodes that run have ended.
    OthersEnded,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Action {
    /// SIGKILL.
    Kill(Who),
    /// SIGSTOP.
    Stop(Who),
    /// SIGCONT to every node that was stopped.
    Continue,
    /// Killed nodes start again, on what they have, and fetch on.
    Restart,
    /// No packet passes between the first half of the nodes and the second.
    Split,
    /// It does again.
    Heal,
    /// Connections to the origin are reset.
    OriginGone,
    /// They are not any more.
    OriginBack,
    /// The origin does this from now on.
    Origin(Faults),
}

/// A node, chosen when it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// By number.
    Node(usize),
    /// The one that has received most.
    First,
    /// The one that has sent most.
    Busiest,
    /// The one to which the origin has sent most.
    Owner,
    /// All whose addresses the others were given.
    Bootstrap,
}

/// What must hold at the end, beside the bytes, which must always be right. `None` for what is not limited.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    /// Bytes of weight layers that the origin sent ÷ bytes of the model.
    pub origin: Option<f64>,
    /// The slowest node's time ÷ its bound.
    pub last: Option<f64>,
    /// Bytes that crossed zones ÷ bytes of the model.
    pub cross_zone: Option<f64>,
    /// Largest upload ÷ mean upload.
    pub upload: Option<f64>,
    /// 95th percentile of cold reads ÷ time of a piece on the idle link.
    pub read: Option<f64>,
}

impl Scenario {
    /// `nodes` nodes × 200 Mb/s start a model of 256 MiB at once; the origin has 1 Gb/s.
    #[must_use]
    pub fn new(name: &str, nodes: usize) -> Self {
        Self {
            name: name.to_owned(),
            nodes,
            model: 256 << 20,
            link: Some(Rate::mbit(200)),
            origin: Some(Rate::mbit(1000)),
            zones: 1,
            zone_link: None,
            every: Duration::ZERO,
            peers: Peers::Swarm,
            slow: None,
            small_disk: None,
            clock: None,
            loss_percent: 0,
            faults: Faults::default(),
            events: Vec::new(),
            stranger: false,
            capture: false,
            reader: false,
            limits: Limits::default(),
        }
    }

    /// The same in slow motion, as far as links go: rates are so many times lower, nodes that come one by one are so much
    /// further apart.
    #[must_use]
    pub fn slower(mut self, times: u32) -> Self {
        let rates = [&mut self.link, &mut self.origin, &mut self.zone_link];
        rates.into_iter().flatten().for_each(|rate| rate.0 /= u64::from(times));
        if let Some((_, rate)) = &mut self.slow {
            rate.0 /= u64::from(times);
        }
        self.every *= times;
        self
    }

    /// Adds an event.
    #[must_use]
    pub fn then(mut self, when: When, action: Action) -> Self {
        self.events.push(Event { when, action });
        self
    }

    /// The zone of a node: the first nodes are in the first zone.
    #[must_use]
    pub fn zone_of(&self, index: usize) -> usize {
        index * self.zones / self.nodes.max(1)
    }

    /// A node's link.
    #[must_use]
    pub fn link_of(&self, index: usize) -> Option<Rate> {
        match self.slow {
            Some((slow, rate)) if slow == index => Some(rate),
            _ => self.link,
        }
    }

    /// The size of the node's disk, where it is small.
    #[must_use]
    pub fn disk_of(&self, index: usize) -> Option<u64> {
        self.small_disk.filter(|(small, _)| *small == index).map(|(_, bytes)| bytes)
    }

    /// By how much the node's clock is ahead.
    #[must_use]
    pub fn clock_of(&self, index: usize) -> Duration {
        self.clock.filter(|(ahead, _)| *ahead == index).map_or(Duration::ZERO, |(_, by)| by)
    }

    /// Its network.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan {
            origin: self.origin,
            nodes: (0..self.nodes).map(|index| (self.zone_of(index), self.link_of(index))).collect(),
            zones: self.zones,
            zone_link: self.zone_link,
        }
    }

    /// The bound of a node, in seconds.
    #[must_use]
    pub fn bound_of(&self, index: usize) -> f64 {
        let nodes: Vec<_> = (0..self.nodes).map(|index| self.link_of(index)).collect();
        let zone = self.zone_link.filter(|_| self.zones > 1);
        Links { model: self.model, origin: self.origin, nodes: &nodes, zone, every: self.every }.bound(index)
    }

    /// In how many seconds every node must have ended, or the run is given up: a multiple of what the links allow without
    /// any peer, and the time that the events take by themselves.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a testbed has few nodes")]
    pub fn patience(&self) -> Duration {
        let slowest = (0..self.nodes).map(|index| self.bound_of(index)).fold(0.0, f64::max);
        let origin = self.origin.map_or(0.0, |rate| self.nodes as f64 * self.model as f64 / rate.payload());
        let waits = self.events.iter().map(|event| match event.when {
            When::After(wait) => wait,
            _ => Duration::ZERO,
        });
        let starts = self.every * u32::try_from(self.nodes).unwrap_or(u32::MAX);
        Duration::from_secs_f64(60.0 + 3.0 * slowest.max(origin)) + waits.sum::<Duration>() + starts
    }
}

/// A refusal of all requests with `status`.
#[must_use]
pub fn refusal(status: u16) -> Refusal {
    Refusal { status, retry_after: None, from: Vec::new(), above: 0 }
}

/// A refusal of every second of `nodes` nodes, for credentials that do not count.
#[must_use]
pub fn refusal_of_every_second(nodes: usize) -> Refusal {
    let from = (0..nodes).filter(|index| index % 2 == 1).map(|index| address(index).into()).collect();
    Refusal { from, ..refusal(401) }
}
