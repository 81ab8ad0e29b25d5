//! The peer network of this node, as configured.

use std::path::Path;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use towline_peer::{Bootstrap, ClusterKey, InCluster, Options, PeerNetwork, Source};
use towline_swarm::Limits;

use crate::config::{Config, Peers, Strategy};
use crate::error::chain;

/// Value of `peers.zone` that takes the zone from the node's label.
const ZONE_FROM_KUBERNETES: &str = "kubernetes";
/// Variable with the name of the node, by the downward API.
const NODE_NAME: &str = "NODE_NAME";

/// Listens for peers; `None` without a cluster key.
pub(crate) async fn bind(config: &Config, stop: &CancellationToken) -> anyhow::Result<Option<PeerNetwork>> {
    let peers = &config.peers;
    let Some(path) = &peers.cluster_key_file else { return Ok(None) };
    let key = ClusterKey::read(path)?;
    let sources: Vec<Source> = peers
        .bootstrap
        .iter()
        .map(|source| source.parse().with_context(|| format!("peers.bootstrap {source:?}")))
        .collect::<anyhow::Result<_>>()?;
    let environment = |name: &str| std::env::var(name).ok();
    let cluster = InCluster::from_env(environment, Path::new(InCluster::SERVICE_ACCOUNT_DIR));
    let zone = match (peers.zone.as_str(), &cluster) {
        (ZONE_FROM_KUBERNETES, Ok(cluster)) => node_zone(cluster).await,
        (ZONE_FROM_KUBERNETES, Err(error)) => {
            tracing::warn!(%error, "zone of this node is not known");
            String::new()
        }
        (zone, _) => zone.to_owned(),
    };
    let bootstrap = match sources.is_empty() {
        true => None,
        false => Some(Bootstrap::new(sources, cluster.ok())?),
    };
    let options = Options {
        key,
        listen: peers.listen,
        bulk_listen: peers.bulk_listen,
        advertise: peers.advertise,
        bootstrap,
        name: if peers.name.is_empty() { host_name() } else { peers.name.clone() },
        zone,
        weight: peers.weight,
        max_connections: peers.max_connections,
        limits: limits(peers),
    };
    let network = PeerNetwork::bind(options, stop.clone()).await?;
    tracing::info!(
        listen = %peers.listen, bulk_listen = %peers.bulk_listen, id = network.reporter().report().own.id,
        "listening for peers"
    );
    Ok(Some(network))
}

/// The zone by the node's label. Without it the node is of the zone without a name: pieces may then cross a border more often,
/// and nothing else.
async fn node_zone(cluster: &InCluster) -> String {
    let Ok(node) = std::env::var(NODE_NAME) else {
        tracing::warn!("zone of this node is not known: {NODE_NAME} is not set");
        return String::new();
    };
    match cluster.node_zone(&node).await {
        Ok(Some(zone)) => zone,
        Ok(None) => {
            tracing::warn!(node, "node has no label for its zone");
            String::new()
        }
        Err(error) => {
            tracing::warn!(node, error = chain(&error), "zone of this node is not known");
            String::new()
        }
    }
}

fn limits(peers: &Peers) -> Limits {
    let mut limits = Limits { upload_rate: peers.upload_rate.map(|rate| rate.0), ..Limits::default() };
    match peers.strategy {
        Strategy::Swarm => {}
        Strategy::OwnerOnly => limits.strategy = towline_swarm::Strategy::OwnerOnly,
    }
    limits
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
