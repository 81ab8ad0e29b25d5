//! Nodes in one process: a real store, engine and peer network each, on loopback; and an origin that counts.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, PieceHasher, PieceTable};
use towline_modelfs::{ContentHandle, Engine, EngineOptions, Fault, FetchError, PieceSource, PieceStream};
use towline_peer::{Bootstrap, ClusterKey, Options, PeerNetwork, Reporter, Source};
use towline_store::{Store, StoreOptions};
use towline_swarm::Limits;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const KEY: &[u8] = b"a cluster key of the tests, long enough";

/// An origin that all nodes share.
#[derive(Default)]
pub(crate) struct Origin {
    files: Mutex<HashMap<ContentId, Arc<Vec<u8>>>>,
    /// Bytes it has sent.
    pub(crate) bytes: AtomicU64,
    /// How it refuses, if it does.
    pub(crate) fault: Mutex<Option<Fault>>,
}

impl Origin {
    /// Adds a file of `len` bytes that `seed` tells from others.
    pub(crate) fn file(&self, len: u64, seed: u8) -> (Arc<Vec<u8>>, Arc<PieceTable>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 11) as u8 ^ seed).collect();
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        let (bytes, table) = (Arc::new(bytes), Arc::new(hasher.finish()));
        self.files.lock().unwrap().insert(table.content(), Arc::clone(&bytes));
        (bytes, table)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// The origin as one node sees it.
struct Seen(Arc<Origin>);

impl PieceSource for Seen {
    fn fetch<'a>(
        &'a self,
        table: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            if let Some(fault) = *self.0.fault.lock().unwrap() {
                return Err(FetchError::Source {
                    message: "the test refuses".into(),
                    fault,
                    retry_after: None,
                });
            }
            let file = self.0.files.lock().unwrap().get(&table.content()).cloned();
            let file = file.ok_or(FetchError::NoSource { content: table.content() })?;
            let part = Bytes::copy_from_slice(&file[bytes.start as usize..bytes.end as usize]);
            self.0.bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
            let chunks: Vec<_> =
                part.chunks(100_003).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            Ok(Box::pin(stream::iter(chunks)) as PieceStream)
        })
    }

    fn corrupt(&self, _: ContentId) {}
}

/// How a node differs from the others.
pub(crate) struct Setup {
    pub(crate) key: &'static [u8],
    pub(crate) zone: &'static str,
    pub(crate) limits: Limits,
}

impl Default for Setup {
    fn default() -> Self {
        Self { key: KEY, zone: "", limits: Limits::default() }
    }
}

pub(crate) struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) reporter: Reporter,
    pub(crate) ports: (u16, u16),
    pub(crate) dir: Arc<tempfile::TempDir>,
    stop: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

impl Node {
    /// Starts a node that finds the others through the one whose control port is `first`.
    pub(crate) async fn start(origin: &Arc<Origin>, name: &str, first: Option<u16>, setup: Setup) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), origin, name, first, setup).await
    }

    /// The same on a disk that may hold something already.
    pub(crate) async fn start_in(
        dir: Arc<tempfile::TempDir>,
        origin: &Arc<Origin>,
        name: &str,
        first: Option<u16>,
        setup: Setup,
    ) -> Self {
        let sources = first.map(|port| vec![format!("127.0.0.1:{port}").parse::<Source>().unwrap()]);
        let stop = CancellationToken::new();
        let options = Options {
            key: ClusterKey::from_secret(setup.key).unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            bulk_listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            bootstrap: sources.map(|sources| Bootstrap::new(sources, None).unwrap()),
            name: name.to_owned(),
            zone: setup.zone.to_owned(),
            weight: 10,
            max_connections: 100,
            limits: setup.limits,
        };
        let network = PeerNetwork::bind(options, stop.clone()).await.unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let options = EngineOptions { read_timeout: PATIENCE, ..EngineOptions::default() };
        let engine = Engine::new(store, Arc::new(Seen(Arc::clone(origin))), options);
        engine.set_network(network.network());
        let (reporter, ports) = (network.reporter(), network.ports());
        let running =
            vec![tokio::spawn(Arc::clone(&engine).run()), tokio::spawn(network.run(Arc::clone(&engine)))];
        Self { engine, reporter, ports, dir, stop, running }
    }

    /// Opens a content and fetches all of it.
    pub(crate) fn fill(&self, table: &Arc<PieceTable>) -> Arc<ContentHandle> {
        let handle = self.engine.open(table).unwrap();
        self.engine.start_fill(&[(Arc::clone(&handle), 0..table.piece_count())]);
        handle
    }

    /// The file that holds a content on this node's disk.
    pub(crate) fn content_file(&self, table: &PieceTable) -> PathBuf {
        let name = table.content().to_string();
        let found = walk(self.dir.path())
            .into_iter()
            .find(|path| path.file_name().is_some_and(|n| n == name.as_str()));
        found.expect("the content has a file")
    }

    pub(crate) fn peers(&self) -> usize {
        self.reporter.report().peers.iter().filter(|peer| peer.banned.is_zero()).count()
    }

    /// Ends it as a killed daemon ends: nothing is said to anybody.
    pub(crate) async fn kill(self) -> Arc<tempfile::TempDir> {
        self.engine.stop();
        self.stop.cancel();
        for task in self.running {
            task.await.unwrap();
        }
        self.dir
    }
}

fn walk(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found
}

/// Waits until `done`.
#[track_caller]
pub(crate) fn until(what: &'static str, mut done: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < PATIENCE, "{place}: {what} does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// So many nodes, all connected with each other.
pub(crate) async fn cluster(origin: &Arc<Origin>, count: usize) -> Vec<Node> {
    let first = Node::start(origin, "n0", None, Setup::default()).await;
    let port = first.ports.0;
    let mut nodes = vec![first];
    for n in 1..count {
        nodes.push(Node::start(origin, &format!("n{n}"), Some(port), Setup::default()).await);
    }
    connected(&nodes).await;
    nodes
}

/// Waits until every node knows every other.
pub(crate) async fn connected(nodes: &[Node]) {
    until("a full mesh", || nodes.iter().all(|node| node.peers() == nodes.len() - 1)).await;
}

/// Waits until the contents are whole, and compares what the engine then reads with `bytes`.
pub(crate) async fn whole(nodes: &[Node], handles: &[Arc<ContentHandle>], bytes: &[u8]) {
    until("whole contents", || handles.iter().all(|handle| handle.content().is_sealed())).await;
    for (node, handle) in nodes.iter().zip(handles) {
        for (at, part) in (0..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
            let read = node.engine.try_read(handle, at, part.len() as u32).expect("it is here").unwrap();
            assert!(read.as_ref() == part, "{} differs at {at}", node.reporter.report().own.name);
        }
    }
}
