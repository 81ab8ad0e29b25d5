//! libp2p: identity, encrypted connections, membership, and the control streams.
//!
//! One task owns the libp2p swarm. Of two connected nodes, the one with the smaller peer id opens the control stream, so
//! there is one however many connections there are. Each stream is a task of its own ([`crate::link`]).

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::pnet::PnetConfig;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, SwarmBuilder, Transport, connection_limits, kad, noise, ping, tcp,
    yamux,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towline_artifact::ContentId;

use crate::contacts::Contacts;
use crate::key::ClusterKey;
use crate::link::{self, LinkEvent};
use crate::wire::Hello;

/// Of the control stream; the number changes with what old nodes cannot read.
const CONTROL: StreamProtocol = StreamProtocol::new("/towline/control/1");
const KAD: StreamProtocol = StreamProtocol::new("/towline/kad/1");
/// How often dials and other work are looked for.
const TICK: Duration = Duration::from_millis(100);
/// Silence after which a peer is asked for a sign of life, and how long it has to give it. A stopped node is noticed after
/// both.
const PING: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for the handshakes of a connection.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be without a control stream.
const UNLINKED: Duration = Duration::from_secs(15);
/// Wait before a control stream that ended is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// Connections beyond the limit that are made because a peer takes part in the same content.
const EXTRA_CONNECTIONS: usize = 64;
/// Contents announced to the hash table or looked up there per tick: a model of many files must not flood it.
const QUERIES_PER_TICK: usize = 4;
/// Queries that may wait; what is beyond is dropped, for the table only matters to clusters beyond the connection limit.
const MAX_QUERIES: usize = 16_384;
/// Provider records kept for others: contents, and providers of each.
const PROVIDED_KEYS: usize = 16_384;
const PROVIDERS_PER_KEY: usize = 64;
/// How long a new listener may take.
const LISTEN: Duration = Duration::from_secs(5);

#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    ping: ping::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
    stream: libp2p_stream::Behaviour,
}

/// What the rest of the crate asks of the network.
#[derive(Debug)]
pub(crate) enum Command {
    /// Nodes may be there.
    Add(Vec<SocketAddr>),
    /// This node takes part in a content (or no longer).
    Provide(ContentId),
    Unprovide(ContentId),
    /// Connect with nodes that take part in it.
    Find(ContentId),
    /// Have nothing to do with a peer until then.
    Block(PeerId, Instant),
}

/// Why the network cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen for peers on {address}: {why}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// The transport cannot be set up.
    #[error("set up the transport between peers: {0}")]
    Transport(String),
}

/// A connection, or several, with one node.
#[derive(Debug)]
struct Remote {
    /// Connections with where they lead, and the address that was dialled.
    connections: Vec<(ConnectionId, SocketAddr, Option<SocketAddr>)>,
    since: Instant,
    linked: bool,
    /// A control stream is being opened or introduced.
    pending: bool,
}

/// What link tasks tell the network's own task.
enum Told {
    Introduced { id: PeerId, control: SocketAddr, seen: Option<IpAddr> },
    Ended { id: PeerId },
}

enum Query {
    Provide(ContentId),
    Find(ContentId),
}

/// The network of one node.
pub(crate) struct Net {
    swarm: libp2p::Swarm<Behaviour>,
    hello: Hello,
    contacts: Contacts,
    max_connections: usize,
    dials: HashMap<ConnectionId, SocketAddr>,
    remotes: HashMap<PeerId, Remote>,
    blocked: HashMap<PeerId, Instant>,
    queries: VecDeque<Query>,
    told: (mpsc::Sender<Told>, mpsc::Receiver<Told>),
    links: mpsc::Sender<LinkEvent>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Net {
    /// Listens. `hello` is how this node introduces itself; its control port is filled in.
    pub(crate) async fn bind(
        key: &ClusterKey,
        listen: SocketAddr,
        max_connections: usize,
        mut hello: Hello,
        links: mpsc::Sender<LinkEvent>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let mut swarm = swarm(key, max_connections)?;
        swarm.behaviour_mut().kad.set_mode(Some(kad::Mode::Server));
        let refused = |why: String| StartError::Listen { address: listen, why };
        swarm.listen_on(multiaddr(listen)).map_err(|error| refused(error.to_string()))?;
        let listening = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::NewListenAddr { address, .. } => {
                        return socket_addr(&address).ok_or_else(|| refused("no TCP address".to_owned()));
                    }
                    SwarmEvent::ListenerClosed { reason: Err(error), .. } => {
                        return Err(refused(error.to_string()));
                    }
                    SwarmEvent::ListenerError { error, .. } => return Err(refused(error.to_string())),
                    _ => {}
                }
            }
        };
        let bound = tokio::time::timeout(LISTEN, listening).await;
        hello.control_port = bound.map_err(|_| refused("no answer".to_owned()))??.port();
        Ok(Self {
            swarm,
            hello,
            contacts: Contacts::new(max_connections),
            max_connections,
            dials: HashMap::new(),
            remotes: HashMap::new(),
            blocked: HashMap::new(),
            queries: VecDeque::new(),
            told: mpsc::channel(256),
            links,
            tasks: JoinSet::new(),
            stop,
        })
    }

    pub(crate) fn id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Runs until it is stopped, then ends all links.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut control = self.swarm.behaviour().stream.new_control();
        let mut incoming = control.accept(CONTROL).expect("the protocol is registered once");
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                told = self.told.1.recv() => self.told(told.expect("this task holds a sender")),
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.happened(event),
                Some((id, stream)) = incoming.next() => self.incoming(id, stream),
                _ = ticks.tick() => self.tick(),
            }
            while self.tasks.try_join_next().is_some() {}
        }
        self.tasks.shutdown().await;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add(addresses) => {
                let now = Instant::now();
                addresses.into_iter().for_each(|address| self.contacts.add(address, now));
                self.dial();
            }
            Command::Provide(content) => self.query(Query::Provide(content)),
            Command::Unprovide(content) => self.swarm.behaviour_mut().kad.stop_providing(&key(content)),
            Command::Find(content) => self.query(Query::Find(content)),
            Command::Block(id, until) => {
                self.blocked.insert(id, until);
                // The error says that there was no connection.
                let _ = self.swarm.disconnect_peer_id(id);
            }
        }
    }

    fn query(&mut self, query: Query) {
        if self.queries.len() < MAX_QUERIES {
            self.queries.push_back(query);
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        self.dial();
        let kad = &mut self.swarm.behaviour_mut().kad;
        for _ in 0..QUERIES_PER_TICK {
            match self.queries.pop_front() {
                // The error says that too many are provided: then others do not find this node that way.
                Some(Query::Provide(content)) => drop(kad.start_providing(key(content))),
                Some(Query::Find(content)) => drop(kad.get_providers(key(content))),
                None => break,
            }
        }
        let silent: Vec<PeerId> = self
            .remotes
            .iter()
            .filter(|(_, remote)| !remote.linked && now.saturating_duration_since(remote.since) > UNLINKED)
            .map(|(&id, _)| id)
            .collect();
        for id in silent {
            let _ = self.swarm.disconnect_peer_id(id);
        }
    }

    fn dial(&mut self) {
        for address in self.contacts.next_dials(self.remotes.len(), Instant::now()) {
            let dial = DialOpts::unknown_peer_id().address(multiaddr(address)).build();
            let connection = dial.connection_id();
            match self.swarm.dial(dial) {
                Ok(()) => drop(self.dials.insert(connection, address)),
                Err(_) => self.contacts.failed(address, Instant::now()),
            }
        }
    }

    fn happened(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.disconnected(peer_id, connection_id)
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(address) = self.dials.remove(&connection_id) {
                    match error {
                        DialError::LocalPeerId { .. } => self.contacts.is_own(address),
                        error => {
                            tracing::debug!(%address, %error, "peer not reached");
                            self.contacts.failed(address, Instant::now());
                        }
                    }
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "connection turned away");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                connection,
                result: Err(error),
                peer,
            })) => {
                tracing::debug!(%peer, %error, "no sign of life");
                self.swarm.close_connection(connection);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result:
                    kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
                ..
            })) => providers.into_iter().for_each(|id| self.found(id)),
            _ => {}
        }
    }

    /// A node takes part in a content that this one wants, says the hash table.
    fn found(&mut self, id: PeerId) {
        let full = self.remotes.len() >= self.max_connections + EXTRA_CONNECTIONS;
        if full || id == self.id() || self.remotes.contains_key(&id) || self.blocked.contains_key(&id) {
            return;
        }
        let dial = DialOpts::peer_id(id).condition(PeerCondition::DisconnectedAndNotDialing).build();
        // The error says that it is being dialled, or that its address is not known.
        let _ = self.swarm.dial(dial);
    }

    fn connected(&mut self, id: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let dialled = self.dials.remove(&connection);
        let remote = socket_addr(endpoint.get_remote_address());
        let (Some(remote), false) = (remote, self.blocked.contains_key(&id)) else {
            let _ = self.swarm.disconnect_peer_id(id);
            return;
        };
        if let Some(address) = dialled {
            self.contacts.connected(address, Instant::now());
        }
        let known = self.remotes.contains_key(&id);
        let fresh =
            || Remote { connections: Vec::new(), since: Instant::now(), linked: false, pending: false };
        self.remotes.entry(id).or_insert_with(fresh).connections.push((connection, remote, dialled));
        if !known && self.id() < id {
            self.open(id, Duration::ZERO);
        }
    }

    fn disconnected(&mut self, id: PeerId, connection: ConnectionId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let Some(at) = remote.connections.iter().position(|other| other.0 == connection) else { return };
        let (_, _, dialled) = remote.connections.swap_remove(at);
        if remote.connections.is_empty() {
            self.remotes.remove(&id);
        }
        if let Some(address) = dialled {
            self.contacts.lost(address, Instant::now());
        }
    }

    /// Opens the control stream with a connected node, after a wait.
    fn open(&mut self, id: PeerId, wait: Duration) {
        let Some(talk) = self.talk(id) else { return };
        let mut control = self.swarm.behaviour().stream.new_control();
        self.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            match tokio::time::timeout(HANDSHAKE, control.open_stream(id, CONTROL)).await {
                Ok(Ok(stream)) => return talk.run(stream).await,
                Ok(Err(error)) => tracing::debug!(peer = %id, %error, "control stream not opened"),
                Err(_) => {}
            }
            let _ = talk.told.send(Told::Ended { id }).await;
        });
    }

    fn incoming(&mut self, id: PeerId, stream: libp2p::Stream) {
        if let Some(talk) = self.talk(id) {
            self.tasks.spawn(talk.run(stream));
        }
    }

    /// What a control stream with a connected node needs. One at a time: `None` while there is one, or one is being opened; of
    /// an incoming one that is a fault of the peer, and it is dropped.
    fn talk(&mut self, id: PeerId) -> Option<Talk> {
        let remote = self.remotes.get_mut(&id).filter(|remote| !remote.pending && !remote.linked)?;
        remote.pending = true;
        Some(Talk {
            id,
            address: remote.connections[0].1.ip(),
            hello: self.hello.clone(),
            told: self.told.0.clone(),
            links: self.links.clone(),
            stop: self.stop.clone(),
        })
    }

    fn told(&mut self, told: Told) {
        let now = Instant::now();
        match told {
            Told::Introduced { id, control, seen } => {
                let Some(remote) = self.remotes.get_mut(&id) else { return };
                (remote.linked, remote.pending) = (true, false);
                // Connections that the peer made are known by where it accepts them, too, so that it is not dialled again.
                for connection in remote.connections.iter_mut().filter(|connection| connection.2.is_none()) {
                    connection.2 = Some(control);
                }
                self.contacts.connected(control, now);
                self.swarm.behaviour_mut().kad.add_address(&id, multiaddr(control));
                let own = self.hello.address.or(seen).map(|ip| SocketAddr::new(ip, self.hello.control_port));
                if let Some(own) = own {
                    self.swarm.add_external_address(multiaddr(own));
                }
            }
            Told::Ended { id } => {
                let Some(remote) = self.remotes.get_mut(&id) else { return };
                (remote.linked, remote.pending, remote.since) = (false, false, now);
                if *self.swarm.local_peer_id() < id {
                    self.open(id, REOPEN);
                }
            }
        }
    }
}

/// A control stream and who hears of it.
struct Talk {
    id: PeerId,
    /// Where the connection leads.
    address: IpAddr,
    hello: Hello,
    told: mpsc::Sender<Told>,
    links: mpsc::Sender<LinkEvent>,
    stop: CancellationToken,
}

impl Talk {
    /// From the introduction to the end.
    async fn run(self, mut stream: libp2p::Stream) {
        let Self { id, address, hello, told, links, stop } = self;
        let ended = match link::introduce(&mut stream, id, address, hello).await {
            Ok((peer, seen)) => {
                let peer = Arc::new(peer);
                let introduced = Told::Introduced { id, control: peer.control, seen };
                if told.send(introduced).await.is_err() {
                    return;
                }
                tracing::info!(peer = %peer.peer.id, node = peer.name, zone = peer.zone, address = %peer.control, "peer connected");
                let ended = link::run(stream, Arc::clone(&peer), links, stop).await;
                tracing::info!(peer = %peer.peer.id, node = peer.name, reason = ended.as_ref().err().map(|e| e.to_string()), "peer gone");
                ended
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %id, error = %crate::chain(&error), "control stream ended");
        }
        let _ = told.send(Told::Ended { id }).await;
    }
}

fn swarm(key: &ClusterKey, max_connections: usize) -> Result<libp2p::Swarm<Behaviour>, StartError> {
    let psk = key.to_psk();
    let failed = |error: &dyn std::fmt::Display| StartError::Transport(error.to_string());
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|keypair| {
            let noise = noise::Config::new(keypair)?;
            let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
            let admitted = tcp.and_then(move |socket, _| PnetConfig::new(psk).handshake(socket));
            let secure = admitted.upgrade(Version::V1).authenticate(noise);
            Ok(secure.multiplex(yamux::Config::default()).timeout(HANDSHAKE))
        })
        .map_err(|error| failed(&error))?
        .with_behaviour(|keypair| behaviour(keypair.public().to_peer_id(), max_connections))
        .map_err(|error| failed(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(UNLINKED))
        .build();
    Ok(swarm)
}

fn behaviour(id: PeerId, max_connections: usize) -> Behaviour {
    let most = u32::try_from(max_connections + 2 * EXTRA_CONNECTIONS).unwrap_or(u32::MAX);
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(256))
        .with_max_pending_outgoing(Some(256))
        .with_max_established(Some(2 * most))
        .with_max_established_per_peer(Some(2));
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: PROVIDERS_PER_KEY,
        max_provided_keys: PROVIDED_KEYS,
    };
    Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING).with_timeout(PING_TIMEOUT)),
        kad: kad::Behaviour::with_config(
            id,
            kad::store::MemoryStore::with_config(id, store),
            kad::Config::new(KAD),
        ),
        stream: libp2p_stream::Behaviour::new(),
    }
}

fn key(content: ContentId) -> kad::RecordKey {
    kad::RecordKey::new(&content.0)
}

fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

fn socket_addr(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
