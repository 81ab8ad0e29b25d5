//! Somebody on the network who has not the cluster's key.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::RngCore;
use serde::Serialize;

use super::netns::NetNs;
use super::node::{BULK_PORT, PEER_PORT};

/// How long a node may leave a stranger's connection open.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the stranger got.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Reception {
    /// Connections that came about.
    pub connections: usize,
    /// Bytes that came back on all of them.
    pub bytes: usize,
    /// Connections on which the node answered as to one of the cluster.
    pub answered: usize,
    /// Connections that were still open after [`PATIENCE`].
    pub left_open: usize,
}

/// Talks to both ports of each node in every way it knows, on a connection for each, all at the same time.
///
/// # Errors
/// Where a port does not accept connections at all: then the run shows nothing.
pub fn visit(ns: &NetNs, nodes: &[Ipv4Addr], content: &str) -> Result<Reception> {
    let mut noise = vec![0_u8; 256 << 10];
    rand::rng().fill_bytes(&mut noise);
    let http =
        format!("GET /{content} HTTP/1.1\r\nHost: node\r\nRange: bytes=0-4194303\r\n\r\n").into_bytes();
    let speeches = [noise, http, HELLO.to_vec()];
    let places = nodes.iter().flat_map(|&node| [PEER_PORT, BULK_PORT].map(|port| (node, port)));
    let calls: Vec<_> =
        places.flat_map(|place| speeches.iter().map(move |words| (place, words.as_slice()))).collect();
    // A thread that is started inside is inside.
    let answers = ns.enter(|| {
        std::thread::scope(|scope| {
            let talks: Vec<_> =
                calls.iter().map(|&(place, words)| scope.spawn(move || talk(place, words))).collect();
            talks
                .into_iter()
                .map(|talk| talk.join().expect("talk does not panic"))
                .collect::<Result<Vec<_>>>()
        })
    })??;
    let mut said = Reception { connections: answers.len(), ..Reception::default() };
    for answer in answers {
        said.bytes += answer.bytes.len();
        let accepted = answer.bytes.starts_with(b"HTTP/1.1 2") || answer.bytes.starts_with(HELLO);
        said.answered += usize::from(accepted);
        said.left_open += usize::from(answer.left_open);
    }
    Ok(said)
}

/// How a libp2p node without a key greets.
const HELLO: &[u8] = b"\x13/multistream/1.0.0\n";

/// What came back on a connection.
struct Answer {
    bytes: Vec<u8>,
    left_open: bool,
}

/// Says `words` and listens until the node ends the connection.
fn talk(place: (Ipv4Addr, u16), words: &[u8]) -> Result<Answer> {
    let begin = Instant::now();
    let mut stream =
        TcpStream::connect(place).with_context(|| format!("connect to {place:?} as a stranger"))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // The node may end it before it has heard all.
    let _ = stream.write_all(words);
    let (mut bytes, mut block) = (Vec::new(), [0_u8; 16 << 10]);
    while begin.elapsed() < PATIENCE {
        match stream.read(&mut block) {
            Ok(0) => return Ok(Answer { bytes, left_open: false }),
            Ok(got) => bytes.extend_from_slice(&block[..got]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Ok(Answer { bytes, left_open: false }),
        }
    }
    Ok(Answer { bytes, left_open: true })
}
