//! A real kubelet runs a pod whose image volume is a model.

use std::time::Duration;

use anyhow::Result;
use towline_tests::kubelet::Kubelet;
use towline_tests::model::{TWENTY_MIB, synthetic};
use towline_tests::node::Snapshotter;
use towline_tests::reading::Reading;
use towline_tests::stage::{Stage, can_run};

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_runs_a_pod_with_an_image_volume_on_overlayfs() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tl-reader")).arg(&model).output()?;
    let source = Reading::parse(&String::from_utf8(output.stdout)?)?;

    let stage = Stage::set().await?;
    let reference = stage.push_plain_model(&model, "plain:v1").await?;
    let node = stage.node("node", Snapshotter::Overlayfs).await?;
    let kubelet = Kubelet::start(&stage.scratch, "kubelet", &node, None).await?;
    kubelet.run(&stage.reader("reads", &reference, &[])?)?;
    let exit = kubelet.wait("reads", Duration::from_secs(60)).await?;
    let reading = Reading::parse(&exit.success()?)?;
    assert_eq!(reading.contents(), source.contents());
    kubelet.stop(Duration::from_secs(20)).await?;
    node.stop().await
}
