//! Simulates clusters and prints what comes of it: `swarm-sim [--seed N] [--only TEXT] [--write DIR] [--large]`.
//!
//! Without arguments: the table on stdout. `--write docs` puts the table between its marks in `DIR/swarm.md` and draws
//! `DIR/swarm.svg`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use towline_swarm::Strategy;
use towline_swarm::sim::{Fault, Link, OriginDay, Report, Scenario, run};

#[derive(Parser)]
struct Args {
    /// Repeats a run exactly.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Write table and plot into this directory.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Scenarios run at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Also 256 to 5,000 nodes: minutes of CPU each.
    #[arg(long)]
    large: bool,
}

fn scenarios(large: bool) -> Vec<Scenario> {
    let sized = |nodes, mib, origin| Scenario { files: 3, ..Scenario::crowd(nodes, mib, 200.0, origin) };
    let small = |nodes, origin| sized(nodes, 256, origin);
    let late = |crowd| Scenario { apart: Some(Duration::from_secs(2)), ..crowd };
    let distant = |nodes| Scenario {
        origin_latency: Duration::from_millis(100),
        files: 3,
        ..Scenario::crowd(nodes, 4096, 10_000.0, 8_000.0)
    };
    let mut all = vec![
        small(8, 1000.0).named("8 × 200 Mb/s, 256 MiB, origin 1 Gb/s"),
        small(8, 200.0).named("8 × 200 Mb/s, 256 MiB, origin 200 Mb/s"),
        small(16, 1000.0).named("16 × 200 Mb/s, 256 MiB, origin 1 Gb/s"),
        small(16, 200.0).named("16 × 200 Mb/s, 256 MiB, origin 200 Mb/s"),
        sized(16, 1024, 200.0).named("16 × 200 Mb/s, 1 GiB, origin 200 Mb/s"),
        distant(2).named("2 × 10 Gb/s, 4 GiB, origin 8 Gb/s that begins after 100 ms"),
        distant(8).named("8 × 10 Gb/s, 4 GiB, origin 8 Gb/s that begins after 100 ms"),
        late(small(8, 1000.0)).named("8, one every 2 s, origin 1 Gb/s"),
        late(small(8, 200.0)).named("8, one every 2 s, origin 200 Mb/s"),
        late(small(16, 1000.0)).named("16, one every 2 s, origin 1 Gb/s"),
        late(small(16, 200.0)).named("16, one every 2 s, origin 200 Mb/s"),
    ];
    let killed = |nodes, origin| Scenario { faults: (1, Some(Fault::Killed(0.3))), ..small(nodes, origin) };
    let owner_only = |mut scenario: Scenario| {
        scenario.limits.strategy = Strategy::OwnerOnly;
        scenario
    };
    let zoned = |nodes, origin, rate| Scenario {
        zones: 2,
        zone_rate: Some(Link::mbit(rate).up),
        ..small(nodes, origin)
    };
    all.extend([
        zoned(8, 1000.0, 400.0).named("8 in 2 zones, 400 Mb/s between"),
        zoned(16, 1000.0, 400.0).named("16 in 2 zones, 400 Mb/s between"),
        zoned(16, 1000.0, 100.0).named("16 in 2 zones, 100 Mb/s between"),
        killed(8, 1000.0).named("8, one killed at 30 %"),
        killed(16, 1000.0).named("16, one killed at 30 %"),
        killed(16, 200.0).named("16, one killed at 30 %, origin 200 Mb/s"),
        Scenario { faults: (1, Some(Fault::Stopped(0.3))), ..small(8, 1000.0) }
            .named("8, one stopped at 30 %"),
        Scenario { faults: (1, Some(Fault::Stopped(0.3))), ..small(16, 1000.0) }
            .named("16, one stopped at 30 %"),
        Scenario { faults: (4, Some(Fault::Killed(0.3))), ..small(16, 1000.0) }
            .named("16, four killed at 30 %"),
        Scenario { faults: (2, Some(Fault::Lying)), ..small(16, 1000.0) }.named("16, two lie"),
        Scenario { faults: (2, Some(Fault::Stalling)), ..small(16, 1000.0) }.named("16, two stall"),
        Scenario { faults: (2, Some(Fault::Boasting)), ..small(16, 1000.0) }
            .named("16, two claim what they have not"),
        Scenario { slow: Some((16, 40.0)), ..small(16, 1000.0) }.named("16, one at 5 Mb/s"),
        Scenario { view_gaps: 0.1, ..small(64, 1000.0) }.named("64, each blind for 10 % of the others"),
        Scenario { day: OriginDay::Throttles(2, Duration::from_secs(1)), ..small(16, 1000.0) }
            .named("16, origin: 429 above 2 requests"),
        Scenario {
            day: OriginDay::Away(Duration::from_secs(3), Duration::from_secs(63)),
            ..small(16, 1000.0)
        }
        .named("16, origin away from 3 s to 63 s"),
        Scenario { day: OriginDay::GoneAfter(1.0), ..small(16, 1000.0) }
            .named("16, origin gone after one copy"),
        Scenario { day: OriginDay::DeniesHalf, ..small(16, 1000.0) }
            .named("16, origin: 401 for every second node"),
    ]);
    let queue = Duration::from_millis(30);
    all.extend([
        small(8, 1000.0).under_load(queue).named("8, origin 1 Gb/s, messages 30 ms late at each end"),
        small(8, 200.0).under_load(queue).named("8, origin 200 Mb/s, messages 30 ms late at each end"),
        small(16, 1000.0).under_load(queue).named("16, origin 1 Gb/s, messages 30 ms late at each end"),
        small(16, 200.0).under_load(queue).named("16, origin 200 Mb/s, messages 30 ms late at each end"),
        owner_only(small(8, 1000.0)).named("owner-only: 8, origin 1 Gb/s"),
        owner_only(small(16, 1000.0)).named("owner-only: 16, origin 1 Gb/s"),
        owner_only(small(16, 200.0)).named("owner-only: 16, origin 200 Mb/s"),
        owner_only(killed(16, 1000.0)).named("owner-only: 16, one killed at 30 %"),
    ]);
    for (nodes, origin) in [(8, 1000.0), (16, 1000.0), (16, 200.0)] {
        let read = Scenario { reads: Some(Duration::from_millis(700)), ..small(nodes, origin) };
        let name = format!("{nodes}, one reads, origin {origin} Mb/s");
        all.push(Scenario { yields: true, ..read.clone() }.named(&format!("{name}, fills yield")));
        all.push(read.named(&name));
    }
    let big = |nodes, gib: u32| Scenario::crowd(nodes, 1024 * gib, 1000.0, 1000.0);
    all.extend([big(64, 2).named("64 × 1 Gb/s, 2 GiB, origin 1 Gb/s")]);
    if !large {
        return all;
    }
    all.extend([
        big(256, 4).named("256 × 1 Gb/s, 4 GiB, origin 1 Gb/s"),
        big(1000, 8).named("1000 × 1 Gb/s, 8 GiB, origin 1 Gb/s"),
        Scenario { origin: Link::mbit(8000.0).up, ..big(1000, 4) }
            .named("1000 × 1 Gb/s, 4 GiB, origin 8 Gb/s"),
        Scenario { slow: Some((10, 4.0)), ..big(1000, 4) }.named("1000, 10 % four times slower, 4 GiB"),
        Scenario { zones: 4, zone_rate: Some(Link::mbit(2000.0).up), ..big(256, 4) }
            .named("256 in 4 zones, 2 Gb/s between"),
        Scenario { faults: (77, Some(Fault::Killed(0.3))), ..big(256, 4) }.named("256, 30 % killed at 30 %"),
        Scenario { faults: (12, Some(Fault::Lying)), ..big(256, 4) }.named("256, 5 % lie"),
    ]);
    all.push(big(5000, 1).named("5000 × 1 Gb/s, 1 GiB, origin 1 Gb/s"));
    all
}

/// Seeds of the second table.
const SEEDS: u64 = 5;

/// How long readers wait for cold pieces during a fill, over some seeds.
fn reads(scenarios: &[Scenario]) -> String {
    let mut table = String::from("| scenario | reads | p50 | p95 | max |\n|---|---|---|---|---|\n");
    for scenario in scenarios.iter().filter(|scenario| scenario.reads.is_some()) {
        let mut all = run(scenario, 1);
        all.reads.extend((2..=SEEDS).flat_map(|seed| run(scenario, seed).reads));
        all.reads.sort_by(f64::total_cmp);
        let [half, most, last] = [0.5, 0.95, 1.0].map(|share| all.read(share));
        table +=
            &format!("| {} | {} | {half:.1} | {most:.1} | {last:.1} |\n", scenario.name, all.reads.len());
    }
    table
}

/// Runs scenarios, `jobs` at a time, the longest first; the reports are in the scenarios' order.
#[expect(clippy::print_stderr, reason = "runs take minutes: how far it is")]
fn run_all(scenarios: &[Scenario], seed: u64, jobs: usize) -> Vec<Report> {
    let mut order: Vec<usize> = (0..scenarios.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(scenarios[at].nodes as u64 * u64::from(scenarios[at].pieces)));
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(vec![None; scenarios.len()]));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let report = run(&scenarios[at], seed);
                    eprintln!("  {:.1} s: {report}", started.elapsed().as_secs_f64());
                    reports.lock().expect("no run panics while it holds the lock")[at] = Some(report);
                }
            });
        }
    });
    reports.into_inner().expect("no run panicked").into_iter().flatten().collect()
}

/// Median and worst over some seeds of what the small clusters are held to.
fn spread(scenarios: &[Scenario]) -> String {
    let mut table = String::from(
        "| scenario | last / bound | origin × | across zones × | max/mean upload |\n|---|---|---|---|---|\n",
    );
    for scenario in scenarios.iter().filter(|scenario| scenario.nodes <= 16) {
        let reports: Vec<Report> = (1..=SEEDS).map(|seed| run(scenario, seed)).collect();
        let of = |value: &dyn Fn(&Report) -> f64| {
            let mut values: Vec<f64> = reports.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            format!("{:.2}, {:.2}", values[values.len() / 2], values[values.len() - 1])
        };
        let (last, origin) = (of(&|report| report.ratio(1.0)), of(&|report| report.origin));
        let (across, most) = (of(&|report| report.across), of(&|report| report.spread));
        table += &format!("| {} | {last} | {origin} | {across} | {most} |\n", scenario.name);
    }
    table
}

#[expect(clippy::print_stdout, reason = "the table is its output")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut table = format!("{}\n", Report::HEADS);
    let mut reports = Vec::new();
    println!("seed {}\n{}", args.seed, Report::HEADS);
    let mut scenarios = scenarios(args.large);
    scenarios.retain(|scenario| scenario.name.contains(&args.only));
    for report in run_all(&scenarios, args.seed, args.jobs) {
        println!("{report}");
        writeln!(table, "{report}")?;
        reports.push(report);
    }
    let spread = spread(&scenarios);
    println!("\n{spread}");
    writeln!(table, "\nMedian and worst of seeds 1 to {SEEDS}:\n\n{spread}")?;
    let reads = reads(&scenarios);
    println!("\n{reads}");
    writeln!(
        table,
        "\nFrom demand to verified piece, in multiples of what a piece takes on the idle link:\n\n{reads}"
    )?;
    if let Some(dir) = &args.write {
        let page = dir.join("swarm.md");
        let text = std::fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
        let (start, end) = ("<!-- table -->\n", "<!-- end of table -->");
        let (head, rest) = text.split_once(start).context("no table mark")?;
        let (_, tail) = rest.split_once(end).context("no end mark")?;
        let page_text = format!("{head}{start}Seed {}.\n\n{table}\n{end}{tail}", args.seed);
        std::fs::write(&page, page_text).with_context(|| format!("write {}", page.display()))?;
        draw(&dir.join("swarm.svg"), &reports)?;
    }
    Ok(())
}

/// Share of all pieces that are at the nodes over time, in multiples of the bound: one line per flash crowd.
fn draw(path: &Path, reports: &[Report]) -> anyhow::Result<()> {
    const COLORS: [&str; 7] = ["#1b6ca8", "#d1495b", "#2e933c", "#8f5fbf", "#e08e0b", "#555555", "#00888a"];
    let names = [
        "8 × 200 Mb/s, 256 MiB, origin 1",
        "16 × 200 Mb/s, 256 MiB, origin 200",
        "owner-only: 16, origin 1",
        "64 × 1",
        "1000 × 1 Gb/s, 8 GiB, origin 1 ",
        "5000 ×",
        "256, 30 %",
    ];
    let (width, height, left, top) = (720.0, 320.0, 50.0, 20.0);
    let x = |ratio: f64| left + ratio / 1.6 * width;
    let y = |share: f64| top + (1.0 - share) * height;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 400\" font-family=\"sans-serif\" font-size=\"12\">\n",
    );
    svg.push_str("<rect width=\"800\" height=\"400\" fill=\"white\"/>\n");
    for tick in 0..=8 {
        let ratio = f64::from(tick) * 0.2;
        let color = if tick == 5 { "#333333" } else { "#dddddd" };
        writeln!(svg, "<path d=\"M{0:.0} {1:.0}V{2:.0}\" stroke=\"{color}\"/>", x(ratio), y(1.0), y(0.0))?;
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{ratio:.1}</text>",
            x(ratio),
            y(0.0) + 16.0
        )?;
    }
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        writeln!(svg, "<path d=\"M{:.0} {:.0}H{:.0}\" stroke=\"#dddddd\"/>", x(0.0), y(share), x(1.6))?;
        writeln!(
            svg,
            "<text x=\"44\" y=\"{:.0}\" text-anchor=\"end\">{:.0} %</text>",
            y(share) + 4.0,
            share * 100.0
        )?;
    }
    writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">time in multiples of the physical bound</text>",
        x(0.8),
        y(0.0) + 34.0
    )?;
    let mut line = 0;
    for (name, color) in names.iter().zip(COLORS) {
        let Some(report) = reports.iter().find(|report| report.name.starts_with(name)) else { continue };
        let bound = report.bound.as_secs_f64();
        let every = (report.progress.len() / 160).max(1);
        let points = report.progress.iter().step_by(every).chain(report.progress.last());
        let mut path = String::new();
        for (seconds, share) in points.filter(|(seconds, _)| seconds / bound <= 1.6) {
            write!(path, "{:.1},{:.1} ", x(seconds / bound), y(share.min(1.0)))?;
        }
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
            path.trim_end()
        )?;
        let at = y(0.06) - 16.0 * f64::from(line);
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{at:.0}\" text-anchor=\"end\" fill=\"{color}\">{}</text>",
            x(1.58),
            report.name
        )?;
        line += 1;
    }
    svg.push_str("</svg>\n");
    std::fs::write(path, svg).with_context(|| format!("write {}", path.display()))
}
