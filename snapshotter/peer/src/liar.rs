//! A member of the cluster that speaks the protocol and lies, on a real control stream.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, PIECE_LEN, PieceHasher, PieceTable};
use towline_modelfs::{Engine, EngineOptions, FetchError, PieceSource, PieceStream, ProvenBlock};
use towline_store::{Store, StoreOptions};
use towline_swarm::{Bitmap, Have, HavePieces, Limits};

use crate::auth::RequestKey;
use crate::link::LinkEvent;
use crate::net::Net;
use crate::wire::{BlockRequest, Hello, Message, encode};
use crate::{Bootstrap, ClusterKey, Options, PeerNetwork};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An origin with one file.
struct Origin(Vec<u8>);

impl PieceSource for Origin {
    fn fetch<'a>(
        &'a self,
        _: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>> {
        let part = Bytes::copy_from_slice(&self.0[bytes.start as usize..bytes.end as usize]);
        Box::pin(async { Ok(Box::pin(stream::iter([Ok(part)])) as PieceStream) })
    }

    fn corrupt(&self, _: ContentId) {}
}

fn key() -> ClusterKey {
    ClusterKey::from_secret(b"a cluster key of the tests, long enough").unwrap()
}

fn table_of(bytes: &[u8]) -> Arc<PieceTable> {
    let mut hasher = PieceHasher::new();
    hasher.update(bytes);
    Arc::new(hasher.finish())
}

/// Says that it has every piece, and then that it takes part in `last`, too; answers requests for blocks with `lie`. Ends with the
/// link; true if it was asked.
async fn liar(
    table: Arc<PieceTable>,
    last: ContentId,
    first: u16,
    lie: impl Fn(&BlockRequest) -> ProvenBlock,
) -> bool {
    let stop = CancellationToken::new();
    let (links_in, mut links) = mpsc::channel(16);
    let (commands, net_commands) = mpsc::channel(16);
    let hello = Hello {
        name: "liar".into(),
        zone: String::new(),
        weight: 1,
        control_port: 0,
        bulk_port: 1,
        address: None,
        request_key: RequestKey::from_bytes([0; 32]),
        seen_address: None,
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let net = Net::bind(&key(), any, 16, hello, links_in, stop.clone()).await.unwrap();
    let running = tokio::spawn(net.run(net_commands));
    commands.send(crate::net::Command::Add(vec![([127, 0, 0, 1], first).into()])).await.unwrap();
    let content = table.content();
    let (mut link, mut asked) = (None, false);
    while let Some(event) = links.recv().await {
        match event {
            LinkEvent::Up(_, sender) => {
                sender.send(encode(&Message::Interest { added: vec![content], removed: vec![] }));
                link = Some(sender);
            }
            // Its offer, or its answer: both are answered with everything, as who has everything does.
            LinkEvent::Message(_, Message::Have { .. } | Message::Interest { .. }) => {
                let count = table.piece_count();
                let all = Bitmap::from_words(count, vec![(1 << count) - 1]).unwrap();
                let have = Have::new(HavePieces::All(Arc::new(all)));
                let link = link.as_ref().unwrap();
                link.send(encode(&Message::Have { content, have }));
                link.send(encode(&Message::Interest { added: vec![last], removed: vec![] }));
            }
            LinkEvent::Message(_, Message::BlockRequest(request)) => {
                asked = true;
                let sent = Some(lie(&request));
                link.as_ref().unwrap().send(encode(&Message::Block { block: request.block, sent }));
            }
            LinkEvent::Message(..) => {}
            LinkEvent::Down(_) => break,
        }
    }
    stop.cancel();
    running.await.unwrap();
    asked
}

/// A node whose only peer answers with `lie` reads the right bytes, and bans it.
async fn read_beside(lie: impl Fn(&[u8], &BlockRequest) -> ProvenBlock + Send + 'static) {
    let bytes: Vec<u8> = (0..3 * PIECE_LEN).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 11) as u8).collect();
    let (table, last) = (table_of(&bytes), table_of(b"another file"));
    let stop = CancellationToken::new();
    let options = Options {
        key: key(),
        listen: "127.0.0.1:0".parse().unwrap(),
        bulk_listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        bootstrap: None::<Bootstrap>,
        name: "honest".into(),
        zone: String::new(),
        weight: 1,
        max_connections: 16,
        limits: Limits::default(),
    };
    let network = PeerNetwork::bind(options, stop.clone()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let options = EngineOptions { read_timeout: PATIENCE, ..EngineOptions::default() };
    let engine = Engine::new(store, Arc::new(Origin(bytes.clone())), options);
    engine.set_network(network.network());
    let (reporter, port) = (network.reporter(), network.ports().0);
    let (handle, _last) = (engine.open(&table).unwrap(), engine.open(&last).unwrap());
    let running = tokio::spawn(network.run(Arc::clone(&engine)));
    let told = bytes.clone();
    let liar =
        tokio::spawn(liar(Arc::clone(&table), last.content(), port, move |request| lie(&told, request)));
    while reporter.report().peers.iter().all(|peer| peer.contents < 2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let at = PIECE_LEN + 12_345;
    let read = engine.read(&handle, at, 1000).await.unwrap();
    assert!(read.as_ref() == &bytes[at as usize..at as usize + 1000], "a reader saw wrong bytes");
    assert!(liar.await.unwrap(), "nobody asked the liar");
    let report = reporter.report();
    assert_eq!((report.counts.corrupt, report.counts.blocks), (1, 0));
    let banned: Vec<_> = report.peers.iter().filter(|peer| !peer.banned.is_zero()).collect();
    assert!(matches!(&banned[..], [peer] if peer.name == "liar"), "{:?}", report.peers);
    stop.cancel();
    running.await.unwrap();
}

/// Bounded: a ban that did not come would leave the liar connected.
async fn in_time(read: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, read).await.expect("read and banned");
}

/// The true block and its proof.
fn of(bytes: &[u8], request: &BlockRequest) -> (Vec<u8>, Vec<towline_artifact::ChainingValue>) {
    let (start, len) = (u64::from(request.piece) * PIECE_LEN, PIECE_LEN as usize);
    let piece = &bytes[start as usize..start as usize + len];
    let hashes = table_of(bytes).prove(towline_artifact::PieceIndex(request.piece), piece, &request.bytes);
    (piece[request.bytes.start as usize..request.bytes.end as usize].to_vec(), hashes.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_turns_a_bit_of_a_block_is_banned() {
    in_time(read_beside(|bytes, request| {
        let (mut block, hashes) = of(bytes, request);
        block[77] ^= 1;
        ProvenBlock { bytes: block.into(), hashes }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_proves_another_block_is_banned() {
    in_time(read_beside(|bytes, request| {
        let other = BlockRequest { piece: request.piece - 1, ..request.clone() };
        let (block, hashes) = of(bytes, &other);
        ProvenBlock { bytes: block.into(), hashes }
    }))
    .await;
}
