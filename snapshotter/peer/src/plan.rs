//! In which order whole models are fetched: pure.
//!
//! A fill is a list of parts of contents, in the order in which a loader reads. Not all are asked for at once: nodes that
//! fetch the same model should want the same pieces at the same time, or each would be a stranger to what the others have.
//! So the first parts are *active*, up to a number of missing pieces, and the next follow as these arrive.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use towline_artifact::ContentId;

/// Missing pieces in the active parts of a fill, about: 1 GiB, enough for the swarm's whole window at 8 Gb/s.
const ACTIVE_PIECES: u32 = 256;
/// Active parts of a fill at most. Each content has links of its own.
const ACTIVE_PARTS: usize = 32;

/// A part of a fill that changed: its content is now fetched whole, in part, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// All of it is wanted.
    Whole(ContentId),
    /// Only these pieces.
    Part(ContentId, Range<u32>),
    /// None of it.
    Nothing(ContentId),
}

#[derive(Debug)]
struct Fill {
    waiting: VecDeque<(ContentId, Range<u32>)>,
    active: Vec<(ContentId, Range<u32>)>,
}

/// All fills of the node.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    fills: BTreeMap<u64, Fill>,
    paused: bool,
    /// What was last said of each content.
    said: BTreeMap<ContentId, Change>,
}

impl Plan {
    pub(crate) fn start(&mut self, id: u64, parts: Vec<(ContentId, Range<u32>)>) {
        self.fills.insert(id, Fill { waiting: parts.into(), active: Vec::new() });
    }

    pub(crate) fn stop(&mut self, id: u64) {
        self.fills.remove(&id);
    }

    /// Whether there is nothing to fetch and nothing to take back.
    pub(crate) fn is_idle(&self) -> bool {
        self.fills.is_empty() && self.said.is_empty()
    }

    /// Contents of which something is asked for.
    pub(crate) fn active(&self) -> Vec<ContentId> {
        self.said.keys().copied().collect()
    }

    /// Whether fills rest.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// A content is gone: no part of it can be fetched.
    pub(crate) fn forget(&mut self, content: ContentId) {
        for fill in self.fills.values_mut() {
            fill.waiting.retain(|part| part.0 != content);
            fill.active.retain(|part| part.0 != content);
        }
        self.said.remove(&content);
    }

    /// Goes on with all fills. `missing` counts the pieces of a part that are not here, `pieces` those of a content; both
    /// are `None` for contents that are not taken part in.
    pub(crate) fn advance(
        &mut self,
        missing: impl Fn(ContentId, &Range<u32>) -> Option<u32>,
        pieces: impl Fn(ContentId) -> Option<u32>,
    ) -> Vec<Change> {
        for fill in self.fills.values_mut() {
            let mut under_way = 0;
            fill.active.retain(|(content, range)| {
                let missing = missing(*content, range).unwrap_or(0);
                under_way += missing;
                missing > 0
            });
            while under_way < ACTIVE_PIECES && fill.active.len() < ACTIVE_PARTS {
                let Some((content, range)) = fill.waiting.pop_front() else { break };
                if let Some(more) = missing(content, &range).filter(|&more| more > 0) {
                    under_way += more;
                    fill.active.push((content, range));
                }
            }
        }
        self.fills.retain(|_, fill| !fill.active.is_empty() || !fill.waiting.is_empty());
        let mut wanted: BTreeMap<ContentId, Change> = BTreeMap::new();
        let active = self.fills.values().flat_map(|fill| &fill.active).filter(|_| !self.paused);
        for (content, range) in active {
            let whole = pieces(*content).is_some_and(|count| *range == (0..count));
            if whole {
                wanted.insert(*content, Change::Whole(*content));
            } else {
                wanted.entry(*content).or_insert_with(|| Change::Part(*content, range.clone()));
            }
        }
        let mut changes: Vec<Change> = Vec::new();
        for content in self.said.keys().filter(|content| !wanted.contains_key(content)) {
            changes.push(Change::Nothing(*content));
        }
        changes.extend(
            wanted.values().filter(|change| self.said.get(&change.content()) != Some(change)).cloned(),
        );
        self.said = wanted;
        changes
    }
}

impl Change {
    pub(crate) fn content(&self) -> ContentId {
        match self {
            Self::Whole(content) | Self::Part(content, _) | Self::Nothing(content) => *content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn id(n: u8) -> ContentId {
        ContentId([n; 32])
    }

    /// Contents of 100 pieces, of which the first ones are here.
    struct World(HashMap<ContentId, u32>);

    impl World {
        fn advance(&self, plan: &mut Plan) -> Vec<Change> {
            let missing = |content, range: &Range<u32>| {
                self.0.get(&content).map(|&have| range.end.saturating_sub(range.start.max(have)))
            };
            plan.advance(missing, |content| self.0.get(&content).map(|_| 100))
        }
    }

    #[test]
    fn heads_come_first_then_files_in_order_a_window_at_a_time() {
        let mut world = World((1..=9).map(|n| (id(n), 0)).collect());
        let mut plan = Plan::default();
        let heads = (1..=9).map(|n| (id(n), 0..1));
        plan.start(7, heads.chain((1..=9).map(|n| (id(n), 0..100))).collect());
        let first = world.advance(&mut plan);
        let whole = first.iter().filter(|change| matches!(change, Change::Whole(_))).count();
        assert_eq!((first.len(), whole), (9, 3), "all heads, and files up to a window: {first:?}");
        assert!(world.advance(&mut plan).is_empty(), "nothing new");
        world.0.insert(id(1), 100);
        let next = world.advance(&mut plan);
        assert!(next.contains(&Change::Whole(id(4))) && next.contains(&Change::Nothing(id(1))), "{next:?}");
        plan.pause(true);
        assert!(world.advance(&mut plan).iter().all(|change| matches!(change, Change::Nothing(_))));
        plan.pause(false);
        assert!(!world.advance(&mut plan).is_empty(), "and on again");
        world.0.values_mut().for_each(|have| *have = 100);
        while !world.advance(&mut plan).is_empty() {}
        assert!(plan.fills.is_empty() && plan.said.is_empty());
    }

    #[test]
    fn a_content_that_goes_is_passed_over() {
        let world = World([(id(1), 0)].into());
        let mut plan = Plan::default();
        plan.start(1, vec![(id(2), 0..100), (id(1), 0..100)]);
        assert_eq!(world.advance(&mut plan), [Change::Whole(id(1))]);
        plan.stop(1);
        assert_eq!(world.advance(&mut plan), [Change::Nothing(id(1))]);
    }
}
