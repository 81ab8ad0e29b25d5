//! Tables of runs.

use std::fmt::{self, Write};

use bytesize::ByteSize;

use super::outcome::Outcome;
use super::scenario::Peers;

/// Runs of one scenario as a line of a table: the median of every figure, the range of the slowest node's time.
#[derive(Clone, Debug)]
pub struct Row {
    label: String,
    runs: Vec<Outcome>,
}

impl Row {
    /// A line for at least one run.
    #[must_use]
    pub fn new(label: &str, runs: Vec<Outcome>) -> Self {
        Self { label: label.to_owned(), runs }
    }

    /// Whether right bytes came everywhere in every run and the medians are within the limits.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.complaints().is_empty()
    }

    /// Why it does not pass.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut found: Vec<String> = self.runs.iter().flat_map(Outcome::faults).collect();
        // A limit is on the median: it is exceeded if more than half of the runs exceed it.
        let exceeded: Vec<String> = self.runs.iter().flat_map(Outcome::exceeded).collect();
        let of = |text: &str| text.split(" is ").next().unwrap_or_default().to_owned();
        for text in &exceeded {
            let same: Vec<&String> = exceeded.iter().filter(|other| of(other) == of(text)).collect();
            if same.len() * 2 > self.runs.len() && same.first() == Some(&text) {
                found.push(text.clone());
            }
        }
        found
    }

    fn median(&self, get: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.runs.iter().map(get).collect::<Option<_>>()?;
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn cells(&self) -> Vec<String> {
        let time = |share: f64| self.median(|run| at(&run.times(), share));
        let last: Vec<f64> = self.runs.iter().filter_map(|run| at(&run.times(), 1.0)).collect();
        let range = match (last.iter().copied().reduce(f64::min), last.iter().copied().reduce(f64::max)) {
            (Some(least), Some(most)) if last.len() > 1 => format!(" [{least:.1}–{most:.1}]"),
            _ => String::new(),
        };
        let bound = self.median(|run| Some(run.bound())).filter(|bound| *bound > 0.0);
        let largest = self.runs.iter().map(|run| run.peak_rss_bytes).max().unwrap_or(0);
        let busy = self.median(|run| Some(run.busy));
        let state = match (self.passes(), self.runs.iter().any(Outcome::is_cpu_bound)) {
            (true, false) => "pass",
            (true, true) => "pass, CPU-bound",
            (false, false) => "FAIL",
            (false, true) => "FAIL, CPU-bound",
        };
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let requests = self.median(|run| Some(run.requests as f64));
        vec![
            self.label.clone(),
            show(time(0.0), 1),
            show(time(0.5), 1),
            show(time(1.0), 1) + &range,
            show(bound, 1),
            show(self.median(Outcome::last_over_bound), 2) + &self.limit(|run| run.limits.last),
            show(self.median(|run| Some(run.origin())), 2) + &self.limit(|run| run.limits.origin),
            show(requests, 0),
            show(self.median(Outcome::cross_zone), 2) + &self.limit(|run| run.limits.cross_zone),
            show(self.median(Outcome::upload), 2) + &self.limit(|run| run.limits.upload),
            show(self.median(|run| Some(run.cpu_seconds)), 1),
            ByteSize(largest).display().iec().to_string(),
            show(busy.map(|busy| busy * 100.0), 0),
            state.to_owned(),
        ]
    }

    /// ` ≤ 1.05`, where there is a limit.
    fn limit(&self, get: impl Fn(&Outcome) -> Option<f64>) -> String {
        self.runs.first().and_then(get).map_or(String::new(), |limit| format!(" ≤ {limit}"))
    }
}

const HEADINGS: [&str; 14] = [
    "",
    "first s",
    "median s",
    "last s",
    "bound s",
    "last ÷ bound",
    "origin ×",
    "requests",
    "cross-zone ×",
    "max ÷ mean upload",
    "CPU s",
    "peak memory",
    "busy %",
    "",
];

/// Rows as a Markdown table, with what is wrong and what else was seen below it.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// From top to bottom.
    pub rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", HEADINGS.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(HEADINGS.len()))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.cells().join(" | "))?;
        }
        for row in &self.rows {
            for text in row.complaints().into_iter().chain(row.runs.iter().flat_map(notes)) {
                writeln!(f, "- {}: {text}", row.label)?;
            }
        }
        Ok(())
    }
}

/// Sentences about what has no column.
fn notes(run: &Outcome) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reads) = run.reads {
        let ms = |seconds: f64| seconds * 1000.0;
        notes.push(format!(
            "{} cold reads of 4 KiB: p50 {:.0} ms, p95 {:.0} ms; a piece on the idle link takes {:.0} ms (p95 ÷ piece {:.2})",
            reads.count,
            ms(reads.p50),
            ms(reads.p95),
            ms(reads.piece),
            reads.p95 / reads.piece
        ));
    }
    if !run.in_memory {
        let durable =
            run.nodes.iter().filter_map(|node| node.durable).reduce(f64::max).unwrap_or(f64::INFINITY);
        notes.push(format!("stores were on the disk, and the last was durable after {durable:.1} s"));
    }
    if run.faulty > 0 {
        notes.push(format!("the origin refused or spoilt {} of {} answers", run.faulty, run.requests));
    }
    if let Some(got) = run.stranger {
        notes.push(format!("a stranger made {} connections and got {} bytes", got.connections, got.bytes));
    }
    if let Some(found) = run.found {
        let mut text = format!("secrets stand {} times in what peers exchanged", found.at_peers);
        let _ = write!(
            text,
            " ({}), {} times in what went to the origin",
            ByteSize(found.peer_bytes),
            found.at_origin
        );
        notes.push(text);
    }
    for node in run.nodes.iter().filter(|node| node.disturbed || node.excused) {
        let end =
            node.seconds.map_or("has not ended".to_owned(), |seconds| format!("ended after {seconds:.1} s"));
        notes.push(format!("node {} was disturbed and {end}", node.index));
    }
    for node in run.nodes.iter().filter(|node| node.bound > 1.5 * run.bound()) {
        let seconds = node.seconds.unwrap_or(f64::INFINITY);
        notes.push(format!(
            "node {} has a bound of its own, {:.1} s, and took {seconds:.1} s",
            node.index, node.bound
        ));
    }
    notes
}

/// What the columns mean.
#[must_use]
pub fn legend(peers: Peers) -> &'static str {
    match peers {
        Peers::None => "every node from the origin",
        Peers::Swarm => "swarm",
        Peers::OwnerOnly => "a piece only from its owner",
    }
}

/// The value below which `share` of sorted values are; the upper one of two.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an index below the length"
)]
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied()
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}
