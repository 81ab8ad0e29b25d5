//! `towline peers`: the nodes that this one exchanges pieces with.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use towline_proto::control::v1::{Peer as WirePeer, PeersRequest, PeersResponse};

use crate::args::PeersArgs;
use crate::daemon::{self, QUICK, asking, refusal};
use crate::output::{self, Align, clean, size, table};

/// The answer as JSON (docs/cli.md).
#[derive(Clone, Debug, Serialize)]
struct Peers {
    enabled: bool,
    #[serde(rename = "self")]
    own: Option<Peer>,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, Serialize)]
struct Peer {
    id: String,
    name: String,
    zone: String,
    address: String,
    contents: u32,
    bytes_from: u64,
    bytes_to: u64,
    connected_seconds: u64,
    banned_seconds: u64,
}

impl From<WirePeer> for Peer {
    fn from(wire: WirePeer) -> Self {
        Self {
            id: wire.id,
            name: wire.name,
            zone: wire.zone,
            address: wire.address,
            contents: wire.contents,
            bytes_from: wire.bytes_from,
            bytes_to: wire.bytes_to,
            connected_seconds: wire.connected_seconds,
            banned_seconds: wire.banned_seconds,
        }
    }
}

impl From<PeersResponse> for Peers {
    fn from(wire: PeersResponse) -> Self {
        Self {
            enabled: wire.enabled,
            own: wire.self_.map(Peer::from),
            peers: wire.peers.into_iter().map(Peer::from).collect(),
        }
    }
}

/// Prints the peers of this node.
///
/// # Errors
/// When the daemon does not answer.
pub(crate) async fn run(args: PeersArgs) -> anyhow::Result<()> {
    let socket = &args.daemon.control;
    let answer = daemon::client(socket, QUICK).await?.peers(PeersRequest {}).await;
    let answer = answer.map_err(|status| refusal(&status)).with_context(|| asking(socket))?;
    let peers = Peers::from(answer.into_inner());
    Ok(output::emit(args.output, &peers, || text(&peers))?)
}

fn text(peers: &Peers) -> String {
    if !peers.enabled {
        return "this node has no peers: its configuration names no peers.cluster_key_file\n".to_owned();
    }
    let (left, right) = (Align::Left, Align::Right);
    let columns = [
        ("NAME", left),
        ("ZONE", left),
        ("ADDRESS", left),
        ("CONTENTS", right),
        ("FROM", right),
        ("TO", right),
        ("CONNECTED", right),
        ("STATE", left),
    ];
    let own = peers.own.iter().map(|peer| row(peer, "this node".to_owned()));
    let others = peers.peers.iter().map(|peer| row(peer, state(peer)));
    table(&columns, &own.chain(others).collect::<Vec<_>>())
}

fn row(peer: &Peer, state: String) -> Vec<String> {
    let name = if peer.name.is_empty() { &peer.id } else { &peer.name };
    let zone = if peer.zone.is_empty() { "-" } else { &peer.zone };
    vec![
        clean(name),
        clean(zone),
        clean(&peer.address),
        peer.contents.to_string(),
        size(peer.bytes_from),
        size(peer.bytes_to),
        seconds(peer.connected_seconds),
        state,
    ]
}

fn state(peer: &Peer) -> String {
    match peer.banned_seconds {
        0 => "connected".to_owned(),
        left => format!("banned for {}", seconds(left)),
    }
}

fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> WirePeer {
        WirePeer {
            id: "0123456789abcdef".into(),
            name: name.into(),
            address: "10.0.0.7:7118".into(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(response: PeersResponse, expected: &[&str]) {
        let text = text(&response.into());
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn this_node_comes_first_and_a_ban_is_told() {
        let own = WirePeer { contents: 3, bytes_to: 5 << 20, connected_seconds: 61, ..peer("a") };
        let near = WirePeer { zone: "eu-1\u{1b}".into(), contents: 1, bytes_from: 1 << 20, ..peer("b") };
        let liar = WirePeer { banned_seconds: 90, ..peer("") };
        check(
            PeersResponse { enabled: true, self_: Some(own), peers: vec![near, liar] },
            &[
                "NAME ZONE ADDRESS CONTENTS FROM TO CONNECTED STATE",
                "a - 10.0.0.7:7118 3 0 B 5.0 MiB 1m 1s this node",
                "b eu-1 10.0.0.7:7118 1 1.0 MiB 0 B 0s connected",
                "0123456789abcdef - 10.0.0.7:7118 0 0 B 0 B 0s banned for 1m 30s",
            ],
        );
    }

    #[test]
    fn a_node_without_peers_says_so() {
        check(
            PeersResponse::default(),
            &["this node has no peers: its configuration names no peers.cluster_key_file"],
        );
    }
}
