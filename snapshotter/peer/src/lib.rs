//! The sockets of the peer network: who is there, what they have, and the pieces themselves.
//!
//! What to ask of whom is decided by `towline-swarm`; this crate runs it. Its parts are tasks that send each other events:
//!
//! - `net` owns libp2p: identity, admission by the cluster key, encrypted connections, membership and, for clusters beyond
//!   the limit of connections, the hash table of who takes part in which content. `link` is the control stream with one peer.
//! - `core` owns the swarm and does what it says. `wishes` brings it what readers and fills want, `plan` orders the fills.
//! - `server` and `client` move pieces over HTTP/1.1 on connections of their own, each request proven by a key that the
//!   control stream brought (`auth`). `fetch` takes what arrives to the engine, which alone verifies and keeps it.
//! - `bootstrap` and `kubernetes` find first peers.
//!
//! A node's identity is made at its start and forgotten at its end: nothing secret is on disk. Nothing here survives a restart but
//! the pieces, which the store has.

mod auth;
mod bootstrap;
mod buffers;
mod client;
mod contacts;
mod core;
mod directory;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod http;
mod key;
mod kubernetes;
#[cfg(test)]
mod liar;
mod link;
mod names;
mod net;
mod page_cache;
mod plan;
mod report;
mod server;
mod socket;
mod turns;
mod wire;
mod wishes;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towline_modelfs::{Engine, Network};
use towline_swarm::{Limits, Peer, Swarm};

use crate::auth::RequestKey;
use crate::buffers::Buffers;
use crate::core::{Board, Core, Inputs};
use crate::directory::{Directory, swarm_id, zone_number};
use crate::fetch::Fetcher;
use crate::gate::Gate;
use crate::net::{Command, Net};
use crate::wire::Hello;
use crate::wishes::Wishes;

pub use bootstrap::{Bootstrap, BootstrapError, Source, SourceError};
pub use key::{ClusterKey, KeyError};
pub use kubernetes::{InCluster, KubernetesError, Object};
pub use net::StartError;
pub use report::{PeerReport, Report, Reporter};
pub use wire::MAX_NAME_LEN;

/// Events that wait for the task that decides, of each kind. Who tells more waits.
const EVENTS: usize = 4096;
/// Commands that wait for the network's task.
const COMMANDS: usize = 16_384;

/// What the peer network of a node is made of.
#[derive(Debug)]
pub struct Options {
    /// Admits this node, and all that have it.
    pub key: ClusterKey,
    /// Where control connections are accepted. Port 0 for any.
    pub listen: SocketAddr,
    /// Where pieces are served. Port 0 for any.
    pub bulk_listen: SocketAddr,
    /// Where others reach this node; by default where they see it connect from.
    pub advertise: Option<IpAddr>,
    /// Where first peers are found. None: others find this node, or nobody does.
    pub bootstrap: Option<Bootstrap>,
    /// What people call the node. At most [`MAX_NAME_LEN`] bytes count.
    pub name: String,
    /// Nodes of one zone have cheap links between them; empty is a zone, too. At most [`MAX_NAME_LEN`] bytes count.
    pub zone: String,
    /// Share of the ownership of pieces, relative to others.
    pub weight: u16,
    /// Peers connected at once.
    pub max_connections: usize,
    /// Bounds of the decisions.
    pub limits: Limits,
}

/// A peer network that listens and does not run yet.
pub struct PeerNetwork {
    net: Net,
    bulk: TcpListener,
    bootstrap: Option<Bootstrap>,
    links: mpsc::Receiver<link::LinkEvent>,
    wishes: Arc<Wishes>,
    directory: Arc<Directory>,
    board: Arc<Mutex<Board>>,
    me: Peer,
    max_connections: usize,
    limits: Limits,
    started: Instant,
    stop: CancellationToken,
}

impl std::fmt::Debug for PeerNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerNetwork").field("me", &self.me).finish_non_exhaustive()
    }
}

impl PeerNetwork {
    /// Makes an identity and listens. It ends when `stop` is cancelled.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn bind(options: Options, stop: CancellationToken) -> Result<Self, StartError> {
        let refused = |error: std::io::Error| StartError::Listen {
            address: options.bulk_listen,
            why: error.to_string(),
        };
        let bulk = TcpListener::bind(options.bulk_listen).await.map_err(refused)?;
        let hello = Hello {
            name: cut(&options.name),
            zone: cut(&options.zone),
            weight: options.weight,
            control_port: 0,
            bulk_port: bulk.local_addr().map_err(refused)?.port(),
            address: options.advertise,
            // Made anew for each peer.
            request_key: RequestKey::from_bytes([0; 32]),
            seen_address: None,
        };
        let (links_in, links) = mpsc::channel(EVENTS);
        let net =
            Net::bind(&options.key, options.listen, options.max_connections, hello, links_in, stop.clone())
                .await?;
        let me =
            Peer { id: swarm_id(&net.id()), zone: zone_number(&net.hello().zone), weight: options.weight };
        Ok(Self {
            net,
            bulk,
            bootstrap: options.bootstrap,
            links,
            wishes: Arc::new(Wishes::new(options.limits.contents)),
            directory: Arc::default(),
            board: Arc::default(),
            me,
            max_connections: options.max_connections,
            limits: options.limits,
            started: Instant::now(),
            stop,
        })
    }

    /// What the engine tells its wishes to.
    #[must_use]
    pub fn network(&self) -> Arc<dyn Network> {
        Arc::clone(&self.wishes) as Arc<dyn Network>
    }

    /// Where control connections and requests for pieces are accepted: the ports.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        (self.net.hello().control_port, self.net.hello().bulk_port)
    }

    /// Tells about the network while it runs.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        Reporter {
            hello: self.net.hello().clone(),
            me: self.me,
            directory: Arc::clone(&self.directory),
            board: Arc::clone(&self.board),
            started: self.started,
        }
    }

    /// Runs until it is stopped. `engine` is the one that has this network.
    pub async fn run(self, engine: Arc<Engine>) {
        let (commands, net_commands) = mpsc::channel(COMMANDS);
        let (uploads_in, uploads) = mpsc::channel(EVENTS);
        let (fetches_in, fetches) = mpsc::channel(EVENTS);
        let seed = self.me.id.0;
        let fetcher = Arc::new(Fetcher {
            own: self.me.id,
            engine,
            directory: Arc::clone(&self.directory),
            pool: Arc::default(),
            buffers: Buffers::default(),
            gate: Gate::default(),
            events: fetches_in,
        });
        let core = Core::new(
            Swarm::new(self.me, self.limits, seed),
            fetcher,
            self.wishes,
            commands.clone(),
            self.board,
            self.max_connections,
            self.bootstrap.is_none(),
        );
        let inputs = Inputs { links: self.links, uploads, fetches };
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(self.bulk, Arc::clone(&self.directory), uploads_in, self.stop.clone()));
        tasks.spawn(self.net.run(net_commands));
        tasks.spawn(core.run(inputs, self.stop.clone()));
        if let Some(bootstrap) = self.bootstrap {
            tasks.spawn(find_peers(bootstrap, commands, self.directory, self.stop));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the peer network ended");
            }
        }
    }
}

/// Asks for first peers, often while there are none.
async fn find_peers(
    bootstrap: Bootstrap,
    commands: mpsc::Sender<Command>,
    directory: Arc<Directory>,
    stop: CancellationToken,
) {
    let (mut attempt, mut before) = (0, 0);
    loop {
        let connected = directory.len();
        if connected == 0 && before > 0 {
            attempt = 0;
        }
        before = connected;
        let wait = Bootstrap::next_wait(connected, attempt, rand::random());
        let asking = async {
            tokio::time::sleep(wait).await;
            bootstrap.resolve().await
        };
        let addresses = tokio::select! {
            () = stop.cancelled() => return,
            addresses = asking => addresses,
        };
        if commands.send(Command::Add(addresses)).await.is_err() {
            return;
        }
        attempt = attempt.saturating_add(1);
    }
}

/// The longest part of a name that fits into an introduction.
fn cut(name: &str) -> String {
    let end = (0..=name.len().min(MAX_NAME_LEN)).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    name[..end].to_owned()
}

/// An error and its causes, joined by colons.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
