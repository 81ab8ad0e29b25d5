//! Waiting, merging and what is said about a source, without a name server or a cluster.

use super::*;
use proptest::prelude::*;

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7000))
}

fn many(numbers: std::ops::Range<u16>) -> Vec<SocketAddr> {
    numbers.map(address).collect()
}

#[test]
fn every_source_has_its_share() {
    assert_eq!(merge(vec![]), []);
    assert_eq!(merge(vec![vec![], many(0..2), many(1..4)]), [0, 1, 2, 3].map(address));
    let crowded = merge(vec![many(0..5000), many(6000..6002)]);
    assert_eq!(crowded.len(), MAX_ADDRESSES);
    assert!(crowded.contains(&address(6001)));
    assert_eq!(merge(vec![many(0..4096)]).len(), 4096);
    assert_eq!(merge(vec![many(0..4097)]).len(), 4096);
}

#[test]
fn both_forms_of_an_ipv4_address_are_one() {
    let mapped = "[::ffff:10.0.0.1]:7000".parse().expect("mapped");
    assert_eq!(merge(vec![vec![mapped], vec![address(1)]]), [address(1)]);
    // A scope says which link is meant and stays.
    let scoped: SocketAddr = "[fe80::1%3]:7000".parse().expect("scoped");
    assert_eq!(merge(vec![vec![scoped]]), [scoped]);
}

#[test]
fn waits_grow_to_a_steady_rate() {
    let millis = |connected, attempt| Bootstrap::next_wait(connected, attempt, 0.5).as_millis();
    for connected in [0, 1, 7] {
        let waits: Vec<_> = (0..10).map(|attempt| millis(connected, attempt)).collect();
        assert_eq!(waits, [125, 250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(millis(connected, u32::MAX), 30_000);
    }
    assert_eq!(
        [8, 15, 16, 40, 80, 1000, usize::MAX].map(|n| millis(n, 9) / 1000),
        [30, 30, 60, 150, 300, 300, 300]
    );
    // The first attempt is not put off: whoever has peers already did not get them from the sources.
    assert_eq!(millis(1000, 0), 125);
}

#[test]
fn nodes_that_start_together_spread() {
    let first: Vec<_> = (0..=1000).map(|n| Bootstrap::next_wait(0, 0, f64::from(n) / 1000.0)).collect();
    for start in (0..250).step_by(25).map(Duration::from_millis) {
        let together =
            first.iter().filter(|wait| (start..start + Duration::from_millis(25)).contains(*wait)).count();
        assert!((90..=110).contains(&together), "{together} of 1001 nodes within 25 ms of {start:?}");
    }
}

proptest! {
    #[test]
    fn any_wait_is_bounded(connected in any::<usize>(), attempt in any::<u32>(), jitter in any::<f64>()) {
        let wait = Bootstrap::next_wait(connected, attempt, jitter);
        prop_assert!(wait <= RARE.mul_f64(1.5));
        prop_assert!(attempt == 0 || wait >= QUICK / 2);
    }
}

fn bootstrap(sources: &[&str]) -> Bootstrap {
    let sources = sources.iter().map(|text| text.parse().expect(text)).collect();
    Bootstrap::new(sources, None).expect("sources")
}

#[test]
fn sources_are_bounded_and_need_what_they_ask() {
    let sources = |count: u16| (1..=count).map(|n| Source::Static(address(n))).collect::<Vec<_>>();
    assert!(Bootstrap::new(sources(64), None).is_ok());
    let error = Bootstrap::new(sources(65), None).expect_err("too many");
    assert!(matches!(error, BootstrapError::TooManySources { count: 65 }));
    let kubernetes: Source = "kubernetes:a/b:1".parse().expect("source");
    let error = Bootstrap::new(vec![kubernetes], None).expect_err("no cluster");
    assert_eq!(error.to_string(), "bootstrap source kubernetes:a/b:1 needs a pod with a service account");
    assert_eq!(bootstrap(&["10.0.0.1:1", "10.0.0.1:1", "10.0.0.1:2"]).watched.len(), 2);
}

/// What happened, and whether it is worth a line.
#[test]
fn a_failure_is_told_once_per_change() {
    let logged = Log::default();
    let _guard = tracing::subscriber::set_default(logged.clone());
    let bootstrap = bootstrap(&["dns:peers.example:1"]);
    let failed = |kind: io::ErrorKind| Err(Failure::Lookup(kind.into()));
    let watched = &bootstrap.watched[0];
    let mut lines = Vec::new();
    for outcome in [
        failed(io::ErrorKind::NotFound),
        failed(io::ErrorKind::NotFound),
        failed(io::ErrorKind::TimedOut),
        Ok(vec![]),
        Ok(vec![]),
        Ok(vec![address(1)]),
        Ok(vec![address(1), address(2)]),
        failed(io::ErrorKind::TimedOut),
    ] {
        watched.note(&outcome);
        lines.push(logged.count());
    }
    assert_eq!(lines, [1, 1, 2, 3, 3, 4, 4, 5]);
}

#[tokio::test]
async fn names_are_looked_up_and_one_lookup_is_under_way() {
    let bootstrap = bootstrap(&["10.0.0.1:7000", "dns:localhost:7001"]);
    let found = bootstrap.resolve().await;
    assert!(found.contains(&address(1)), "{found:?}");
    assert!(found.iter().any(|a| a.ip().is_loopback() && a.port() == 7001), "{found:?}");
    // As if an earlier lookup still hung: no other begins, and the rest is found.
    let permit = bootstrap.watched[1].lookup.clone().try_acquire_owned().expect("returned");
    assert_eq!(bootstrap.resolve().await, [address(1)]);
    let state = bootstrap.watched[1].state.lock().expect("state").clone();
    assert_eq!(state, State::Failed(Failure::Busy.to_string()));
    drop(permit);
    assert!(bootstrap.resolve().await.len() > 1);
}

#[tokio::test]
async fn a_source_that_hangs_does_not_hide_the_others() {
    let hanging = crate::kubernetes::testing::Hanging::new().await;
    let sources = ["kubernetes:a/b:1", "10.0.0.1:7000"].map(|text| text.parse().expect(text));
    let mut bootstrap = Bootstrap::new(sources.into(), Some(hanging.cluster.clone())).expect("sources");
    bootstrap.patience = Duration::from_millis(20);
    assert_eq!(bootstrap.resolve().await, [address(1)]);
    let state = bootstrap.watched[0].state.lock().expect("state").clone();
    assert_eq!(state, State::Failed("no answer within 20 ms".into()));
}

/// Counts events.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::atomic::AtomicUsize>);

impl Log {
    fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().target().starts_with("towline_peer::bootstrap") {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
