//! Somebody on the network who has not the cluster's key.

use std::io::{Read, Write};
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
    /// Connections that were accepted.
    pub connections: usize,
    /// Bytes that came back on all of them.
    pub bytes: usize,
    /// Connections that looked like an answer to who belongs to the cluster.
    pub answered: usize,
    /// Connections that were still open after [`PATIENCE`].
    pub left_open: usize,
}

/// Talks to both ports of each node in every way it knows, and to each port in one way at a time.
///
/// # Errors
/// Where a port does not accept connections at all: then the run shows nothing.
pub fn visit(ns: &NetNs, nodes: &[Ipv4Addr], content: &str) -> Result<Reception> {
    let mut noise = vec![0_u8; 256 << 10];
    rand::rng().fill_bytes(&mut noise);
    let http =
        format!("GET /{content} HTTP/1.1\r\nHost: node\r\nRange: bytes=0-4194303\r\n\r\n").into_bytes();
    let hello = b"\x13/multistream/1.0.0\n".to_vec();
    let mut said = Reception::default();
    ns.enter(|| -> Result<()> {
        for &node in nodes {
            for port in [PEER_PORT, BULK_PORT] {
                for words in [&noise, &http, &hello] {
                    let stream = TcpStream::connect((node, port))
                        .with_context(|| format!("connect to {node}:{port} as a stranger"))?;
                    said.connections += 1;
                    let answer = talk(stream, words, &mut said);
                    said.bytes += answer.len();
                    let accepted = answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(&hello);
                    said.answered += usize::from(accepted);
                }
            }
        }
        Ok(())
    })??;
    Ok(said)
}

/// Says `words` and returns what comes back until the node ends the connection.
fn talk(mut stream: TcpStream, words: &[u8], said: &mut Reception) -> Vec<u8> {
    let begin = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    // The node may end it before it has heard all.
    let _ = stream.write_all(words);
    let mut block = [0_u8; 16 << 10];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return answer,
            Ok(got) => answer.extend_from_slice(&block[..got]),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return answer,
        }
        if begin.elapsed() > PATIENCE {
            said.left_open += 1;
            return answer;
        }
    }
}
