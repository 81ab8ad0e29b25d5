//! The least time that physics allows, from what a scenario says of its links.
//!
//! The fluid bound of Kumar and Ross, extended: with S bytes, N nodes that start together, uplinks u, downlinks d, an
//! origin that sends U_o and zones that are sent X each, all in bytes of payload,
//! T ≥ max{ S/U_o, S/d, N·S/(U_o + Σu), S/X }.

use std::time::Duration;

use super::rate::Rate;

/// What decides the bound.
#[derive(Clone, Debug)]
pub struct Links<'a> {
    /// Bytes of the model.
    pub model: u64,
    /// The origin's link; not shaped: `None`.
    pub origin: Option<Rate>,
    /// The nodes' links, equal up and down.
    pub nodes: &'a [Option<Rate>],
    /// The link of each of several zones.
    pub zone: Option<Rate>,
    /// From one start to the next.
    pub every: Duration,
}

impl Links<'_> {
    /// The bound, in seconds, on the longest time from a node's own start to its own end, over the nodes whose link is at least as
    /// fast as that of `node`. 0 where nothing is shaped.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "models are far below 2^52 bytes")]
    pub fn bound(&self, node: usize) -> f64 {
        let rate = |rate: Option<Rate>| rate.map_or(f64::INFINITY, Rate::payload);
        let (len, origin, own) = (self.model as f64, rate(self.origin), rate(self.nodes[node]));
        let zone = self.zone.map_or(f64::INFINITY, Rate::payload);
        let wanting = self.nodes.iter().filter(|&&other| rate(other) >= own).count() as f64;
        let sending: f64 = origin + self.nodes.iter().map(|&other| rate(other)).sum::<f64>();
        // All of it has moved when the last node is ready, which started this much after the first.
        let offset = self.every.as_secs_f64() * self.nodes.len().saturating_sub(1) as f64;
        (len / origin).max(len / own).max(len / zone).max(wanting * len / sending - offset)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Links, Rate};

    #[track_caller]
    fn check(links: &Links<'_>, node: usize, expected: f64) {
        let bound = links.bound(node);
        assert!((bound - expected).abs() < 0.01 * expected.max(0.01), "{bound}, expected {expected}");
    }

    #[test]
    fn the_narrowest_place_decides() {
        let nodes = [Some(Rate::mbit(200)); 8];
        let links = Links {
            model: 256 << 20,
            origin: Some(Rate::mbit(1000)),
            nodes: &nodes,
            zone: None,
            every: Duration::ZERO,
        };
        // Measured on the same links, and the figure of every row there: 11.23 s.
        check(&links, 0, 11.23);
        check(&Links { origin: Some(Rate::mbit(200)), ..links.clone() }, 0, 11.23);
        check(&Links { origin: Some(Rate::mbit(100)), ..links.clone() }, 0, 22.45);
        check(&Links { zone: Some(Rate::mbit(50)), ..links.clone() }, 0, 44.9);
        // A hundred nodes behind a slow origin are held up by what all can send together.
        let many = [Some(Rate::mbit(1000)), Some(Rate::mbit(1000)), Some(Rate::mbit(5))];
        let links = Links { nodes: &many, origin: Some(Rate::mbit(1000)), ..links };
        check(&links, 2, 449.0);
        check(&links, 0, 2.245);
        check(&Links { nodes: &[None], origin: None, ..links }, 0, 0.0);
    }
}
