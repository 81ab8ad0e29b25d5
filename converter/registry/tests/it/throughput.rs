//! What a range costs: run with `--ignored --nocapture`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use towline_registry::{Digest, Repository};

use crate::server::client;

const PIECE: u64 = 2 << 20;
const PIECES: u64 = 1024;

/// Processor time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Serves ranges of zeros on connections that stay open, from a thread of its own each.
fn zeros() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut reader, mut stream) = (BufReader::new(stream.try_clone().unwrap()), stream);
                let body = vec![0; PIECE as usize];
                let mut line = String::new();
                while matches!(reader.read_line(&mut line), Ok(1..)) {
                    if let Some(range) = line.to_ascii_lowercase().trim().strip_prefix("range: bytes=") {
                        let head = format!(
                            "HTTP/1.1 206 OK\r\ncontent-length: {PIECE}\r\ncontent-range: bytes {range}/*\r\n\r\n"
                        );
                        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    host
}

#[test]
#[ignore = "a measurement"]
fn processor_time_per_gigabyte_of_ranges() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    for lanes in [1, 4, 16] {
        let client = client();
        let repository = Repository::new(&zeros(), "a/b").unwrap();
        let (wall, start) = (Instant::now(), cpu());
        let chunks: u64 = runtime.block_on(async {
            let lane = |lane: u64| {
                let (client, repository, digest) = (&client, &repository, &digest);
                async move {
                    let mut chunks = 0;
                    for piece in (lane..PIECES).step_by(lanes as usize) {
                        let range = piece * PIECE..(piece + 1) * PIECE;
                        let mut body = client.blob_range(repository, digest, range).await.unwrap();
                        while let Some(chunk) = body.chunk().await {
                            chunk.unwrap();
                            chunks += 1;
                        }
                    }
                    chunks
                }
            };
            futures_util::future::join_all((0..lanes).map(lane)).await.iter().sum()
        });
        let (wall, cpu) = (wall.elapsed(), cpu() - start);
        let gigabytes = (PIECE * PIECES) as f64 / 1e9;
        println!(
            "{lanes} at a time: {:.3} s processor per GB, {:.2} GB/s, {} KiB per chunk",
            cpu.as_secs_f64() / gigabytes,
            gigabytes / wall.as_secs_f64(),
            (PIECE * PIECES / chunks) >> 10,
        );
    }
}
