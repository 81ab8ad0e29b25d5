//! `tl-baseline [DIR]`: a cold start of a plain model image on containerd with overlayfs, measured and printed.
//!
//! DIR is a directory of model files; without it, the synthetic model of 2 GiB.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use towline_tests::machine::Machine;
use towline_tests::measure::ColdStart;
use towline_tests::model::{TWO_GIB, synthetic};
use towline_tests::node::Snapshotter;
use towline_tests::stage::Stage;
use towline_tests::timeline::compare;

#[tokio::main]
async fn main() -> Result<()> {
    let model = match std::env::args_os().nth(1) {
        Some(dir) => PathBuf::from(dir),
        None => synthetic(&TWO_GIB)?,
    };
    let stage = Stage::set().await?;
    eprintln!("packaging {}", model.display());
    let reference = stage.push_plain_model(&model, "baseline:v1").await?;
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    eprintln!("pulling and reading {reference}");
    let start = ColdStart::measure(&stage, &node, "baseline", &reference).await?;
    let machine = Machine::look(stage.scratch.path());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{machine}\n\n{}", compare(&[("overlayfs", start.figures())]))?;
    node.stop().await
}
