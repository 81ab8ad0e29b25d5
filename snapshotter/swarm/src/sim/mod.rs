//! A simulated cluster: the very code of [`crate::Swarm`] under a virtual clock and network, from a printed seed.
//!
//! Links carry fluid (`fluid`), control messages take the latency of their path and no bandwidth (they are some 0.1 %
//! of the bytes), each node checks one piece at a time at its rate. Membership is told in batches, late and with
//! gaps if the scenario says so. Nothing here reads a clock or starts a thread, so a seed replays exactly.

mod fluid;
mod queue;
mod report;
mod scenario;
mod world;

pub use report::Report;
pub use scenario::{Fault, Link, OriginDay, Scenario};

/// Runs a scenario to its end, or to its time limit.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64) -> Report {
    world::World::new(scenario, seed).run()
}
