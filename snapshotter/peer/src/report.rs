//! What the peer network tells about itself.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use towline_swarm::{Counts, Peer};

use crate::core::Board;
use crate::directory::Directory;
use crate::wire::Hello;

/// One node, as seen from this one.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// 16 hex digits, new with every start of the node.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Its zone; may be empty.
    pub zone: String,
    /// Where its control connections are accepted.
    pub address: Option<SocketAddr>,
    /// Contents in which both take part.
    pub contents: usize,
    /// Bytes that came from it.
    pub bytes_from: u64,
    /// Bytes sent to it.
    pub bytes_to: u64,
    /// Time since it connected; zero for one that is banned.
    pub connected: Duration,
    /// Time until a ban ends; zero for no ban.
    pub banned: Duration,
}

/// The whole network.
#[derive(Clone, Debug)]
pub struct Report {
    /// This node: contents it takes part in, bytes of all peers since the start.
    pub own: PeerReport,
    /// Connected ones and banned ones, by name.
    pub peers: Vec<PeerReport>,
    /// What the decisions counted.
    pub counts: Counts,
    /// Requests for pieces that proved nothing.
    pub strangers: u64,
}

/// Reports at any time, also before the network runs and after it ended.
#[derive(Clone, Debug)]
pub struct Reporter {
    pub(crate) hello: Hello,
    pub(crate) me: Peer,
    pub(crate) directory: Arc<Directory>,
    pub(crate) board: Arc<Mutex<Board>>,
    pub(crate) started: Instant,
}

impl Reporter {
    /// A moment's view.
    #[must_use]
    pub fn report(&self) -> Report {
        let now = Instant::now();
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let own = PeerReport {
            id: self.me.id.to_string(),
            name: self.hello.name.clone(),
            zone: self.hello.zone.clone(),
            address: self.hello.address.map(|ip| SocketAddr::new(ip, self.hello.control_port)),
            contents: board.contents,
            bytes_from: self.directory.bytes_from.load(Ordering::Relaxed),
            bytes_to: self.directory.bytes_to.load(Ordering::Relaxed),
            connected: now.saturating_duration_since(self.started),
            banned: Duration::ZERO,
        };
        let mut peers: Vec<PeerReport> = self
            .directory
            .all()
            .into_iter()
            .map(|peer| PeerReport {
                id: peer.peer.id.to_string(),
                name: peer.name.clone(),
                zone: peer.zone.clone(),
                address: Some(peer.control),
                contents: board.common.get(&peer.peer.id).copied().unwrap_or_default(),
                bytes_from: peer.bytes_from.load(Ordering::Relaxed),
                bytes_to: peer.bytes_to.load(Ordering::Relaxed),
                connected: now.saturating_duration_since(peer.since),
                banned: Duration::ZERO,
            })
            .collect();
        peers.extend(board.banned.iter().filter(|(_, ban)| ban.1 > now).map(|(id, (name, until))| {
            PeerReport {
                id: id.to_string(),
                name: name.clone(),
                zone: String::new(),
                address: None,
                contents: 0,
                bytes_from: 0,
                bytes_to: 0,
                connected: Duration::ZERO,
                banned: until.saturating_duration_since(now),
            }
        }));
        peers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let strangers = self.directory.strangers.load(Ordering::Relaxed);
        Report { own, peers, counts: board.counts, strangers }
    }
}
