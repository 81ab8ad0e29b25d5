//! `towlined` as the default snapshotter of a node.

use std::time::Duration;

use anyhow::{Context, Result};
use towline_tests::model::{TWENTY_MIB, synthetic};
use towline_tests::node::Snapshotter;
use towline_tests::pod::{Pod, Spec};
use towline_tests::reading::Reading;
use towline_tests::stage::{Stage, can_run};

const POD_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_images_work_as_root_and_as_volume() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tl-reader")).arg(&model).output()?;
    let source = Reading::parse(&String::from_utf8(output.stdout)?)?;

    let stage = Stage::set().await?;
    let reference = stage.push_plain_model(&model, "plain:v1").await?;
    let node = stage.node("node", Snapshotter::Towline { extra: String::new() }).await?;
    let command = ["/bin/sh", "-c", "echo hello > /greeting && cat /greeting"].map(str::to_owned);
    let spec = Spec {
        name: "writes".into(),
        image: stage.pod_image.clone(),
        command: command.into(),
        env: vec![],
        mounts: vec![],
    };
    let pod = Pod::run(&node, &spec).await?;
    assert_eq!(pod.wait(POD_LIMIT).await?.success()?, "hello\n");
    pod.remove().await?;

    node.cri().pull(&reference).await?;
    let pod = Pod::run(&node, &stage.reader("reads", &reference, &[])?).await?;
    assert_eq!(Reading::parse(&pod.wait(POD_LIMIT).await?.success()?)?.contents(), source.contents());
    pod.remove().await?;
    let used = node.towlined().context("a node with towlined")?.daemon().usage()?;
    assert!(used.peak_rss_bytes > 0);
    node.stop().await
}
