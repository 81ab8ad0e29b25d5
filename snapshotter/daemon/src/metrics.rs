//! Counters and gauges, and their text form. Names are stable; label values are bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use towline_peer::Report;

use crate::node::Node;

/// Why an image of ours is not served lazily.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Declined {
    Version,
    Labels,
    Stack,
    Credentials,
    Registry,
}

impl Declined {
    const ALL: [Self; 5] = [Self::Version, Self::Labels, Self::Stack, Self::Credentials, Self::Registry];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Labels => "labels",
            Self::Stack => "stack",
            Self::Credentials => "credentials",
            Self::Registry => "registry",
        }
    }
}

/// What the daemon counts itself; the rest is read off its parts when asked.
#[derive(Debug)]
pub(crate) struct Metrics {
    claimed: AtomicU64,
    declined: [AtomicU64; Declined::ALL.len()],
    ready: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.25 s to 68 min.
        let ready = Histogram::new(exponential_buckets(0.25, 2.0, 15));
        Self { claimed: AtomicU64::new(0), declined: Default::default(), ready }
    }
}

impl Metrics {
    pub(crate) fn claimed(&self) {
        self.claimed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn declined(&self, reason: Declined) {
        self.declined[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ready(&self, elapsed: Duration) {
        self.ready.observe(elapsed.as_secs_f64());
    }
}

/// A registry that reads `node` at each scrape.
pub(crate) fn registry(node: &Arc<Node>) -> Registry {
    let mut registry = Registry::with_prefix("towline");
    let help = "Time from the first pull of a model until every byte was verified and durable";
    registry.register_with_unit("model_ready", help, Unit::Seconds, node.metrics.ready.clone());
    registry.register_collector(Box::new(NodeCollector(Arc::downgrade(node))));
    registry
}

#[derive(Debug)]
struct NodeCollector(Weak<Node>);

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("root", &self.config.root).finish_non_exhaustive()
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (engine, store) = (node.engine.stats(), node.engine.store().stats());
        let counters: [(&str, &str, u64); 10] = [
            (
                "layers_claimed",
                "Layers served lazily instead of being downloaded by containerd",
                load(&node.metrics.claimed),
            ),
            ("volumes", "Times a model directory was handed out for a mount", load(&node.volumes_open)),
            ("origin_bytes", "Bytes received from registries", load(&engine.fetched_bytes)),
            ("peer_bytes", "Bytes of verified pieces that came from peers", load(&engine.peer_bytes)),
            (
                "corrupt_pieces",
                "Pieces that did not match their digest and were thrown away",
                load(&engine.corrupt_pieces),
            ),
            ("fetches", "Range requests started", load(&engine.runs)),
            ("failed_fetches", "Range requests that failed and were tried again", load(&engine.failed_runs)),
            (
                "timed_out_reads",
                "Reads that failed because their bytes did not come in time",
                load(&engine.timed_out_reads),
            ),
            ("unstored_pieces", "Pieces that the store could not take", load(&engine.unstored_pieces)),
            ("stored_bytes", "Bytes of pieces written to the store", store.committed_bytes),
        ];
        for (name, help, value) in counters {
            write(&mut encoder, name, help, &ConstCounter::new(value))?;
        }
        if let Some(peers) = node.peers.get() {
            encode_peers(&peers.report(), &mut encoder)?;
        }
        let declined = Family::<[(&'static str, &'static str); 1], Counter>::default();
        for reason in Declined::ALL {
            declined
                .get_or_create(&[("reason", reason.name())])
                .inc_by(load(&node.metrics.declined[reason as usize]));
        }
        let help = "Layers of model images that could not be served lazily";
        write(&mut encoder, "layers_declined", help, &declined)?;
        let models = node.catalog.models();
        let complete = models.iter().filter(|known| known.is_sealed()).count();
        let gauges: [(&str, &str, u64); 7] = [
            ("models", "Models known to the node", models.len() as u64),
            ("models_complete", "Models of which every byte is here and durable", complete as u64),
            ("memory_bytes", "Verified pieces held in memory", node.engine.memory_bytes()),
            ("fetches_under_way", "Range requests under way", node.engine.runs_under_way() as u64),
            ("store_bytes", "Bytes of contents on disk", store.content_bytes),
            ("store_dirty_bytes", "Bytes on disk that are not durable yet", store.dirty_bytes),
            ("store_quarantined", "Contents that were found damaged and set aside", store.quarantined),
        ];
        for (name, help, value) in gauges {
            write(&mut encoder, name, help, &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))?;
        }
        if let Some(mount) = node.mount.get() {
            let stats = mount.stats();
            for (name, help, value) in [
                ("fuse_read_bytes", "Bytes read through the daemon", stats.bytes_read),
                (
                    "fuse_passthrough_opens",
                    "Opens of complete files that bypass the daemon",
                    stats.passthrough_opens,
                ),
                ("fuse_cached_opens", "Opens that read through the daemon", stats.cached_opens),
            ] {
                write(&mut encoder, name, help, &ConstCounter::new(value))?;
            }
        }
        Ok(())
    }
}

/// What the peer network counts. `strangers` means somebody without the cluster key, or with an old one, at the piece server.
fn encode_peers(report: &Report, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let banned = report.peers.iter().filter(|peer| !peer.banned.is_zero()).count();
    let counts = report.counts;
    for (name, help, value) in [
        ("peer_sent_bytes", "Bytes of pieces and blocks sent to peers", report.own.bytes_to),
        ("peer_pieces", "Pieces that came from peers and matched", counts.from_peers),
        ("peer_blocks", "Parts of pieces that readers had from peers before the pieces", counts.blocks),
        ("peer_pieces_twice", "Pieces that came although they were here already", counts.twice),
        (
            "peer_corrupt_pieces",
            "Pieces and blocks of peers or the origin that did not match their digest",
            counts.corrupt,
        ),
        ("peer_stalled_requests", "Requests to peers given up for want of an answer", counts.stalled),
        ("peer_failed_requests", "Requests that peers refused or broke off", counts.failed),
        ("peer_absurd_messages", "Messages of peers that broke a limit", counts.absurd),
        ("peer_strangers", "Requests for pieces that did not prove to come from a peer", report.strangers),
    ] {
        write(encoder, name, help, &ConstCounter::new(value))?;
    }
    for (name, help, value) in [
        ("peers", "Peers connected", report.peers.len() - banned),
        ("peers_banned", "Peers that sent wrong bytes and are not dealt with for now", banned),
    ] {
        write(encoder, name, help, &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))?;
    }
    Ok(())
}

fn write(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
