//! The piece server and its client over real sockets, with decisions by the test.

use std::time::Duration;

use towline_artifact::{ContentId, PIECE_LEN};
use towline_swarm::{Ask, PeerId};

use super::*;
use crate::auth::RequestKey;
use crate::buffers::Buffers;
use crate::client::{AskError, Pool, ask};
use crate::http::{piece_range, write_request};
use crate::wire::Hello;

const CONTENT: ContentId = ContentId([9; 32]);
const FILE_LEN: u64 = PIECE_LEN + 1000;

struct Bench {
    /// The server as its peer sees it.
    server: Connected,
    directory: Arc<Directory>,
    events: mpsc::Receiver<UploadEvent>,
    file: Arc<File>,
    bytes: Vec<u8>,
    stop: CancellationToken,
}

fn me() -> PeerId {
    crate::directory::swarm_id(&peer_id())
}

fn peer_id() -> libp2p::PeerId {
    // Any will do, as long as it is the same for both sides.
    static ID: std::sync::OnceLock<libp2p::PeerId> = std::sync::OnceLock::new();
    *ID.get_or_init(libp2p::PeerId::random)
}

impl Bench {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = RequestKey::random();
        let hello = |port, request_key| Hello {
            name: "n".into(),
            zone: String::new(),
            weight: 1,
            control_port: 1,
            bulk_port: port,
            address: None,
            request_key,
            seen_address: None,
        };
        let directory = Arc::new(Directory::default());
        let client = Connected::new(peer_id(), address.ip(), &hello(1, RequestKey::random()), key.clone());
        directory.put(Arc::new(client));
        let server = hello(address.port(), key);
        let server = Connected::new(libp2p::PeerId::random(), address.ip(), &server, RequestKey::random());
        let (events_in, events) = mpsc::channel(16);
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Arc::clone(&directory), events_in, stop.clone()));
        let bytes: Vec<u8> = (0..FILE_LEN).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        Self { server, directory, events, file: Arc::new(file), bytes, stop }
    }

    fn request(&self, piece: u32) -> PieceRequest {
        let (number, ask) = (self.server.numbers.next(), Ask::Holder);
        PieceRequest { from: me(), number, content: CONTENT, piece, ask, urgent: false }
    }

    /// The next request, answered with the piece.
    async fn serve_next(&mut self) {
        let UploadEvent::Requested { verdict, .. } = self.events.recv().await.unwrap() else {
            panic!("a request")
        };
        let piece = PieceBytes::File(Arc::clone(&self.file));
        verdict.send(Verdict::Send { piece, file_len: FILE_LEN }).unwrap();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.bulk).await.unwrap()
    }

    /// Sends a head and reads what comes until the end.
    async fn answer(&self, head: &str) -> String {
        let mut socket = self.connect().await;
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Says that no reader waits.
fn fill() -> tokio::sync::watch::Receiver<bool> {
    tokio::sync::watch::channel(false).1
}

#[tokio::test]
async fn pieces_and_refusals_arrive_as_they_are_over_one_connection() {
    let mut bench = Bench::start().await;
    let (pool, buffers) = (Arc::new(Pool::default()), Buffers::default());
    for (piece, refusal) in
        [(0, None), (1, None), (1, Some(Refusal::Busy)), (0, Some(Refusal::NotHere)), (1, None)]
    {
        let (request, range) = (bench.request(piece), piece_range(piece, FILE_LEN));
        let server = Arc::new(clone_of(&bench.server));
        let mut told = 0;
        let (gate, mut urgent) = (Gate::default(), fill());
        let asking = ask((&pool, &buffers, &gate), &server, request, &range, &mut urgent, || told += 1);
        let answering = async {
            match refusal {
                None => bench.serve_next().await,
                Some(why) => {
                    let Some(UploadEvent::Requested { verdict, .. }) = bench.events.recv().await else {
                        panic!()
                    };
                    verdict.send(Verdict::Refuse(why)).unwrap();
                }
            }
            assert!(matches!(bench.events.recv().await, Some(UploadEvent::Ended { .. })), "its end is told");
        };
        let (answer, ()) = tokio::join!(asking, answering);
        match (answer, refusal) {
            (Ok(got), None) => {
                assert!(got.as_ref() == &bench.bytes[range.start as usize..range.end as usize]);
                assert!(told >= 1, "progress is told");
            }
            (Err(AskError::Refused(why)), Some(expected)) => assert_eq!(why, expected),
            (answer, _) => panic!("{:?}", answer.map(|buffer| buffer.len())),
        }
    }
    assert_eq!(bench.directory.bytes_to.load(Ordering::Relaxed), PIECE_LEN + 2000);
}

/// The same peer with the same keys; numbers go on from where they are.
fn clone_of(peer: &Connected) -> Connected {
    let hello = Hello {
        name: peer.name.clone(),
        zone: peer.zone.clone(),
        weight: peer.peer.weight,
        control_port: peer.control.port(),
        bulk_port: peer.bulk.port(),
        address: None,
        request_key: peer.theirs.clone(),
        seen_address: None,
    };
    Connected::new(peer.libp2p_id, peer.bulk.ip(), &hello, peer.ours.clone())
}

#[tokio::test]
async fn what_is_not_proven_or_was_asked_before_gets_nothing() {
    let mut bench = Bench::start().await;
    let range = piece_range(0, FILE_LEN);
    let good = write_request(&bench.request(0), &range, &bench.server.theirs);
    let mut socket = bench.connect().await;
    socket.write_all(good.as_bytes()).await.unwrap();
    bench.serve_next().await;
    let mut byte = [0; 12];
    socket.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"HTTP/1.1 206");
    let fresh = || write_request(&bench.request(0), &range, &bench.server.theirs);
    let other_piece = fresh().replace("bytes=0-2097151", "bytes=2097152-2098151");
    let other_sender = fresh().replace(&me().to_string(), "0000000000000001");
    let other_key = write_request(&bench.request(0), &range, &RequestKey::random());
    for (what, head) in [
        ("a replay", good.clone()),
        ("another piece", other_piece),
        ("another sender", other_sender),
        ("another key", other_key),
    ] {
        let answer = bench.answer(&head).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{what}: {answer}");
        assert!(answer.len() < 200, "{what} gets no bytes");
    }
    let two = fresh() + &fresh();
    for (what, head) in [
        ("two at once", two.as_str()),
        ("noise", "\u{1}\u{2}\r\n\r\n"),
        ("a long head", &"A".repeat(MAX_HEAD_LEN)),
    ] {
        let answer = bench.answer(head).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
    }
    assert_eq!(bench.directory.strangers.load(Ordering::Relaxed), 7);
}

#[tokio::test]
async fn who_goes_while_waiting_is_told_and_makes_room() {
    let mut bench = Bench::start().await;
    let head = write_request(&bench.request(0), &piece_range(0, FILE_LEN), &bench.server.theirs);
    let mut socket = bench.connect().await;
    socket.write_all(head.as_bytes()).await.unwrap();
    let Some(UploadEvent::Requested { upload, verdict, .. }) = bench.events.recv().await else {
        panic!("a request")
    };
    drop(socket);
    let ended = tokio::time::timeout(Duration::from_secs(30), bench.events.recv()).await.unwrap();
    assert!(matches!(ended, Some(UploadEvent::Ended { upload: gone }) if gone == upload));
    assert!(verdict.is_closed());
}

/// Asks for a piece and gives up once the server knows of it.
async fn give_up(
    bench: &mut Bench,
    pool: &Arc<Pool>,
    server: &Arc<Connected>,
) -> (UploadId, oneshot::Sender<Verdict>) {
    let (buffers, gate, mut urgent) = (Buffers::default(), Gate::default(), fill());
    let (request, range) = (bench.request(0), piece_range(0, FILE_LEN));
    let asking = ask((pool, &buffers, &gate), server, request, &range, &mut urgent, || ());
    tokio::select! {
        _ = asking => panic!("nothing was answered"),
        Some(UploadEvent::Requested { upload, verdict, .. }) = bench.events.recv() => (upload, verdict),
    }
}

#[tokio::test]
async fn who_gives_up_while_waiting_is_told_and_its_connection_serves_on() {
    let mut bench = Bench::start().await;
    let (pool, server) = (Arc::new(Pool::default()), Arc::new(clone_of(&bench.server)));
    for _ in 0..3 {
        let (upload, verdict) = give_up(&mut bench, &pool, &server).await;
        let ended = tokio::time::timeout(Duration::from_secs(30), bench.events.recv()).await.unwrap();
        assert!(matches!(ended, Some(UploadEvent::Ended { upload: gone }) if gone == upload));
        assert!(verdict.is_closed());
        let kept = async {
            while pool.idle() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), kept).await.unwrap();
    }
    assert_eq!(pool.idle(), 1, "one connection for all of them");
    let (buffers, gate, mut urgent) = (Buffers::default(), Gate::default(), fill());
    let (request, range) = (bench.request(1), piece_range(1, FILE_LEN));
    let asking = ask((&pool, &buffers, &gate), &server, request, &range, &mut urgent, || ());
    let (answer, ()) = tokio::join!(asking, bench.serve_next());
    assert!(answer.unwrap().as_ref() == &bench.bytes[range.start as usize..]);
    assert_eq!(pool.idle(), 1);
}

#[tokio::test]
async fn a_withdrawal_that_crosses_with_a_refusal_harms_no_later_request() {
    let mut bench = Bench::start().await;
    let range = piece_range(0, FILE_LEN);
    let mut socket = bench.connect().await;
    let head = write_request(&bench.request(0), &range, &bench.server.theirs);
    socket.write_all(head.as_bytes()).await.unwrap();
    let Some(UploadEvent::Requested { verdict, .. }) = bench.events.recv().await else { panic!("a request") };
    verdict.send(Verdict::Refuse(Refusal::NotHere)).unwrap();
    let mut line = [0; 12];
    socket.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 404");
    assert!(matches!(bench.events.recv().await, Some(UploadEvent::Ended { .. })));
    let next = write_request(&bench.request(0), &range, &bench.server.theirs);
    socket.write_all(WITHDRAW).await.unwrap();
    socket.write_all(next.as_bytes()).await.unwrap();
    bench.serve_next().await;
    let mut answer = Vec::new();
    while !answer.windows(12).any(|part| part == b"HTTP/1.1 206") {
        assert!(socket.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_piece_that_comes_in_spite_of_it_ends_the_connection() {
    let bench = Bench::start().await;
    let (listener, key) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), bench.server.theirs.clone());
    let bulk = listener.local_addr().unwrap();
    let (pool, server) = (Arc::new(Pool::default()), Arc::new(Connected { bulk, ..clone_of(&bench.server) }));
    let (asked, mut known) = mpsc::channel(1);
    let serving = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let number = read_head(&mut socket, HEAD_TIME).await.unwrap().unwrap().unwrap().request.number;
        asked.send(()).await.unwrap();
        let mut early = [0; 2];
        socket.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, WITHDRAW);
        let head = write_piece(number, &piece_range(0, FILE_LEN), FILE_LEN, &key);
        socket.write_all(head.as_bytes()).await.unwrap();
        // Its end; what came before it is of no interest.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let (buffers, gate, mut urgent) = (Buffers::default(), Gate::default(), fill());
    let (request, range) = (bench.request(0), piece_range(0, FILE_LEN));
    tokio::select! {
        _ = ask((&pool, &buffers, &gate), &server, request, &range, &mut urgent, || ()) => panic!("no answer"),
        _ = known.recv() => {}
    }
    tokio::time::timeout(Duration::from_secs(30), serving).await.unwrap().unwrap();
    assert_eq!(pool.idle(), 0);
}

/// A server that gives every request the same kind of answer, and ends.
async fn liar(answer: impl Fn(&Asked) -> Vec<u8> + Send + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            if let Ok(Ok(Some(asked))) = read_head(&mut socket, HEAD_TIME).await {
                // It may have heard enough.
                let _ = socket.write_all(&answer(&asked)).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn answers_that_lie_or_break_off_are_no_pieces() {
    let bench = Bench::start().await;
    let (pool, buffers) = (Arc::new(Pool::default()), Buffers::default());
    let range = piece_range(1, FILE_LEN);
    let key = bench.server.theirs.clone();
    let piece = |key: RequestKey, of: std::ops::Range<u64>, len: usize| {
        move |asked: &Asked| {
            let mut bytes = write_piece(asked.request.number, &of, FILE_LEN, &key).into_bytes();
            bytes.resize(bytes.len() + len, 7);
            bytes
        }
    };
    let cases: Vec<(&str, std::net::SocketAddr)> = vec![
        ("a stranger", liar(piece(RequestKey::random(), range.clone(), 1000)).await),
        ("another range", liar(piece(key.clone(), 0..1000, 1000)).await),
        ("a short body", liar(piece(key.clone(), range.clone(), 999)).await),
        ("an early end", liar(|_| Vec::new()).await),
        ("half a head", liar(|_| b"HTTP/1.1 206 Par".to_vec()).await),
        (
            "an endless head",
            liar(|_| [b"HTTP/1.1 206 OK\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat()).await,
        ),
        ("a bare status", liar(|_| b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec()).await),
    ];
    for (what, address) in cases {
        let server = Arc::new(Connected { bulk: address, ..clone_of(&bench.server) });
        let answer =
            ask((&pool, &buffers, &Gate::default()), &server, bench.request(1), &range, &mut fill(), || {})
                .await;
        assert!(answer.is_err() && !matches!(answer, Err(AskError::Refused(_))), "{what}");
    }
    let bulk = liar(piece(key, range.clone(), 1000)).await;
    let server = Arc::new(Connected { bulk, ..clone_of(&bench.server) });
    let answer =
        ask((&pool, &buffers, &Gate::default()), &server, bench.request(1), &range, &mut fill(), || {}).await;
    assert_eq!(answer.unwrap().as_ref(), [7; 1000], "what is proven is taken; the engine checks the bytes");
}

#[tokio::test]
async fn readers_have_connections_of_their_own() {
    let mut bench = Bench::start().await;
    let (pool, server) = (Arc::new(Pool::default()), Arc::new(clone_of(&bench.server)));
    let (buffers, gate, range) = (Buffers::default(), Gate::default(), piece_range(0, FILE_LEN));
    // Whether a reader waits, and the connections kept after it.
    for (reads, kept) in [(false, 1), (false, 1), (true, 1), (true, 1), (false, 2), (true, 2), (false, 2)] {
        let mut urgent = tokio::sync::watch::channel(reads).1;
        let request = PieceRequest { urgent: reads, ..bench.request(0) };
        let asking = ask((&pool, &buffers, &gate), &server, request, &range, &mut urgent, || ());
        let (answer, ()) = tokio::join!(asking, bench.serve_next());
        answer.unwrap();
        assert!(matches!(bench.events.recv().await, Some(UploadEvent::Ended { .. })));
        assert_eq!(pool.idle(), kept);
    }
}

#[tokio::test]
async fn a_link_that_becomes_slow_is_noticed_within_the_piece() {
    let bench = Bench::start().await;
    let (listener, key) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), bench.server.theirs.clone());
    let bulk = listener.local_addr().unwrap();
    let server = Arc::new(Connected { bulk, ..clone_of(&bench.server) });
    // As after a piece of a fast link: the receiver would sleep until all of the next one is here.
    server.rate.store(10 << 30, Ordering::Relaxed);
    let (half, go_on) = (PIECE_LEN as usize / 2, Arc::new(tokio::sync::Notify::new()));
    let goes_on = Arc::clone(&go_on);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let number = read_head(&mut socket, HEAD_TIME).await.unwrap().unwrap().unwrap().request.number;
        let head = write_piece(number, &piece_range(0, FILE_LEN), FILE_LEN, &key);
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![7; half]).await.unwrap();
        goes_on.notified().await;
        socket.write_all(&vec![7; half]).await.unwrap();
    });
    let (pool, buffers, gate, range) =
        (Arc::new(Pool::default()), Buffers::default(), Gate::default(), piece_range(0, FILE_LEN));
    let (request, mut urgent) = (bench.request(0), fill());
    let asking = ask((&pool, &buffers, &gate), &server, request, &range, &mut urgent, || ());
    let noticing = async {
        while server.rate.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        go_on.notify_one();
    };
    let both = async { tokio::join!(asking, noticing) };
    let (piece, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    assert_eq!(piece.unwrap().as_ref(), vec![7; PIECE_LEN as usize]);
    assert!(server.rate.load(Ordering::Relaxed) > 0, "the next one is measured by this one");
}
