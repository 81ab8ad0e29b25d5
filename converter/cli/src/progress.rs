//! What a person sees while work is going on: bars on a terminal, lines elsewhere, nothing when told to be quiet.
//!
//! Everything goes to stderr. Bars have no colours, so `NO_COLOR` holds by itself.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Time between redraws of a bar that does not move, so that its rate and remaining time stay true.
const TICK: Duration = Duration::from_millis(500);

/// Where progress goes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    /// Nowhere.
    Quiet,
    /// A line for each step.
    Lines,
    /// Bars below lines.
    Bars(MultiProgress),
}

impl Progress {
    /// What fits stderr.
    pub(crate) fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bars(MultiProgress::new()),
            (false, false) => Self::Lines,
        }
    }

    /// Tells that a step began or ended.
    pub(crate) fn say(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{text}"),
            // A terminal that went away is no reason to stop.
            Self::Bars(all) => drop(all.println(text)),
        }
    }

    /// A bar over `total` bytes for a whole phase.
    pub(crate) fn total(&self, total: u64) -> Bar {
        self.bar(total, "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}", "")
    }

    /// A bar for one layer of `len` bytes.
    pub(crate) fn layer(&self, name: &str, len: u64) -> Bar {
        self.bar(len, "  {msg:40!} {bar:20} {binary_bytes}/{binary_total_bytes}", name)
    }

    fn bar(&self, len: u64, template: &str, name: &str) -> Bar {
        let Self::Bars(all) = self else { return Bar(None) };
        let style = ProgressStyle::with_template(template).expect("a constant template");
        let bar = all
            .add(ProgressBar::new(len).with_style(style.progress_chars("=> ")).with_message(name.to_owned()));
        bar.enable_steady_tick(TICK);
        Bar(Some(bar))
    }
}

/// A bar. Does nothing where there are no bars.
#[derive(Clone, Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Moves the bar on by so many bytes.
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Moves the bar back by so many bytes: they will be sent again.
    pub(crate) fn rewind(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.dec(bytes);
        }
    }

    /// Bytes the bar has moved.
    pub(crate) fn position(&self) -> u64 {
        self.0.as_ref().map_or(0, ProgressBar::position)
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
