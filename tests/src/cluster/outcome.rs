//! What a run showed, and whether it was as it must be.

use std::time::Duration;

use serde::Serialize;

use super::busy;
use super::capture::Found;
use super::model::Verdict;
use super::scenario::{Limits, Peers};
use super::stranger::Reception;

/// How far the origin's own count and its link's may be apart, as a share: headers are 4.5 % of what full packets take, and less
/// where the kernel passes bundles of packets on.
const METERS_APART: f64 = 0.05;

/// Bytes by which they may be apart beside that: what had been handed to the kernel when a connection ended.
const METERS_SLACK_BYTES: u64 = 8 << 20;

/// How a node fared.
#[derive(Clone, Debug, Serialize)]
pub struct NodeEnd {
    /// Its number.
    pub index: usize,
    /// From its own start until every byte was verified; `None` where it did not end.
    pub seconds: Option<f64>,
    /// The same until every byte was durable, to the half second.
    pub durable: Option<f64>,
    /// The least that its links allow, in seconds; 0 where they are not shaped.
    pub bound: f64,
    /// It was killed or stopped meanwhile, so that its time says nothing.
    pub disturbed: bool,
    /// It was not expected to end.
    pub excused: bool,
    /// What its store holds.
    pub verdict: Verdict,
    /// What the daemon answered, where that was an error nobody meant to happen.
    pub error: Option<String>,
    /// Peers that it dealt with no longer at the end, all of them honest.
    pub banned: usize,
    /// Bytes that it sent.
    pub sent: u64,
}

/// Cold reads of one reader.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reads {
    /// How many there were.
    pub count: usize,
    /// Half of them took no longer than this, in seconds.
    pub p50: f64,
    /// 95 of 100 took no longer than this, in seconds.
    pub p95: f64,
    /// One piece on the idle link, in seconds.
    pub piece: f64,
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The scenario.
    pub name: String,
    /// Where pieces came from.
    pub peers: Peers,
    /// What must hold.
    pub limits: Limits,
    /// Bytes of the model.
    pub model: u64,
    /// The nodes.
    pub nodes: Vec<NodeEnd>,
    /// Bytes of weight layers that the origin sent, by its own count.
    pub origin_bytes: u64,
    /// What its link says that it sent, in all.
    pub origin_link_bytes: u64,
    /// Requests for weight layers, and how many of these it refused or spoilt.
    pub requests: u64,
    /// See above.
    pub faulty: u64,
    /// Bytes between zones, where there are several.
    pub cross_zone_bytes: Option<u64>,
    /// Processor time of all daemons, in seconds.
    pub cpu_seconds: f64,
    /// The largest daemon's memory.
    pub peak_rss_bytes: u64,
    /// Share of all processors that was busy during the run.
    pub busy: f64,
    /// Whether stores were in memory and not on the disk.
    pub in_memory: bool,
    /// From the first start to the last end.
    pub elapsed: Duration,
    /// Cold reads, where there was a reader.
    pub reads: Option<Reads>,
    /// What a stranger got, where there was one.
    pub stranger: Option<Reception>,
    /// What a recorded link shows, where one was.
    pub found: Option<Found>,
}

impl Outcome {
    /// Times of the nodes that count, in seconds, sorted.
    #[must_use]
    pub fn times(&self) -> Vec<f64> {
        let mut times: Vec<f64> = self.counting().filter_map(|node| node.seconds).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The bound of the run: that of most nodes.
    #[must_use]
    pub fn bound(&self) -> f64 {
        let mut bounds: Vec<f64> = self.nodes.iter().map(|node| node.bound).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.get(bounds.len() / 2).copied().unwrap_or(0.0)
    }

    /// The largest of all nodes' times, each over its own bound. `None` where a node has not ended or links are not shaped.
    #[must_use]
    pub fn last_over_bound(&self) -> Option<f64> {
        let ratios: Option<Vec<f64>> = self
            .counting()
            .map(|node| node.seconds.filter(|_| node.bound > 0.0).map(|seconds| seconds / node.bound))
            .collect();
        ratios?.into_iter().max_by(f64::total_cmp)
    }

    /// What the origin sent in multiples of the model.
    #[must_use]
    pub fn origin(&self) -> f64 {
        self.in_models(self.origin_bytes)
    }

    /// What crossed zones in multiples of the model.
    #[must_use]
    pub fn cross_zone(&self) -> Option<f64> {
        self.cross_zone_bytes.map(|bytes| self.in_models(bytes))
    }

    /// The largest upload over the mean of all, of the nodes that were not disturbed. `None` without peers.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn upload(&self) -> Option<f64> {
        let sent: Vec<f64> = self.counting().map(|node| node.sent as f64).collect();
        let mean = sent.iter().sum::<f64>() / sent.len().max(1) as f64;
        let largest = sent.into_iter().max_by(f64::total_cmp)?;
        (self.peers != Peers::None).then_some(largest / mean)
    }

    /// What all stores hold together.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.nodes.iter().fold(Verdict::default(), |sum, node| Verdict {
            right: sum.right + node.verdict.right,
            missing: sum.missing + node.verdict.missing,
            wrong: sum.wrong + node.verdict.wrong,
        })
    }

    /// Whether the processors and not the links may have set the times.
    #[must_use]
    pub fn is_cpu_bound(&self) -> bool {
        self.busy >= busy::BOUND
    }

    /// What must hold in every run and does not: right bytes at all nodes that can have them, no honest peer banned, meters that agree,
    /// nothing for strangers, no secret at peers.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for node in &self.nodes {
            let Verdict { missing, wrong, .. } = node.verdict;
            if wrong > 0 {
                faults.push(format!("node {}: {wrong} files with wrong bytes", node.index));
            }
            if !node.excused && (node.seconds.is_none() || missing > 0) {
                let why = node.error.as_deref().unwrap_or("its time was up");
                faults.push(format!("node {} did not end ({missing} files missing): {why}", node.index));
            }
            if node.banned > 0 {
                faults.push(format!("node {} banned {} honest peers", node.index, node.banned));
            }
        }
        if !self.meters_agree() {
            let (own, link) = (self.origin_bytes, self.origin_link_bytes);
            faults.push(format!("the origin says it sent {own} bytes, its link says {link}"));
        }
        if let Some(got) =
            self.stranger.filter(|got| got.answered > 0 || got.left_open > 0 || got.connections == 0)
        {
            faults.push(format!("a stranger was dealt with: {got:?}"));
        }
        if let Some(found) = self.found {
            if found.at_origin == 0 || (self.peers != Peers::None && found.peer_bytes < self.model / 10) {
                faults.push(format!("the recorded link shows too little to prove anything: {found:?}"));
            } else if found.at_peers > 0 {
                faults.push(format!("secrets stand {} times in what peers exchanged", found.at_peers));
            }
        }
        faults
    }

    /// Limits of the scenario that do not hold.
    #[must_use]
    pub fn exceeded(&self) -> Vec<String> {
        let reads = self.reads.map(|reads| reads.p95 / reads.piece);
        [
            ("origin", self.limits.origin, Some(self.origin())),
            ("last ÷ bound", self.limits.last, self.last_over_bound()),
            ("cross-zone", self.limits.cross_zone, self.cross_zone()),
            ("largest upload ÷ mean", self.limits.upload, self.upload()),
            ("cold read ÷ piece", self.limits.read, reads),
        ]
        .into_iter()
        .filter_map(|(what, limit, value)| match (limit?, value) {
            (limit, Some(value)) if value <= limit => None,
            (limit, Some(value)) => Some(format!("{what} is {value:.3}, the limit {limit}")),
            (limit, None) => Some(format!("{what} could not be measured, the limit is {limit}")),
        })
        .collect()
    }

    fn counting(&self) -> impl Iterator<Item = &NodeEnd> {
        self.nodes.iter().filter(|node| !node.disturbed && !node.excused)
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn in_models(&self, bytes: u64) -> f64 {
        bytes as f64 / self.model as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn meters_agree(&self) -> bool {
        let (own, link) = (self.origin_bytes, self.origin_link_bytes);
        let apart = own.abs_diff(link).saturating_sub(METERS_SLACK_BYTES);
        apart as f64 <= METERS_APART * own.max(link) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let verdict = Verdict { right: 3, missing: 0, wrong: 0 };
        let node = |index, seconds, sent| NodeEnd {
            index,
            seconds: Some(seconds),
            durable: Some(seconds),
            bound: 10.0,
            disturbed: false,
            excused: false,
            verdict,
            error: None,
            banned: 0,
            sent,
        };
        Outcome {
            name: "x".into(),
            peers: Peers::Swarm,
            limits: Limits { origin: Some(1.05), last: Some(1.25), upload: Some(2.0), ..Limits::default() },
            model: 100 << 20,
            nodes: vec![node(0, 12.0, 300), node(1, 11.0, 100)],
            origin_bytes: 100 << 20,
            origin_link_bytes: 101 << 20,
            requests: 13,
            faulty: 0,
            cross_zone_bytes: None,
            cpu_seconds: 1.0,
            peak_rss_bytes: 1,
            busy: 0.3,
            in_memory: true,
            elapsed: Duration::from_secs(12),
            reads: None,
            stranger: None,
            found: None,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Outcome), fault: Option<&str>, exceeded: Option<&str>) {
        let mut outcome = outcome();
        change(&mut outcome);
        for (found, expected) in [(outcome.faults(), fault), (outcome.exceeded(), exceeded)] {
            match expected {
                None => assert!(found.is_empty(), "{found:?}"),
                Some(part) => {
                    assert!(found.iter().any(|text| text.contains(part)), "{found:?} lacks {part:?}")
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        check(|_| {}, None, None);
        check(|run| run.nodes[1].verdict.wrong = 1, Some("wrong bytes"), None);
        check(|run| run.nodes[1].verdict.missing = 1, Some("did not end"), None);
        check(|run| run.nodes[1].seconds = None, Some("did not end"), Some("last ÷ bound could not"));
        check(|run| run.nodes[1].banned = 1, Some("banned 1 honest"), None);
        check(|run| run.origin_link_bytes *= 2, Some("its link says"), None);
        check(|run| run.nodes[0].seconds = Some(12.6), None, Some("last ÷ bound is 1.26"));
        check(|run| run.origin_bytes = 106 << 20, None, Some("origin is 1.060"));
        check(|run| run.nodes[1].sent = 0, None, None);
        check(
            |run| run.nodes.push(NodeEnd { index: 2, sent: 0, ..run.nodes[1].clone() }),
            None,
            Some("upload"),
        );
        let disturbed = |run: &mut Outcome| {
            run.nodes[0].disturbed = true;
            run.nodes[0].seconds = Some(99.0);
        };
        check(disturbed, None, None);
        let stranger = Reception { connections: 1, answered: 1, ..Reception::default() };
        check(|run| run.stranger = Some(stranger), Some("stranger"), None);
        let found = Found { peer_bytes: 1 << 30, at_peers: 1, at_origin: 1 };
        check(|run| run.found = Some(found), Some("secrets"), None);
        check(|run| run.found = Some(Found { at_origin: 0, ..found }), Some("too little"), None);
    }
}
