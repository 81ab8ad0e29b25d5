//! The baseline: a plain model image on containerd with overlayfs. Shows that the harness sees what is there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use towline_tests::measure::ColdStart;
use towline_tests::model::{TWENTY_MIB, files_below, minilm, synthetic};
use towline_tests::node::Snapshotter;
use towline_tests::pod::{Pod, Spec};
use towline_tests::python::{Embedding, embed, embedding_pod};
use towline_tests::reading::Reading;
use towline_tests::stage::{Stage, can_run};
use towline_tests::sweep::mounts_below;

const POD_LIMIT: Duration = Duration::from_secs(120);

/// Reads a directory of this machine with the same program that the pods run.
fn read_here(dir: &Path, options: &[&str]) -> Result<Reading> {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_tl-reader")).args(options).arg(dir).output()?;
    Reading::parse(&String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_a_plain_model_image_and_nothing_is_left() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let source = read_here(&model, &[])?;
    assert_eq!(source.files.len(), files_below(&model)?.len());
    assert_eq!(read_here(&model, &["--mmap", "--threads", "2"])?.contents(), source.contents());

    let stage = Stage::set().await?;
    let reference = stage.push_plain_model(&model, "plain:v1").await?;
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    let start = ColdStart::measure(&stage, &node, "reads", &reference).await?;
    assert_eq!(start.reading.contents(), source.contents());
    assert!(
        start.pulled < start.running && start.running < start.first_byte && start.first_byte < start.complete
    );
    // The registry serves the layers and the image's configuration once; a tar adds at most 2 KiB to a file.
    let served = start.served.blob_bytes;
    let bytes = source.bytes();
    assert!((bytes..bytes + (64 << 10)).contains(&served), "{served} bytes served for {bytes}");
    // overlayfs writes the blob and the unpacked file.
    assert!(start.used.write_bytes >= 2 * bytes, "{} bytes written for {bytes}", start.used.write_bytes);

    // A mapping and several threads see the same through the mount.
    let pod = Pod::run(&node, &stage.reader("maps", &reference, &["--mmap", "--threads", "2"])?).await?;
    let mapped = Reading::parse(&pod.wait(POD_LIMIT).await?.success()?)?;
    assert_eq!(mapped.contents(), source.contents());
    pod.remove().await?;

    let dir = stage.scratch.path().to_path_buf();
    node.stop().await?;
    assert_eq!(mounts_below(&dir), [] as [&Path; 0], "a node that was stopped leaves no mount");
    drop(stage);
    assert!(!dir.try_exists()?, "the run's directory is gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fails_says_so() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::set().await?;
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    let command = ["/bin/sh", "-c", "echo before; cat /absent; exit 3"].map(str::to_owned);
    let spec = Spec {
        name: "fails".into(),
        image: stage.pod_image.clone(),
        command: command.into(),
        env: vec![],
        mounts: vec![],
    };
    let exit = Pod::run(&node, &spec).await?.wait(POD_LIMIT).await?;
    assert_eq!(exit.code, 3);
    // The two streams are copied into the log by two goroutines, so their order is not kept.
    let output = &exit.output;
    assert!(output.lines().any(|line| line == "before") && output.contains("/absent"), "{output}");
    assert!(exit.success().is_err());
    // Neither pod nor node are stopped: the run's janitor has to.
    let dir = stage.scratch.path().to_path_buf();
    std::mem::forget(node);
    drop(stage);
    assert!(!dir.try_exists()?, "the run's directory is gone");
    assert_eq!(mounts_below(&dir), [] as [&Path; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_loads_with_its_library_in_a_pod() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = minilm()?;
    let stage = Stage::set().await?;
    let reference = stage.push_plain_model(&model, "minilm:v1").await?;
    let here = embed(&model).await?;
    ensure!(here.embedding.len() == 384, "an embedding of {} numbers", here.embedding.len());
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    node.cri().pull(&reference).await?;
    let pod = Pod::run(&node, &embedding_pod("embeds", &stage.pod_image, &reference)?).await?;
    let there = Embedding::parse(&pod.wait(POD_LIMIT).await?.success()?)?;
    assert_eq!(there.embedding, here.embedding);
    pod.remove().await?;
    node.stop().await
}
