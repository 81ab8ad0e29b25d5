//! `towline status`: the daemon's control API as a table.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use towline_proto::control::v1::{StatusRequest, StatusResponse};

use crate::args::{Output, StatusArgs};
use crate::daemon::{self, Model, QUICK, asking, refusal};
use crate::output::{self, Align, clean, size, table};

/// Time between refreshes of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);
/// Goes to the top left and clears the screen from there.
const CLEAR: &str = "\x1b[H\x1b[J";

/// The answer as JSON (docs/cli.md).
#[derive(Clone, Debug, Serialize)]
struct Status {
    version: String,
    uptime_seconds: u64,
    passthrough: String,
    models: Vec<Model>,
    store: Store,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Store {
    contents: u64,
    contents_sealed: u64,
    bytes: u64,
}

impl From<StatusResponse> for Status {
    fn from(wire: StatusResponse) -> Self {
        let store = wire.store.unwrap_or_default();
        Self {
            version: wire.version,
            uptime_seconds: wire.uptime_seconds,
            passthrough: wire.passthrough,
            models: wire.models.into_iter().map(Model::from).collect(),
            store: Store {
                contents: store.contents,
                contents_sealed: store.contents_sealed,
                bytes: store.bytes,
            },
        }
    }
}

/// Prints the daemon's status, once or every second.
///
/// # Errors
/// When the daemon does not answer. While watching, only the first time: a daemon may be restarted under the watcher.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let mut seen = Seen::default();
    let mut status = ask(&args.daemon.control).await?;
    if !args.watch {
        return show(&status, &seen, args.output, "");
    }
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        show(&status, &seen, args.output, clear)?;
        seen = Seen::new(&status, Instant::now());
        tokio::time::sleep(REFRESH).await;
        status = loop {
            match ask(&args.daemon.control).await {
                Ok(status) => break status,
                Err(error) => eprintln!("{}", crate::error::describe(&error)),
            }
            tokio::time::sleep(REFRESH).await;
        };
    }
}

fn show(status: &Status, seen: &Seen, output: Output, clear: &str) -> anyhow::Result<()> {
    Ok(output::emit(output, status, || format!("{clear}{}", text(status, seen, Instant::now())))?)
}

async fn ask(socket: &Path) -> anyhow::Result<Status> {
    let response = daemon::client(socket, QUICK).await?.status(StatusRequest {}).await;
    let response = response.map_err(|status| refusal(&status)).with_context(|| asking(socket))?;
    Ok(response.into_inner().into())
}

/// What was local at the refresh before: rates are differences.
#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    local: HashMap<String, u64>,
}

impl Seen {
    fn new(status: &Status, at: Instant) -> Self {
        let local = status.models.iter().map(|model| (model.manifest.clone(), model.bytes_local));
        Self { at: Some(at), local: local.collect() }
    }

    /// Bytes per second since the refresh before; `None` at the first one.
    fn rate(&self, model: &Model, now: Instant) -> Option<u64> {
        let before = *self.local.get(&model.manifest)?;
        let elapsed = now.saturating_duration_since(self.at?).as_secs_f64();
        if elapsed <= 0.0 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "shown"
        )]
        Some((model.bytes_local.saturating_sub(before) as f64 / elapsed) as u64)
    }
}

fn text(status: &Status, seen: &Seen, now: Instant) -> String {
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let head = format!(
        "towlined {}, up {uptime}; passthrough: {}; store: {} of {} contents whole, {}\n",
        clean(&status.version),
        clean(&status.passthrough),
        status.store.contents_sealed,
        status.store.contents,
        size(status.store.bytes)
    );
    if status.models.is_empty() {
        return format!("{head}no models\n");
    }
    let (left, right) = (Align::Left, Align::Right);
    let columns = [
        ("MODEL", left),
        ("STATE", left),
        ("LOCAL", right),
        ("SIZE", right),
        ("%", right),
        ("RATE", right),
        ("ORIGIN", right),
        ("PEERS", right),
        ("LAST ERROR", left),
    ];
    let rows: Vec<Vec<String>> = status
        .models
        .iter()
        .map(|model| {
            vec![
                model.name(),
                model.state.to_owned(),
                size(model.bytes_local),
                size(model.bytes),
                percent(model.bytes_local, model.bytes),
                seen.rate(model, now).map_or_else(|| "-".to_owned(), |rate| format!("{}/s", size(rate))),
                size(model.bytes_from_origin),
                size(model.bytes_from_peers),
                clean(&model.last_error),
            ]
        })
        .collect();
    head + &table(&columns, &rows)
}

/// Rounded down, so that 100 means all.
fn percent(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 100 } else { u128::from(part.min(whole)) * 100 / u128::from(whole) };
    percent.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_proto::control::v1::State;

    fn status(local: u64) -> Status {
        let model = towline_proto::control::v1::Model {
            reference: "r.example.com/m:v1".into(),
            manifest: "sha256:00".into(),
            bytes: 10 << 20,
            bytes_local: local,
            bytes_from_origin: 3 << 20,
            bytes_from_peers: 2 << 20,
            state: State::Fetching as i32,
            last_error: "con\u{1b}nection refused".into(),
            ..Default::default()
        };
        let wire = StatusResponse {
            version: "0.1.0".into(),
            uptime_seconds: 61,
            models: vec![model],
            ..Default::default()
        };
        wire.into()
    }

    #[test]
    fn the_table_shows_percent_and_rate() {
        let start = Instant::now();
        let first = text(&status(5 << 20), &Seen::default(), start);
        assert!(first.contains("up 1m 1s"), "{first}");
        let row = |text: &str| {
            text.lines().last().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            row(&first),
            "r.example.com/m:v1 fetching 5.0 MiB 10.0 MiB 50 - 3.0 MiB 2.0 MiB con nection refused"
        );
        let seen = Seen::new(&status(5 << 20), start);
        let second = text(&status(9 << 20), &seen, start + Duration::from_secs(2));
        assert!(row(&second).contains(" 90 2.0 MiB/s "), "{second}");
    }

    #[test]
    fn percents_round_down() {
        let all: Vec<String> = [(0, 0), (0, 3), (1, 3), (u64::MAX - 1, u64::MAX), (7, 7), (9, 7)]
            .into_iter()
            .map(|(part, whole)| percent(part, whole))
            .collect();
        assert_eq!(all, ["100", "0", "33", "99", "100", "100"]);
    }
}
