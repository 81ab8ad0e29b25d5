//! `towline-cluster`: nodes with shaped links on this machine, a scenario, and a table of what happened.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Parser;
use towline_tests::cluster::catalog::{self, ALL, Entry};
use towline_tests::cluster::outcome::Outcome;
use towline_tests::cluster::report::{Row, Table, legend};
use towline_tests::cluster::run::Cluster;
use towline_tests::cluster::scenario::{Peers, Scenario};
use towline_tests::machine::Machine;
use towline_tests::scratch::Scratch;

/// Runs a scenario on a cluster of network namespaces with shaped links, and prints what happened beside the least time that
/// physics allows.
///
/// Times are from each node's own start to its own end. `origin ×` and `cross-zone ×` are bytes in multiples of the
/// model, CPU is that of all daemons, `busy` the share of all processors that was busy, whoever used them; from 85 % on
/// a run counts as bound by the processors and not by its links.
#[derive(Parser)]
struct Arguments {
    /// The scenario; see --list
    #[arg(required_unless_present_any = ["list", "bench"])]
    scenario: Option<String>,
    /// Print the scenarios that there are
    #[arg(long)]
    list: bool,
    /// Run the scenarios of the promise, beside every node from the origin and owners only
    #[arg(long, conflicts_with = "scenario")]
    bench: bool,
    /// With --bench: only rows whose label contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// How many nodes
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: u16,
    /// Length of the model, 32 MiB or more
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    model: ByteSize,
    /// Where pieces may come from
    #[arg(long, value_enum, default_value = "swarm")]
    peers: Peers,
    /// Links and the origin are so many times slower, and nodes that come one by one so much further apart: what differs
    /// from the run without is what this machine's processors cost, not what the nodes decide
    #[arg(long, value_name = "TIMES", default_value = "1")]
    slower: NonZeroU32,
    /// How often, medians are shown; once by default, and three times with --bench
    #[arg(long)]
    runs: Option<NonZeroUsize>,
    /// Print one JSON object per run instead of a table
    #[arg(long)]
    json: bool,
    /// Show the ends of the daemons' logs when a run is not as it must be
    #[arg(long)]
    logs: bool,
}

impl Arguments {
    fn runs(&self) -> usize {
        self.runs.map_or(if self.bench { 3 } else { 1 }, NonZeroUsize::get)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tokio::select! {
        result = dispatch(&arguments) => result,
        // Everything that was started ends with the cluster.
        interrupted = tokio::signal::ctrl_c() => { interrupted?; bail!("interrupted") }
    }
}

#[expect(clippy::print_stdout, reason = "a testbed's results")]
async fn dispatch(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for entry in ALL {
            println!("{:20} {}", entry.name, entry.about);
        }
        return Ok(());
    }
    let machine = Machine::look(Scratch::new()?.path());
    let mut table = Table::default();
    if arguments.bench {
        for (label, scenarios) in promised(arguments) {
            table.rows.push(row(&label, &scenarios, arguments).await?);
        }
    } else {
        let name = arguments.scenario.as_deref().context("a scenario is needed")?;
        let entry = catalog::find(name).with_context(|| format!("no scenario {name}: see --list"))?;
        let scenario = prepared(entry, usize::from(arguments.nodes), arguments.peers, arguments);
        let label = format!("{name}, {} nodes, {}", arguments.nodes, legend(arguments.peers));
        table.rows.push(row(&label, &vec![scenario; arguments.runs()], arguments).await?);
    }
    if !arguments.json {
        println!("{table}\nmachine: {machine}");
    }
    let failed = table.rows.iter().filter(|row| !row.passes()).count();
    ensure!(failed == 0, "{failed} of {} rows are not as they must be", table.rows.len());
    Ok(())
}

fn prepared(entry: &Entry, nodes: usize, peers: Peers, arguments: &Arguments) -> Scenario {
    let base = Scenario { model: arguments.model.as_u64(), peers, ..Scenario::new(entry.name, nodes) };
    let mut scenario = entry.with(base).slower(arguments.slower.get());
    if peers != Peers::Swarm {
        // There to compare with: nothing is promised of them but right bytes.
        scenario.limits = Default::default();
    }
    scenario
}

/// The rows of the benchmark: a label, and a scenario for each run.
fn promised(arguments: &Arguments) -> Vec<(String, Vec<Scenario>)> {
    let mut rows = Vec::new();
    for nodes in [8, 16] {
        for (what, names) in [
            ("at once, origin 1 Gb/s", &["crowd"][..]),
            ("at once, origin 200 Mb/s", &["crowd-slow-origin"]),
            ("every 2 s", &["stagger"]),
            ("two zones", &["zones"]),
            ("one killed at 30 %", &["kill-owner", "kill-busiest", "kill-first"]),
            ("cold reads during the fill", &["on-demand"]),
        ] {
            for peers in [Peers::Swarm, Peers::OwnerOnly, Peers::None] {
                // Next to the healthy crowds, the ways to compare with.
                if peers != Peers::Swarm && !what.starts_with("at once") {
                    continue;
                }
                let label = format!("{nodes} nodes, {what}, {}", legend(peers));
                let entries = (0..arguments.runs()).filter_map(|run| catalog::find(names[run % names.len()]));
                let scenarios = entries.map(|entry| prepared(entry, nodes, peers, arguments)).collect();
                rows.push((label, scenarios));
            }
        }
    }
    rows.retain(|(label, _)| label.contains(&arguments.only));
    rows
}

async fn row(label: &str, scenarios: &[Scenario], arguments: &Arguments) -> Result<Row> {
    let mut runs = Vec::new();
    for (number, scenario) in scenarios.iter().enumerate() {
        eprintln!("{label}: run {} of {}", number + 1, scenarios.len());
        runs.push(run(scenario, arguments).await.with_context(|| label.to_owned())?);
    }
    Ok(Row::new(label, runs))
}

#[expect(clippy::print_stdout, reason = "a testbed's results")]
async fn run(scenario: &Scenario, arguments: &Arguments) -> Result<Outcome> {
    // What the run before wrote is on its way to the disk; it shall not be this run's load.
    rustix::fs::sync();
    let mut cluster = Cluster::build(scenario).await?;
    let outcome = cluster.run().await?;
    if arguments.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    let shown = outcome.times().iter().map(|seconds| Duration::from_secs_f64(*seconds)).collect::<Vec<_>>();
    eprintln!("  {shown:.1?}");
    if arguments.logs && !outcome.faults().is_empty() {
        eprint!("{}", cluster.log_tails());
    }
    Ok(outcome)
}
