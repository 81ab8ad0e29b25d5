//! Cold starts on Towline and on plain containerd, side by side in one run; every claim is a ratio of the two.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use towline_tests::convert::{convert, directory};
use towline_tests::machine::Machine;
use towline_tests::measure::{ColdStart, Figures};
use towline_tests::model::{self, Shape};
use towline_tests::node::Snapshotter;
use towline_tests::origin::{Faults, Origin};
use towline_tests::stage::Stage;
use towline_tests::timeline::Table;

/// Measures cold starts of a model, from the pull to the last byte hashed in a pod, on Towline and on overlayfs.
#[derive(Parser)]
struct Arguments {
    /// How often each scenario is run; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// What is measured.
struct Scenario {
    name: &'static str,
    shape: Shape,
    /// Added to each GET of a blob.
    delay: Duration,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "2 GiB", shape: model::TWO_GIB, delay: Duration::ZERO },
    Scenario { name: "2 GiB, 20 ms per GET", shape: model::TWO_GIB, delay: Duration::from_millis(20) },
    Scenario { name: "20 MiB", shape: model::TWENTY_MIB, delay: Duration::ZERO },
];

/// One scenario's runs.
#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    overlayfs: Vec<Figures>,
    towline: Vec<Figures>,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    runs: usize,
    outcomes: Vec<Outcome>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.runs > 0, "--runs must not be 0");
    tokio::select! {
        result = bench(&arguments) => result,
        interrupted = tokio::signal::ctrl_c() => { interrupted?; bail!("interrupted") }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark's result")]
async fn bench(arguments: &Arguments) -> Result<()> {
    let mut report = Report { machine: look()?, runs: arguments.runs, outcomes: Vec::new() };
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(&arguments.only)) {
        let outcome = run(scenario, arguments.runs).await.with_context(|| scenario.name.to_owned())?;
        if !arguments.json {
            println!("{}, median of {}\n{}", scenario.name, arguments.runs, table(&outcome));
        }
        report.outcomes.push(outcome);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("machine: {}", report.machine);
    }
    Ok(())
}

fn look() -> Result<Machine> {
    Ok(Machine::look(towline_tests::scratch::Scratch::new()?.path()))
}

async fn run(scenario: &Scenario, runs: usize) -> Result<Outcome> {
    let stage = Stage::set().await?;
    let origin = Origin::start(stage.registry.addr()).await?;
    let model = model::synthetic(&scenario.shape)?;
    let target = format!("{}/bench:v1", stage.registry.addr());
    let image = convert(None, &directory(&model), &target, &[]).await?;
    // Without a delay the proxy would only cost processor time of which both sides need all there is.
    let host = if scenario.delay.is_zero() { stage.registry.addr() } else { origin.addr() };
    origin.set(Faults { delay: scenario.delay, ..Faults::default() });
    let reference = format!("{host}/bench@{}", image.digest);
    let mut outcome = Outcome { scenario: scenario.name, overlayfs: Vec::new(), towline: Vec::new() };
    let mut contents = None;
    for n in 0..runs {
        for (snapshotter, name) in [
            (Snapshotter::Overlayfs, "overlayfs"),
            (Snapshotter::Towline { extra: String::new() }, "towline"),
        ] {
            let node = stage.node(&format!("{name}-{n}"), snapshotter).await?;
            let start = ColdStart::measure(&stage, &node, name, &reference).await?;
            let dir = node.dir().to_owned();
            node.stop().await?;
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            let read: Vec<_> =
                start.reading.files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect();
            let mut read = read;
            read.sort();
            ensure!(*contents.get_or_insert_with(|| read.clone()) == read, "{name} read other bytes");
            match name {
                "towline" => outcome.towline.push(start.figures()),
                _ => outcome.overlayfs.push(start.figures()),
            }
        }
    }
    Ok(outcome)
}

/// A quantity of a cold start, and its unit.
type Quantity = (&'static str, &'static str, fn(&Figures) -> f64);

#[expect(clippy::cast_precision_loss, reason = "to look at")]
fn table(outcome: &Outcome) -> Table {
    const GIB: f64 = (1u64 << 30) as f64;
    let quantities: [Quantity; 8] = [
        ("pull answered", "s", |figures| figures.pulled_s),
        ("container running", "s", |figures| figures.running_s),
        ("first weight byte", "s", |figures| figures.first_byte_s),
        ("every byte hashed", "s", |figures| figures.complete_s),
        ("processor time of the daemons", "s", |figures| figures.cpu_s),
        ("peak memory of the daemons", "GiB", |figures| figures.peak_rss_bytes as f64 / GIB),
        ("written per model byte", "", |figures| figures.written_bytes as f64 / figures.model_bytes as f64),
        ("served per model byte", "", |figures| figures.served_bytes as f64 / figures.model_bytes as f64),
    ];
    let mut table = Table::new(&["", "overlayfs", "towline", "ratio"]);
    for (name, unit, get) in quantities {
        let (plain, lazy) = (median(&outcome.overlayfs, get), median(&outcome.towline, get));
        // Neighbours in time saw the same machine: the ratio is taken pair by pair.
        let mut ratios: Vec<f64> =
            outcome.overlayfs.iter().zip(&outcome.towline).map(|(a, b)| get(b) / get(a)).collect();
        let show = |value: f64| format!("{value:.2} {unit}").trim_end().to_owned();
        table.row([name.to_owned(), show(plain), show(lazy), format!("{:.3}", middle(&mut ratios))]);
    }
    table
}

fn median(figures: &[Figures], get: fn(&Figures) -> f64) -> f64 {
    middle(&mut figures.iter().map(get).collect::<Vec<_>>())
}

/// The median, the upper one of two.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
