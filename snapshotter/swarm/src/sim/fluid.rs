//! Links as pipes of fluid: what TCP flows that share them come to.
//!
//! A flow crosses a few resources (its sender's uplink, its receiver's downlink, perhaps a link between zones). At each
//! it may have the greater of a fair share and what the others leave; it runs at the least of these. Shares are
//! worked out anew for the flows of the resources that a flow joins or leaves, not for all of the network: the result
//! never exceeds a capacity at rest and is close to max-min fair.

use crate::Time;

/// Names a resource.
pub(crate) type ResourceId = usize;
/// Names a flow; used again after its end.
pub(crate) type FlowId = usize;

#[derive(Debug)]
struct Resource {
    /// Bytes a second.
    capacity: f64,
    used: f64,
    flows: Vec<FlowId>,
    carried: f64,
}

#[derive(Debug)]
struct Flow {
    resources: Vec<ResourceId>,
    remaining: f64,
    rate: f64,
    /// Its part of a fair share.
    weight: f64,
    /// How many reasons there are for it to stand still.
    pauses: u32,
    since: Time,
    /// When its end was last announced.
    announced: Option<Time>,
    /// Tells this flow from earlier ones of the same name.
    stamp: u64,
}

/// All pipes and what flows in them.
#[derive(Debug, Default)]
pub(crate) struct Fluid {
    resources: Vec<Resource>,
    flows: Vec<Option<Flow>>,
    free: Vec<FlowId>,
    next_stamp: u64,
    /// Ends to look at: when, which flow, its stamp. Taken out by the caller.
    pub(crate) ends: Vec<(Time, FlowId, u64)>,
}

impl Fluid {
    pub(crate) fn add_resource(&mut self, capacity: f64) -> ResourceId {
        self.resources.push(Resource { capacity, used: 0.0, flows: Vec::new(), carried: 0.0 });
        self.resources.len() - 1
    }

    pub(crate) fn set_capacity(&mut self, resource: ResourceId, capacity: f64, now: Time) {
        self.resources[resource].capacity = capacity;
        self.share(resource, now);
    }

    /// Bytes that went through a resource, up to the last change of each flow.
    pub(crate) fn carried(&self, resource: ResourceId) -> f64 {
        self.resources[resource].carried
    }

    pub(crate) fn flows_at(&self, resource: ResourceId) -> &[FlowId] {
        &self.resources[resource].flows
    }

    pub(crate) fn is_moving(&self, flow: FlowId) -> bool {
        self.flows[flow].as_ref().is_some_and(|flow| flow.rate > 1.0)
    }

    pub(crate) fn start(&mut self, resources: Vec<ResourceId>, bytes: f64, now: Time) -> FlowId {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        let flow = Flow {
            resources: resources.clone(),
            remaining: bytes,
            rate: 0.0,
            weight: 1.0,
            pauses: 0,
            since: now,
            announced: None,
            stamp,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        self.flows[id] = Some(flow);
        for &resource in &resources {
            self.resources[resource].flows.push(id);
        }
        let offer = resources
            .iter()
            .map(|&resource| self.offer(resource, id, 0.0, true))
            .fold(f64::INFINITY, f64::min);
        self.set_rate(id, offer, now);
        for &resource in &resources {
            self.squeeze(resource, now);
        }
        id
    }

    /// Lets a flow stand still, or go on once as many calls have said so.
    pub(crate) fn pause(&mut self, id: FlowId, paused: bool, now: Time) {
        let Some(flow) = self.flows[id].as_mut() else { return };
        flow.pauses = if paused { flow.pauses + 1 } else { flow.pauses.saturating_sub(1) };
        let resources = flow.resources.clone();
        if flow.pauses > 0 {
            self.settle(id, now);
            self.set_rate(id, 0.0, now);
        }
        for resource in resources {
            self.share(resource, now);
        }
    }

    /// Gives a flow `weight` of a share where others have one.
    pub(crate) fn weigh(&mut self, id: FlowId, weight: f64, now: Time) {
        let Some(flow) = self.flows[id].as_mut() else { return };
        if flow.weight == weight {
            return;
        }
        flow.weight = weight;
        for resource in flow.resources.clone() {
            self.share(resource, now);
        }
    }

    fn weight(&self, id: FlowId) -> f64 {
        self.flows[id].as_ref().map_or(1.0, |flow| flow.weight)
    }

    fn is_paused(&self, id: FlowId) -> bool {
        self.flows[id].as_ref().is_some_and(|flow| flow.pauses > 0)
    }

    /// Gives a flow more to carry.
    pub(crate) fn extend(&mut self, id: FlowId, bytes: f64, now: Time) {
        self.settle(id, now);
        let flow = self.flows[id].as_mut().expect("extended while it flows");
        flow.remaining = bytes;
        flow.announced = None;
        self.announce(id, now);
    }

    pub(crate) fn end(&mut self, id: FlowId, now: Time) {
        self.settle(id, now);
        self.set_rate(id, 0.0, now);
        let Some(flow) = self.flows[id].take() else { return };
        self.free.push(id);
        for &resource in &flow.resources {
            self.resources[resource].flows.retain(|&other| other != id);
        }
        for &resource in &flow.resources {
            self.share(resource, now);
        }
    }

    /// Whether an announced end has come. Announces a later one if not.
    pub(crate) fn has_ended(&mut self, id: FlowId, stamp: u64, now: Time) -> bool {
        if self.flows.get(id).and_then(Option::as_ref).is_none_or(|flow| flow.stamp != stamp) {
            return false;
        }
        self.settle(id, now);
        let flow = self.flows[id].as_mut().expect("checked");
        if flow.announced.is_none_or(|at| at > now) {
            return false;
        }
        if flow.remaining < 1.0 {
            flow.announced = None;
            return true;
        }
        flow.announced = None;
        self.announce(id, now);
        false
    }

    /// What a resource has for a flow that has `rate` of it: what is left, or a fair share if that is more.
    fn offer(&self, resource: ResourceId, id: FlowId, rate: f64, fair: bool) -> f64 {
        let resource = &self.resources[resource];
        let rest = (resource.capacity - (resource.used - rate)).max(0.0);
        if fair { rest.max(self.level(resource, Some(id)) * self.weight(id)) } else { rest }
    }

    /// The rate per weight at which flows are cut off so that they fill a resource: those below it keep what they have.
    /// `hungry` is taken to want any rate.
    fn level(&self, resource: &Resource, hungry: Option<FlowId>) -> f64 {
        let going = || resource.flows.iter().copied().filter(|&id| !self.is_paused(id));
        let mut level = resource.capacity / going().map(|id| self.weight(id)).sum::<f64>().max(1e-9);
        // Each round sees more flows below the level; three come close.
        for _ in 0..3 {
            let (mut below, mut above) = (0.0, 0.0);
            for id in going() {
                let (rate, weight) = (self.flows[id].as_ref().map_or(0.0, |flow| flow.rate), self.weight(id));
                if rate < level * weight && Some(id) != hungry {
                    below += rate;
                } else {
                    above += weight;
                }
            }
            if above == 0.0 {
                break;
            }
            level = (resource.capacity - below) / above;
        }
        level
    }

    fn share(&mut self, resource: ResourceId, now: Time) {
        for at in 0..self.resources[resource].flows.len() {
            let id = self.resources[resource].flows[at];
            let Some(flow) = self.flows[id].as_ref().filter(|flow| flow.pauses == 0) else { continue };
            let offers =
                flow.resources.iter().map(|&other| self.offer(other, id, flow.rate, other == resource));
            let rate = offers.fold(f64::INFINITY, f64::min);
            if (rate - flow.rate).abs() > 0.005 * flow.rate {
                self.settle(id, now);
                self.set_rate(id, rate, now);
            }
        }
        self.squeeze(resource, now);
    }

    /// Takes from flows that have more than a fair share until a resource carries no more than it can.
    fn squeeze(&mut self, resource: ResourceId, now: Time) {
        if self.resources[resource].used <= self.resources[resource].capacity {
            return;
        }
        let level = self.level(&self.resources[resource], None);
        let mut freed: Vec<ResourceId> = Vec::new();
        for at in 0..self.resources[resource].flows.len() {
            let id = self.resources[resource].flows[at];
            let most = level * self.weight(id);
            if self.flows[id].as_ref().is_some_and(|flow| flow.rate > most) {
                self.settle(id, now);
                self.set_rate(id, most, now);
                freed.extend(
                    self.flows[id]
                        .iter()
                        .flat_map(|flow| &flow.resources)
                        .filter(|&&other| other != resource),
                );
            }
        }
        for other in freed {
            self.fill(other, now);
        }
    }

    /// Gives what a resource has left to flows that can take it.
    fn fill(&mut self, resource: ResourceId, now: Time) {
        for at in 0..self.resources[resource].flows.len() {
            let Resource { capacity, used, ref flows, .. } = self.resources[resource];
            if capacity - used <= 0.01 * capacity {
                return;
            }
            let id = flows[at];
            let Some(flow) = self.flows[id].as_ref().filter(|flow| flow.pauses == 0) else { continue };
            let offers = flow.resources.iter().map(|&other| self.offer(other, id, flow.rate, false));
            let rate = offers.fold(f64::INFINITY, f64::min);
            if rate > 1.005 * flow.rate {
                self.settle(id, now);
                self.set_rate(id, rate, now);
            }
        }
    }

    fn settle(&mut self, id: FlowId, now: Time) {
        let Some(flow) = self.flows[id].as_mut() else { return };
        let moved = (flow.rate * now.since(flow.since).as_secs_f64()).min(flow.remaining);
        flow.remaining -= moved;
        flow.since = now;
        for &resource in &flow.resources {
            self.resources[resource].carried += moved;
        }
    }

    fn set_rate(&mut self, id: FlowId, rate: f64, now: Time) {
        let Some(flow) = self.flows[id].as_mut() else { return };
        for &resource in &flow.resources {
            self.resources[resource].used += rate - flow.rate;
        }
        flow.rate = rate;
        self.announce(id, now);
    }

    fn announce(&mut self, id: FlowId, now: Time) {
        let Some(flow) = self.flows[id].as_mut() else { return };
        if flow.rate <= 1.0 {
            return;
        }
        let micros = (flow.remaining / flow.rate * 1e6).ceil().min(1e15) as u64;
        let end = now + std::time::Duration::from_micros(micros);
        // A later end is found when the announced one comes.
        if flow.announced.is_none_or(|at| end < at || at < now) {
            flow.announced = Some(end);
            self.ends.push((end, id, flow.stamp));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nothing_carries_more_than_it_can() {
        let mut fluid = Fluid::default();
        let resources: Vec<ResourceId> = (0..20).map(|n| fluid.add_resource(50.0 + f64::from(n))).collect();
        let (mut rng, mut flows, mut now) = (crate::rng::Rng::new(3), Vec::new(), Time::ZERO);
        for _ in 0..5000 {
            now = now + Duration::from_millis(50);
            if flows.len() < 60 && rng.below(2) == 0 {
                let (a, b) = (rng.below(10) as usize, 10 + rng.below(10) as usize);
                flows.push(fluid.start(vec![resources[a], resources[b]], 1e9, now));
            } else if !flows.is_empty() {
                let id = flows.swap_remove(rng.below(flows.len() as u32) as usize);
                fluid.end(id, now);
            }
            for resource in &fluid.resources {
                assert!(
                    resource.used <= resource.capacity * 1.0001,
                    "{} of {}",
                    resource.used,
                    resource.capacity
                );
                let sum: f64 =
                    resource.flows.iter().filter_map(|&id| Some(fluid.flows[id].as_ref()?.rate)).sum();
                assert!((sum - resource.used).abs() < 0.001);
            }
        }
    }

    #[test]
    fn shares_are_fair_and_what_is_left_is_used() {
        let mut fluid = Fluid::default();
        let (up, slow, fast) =
            (fluid.add_resource(100.0), fluid.add_resource(10.0), fluid.add_resource(1000.0));
        let a = fluid.start(vec![up, slow], 1e6, Time::ZERO);
        let b = fluid.start(vec![up, fast], 1e6, Time::ZERO);
        let rate = |fluid: &Fluid, id: FlowId| fluid.flows[id].as_ref().map(|flow| flow.rate.round());
        assert_eq!((rate(&fluid, a), rate(&fluid, b)), (Some(10.0), Some(90.0)));
        let c = fluid.start(vec![up, fast], 1e6, Time::ZERO);
        assert_eq!((rate(&fluid, a), rate(&fluid, b), rate(&fluid, c)), (Some(10.0), Some(45.0), Some(45.0)));
        let later = Time::ZERO + Duration::from_secs(10);
        fluid.end(b, later);
        assert_eq!(rate(&fluid, c), Some(90.0));
        fluid.end(a, later);
        assert_eq!((fluid.carried(slow).round(), fluid.carried(up).round()), (100.0, 1000.0));
    }
}
