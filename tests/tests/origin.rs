//! The proxy in front of the registry does what it is told, as seen by a client that verifies: containerd.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::http::StatusCode;
use towline_tests::image;
use towline_tests::model::{TWENTY_MIB, synthetic};
use towline_tests::node::Snapshotter;
use towline_tests::origin::{Faults, Origin};
use towline_tests::process::until;
use towline_tests::stage::{Stage, can_run};

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_reaches_the_client_and_a_healed_proxy_serves() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::set().await?;
    let dir = stage.scratch.path().join("model");
    let layout = image::plain_model(&synthetic(&TWENTY_MIB)?, &dir, "v1")?;
    stage.registry.push(&layout, "model:v1").await?;
    let origin = Origin::start(stage.registry.addr()).await?;
    let reference = format!("{}/model:v1", origin.addr());
    let node = stage.node("node", Snapshotter::Overlayfs).await?;

    let sizes = layout.layers.iter().map(|digest| {
        let len = dir
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
            .metadata()
            .map(|file| file.len());
        len.map(|len| (len, digest.clone()))
    });
    let (len, largest) = sizes.collect::<Result<Vec<_>, _>>()?.into_iter().max().context("no layers")?;

    origin.set(Faults { refuse: Some(StatusCode::FORBIDDEN), ..Faults::default() });
    assert!(node.cri().pull(&reference).await.is_err(), "a refused blob");
    assert_eq!(origin.passed().blob_bytes, 0);

    origin.set(Faults { flip: [(largest.clone(), len - 1)].into(), ..Faults::default() });
    let error = format!("{:#}", node.cri().pull(&reference).await.expect_err("a flipped bit"));
    assert!(error.contains("digest"), "{error}");

    // containerd would ask for the rest again and again, and get it; a plain client shows the cut.
    origin.set(Faults { cut_after: Some(1 << 20), ..Faults::default() });
    let (addr, path) = (origin.addr(), format!("/v2/model/blobs/{largest}"));
    let got = tokio::task::spawn_blocking(move || bytes_of(addr, &path)).await??;
    assert!((1 << 18..=(1 << 20) + 4096).contains(&got), "{got} bytes of an answer that breaks off");

    let delay = Duration::from_millis(200);
    origin.set(Faults { delay, ..Faults::default() });
    let begin = Instant::now();
    // containerd may go on with what it got before the fault: it then finds the flipped bit, throws the bytes away and
    // succeeds when it is asked again, as the kubelet does.
    let pull = async || Ok(node.cri().pull(&reference).await.ok());
    until("the pull through the healed proxy", Duration::from_secs(60), pull).await?;
    assert!(begin.elapsed() > delay, "{:?}", begin.elapsed());
    let passed = origin.passed();
    assert!(passed.bytes_of[&largest] >= len && passed.blob_gets >= layout.layers.len() as u64, "{passed:?}");
    assert!(passed.most_in_flight >= 2, "containerd fetches layers side by side: {passed:?}");
    node.stop().await
}

/// Bytes, head included, that a plain GET gets before the connection ends, in whatever way.
fn bytes_of(addr: SocketAddr, path: &str) -> Result<usize> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut bytes = Vec::new();
    // A reset is as good an end as any here; what came before it is in `bytes`.
    let _ended = stream.read_to_end(&mut bytes);
    Ok(bytes.len())
}
