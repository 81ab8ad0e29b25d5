//! `towline prefetch` and `towline release`: models that this node keeps without containerd.

use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use towline_proto::control::v1::{PrefetchRequest, ReleaseRequest};

use crate::args::{PrefetchArgs, ReleaseArgs};
use crate::daemon::{self, Model, PATIENT, asking, check_reference, refusal};
use crate::error::Problem;
use crate::output::{self, clean, size};
use crate::progress::{Bar, Progress};

/// The result as JSON (docs/cli.md).
#[derive(Debug, Serialize)]
struct Prefetched {
    #[serde(flatten)]
    model: Model,
    elapsed_ms: u64,
}

/// Has the daemon keep a model and fetch it, and waits for that if asked to.
///
/// # Errors
/// When the reference is no model, or the daemon cannot be asked. An interrupted wait ends nothing but the wait.
pub(crate) async fn prefetch(args: PrefetchArgs, stop: CancellationToken) -> anyhow::Result<()> {
    check_reference(&args.image)?;
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Problem::stopped("the daemon goes on with what it has begun").into()),
        result = fetch(args) => result,
    }
}

async fn fetch(args: PrefetchArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let doing = || format!("prefetch {}", args.image);
    let mut client = daemon::client(&args.daemon.control, PATIENT).await?;
    let request = PrefetchRequest { reference: args.image.clone(), wait: args.wait };
    let answers = client.prefetch(request).await.map_err(|status| refusal(&status)).with_context(doing)?;
    let mut answers = answers.into_inner();
    let mut shown = Shown::new(Progress::new(args.quiet || !args.wait));
    let mut last = None;
    while let Some(answer) = answers.message().await.map_err(|status| refusal(&status)).with_context(doing)? {
        let model: Model = answer.model.unwrap_or_default().into();
        shown.update(&model);
        last = Some(model);
    }
    shown.end();
    let model = last.ok_or_else(|| Problem::failed("the daemon told nothing").hint("update it"));
    let model = model.with_context(|| asking(&args.daemon.control))?;
    if args.wait && model.state != "complete" {
        return Err(Problem::failed("the daemon stopped telling before every byte was here"))
            .with_context(doing);
    }
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let result = Prefetched { model, elapsed_ms };
    Ok(output::emit(args.output, &result, || text(&result.model))?)
}

fn text(model: &Model) -> String {
    let what = if model.state == "complete" { "complete" } else { "being fetched" };
    format!("{} {what}: {} of {}\n", model.name(), size(model.bytes_local), size(model.bytes))
}

/// What a person sees of a wait: a bar on a terminal, elsewhere a line when it begins and one for each new error.
struct Shown {
    progress: Progress,
    bar: Option<Bar>,
    error: String,
}

impl Shown {
    fn new(progress: Progress) -> Self {
        Self { progress, bar: None, error: String::new() }
    }

    fn update(&mut self, model: &Model) {
        if self.bar.is_none() {
            let (local, all) = (size(model.bytes_local), size(model.bytes));
            self.progress.say(&format!("fetching {}: {local} of {all} here", model.name()));
        }
        let bar = self.bar.get_or_insert_with(|| self.progress.total(model.bytes));
        let at = bar.position();
        // What a damaged disk loses is fetched again.
        bar.advance(model.bytes_local.saturating_sub(at));
        bar.rewind(at.saturating_sub(model.bytes_local));
        if model.last_error != self.error {
            self.error.clone_from(&model.last_error);
            if !self.error.is_empty() {
                self.progress.say(&format!("waiting, tried again: {}", clean(&self.error)));
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.clear();
        }
    }
}

/// Gives up what prefetch keeps.
///
/// # Errors
/// When the model is not kept under that reference, or the daemon cannot be asked.
pub(crate) async fn release(args: ReleaseArgs) -> anyhow::Result<()> {
    check_reference(&args.image)?;
    let mut client = daemon::client(&args.daemon.control, PATIENT).await?;
    let request = ReleaseRequest { reference: args.image.clone() };
    let released = client.release(request).await;
    released.map_err(|status| refusal(&status)).with_context(|| format!("release {}", args.image))?;
    Ok(output::emit(args.output, &serde_json::json!({ "released": args.image }), String::new)?)
}
