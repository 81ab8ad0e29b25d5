//! What befalls nodes: a reader's wants, deaths, stops.

use std::time::Duration;

use super::{Asked, Carrying, Happens, Life, Part, World, content_of, upload_id};
use crate::sim::Fault;
use crate::sim::fluid::FlowId;
use crate::{Event, Failure, RequestId};

impl World<'_> {
    /// The last node's reader touches a piece that is not there.
    pub(super) fn read(&mut self) {
        let n = self.nodes.len() - 1;
        let mut absent: Vec<Part> = Vec::new();
        for file in 0..self.scenario.files {
            if let Some(have) = self.nodes[n].swarm.have(content_of(file)) {
                let pieces = (0..have.len()).filter(|&piece| !have.has(piece));
                absent.extend(pieces.map(|piece| (content_of(file), piece)));
            }
        }
        if !absent.is_empty() {
            let part = absent[self.rng.below(absent.len() as u32) as usize];
            if self.reading.iter().all(|read| read.0 != part) {
                self.reading.push((part, self.now));
                self.apply(n, Event::Demand { content: part.0, piece: part.1 });
            }
        }
        if self.nodes[n].ready.is_none()
            && let Some(gap) = self.scenario.reads
        {
            self.after(gap, Happens::Read);
        }
    }

    /// The scenario's nodes vanish or stop.
    pub(super) fn fail(&mut self) {
        for n in 0..self.nodes.len() {
            let Some(fault) = self.nodes[n].fault else { continue };
            let killed = matches!(fault, Fault::Killed(_));
            self.nodes[n].life = if killed { Life::Dead } else { Life::Stopped };
            let noticed = self.now + Duration::from_secs(if killed { 3 } else { 10 });
            self.buried.push((noticed, n));
            let (up, down) = (self.nodes[n].up, self.nodes[n].down);
            if !killed {
                self.fluid.set_capacity(up, 0.0, self.now);
                self.fluid.set_capacity(down, 0.0, self.now);
                continue;
            }
            let mut broken: Vec<FlowId> = self.fluid.flows_at(up).to_vec();
            broken.extend(self.fluid.flows_at(down));
            for flow in broken {
                let Some(Carrying { from, to, request, .. }) =
                    self.flows.get(&flow).map(|flow| Carrying { ..*flow })
                else {
                    continue;
                };
                self.end_flow(flow);
                self.by_ask.remove(&(to, request));
                match from {
                    Some(sender) if sender != n => {
                        self.apply(sender, Event::UploadEnded { upload: upload_id(to, request) });
                    }
                    Some(_) => self.fail_request(to, request, Failure::Broken, self.scenario.latency),
                    None => self.at_origin -= 1,
                }
            }
            // Requests that waited there break, too, and so do links.
            for other in 0..self.nodes.len() {
                let mut waiting: Vec<RequestId> = self.nodes[other]
                    .asked
                    .iter()
                    .filter(|(_, asked)| matches!(asked, Asked::Peer { holder, .. } if *holder == n))
                    .map(|(&request, _)| request)
                    .collect();
                waiting.sort();
                for request in waiting {
                    self.fail_request(other, request, Failure::Broken, self.scenario.latency);
                }
                for file in 0..self.scenario.files {
                    let event = Event::Unlinked { content: content_of(file), peer: self.nodes[n].peer.id };
                    self.after(self.scenario.latency, Happens::Deliver(other, event));
                }
            }
        }
    }
}
