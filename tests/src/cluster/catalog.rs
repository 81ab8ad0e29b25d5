//! The scenarios that have a name.

use std::time::Duration;

use super::origin::{Faults, Refusal};
use super::rate::Rate;
use super::scenario::{Action, Limits, Scenario, When, Who, refusal, refusal_of_every_second};

/// A named scenario.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What it is called.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    make: fn(Scenario) -> Scenario,
}

/// What must hold on a good day, from issue 4: an origin sends a model once, everybody is done soon, and nobody does it all.
pub const HEALTHY: Limits =
    Limits { origin: Some(1.05), last: Some(1.25), upload: Some(2.0), cross_zone: None, read: None };

/// What must hold when a node is killed.
pub const KILLED: Limits = Limits { origin: Some(1.15), last: Some(1.5), upload: None, ..HEALTHY };

/// When things go wrong: when the node that is meant has 30 % of the model.
const AT: f64 = 0.3;

const SECOND: Duration = Duration::from_secs(1);

/// All named scenarios.
pub const ALL: &[Entry] = &[
    Entry {
        name: "crowd",
        about: "all nodes start at once",
        make: |base| Scenario { limits: HEALTHY, ..base },
    },
    Entry {
        name: "crowd-slow-origin",
        about: "all nodes start at once, the origin has 200 Mb/s",
        make: |base| Scenario { origin: Some(Rate::mbit(200)), limits: HEALTHY, ..base },
    },
    Entry {
        name: "stagger",
        about: "a node starts every 2 s",
        make: |base| Scenario { every: 2 * SECOND, limits: HEALTHY, ..base },
    },
    Entry {
        name: "zones",
        about: "two zones with 400 Mb/s each to everything else",
        make: |base| Scenario {
            zones: 2,
            zone_link: Some(Rate::mbit(400)),
            limits: Limits { cross_zone: Some(1.1), ..HEALTHY },
            ..base
        },
    },
    Entry {
        name: "kill-owner",
        about: "the node that got most from the origin is killed at 30 %",
        make: |base| killed(base, Who::Owner),
    },
    Entry {
        name: "kill-busiest",
        about: "the node that has sent most is killed at 30 %",
        make: |base| killed(base, Who::Busiest),
    },
    Entry {
        name: "kill-first",
        about: "the node that has received most is killed at 30 %",
        make: |base| killed(base, Who::First),
    },
    Entry {
        name: "on-demand",
        about: "a process reads missing pages on one node during the fill",
        make: |base| Scenario {
            reader: true,
            limits: Limits { read: Some(3.0), ..Limits::default() },
            ..base
        },
    },
    Entry {
        name: "stop",
        about: "the node that got most from the origin is stopped at 30 %, and goes on when all others have ended",
        make: |base| {
            let owner = Who::Owner;
            base.then(When::Received(owner, AT), Action::Stop(owner))
                .then(When::OthersEnded, Action::Continue)
        },
    },
    Entry {
        name: "restart",
        about: "the node that got most from the origin is killed at 30 % and starts again 2 s later",
        make: |base| {
            let owner = Who::Owner;
            let base = base.then(When::Received(owner, AT), Action::Kill(owner));
            base.then(When::After(2 * SECOND), Action::Restart)
        },
    },
    Entry {
        name: "bootstrap-gone",
        about: "the nodes that all others were told of are killed at 30 %",
        make: |base| base.then(When::Received(Who::Bootstrap, AT), Action::Kill(Who::Bootstrap)),
    },
    Entry {
        name: "split",
        about: "the nodes are cut in two halves at 30 % for 8 s, each with the origin",
        make: |base| {
            let base = Scenario { limits: Limits { origin: Some(2.1), ..Limits::default() }, ..base };
            base.then(When::Received(Who::First, AT), Action::Split)
                .then(When::After(8 * SECOND), Action::Heal)
        },
    },
    Entry {
        name: "slow-node",
        about: "one node has a link of 5 Mb/s",
        make: |base| Scenario { slow: Some((base.nodes - 1, Rate::mbit(5))), model: base.model / 8, ..base },
    },
    Entry {
        name: "loss",
        about: "1 % of all packets is lost",
        make: |base| Scenario { loss_percent: 1, ..base },
    },
    Entry {
        name: "full-disk",
        about: "one node's disk has room for a quarter of the model",
        make: |base| Scenario { small_disk: Some((base.nodes - 1, base.model / 4)), ..base },
    },
    Entry {
        name: "clock",
        about: "one node's clock is ten minutes ahead",
        make: |base| Scenario { clock: Some((0, 600 * SECOND)), ..base },
    },
    Entry {
        name: "origin-slow",
        about: "the origin has 100 Mb/s and takes 200 ms to begin an answer",
        make: |base| Scenario {
            origin: Some(Rate::mbit(100)),
            faults: Faults { delay: SECOND / 5, ..Faults::default() },
            ..base
        },
    },
    Entry {
        name: "origin-429",
        about: "the origin answers 429 to more than two requests at once",
        make: |base| {
            let refuse = Refusal { retry_after: Some(1), above: 2, ..refusal(429) };
            Scenario { faults: Faults { refuse: Some(refuse), ..Faults::default() }, ..base }
        },
    },
    Entry {
        name: "origin-503",
        about: "the origin answers 503 for 5 s",
        make: |base| {
            let faults = Faults { refuse: Some(refusal(503)), ..Faults::default() };
            let base = base.then(When::Sent(AT), Action::Origin(faults));
            base.then(When::After(5 * SECOND), Action::Origin(Faults::default()))
        },
    },
    Entry {
        name: "origin-401",
        about: "the origin answers 401 to every second node",
        make: |base| {
            let refuse = Some(refusal_of_every_second(base.nodes));
            Scenario { faults: Faults { refuse, ..Faults::default() }, ..base }
        },
    },
    Entry {
        name: "origin-away",
        about: "the origin resets connections for a minute",
        make: |base| {
            let base = base.then(When::Sent(AT), Action::OriginGone);
            base.then(When::After(60 * SECOND), Action::OriginBack)
        },
    },
    Entry {
        name: "origin-gone",
        about: "the origin is gone for good once it has sent the model",
        make: |base| {
            // What it has handed to the kernel is on the link for a moment.
            let base = base.then(When::Sent(1.0), Action::Continue);
            base.then(When::After(SECOND), Action::OriginGone)
        },
    },
    Entry {
        name: "origin-lies",
        about: "one in five of the origin's answers has a wrong bit",
        make: |base| Scenario { faults: Faults { flip_every: Some(5), ..Faults::default() }, ..base },
    },
    Entry {
        name: "origin-short",
        about: "one in five of the origin's answers breaks off half-way",
        make: |base| Scenario { faults: Faults { cut_every: Some(5), ..Faults::default() }, ..base },
    },
    Entry {
        name: "origin-whole",
        about: "one in five of the origin's answers is the whole blob instead of the range",
        make: |base| Scenario { faults: Faults { whole_every: Some(5), ..Faults::default() }, ..base },
    },
    Entry {
        name: "stranger",
        about: "somebody without the key talks to the nodes' ports",
        make: |base| Scenario { stranger: true, ..base },
    },
    Entry {
        name: "secrets",
        about: "the origin wants a password; one node's link is recorded and searched for it",
        make: |base| {
            let password = Some(format!("password-{:032x}", rand::random::<u128>()));
            Scenario { capture: true, faults: Faults { password, ..Faults::default() }, ..base }
        },
    },
];

impl Entry {
    /// The scenario with so many nodes.
    #[must_use]
    pub fn scenario(&self, nodes: usize) -> Scenario {
        self.with(Scenario::new(self.name, nodes))
    }

    /// The scenario on other links or with another model than [`Scenario::new`] has. What the scenario is about wins.
    #[must_use]
    pub fn with(&self, base: Scenario) -> Scenario {
        (self.make)(base)
    }
}

/// The scenario of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    ALL.iter().find(|entry| entry.name == name)
}

fn killed(base: Scenario, who: Who) -> Scenario {
    let base = Scenario { limits: KILLED, ..base };
    base.then(When::Received(who, AT), Action::Kill(who))
}

#[cfg(test)]
mod tests {
    use super::{ALL, find};

    #[test]
    fn names_are_unique_and_scenarios_have_a_bound() {
        for entry in ALL {
            assert_eq!(find(entry.name).map(|found| found.about), Some(entry.about));
            let scenario = entry.scenario(4);
            assert_eq!(scenario.name, entry.name);
            assert!(scenario.bound_of(0) > 1.0 && scenario.patience().as_secs_f64() > scenario.bound_of(3));
        }
    }
}
