//! Clusters of a few nodes: what holds whatever the times are.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use towline_tests::cluster::network::{Network, ORIGIN, Plan};
use towline_tests::cluster::rate::Rate;
use towline_tests::stage::can_run;

/// Bytes a second that node 0 receives from the origin on one connection, over about a second and a half.
fn stream(network: &Network) -> Result<f64> {
    let listener = network.origin.enter(|| TcpListener::bind((ORIGIN, 9000)))??;
    let sender = std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let block = vec![0; 256 << 10];
        while stream.write_all(&block).is_ok() {}
    });
    let mut stream = network.nodes[0].enter(|| std::net::TcpStream::connect((ORIGIN, 9000)))??;
    let mut block = vec![0; 256 << 10];
    let (mut counted, mut begin, mut bytes) = (false, Instant::now(), 0);
    // The full bucket and the sender's first window pass faster than the rate.
    while begin.elapsed() < Duration::from_millis(if counted { 1500 } else { 300 }) || !counted {
        bytes += stream.read(&mut block).context("read a stream")?;
        if !counted && begin.elapsed() >= Duration::from_millis(300) {
            (counted, begin, bytes) = (true, Instant::now(), 0);
        }
    }
    let elapsed = begin.elapsed();
    drop(stream);
    let _ = sender.join();
    #[expect(clippy::cast_precision_loss, reason = "a stream of a second")]
    Ok(bytes as f64 / elapsed.as_secs_f64())
}

#[test]
fn a_stream_gets_what_its_link_is_said_to_give() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for mbit in [20, 200] {
        let rate = Rate::mbit(mbit);
        let plan = Plan { origin: None, nodes: vec![(0, Some(rate)), (1, None)], zones: 2, zone_link: None };
        let network = Network::build(&plan)?;
        let before = network.traffic()?;
        let got = stream(&network)?;
        assert!((0.93..=1.02).contains(&(got / rate.payload())), "{got} B/s on a link of {rate}");
        let passed = network.traffic()?.since(&before);
        // What the link counted is what was received, and headers, and what was under way at the end.
        let counted = passed.node(0).to;
        assert!(counted > 0 && passed.origin().from >= counted, "{passed:?}");
        assert!(passed.cross_zone() < counted / 10, "what the origin sends does not leave a zone: {passed:?}");
        assert_eq!(passed.node(1).from, 0);
    }
    Ok(())
}
