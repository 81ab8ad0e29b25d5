//! Nodes that fetch the same content.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use towline_artifact::{PIECE_LEN, PieceTable};
use towline_modelfs::Fault;
use towline_swarm::Limits;

use crate::nodes::{Node, Origin, Setup, cluster, connected, until, whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_takes_one_copy_from_the_origin() {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(24 * PIECE_LEN + 12_345, 1);
    let nodes = cluster(&origin, 5).await;
    let handles: Vec<_> = nodes.iter().map(|node| node.fill(&table)).collect();
    whole(&nodes, &handles, &bytes).await;
    let copies = origin.sent() as f64 / table.file_len() as f64;
    assert!(copies < 1.2, "{copies:.2} copies left the origin");
    let from_peers: u64 = handles.iter().map(|handle| handle.peer_bytes()).sum();
    assert!(from_peers >= 4 * table.file_len() - PIECE_LEN, "the rest came from peers: {from_peers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_comers_are_served_by_those_before_also_after_a_restart() {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(9 * PIECE_LEN + 1, 2);
    let first = Node::start(&origin, "n0", None, Setup::default()).await;
    let handle = first.fill(&table);
    whole(std::slice::from_ref(&first), &[handle], &bytes).await;
    let dir = first.kill().await;
    *origin.fault.lock().unwrap() = Some(Fault::Gone);
    let again = Node::start_in(dir, &origin, "n0", None, Setup::default()).await;
    let late = Node::start(&origin, "late", Some(again.ports.0), Setup::default()).await;
    let nodes = [again, late];
    connected(&nodes).await;
    let handles = [nodes[0].engine.open(&table).unwrap(), nodes[1].fill(&table)];
    whole(&nodes, &handles, &bytes).await;
    assert_eq!(origin.sent(), table.file_len(), "one copy for both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_its_piece_before_the_fill_is_through() {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(40 * PIECE_LEN, 3);
    let nodes = cluster(&origin, 3).await;
    let handles: Vec<_> = nodes.iter().map(|node| node.engine.open(&table).unwrap()).collect();
    let at = 39 * PIECE_LEN + 17;
    let read = nodes[0].engine.read(&handles[0], at, 1000).await.unwrap();
    assert_eq!(read.as_ref(), &bytes[at as usize..at as usize + 1000]);
    let read = nodes[1].engine.read(&handles[1], at, 1000).await.unwrap();
    assert_eq!(read.as_ref(), &bytes[at as usize..at as usize + 1000]);
    assert!(origin.sent() <= 2 * PIECE_LEN, "nobody asked for more: {}", origin.sent());
    assert!(!handles[0].content().is_complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_peer_are_thrown_away_and_it_is_banned() {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(12 * PIECE_LEN, 4);
    let liar = Node::start(&origin, "liar", None, Setup::default()).await;
    let handle = liar.fill(&table);
    whole(std::slice::from_ref(&liar), &[handle], &bytes).await;
    // Its disk turns a bit of every piece behind its back.
    let path = liar.content_file(&table);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for piece in 0..12 {
        let at = piece * PIECE_LEN + 99;
        file.write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
    }
    let honest: Vec<Node> = vec![
        Node::start(&origin, "a", Some(liar.ports.0), Setup::default()).await,
        Node::start(&origin, "b", Some(liar.ports.0), Setup::default()).await,
    ];
    until("a full mesh", || honest.iter().all(|node| node.peers() == 2)).await;
    let handles: Vec<_> = honest.iter().map(|node| node.fill(&table)).collect();
    whole(&honest, &handles, &bytes).await;
    for node in &honest {
        let report = node.reporter.report();
        let banned: Vec<_> = report.peers.iter().filter(|peer| !peer.banned.is_zero()).collect();
        assert!(banned.iter().all(|peer| peer.name == "liar"), "an honest node was banned: {banned:?}");
    }
    let corrupt: u64 = honest.iter().map(|node| node.reporter.report().counts.corrupt).sum();
    assert!(corrupt >= 1, "nobody met the liar");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_missed_for_a_moment() {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(40 * PIECE_LEN, 5);
    let mut nodes = cluster(&origin, 4).await;
    let mut handles: Vec<_> = nodes.iter().map(|node| node.fill(&table)).collect();
    until("a third of it", || handles[3].content().bytes_have() >= table.file_len() * 3 / 10).await;
    let dead = nodes.pop().unwrap();
    handles.pop();
    dead.kill().await;
    whole(&nodes, &handles, &bytes).await;
    let copies = origin.sent() as f64 / table.file_len() as f64;
    assert!(copies < 1.5, "{copies:.2} copies left the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_key_is_not_admitted() {
    let origin = Arc::new(Origin::default());
    let (_, table) = origin.file(3 * PIECE_LEN, 6);
    let node = Node::start(&origin, "n0", None, Setup::default()).await;
    let stranger = Node::start(
        &origin,
        "stranger",
        Some(node.ports.0),
        Setup { key: b"another key, and long enough, too", ..Setup::default() },
    )
    .await;
    let member = Node::start(&origin, "n1", Some(node.ports.0), Setup::default()).await;
    until("the member", || node.peers() == 1 && member.peers() == 1).await;
    let handle = node.fill(&table);
    until("a whole content", || handle.content().is_sealed()).await;
    // A request that proves nothing, and noise, at the piece server and at the control port.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let id = "0123456789abcdef";
    let forged = format!(
        "GET /v1/contents/{} HTTP/1.1\r\nHost: towline\r\nRange: bytes=0-2097151\r\nAuthorization: Towline \
         from={id},number=1,ask=holder,urgent=0,mac={}\r\n\r\n",
        table.content(),
        "0".repeat(64)
    );
    for (text, status) in
        [(forged.as_str(), "401"), ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "400"), ("\0\u{1}\r\n\r\n", "400")]
    {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", node.ports.1)).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.len() < 300,
            "{text:?}: {answer}"
        );
    }
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", node.ports.0)).await.unwrap();
    socket.write_all(&[0xa5; 4096]).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection is ended");
    assert_eq!(answer.len(), 24, "the nonce of the transport and not a byte more");
    assert_eq!((stranger.peers(), node.peers()), (0, 1));
    assert!(node.reporter.report().strangers >= 3);
}

/// A node that has a content, and one that reads in it and knows no other source. The first is set up as `setup` says.
async fn holder_and_reader(
    setup: Setup,
    seed: u8,
) -> ([Node; 2], Arc<Origin>, Arc<Vec<u8>>, Arc<PieceTable>) {
    let origin = Arc::new(Origin::default());
    let (bytes, table) = origin.file(12 * PIECE_LEN + 5000, seed);
    let holder = Node::start(&origin, "holder", None, setup).await;
    let handle = holder.fill(&table);
    whole(std::slice::from_ref(&holder), &[handle], &bytes).await;
    *origin.fault.lock().unwrap() = Some(Fault::Gone);
    let reader = Node::start(&origin, "reader", Some(holder.ports.0), Setup::default()).await;
    let nodes = [holder, reader];
    connected(&nodes).await;
    (nodes, origin, bytes, table)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_comes_before_its_piece() {
    // Pieces leave it at the rate of one in weeks.
    let limits = Limits { upload_rate: Some(1), ..Limits::default() };
    let ([_holder, reader], _, bytes, table) =
        holder_and_reader(Setup { limits, ..Setup::default() }, 7).await;
    let handle = reader.engine.open(&table).unwrap();
    // The first read may come before the news of what the holder has, and then gets the one piece that may be sent in advance.
    for at in [PIECE_LEN + 17, 3 * PIECE_LEN - 500, 7 * PIECE_LEN, 9 * PIECE_LEN + 5, 12 * PIECE_LEN + 4990] {
        let len = 1000.min(table.file_len() - at) as u32;
        let read = reader.engine.read(&handle, at, len).await.unwrap();
        assert_eq!(read.as_ref(), &bytes[at as usize..][..len as usize], "at {at}");
    }
    let counts = reader.reporter.report().counts;
    assert!(counts.blocks >= 4 && counts.from_peers <= 1, "{counts:?}");
    assert!(handle.content().bytes_have() <= PIECE_LEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_spoiled_piece_is_not_shown() {
    let ([holder, reader], origin, bytes, table) = holder_and_reader(Setup::default(), 8).await;
    let file = std::fs::File::options().write(true).open(holder.content_file(&table)).unwrap();
    let at = 5 * PIECE_LEN + 4096;
    file.write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
    *origin.fault.lock().unwrap() = None;
    let handle = reader.engine.open(&table).unwrap();
    // In the page that is spoiled, and in another one of the same piece.
    for at in [at, at + PIECE_LEN / 2] {
        let read = reader.engine.read(&handle, at, 4096).await.unwrap();
        assert!(read.as_ref() == &bytes[at as usize..][..4096], "at {at}");
    }
    let counts = reader.reporter.report().counts;
    assert_eq!(counts.blocks, 0, "it cannot be proven");
}
