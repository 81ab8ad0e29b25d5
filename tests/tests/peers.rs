//! Pods on two nodes, each with a containerd and a daemon of its own, start the same model at once.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use towline_tests::convert::{convert, directory};
use towline_tests::model::{Shape, synthetic};
use towline_tests::node::{Node, Snapshotter};
use towline_tests::process::until;
use towline_tests::reading::Reading;
use towline_tests::stage::{Stage, can_run};
use towline_tests::towlined::free_ports;

/// 168 MB in 3 shards.
const SHARDS: Shape =
    Shape { name: "160mib", hidden: 1024, intermediate: 4096, vocab: 8192, layers: 4, shards: 3 };
const LIMIT: Duration = Duration::from_secs(120);

fn with_peers(key: &Path, name: &str, ports: [SocketAddr; 2], first: SocketAddr) -> Snapshotter {
    let [control, bulk] = ports;
    Snapshotter::Towline {
        extra: format!(
            "[fetch]\nread_timeout = '60s'\nfill_delay = '200ms'\n[peers]\ncluster_key_file = '{}'\nname = '{name}'\n\
             listen = '{control}'\nbulk_listen = '{bulk}'\nbootstrap = ['{first}']\n",
            key.display()
        ),
    }
}

async fn metric(node: &Node, name: &str) -> Result<f64> {
    node.towlined().context("towlined runs")?.metric(name).await
}

async fn pull_and_read(stage: &Stage, node: &Node, reference: &str) -> Result<Reading> {
    node.cri().pull(reference).await?;
    stage.read_in_pod(node, "reader", reference).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_two_nodes_start_the_same_model_at_once_for_one_download() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&SHARDS)?;
    let stage = Stage::set().await?;
    let reference = format!("{}/m:v1", stage.registry.addr());
    let image = convert(None, &directory(&model), &reference, &[]).await?;
    let key = stage.scratch.path().join("cluster.key");
    std::fs::write(&key, "a cluster key of the tests, long enough")?;
    let (a, b) = (free_ports()?, free_ports()?);
    let first = stage.node("a", with_peers(&key, "a", a, a[0])).await?;
    let second = stage.node("b", with_peers(&key, "b", b, a[0])).await?;
    let connected = async || {
        let both = metric(&first, "towline_peers").await? + metric(&second, "towline_peers").await?;
        Ok((both >= 2.0).then_some(()))
    };
    until("the nodes to be connected", LIMIT, connected).await?;

    let mark = stage.registry.mark()?;
    let (one, other) = tokio::join!(
        pull_and_read(&stage, &first, &image.reference),
        pull_and_read(&stage, &second, &image.reference)
    );
    let (one, other) = (one?, other?);
    assert_eq!(one.model_files(), other.model_files());
    let (bytes, served) = (image.bytes, stage.registry.served_since(mark)?.blob_bytes);
    let source = std::process::Command::new(env!("CARGO_BIN_EXE_tl-reader")).arg(&model).output()?;
    assert_eq!(one.model_files(), Reading::parse(&String::from_utf8(source.stdout)?)?.contents());
    // Each node reads manifest, configuration and base layer for itself: that is before it knows what its peers have.
    let own = 2 * (image.layers[0].size + (64 << 10));
    assert!(
        served <= bytes + bytes / 20 + own,
        "{served} bytes left the registry for a model of {bytes} on two nodes"
    );
    let from_peers = metric(&first, "towline_peer_bytes_total").await?
        + metric(&second, "towline_peer_bytes_total").await?;
    assert!(from_peers >= 0.9 * bytes as f64, "{from_peers} bytes came from peers");
    for node in [&first, &second] {
        assert_eq!(metric(node, "towline_peers_banned").await?, 0.0);
        assert_eq!(metric(node, "towline_corrupt_pieces_total").await?, 0.0);
    }
    second.stop().await?;
    first.stop().await
}
