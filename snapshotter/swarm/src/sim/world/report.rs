//! What came of it.

use std::time::Duration;

use towline_artifact::PIECE_LEN;

use super::World;
use crate::PeerId;
use crate::sim::Report;

impl World<'_> {
    pub(super) fn report(mut self) -> Report {
        let sound = self.sound().count();
        let last_start = self.nodes.iter().map(|node| node.born).max().unwrap_or_default();
        let apart = self.scenario.apart.is_some();
        let mut times: Vec<Duration> = self
            .sound()
            .filter_map(|node| Some(node.ready?.since(if apart { node.born } else { last_start })))
            .collect();
        times.sort();
        let uploads: Vec<u64> = self.sound().map(|node| node.uploaded).collect();
        let mean = uploads.iter().sum::<u64>() as f64 / uploads.len().max(1) as f64;
        let most = uploads.iter().copied().max().unwrap_or_default() as f64;
        let across: f64 = self.borders.iter().map(|border| self.fluid.carried(border.0)).sum();
        let needed = (sound as f64 * f64::from(self.scenario.pieces)).max(1.0);
        let twice: u64 = self.sound().map(|node| node.swarm.counts().twice).sum();
        let banned = |fault: bool| {
            let suspects = self.nodes.iter().filter(|node| node.fault.is_some() == fault);
            let is_banned = |id: PeerId| self.sound().any(|node| node.swarm.is_banned(id, self.now));
            suspects.filter(|node| is_banned(node.peer.id)).count()
        };
        let (honest_banned, faulty_banned) = match self.scenario.faults.1 {
            None => (0, 0),
            Some(_) => (banned(false), banned(true)),
        };
        Report {
            name: self.scenario.name.clone(),
            seed: self.seed,
            sound,
            complete: times.len(),
            bound: self.scenario.bound(),
            times,
            origin: (self.fluid.carried(self.origin) - self.to_liars as f64 * PIECE_LEN as f64)
                / self.scenario.bytes(),
            across: across / self.scenario.bytes(),
            spread: most / mean.max(1e-9),
            twice: twice as f64 / needed,
            honest_banned,
            faulty_banned,
            events: self.events,
            reads: {
                self.reads.sort_by(f64::total_cmp);
                let piece = self.scenario.piece_time().as_secs_f64();
                self.reads.iter().map(|seconds| seconds / piece).collect()
            },
            progress: std::mem::take(&mut self.progress),
        }
    }
}
