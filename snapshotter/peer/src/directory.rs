//! The peers this node is connected with: how to reach them, what has passed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use towline_swarm::{Peer, PeerId, Zone};

use crate::auth::{Numbers, RequestKey, Taken};
use crate::wire::Hello;

/// The name by which decisions know a node: the first eight bytes of a hash of its libp2p peer id.
pub(crate) fn swarm_id(id: &libp2p::PeerId) -> PeerId {
    let hash = blake3::hash(&id.to_bytes());
    PeerId(u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")))
}

/// The number of a zone; that of no zone is 0.
pub(crate) fn zone_number(name: &str) -> Zone {
    if name.is_empty() {
        return Zone(0);
    }
    let hash = blake3::hash(name.as_bytes());
    Zone(u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("four bytes")))
}

/// A peer with which a control stream is open.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) peer: Peer,
    pub(crate) libp2p_id: libp2p::PeerId,
    pub(crate) name: String,
    pub(crate) zone: String,
    /// Where its control connections are accepted.
    pub(crate) control: SocketAddr,
    /// Where it serves pieces.
    pub(crate) bulk: SocketAddr,
    /// For requests to it.
    pub(crate) theirs: RequestKey,
    pub(crate) numbers: Numbers,
    /// For its requests to this node.
    pub(crate) ours: RequestKey,
    pub(crate) taken: Taken,
    pub(crate) bytes_from: AtomicU64,
    pub(crate) bytes_to: AtomicU64,
    /// Bytes a second of the piece that came last, from its first byte on; 0 before one came.
    pub(crate) rate: AtomicU64,
    pub(crate) since: Instant,
}

impl Connected {
    /// Of what the peer said of itself on a stream from `remote`, and the key it was given.
    pub(crate) fn new(id: libp2p::PeerId, remote: IpAddr, hello: &Hello, ours: RequestKey) -> Self {
        let address = hello.address.unwrap_or(remote);
        Self {
            peer: Peer { id: swarm_id(&id), zone: zone_number(&hello.zone), weight: hello.weight },
            libp2p_id: id,
            name: hello.name.clone(),
            zone: hello.zone.clone(),
            control: SocketAddr::new(address, hello.control_port),
            bulk: SocketAddr::new(address, hello.bulk_port),
            theirs: hello.request_key.clone(),
            numbers: Numbers::default(),
            ours,
            taken: Taken::default(),
            bytes_from: AtomicU64::new(0),
            bytes_to: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            since: Instant::now(),
        }
    }
}

/// All of them, and what has passed in all. Shared by the parts that meet a peer by its id.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    peers: RwLock<HashMap<PeerId, Arc<Connected>>>,
    pub(crate) bytes_from: AtomicU64,
    pub(crate) bytes_to: AtomicU64,
    /// Requests at the piece server that proved nothing.
    pub(crate) strangers: AtomicU64,
}

impl Directory {
    pub(crate) fn get(&self, id: PeerId) -> Option<Arc<Connected>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connected>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn put(&self, peer: Arc<Connected>) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(peer.peer.id, peer);
    }

    /// Takes `peer` out, unless another stream with the same node has replaced it.
    pub(crate) fn remove(&self, peer: &Arc<Connected>) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.get(&peer.peer.id).is_some_and(|other| Arc::ptr_eq(other, peer)) {
            peers.remove(&peer.peer.id);
        }
    }

    pub(crate) fn received(&self, peer: &Connected, len: u64) {
        peer.bytes_from.fetch_add(len, Ordering::Relaxed);
        self.bytes_from.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, peer: &Connected, len: u64) {
        peer.bytes_to.fetch_add(len, Ordering::Relaxed);
        self.bytes_to.fetch_add(len, Ordering::Relaxed);
    }
}
