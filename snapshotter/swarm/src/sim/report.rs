//! What a simulation shows.

use std::fmt;
use std::time::Duration;

/// The result of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The scenario.
    pub name: String,
    /// The seed that repeats it.
    pub seed: u64,
    /// Nodes that could end, and how many did.
    pub sound: usize,
    /// Of `sound`, those with every piece at the end.
    pub complete: usize,
    /// Physical lower bound.
    pub bound: Duration,
    /// From a node's start (in a flash crowd: from the last start) to its last piece, ascending.
    pub times: Vec<Duration>,
    /// Bytes that the origin sent, in multiples of the content; without what liars, whom nobody serves, took for
    /// themselves.
    pub origin: f64,
    /// Bytes that crossed a border of zones, in multiples of the content.
    pub across: f64,
    /// The most that one node uploaded, in multiples of the mean.
    pub spread: f64,
    /// Pieces that arrived where they were already, per piece that was needed.
    pub twice: f64,
    /// Sound nodes that some node banned.
    pub honest_banned: usize,
    /// Faulty nodes that some node banned.
    pub faulty_banned: usize,
    /// Events taken by all swarms.
    pub events: u64,
    /// From a reader's demand to the verified piece, ascending; in multiples of what a piece takes on the idle link.
    pub reads: Vec<f64>,
    /// Pieces at the cluster's nodes over time: the plot's line. (seconds, share of all).
    pub progress: Vec<(f64, f64)>,
}

impl Report {
    /// The time by which a share of the nodes was ready, in multiples of the bound; infinite if fewer ever were.
    #[must_use]
    pub fn ratio(&self, share: f64) -> f64 {
        let at = ((share * self.sound as f64).ceil() as usize).max(1) - 1;
        self.times.get(at).map_or(f64::INFINITY, |time| time.as_secs_f64() / self.bound.as_secs_f64())
    }

    /// The time within which a share of the reads was answered, in multiples of what a piece takes on the idle link.
    #[must_use]
    pub fn read(&self, share: f64) -> f64 {
        let at = ((share * self.reads.len() as f64).ceil() as usize).max(1) - 1;
        self.reads.get(at).copied().unwrap_or(f64::INFINITY)
    }

    /// Heads of the columns of [`fmt::Display`], as Markdown.
    pub const HEADS: &'static str = "| scenario | ready | bound s | p50 / bound | p95 / bound | max / bound | origin × | across zones × | max/mean upload | twice |\n\
        |---|---|---|---|---|---|---|---|---|---|";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, complete, sound, origin, across, spread, twice, .. } = self;
        let bound = self.bound.as_secs_f64();
        let [half, most, last] = [0.5, 0.95, 1.0].map(|share| self.ratio(share));
        write!(
            f,
            "| {name} | {complete}/{sound} | {bound:.1} | {half:.2} | {most:.2} | {last:.2} | {origin:.3} "
        )?;
        write!(f, "| {across:.2} | {spread:.2} | {twice:.3} |")
    }
}
