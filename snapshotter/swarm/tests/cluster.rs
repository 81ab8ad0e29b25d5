//! Simulated clusters: what the promises of docs/swarm.md rest on. Every failure names the seed that repeats it.

use std::time::Duration;

use towline_swarm::Strategy;
use towline_swarm::sim::{Fault, Link, OriginDay, Report, Scenario, run};

/// Runs a scenario from a few seeds; every sound node must end complete and none be banned.
#[track_caller]
fn check(scenario: &Scenario, origin: f64, last: f64) -> Vec<Report> {
    let reports: Vec<Report> = (1..=3).map(|seed| run(scenario, seed)).collect();
    for report in &reports {
        assert_eq!(report.complete, report.sound, "seed {}: {report}", report.seed);
        assert_eq!(report.honest_banned, 0, "seed {}: {report}", report.seed);
        assert!(report.origin <= origin, "seed {}: origin above {origin}: {report}", report.seed);
        assert!(report.ratio(1.0) <= last, "seed {}: last above {last}: {report}", report.seed);
    }
    reports
}

fn small(nodes: usize, origin: f64) -> Scenario {
    Scenario::crowd(nodes, 256, 200.0, origin)
}

#[test]
fn flash_crowds_stay_near_the_bound_with_one_origin_copy() {
    for nodes in [8, 16] {
        for report in check(&small(nodes, 1000.0), 1.05, 1.25) {
            assert!(report.spread <= 2.0, "{report}");
        }
        check(&small(nodes, 200.0), 1.05, 1.32);
    }
    check(&Scenario::crowd(64, 2048, 1000.0, 1000.0), 1.02, 1.25);
}

#[test]
fn one_node_alone_and_two() {
    check(&small(1, 200.0), 1.0, 1.1);
    check(&small(2, 200.0), 1.05, 1.25);
    check(&Scenario { pieces: 1, ..small(8, 200.0) }, 2.0, 10.0);
    let empty = run(&Scenario { pieces: 0, ..small(4, 200.0) }, 1);
    assert_eq!(empty.complete, 4);
}

#[test]
fn who_comes_later_is_served_by_those_before() {
    check(&Scenario { apart: Some(Duration::from_secs(2)), ..small(8, 1000.0) }, 1.05, 1.5);
}

#[test]
fn a_piece_crosses_a_border_of_zones_about_once() {
    let zones = Scenario { zones: 2, zone_rate: Some(Link::mbit(400.0).up), ..small(16, 1000.0) };
    for report in check(&zones, 1.05, 1.35) {
        assert!(report.across <= 1.1, "{report}");
    }
}

#[test]
fn dead_and_silent_nodes_cost_little() {
    let with = |count, fault| Scenario { faults: (count, Some(fault)), ..small(16, 1000.0) };
    check(&with(1, Fault::Killed(0.3)), 1.15, 1.5);
    check(&with(1, Fault::Stopped(0.3)), 1.15, 1.6);
    check(&with(8, Fault::Killed(0.3)), 1.6, 2.0);
    check(&with(2, Fault::Stalling), 1.3, 3.5);
    check(&with(2, Fault::Boasting), 1.3, 1.5);
}

#[test]
fn liars_are_banned_and_nobody_else() {
    let scenario = Scenario { faults: (3, Some(Fault::Lying)), ..small(16, 1000.0) };
    for report in check(&scenario, 1.35, 2.0) {
        assert_eq!(report.faulty_banned, 3, "{report}");
    }
}

#[test]
fn one_slow_node_does_not_slow_the_others() {
    let scenario = Scenario { slow: Some((16, 40.0)), ..small(16, 1000.0) };
    for report in check(&scenario, 1.1, 1.25) {
        // The bound is the slow node's: the others need a fortieth of it.
        assert!(report.ratio(0.9) <= 1.5 / 40.0, "{report}");
    }
}

#[test]
fn an_origin_that_fails_is_waited_for() {
    let day = |day| Scenario { day, ..small(8, 1000.0) };
    check(&day(OriginDay::Throttles(2, Duration::from_secs(1))), 1.1, 4.0);
    check(&day(OriginDay::Away(Duration::from_secs(3), Duration::from_secs(33))), 1.1, 9.0);
    check(&day(OriginDay::GoneAfter(1.0)), 1.01, 1.3);
    check(&day(OriginDay::DeniesHalf), 1.1, 2.0);
}

#[test]
fn an_origin_gone_early_leaves_every_node_with_the_same_pieces() {
    let scenario = Scenario { day: OriginDay::GoneAfter(0.5), patience: 2.0, ..small(8, 1000.0) };
    let report = run(&scenario, 1);
    assert_eq!(report.complete, 0);
    let last = report.progress.last().map(|&(_, share)| share).unwrap_or_default();
    assert!((last - report.origin).abs() < 0.02, "everybody has the {} that left: {last}", report.origin);
}

#[test]
fn views_with_gaps_cost_bytes_and_nothing_else() {
    check(&Scenario { view_gaps: 0.2, ..small(16, 1000.0) }, 1.5, 2.0);
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    let scenario = Scenario { faults: (3, Some(Fault::Killed(0.3))), ..small(16, 200.0) };
    assert_eq!(run(&scenario, 7), run(&scenario, 7));
    assert_ne!(run(&scenario, 7).times, run(&scenario, 8).times);
}

#[test]
fn the_owner_only_baseline_completes_even_when_an_owner_dies() {
    let owner_only = |mut scenario: Scenario| {
        scenario.limits.strategy = Strategy::OwnerOnly;
        scenario
    };
    check(&owner_only(small(8, 1000.0)), 1.25, 2.5);
    check(&owner_only(small(16, 200.0)), 1.3, 4.0);
    let zones = Scenario { zones: 2, zone_rate: Some(Link::mbit(400.0).up), ..small(16, 1000.0) };
    check(&owner_only(zones), 1.5, 6.0);
    for fault in [Fault::Killed(0.3), Fault::Stopped(0.3)] {
        check(&owner_only(Scenario { faults: (1, Some(fault)), ..small(16, 1000.0) }), 1.5, 4.0);
    }
}

#[test]
fn messages_that_wait_behind_pieces_cost_little() {
    for nodes in [8, 16] {
        check(&small(nodes, 1000.0).under_load(Duration::from_millis(30)), 1.05, 1.35);
        check(&small(nodes, 200.0).under_load(Duration::from_millis(30)), 1.05, 1.5);
    }
}

#[test]
fn readers_wait_for_a_few_pieces_at_most() {
    // The node that reads asks for nothing else meanwhile, so it is ready later than the others.
    for yields in [false, true] {
        let reads = Some(Duration::from_millis(700));
        for report in check(&Scenario { reads, yields, ..small(16, 1000.0) }, 1.1, 1.5) {
            assert!(
                report.reads.len() >= 10 && report.read(0.95) <= if yields { 9.0 } else { 14.0 },
                "{report}"
            );
        }
    }
}
