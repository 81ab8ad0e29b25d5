//! What is simulated.

use std::time::Duration;

use towline_artifact::{PIECE_LEN, piece_count};

use crate::Limits;

/// Rates of a node's link, in bytes of payload a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// From the node.
    pub up: f64,
    /// To the node.
    pub down: f64,
}

impl Link {
    /// The same both ways, in Mb/s on the wire; 1448 of 1514 bytes of a full Ethernet frame are payload.
    #[must_use]
    pub fn mbit(rate: f64) -> Self {
        let bytes = payload(rate);
        Self { up: bytes, down: bytes }
    }
}

/// Bytes of payload a second that a link of `mbit` Mb/s carries.
pub(crate) fn payload(mbit: f64) -> f64 {
    mbit * 1e6 / 8.0 * 1448.0 / 1514.0
}

/// What is wrong with some nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// They vanish when the cluster has this share of all bytes; others learn of it when connections break and, after
    /// some seconds, from the membership.
    Killed(f64),
    /// They stop then: nothing breaks, nothing moves, and the membership drops them after ten seconds.
    Stopped(f64),
    /// They send wrong bytes.
    Lying,
    /// They say they have everything and never send a byte.
    Stalling,
    /// They say they have everything and refuse.
    Boasting,
}

/// What the origin does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OriginDay {
    /// It serves.
    Good,
    /// It answers 429 with this `Retry-After` to more than so many requests at once.
    Throttles(usize, Duration),
    /// It refuses every node's connection from one time to another.
    Away(Duration, Duration),
    /// It is gone for good once it has sent this share of the model's pieces, each counted once.
    GoneAfter(f64),
    /// It answers 401 to every second node.
    DeniesHalf,
}

/// One cluster, one model, one day.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in tables.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// Pieces of the model.
    pub pieces: u32,
    /// Contents that share them, as equal as may be: a model's weight files.
    pub files: u32,
    /// The link of each node.
    pub link: Link,
    /// Every so many nodes one has a link slower by the factor: (10, 4.0) is one in ten, four times slower.
    pub slow: Option<(usize, f64)>,
    /// The origin's rate, in bytes of payload a second.
    pub origin: f64,
    /// What the origin does.
    pub day: OriginDay,
    /// Zones, with the nodes dealt out in turn.
    pub zones: u32,
    /// Rate into and out of each zone from the others, in bytes of payload a second; none for no bound.
    pub zone_rate: Option<f64>,
    /// One-way latency within a zone.
    pub latency: Duration,
    /// One-way latency between zones.
    pub zone_latency: Duration,
    /// What a message waits in the queue of its sender's uplink while that carries pieces, and again in that of its
    /// receiver's downlink. An answer's first byte waits as long.
    pub queue_latency: Duration,
    /// Time to the first byte at the origin.
    pub origin_latency: Duration,
    /// Bytes a second that a node can verify and write.
    pub verify: f64,
    /// Nodes start within this time, evenly by chance.
    pub within: Duration,
    /// Or one after the other, this far apart.
    pub apart: Option<Duration>,
    /// How many nodes (from the second on) have a fault, and which.
    pub faults: (usize, Option<Fault>),
    /// The chance that a node never hears of another from the membership.
    pub view_gaps: f64,
    /// The last node has a reader that waits for a piece by chance that is not there yet, this often while it fills.
    pub reads: Option<Duration>,
    /// While a node sends or receives a piece that a reader waits for, its other pieces stand still.
    pub yields: bool,
    /// The nodes' limits.
    pub limits: Limits,
    /// The run ends then at the latest, in multiples of the bound plus a minute.
    pub patience: f64,
}

impl Scenario {
    /// A flash crowd of equal nodes in one zone: a model of `mib` MiB, links of `mbit` Mb/s, an origin of `origin` Mb/s.
    #[must_use]
    pub fn crowd(nodes: usize, mib: u32, mbit: f64, origin: f64) -> Self {
        Self {
            name: format!("{nodes} nodes"),
            nodes,
            pieces: piece_count(u64::from(mib) << 20),
            files: 1,
            link: Link::mbit(mbit),
            slow: None,
            origin: payload(origin),
            day: OriginDay::Good,
            zones: 1,
            zone_rate: None,
            latency: Duration::from_micros(300),
            zone_latency: Duration::from_millis(5),
            queue_latency: Duration::ZERO,
            origin_latency: Duration::from_millis(20),
            verify: 2e9,
            within: Duration::from_millis(100),
            apart: None,
            faults: (0, None),
            view_gaps: 0.0,
            reads: None,
            yields: false,
            limits: Limits::default(),
            patience: 20.0,
        }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// With what real links add: messages that wait `queue` behind pieces at each end, 8 ms to verify and write one.
    #[must_use]
    pub fn under_load(self, queue: Duration) -> Self {
        Self { queue_latency: queue, verify: 5e8, ..self }
    }

    /// What a piece takes on a node's idle link.
    #[must_use]
    pub fn piece_time(&self) -> Duration {
        Duration::from_secs_f64(PIECE_LEN as f64 / self.link.down)
    }

    /// Pieces of a file.
    #[must_use]
    pub fn pieces_of(&self, file: u32) -> u32 {
        let until = |file: u32| (u64::from(self.pieces) * u64::from(file) / u64::from(self.files)) as u32;
        until(file + 1) - until(file)
    }

    /// Bytes of the model.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        f64::from(self.pieces) * PIECE_LEN as f64
    }

    /// The link of a node.
    #[must_use]
    pub fn link_of(&self, node: usize) -> Link {
        match self.slow {
            Some((every, factor)) if node % every == every - 1 => {
                Link { up: self.link.up / factor, down: self.link.down / factor }
            }
            _ => self.link,
        }
    }

    /// Whether a node has the scenario's fault.
    #[must_use]
    pub fn fault_of(&self, node: usize) -> Option<Fault> {
        self.faults.1.filter(|_| (1..=self.faults.0).contains(&node))
    }

    /// No node that ends can do so earlier than this after the last node's start, whatever the algorithm:
    /// max{ S/U_origin, S/min(down, verify), N·S/(U_origin + Σ up), S/(X_zone + U_origin) }, over the nodes without
    /// fault. For nodes that start apart, per node and without the third term: who comes late finds holders.
    #[must_use]
    pub fn bound(&self) -> Duration {
        let sound: Vec<Link> = (0..self.nodes)
            .filter(|&node| self.fault_of(node).is_none())
            .map(|node| self.link_of(node))
            .collect();
        let size = self.bytes();
        let slowest = sound.iter().map(|link| link.down).fold(self.verify, f64::min);
        let mut seconds = (size / self.origin).max(size / slowest);
        if self.apart.is_none() {
            let up: f64 = sound.iter().map(|link| link.up).sum();
            seconds = seconds.max(sound.len() as f64 * size / (self.origin + up));
        }
        if let Some(rate) = self.zone_rate {
            seconds = seconds.max(size / (rate + self.origin));
        }
        Duration::from_secs_f64(seconds)
    }
}
