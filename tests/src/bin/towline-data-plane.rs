//! How fast one node serves another on loopback, beside the least that any data plane does: `sendfile` to a receiver that hashes.
//!
//! Each side is a process of its own, so that its processor time can be told. The nodes are whole ones: store, engine,
//! decisions, authentication; the receiver verifies every piece and writes it into its store.
//!
//! What allocates the page cache is not measured: whoever writes finds its file's pages there. Unless `--dir` says another place,
//! they are huge pages of a tmpfs, as near as can be to the large folios of xfs and of ext4 since Linux 6.16.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use futures_util::stream;
use tokio_util::sync::CancellationToken;
use towline_artifact::{ContentId, PIECE_LEN, PieceHasher, PieceIndex, PieceTable};
use towline_modelfs::{Engine, EngineOptions, FetchError, PieceSource, PieceStream};
use towline_peer::{Bootstrap, ClusterKey, Options, PeerNetwork};
use towline_store::{Store, StoreOptions};
use towline_swarm::Limits;
use towline_tests::cluster::warm;
use towline_tests::machine::Machine;

/// Measures how fast one node serves another on loopback, beside `sendfile` to a receiver that hashes, and to one that hashes and
/// writes.
#[derive(Parser)]
struct Args {
    /// Length of the content in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Where the stores are [default: a tmpfs with huge pages of its own, which needs root]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Rounds; both sides are measured in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// A node that has the content; ends with its standard input.
    Serve { file: PathBuf, dir: PathBuf },
    /// A node that fetches it from the node at a port.
    Fetch { file: PathBuf, dir: PathBuf, port: u16 },
    /// Sends the file by `sendfile` to whoever connects, over so many connections.
    Send { file: PathBuf, connections: usize },
    /// Receives and hashes, and writes what came into `dir` if it is told to.
    Receive {
        port: u16,
        connections: usize,
        len: u64,
        dir: PathBuf,
        #[arg(action = clap::ArgAction::Set)]
        write: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.role {
        None => match &args.dir {
            Some(dir) => compare(&args, dir),
            None => Err(on_huge_pages(&args)?),
        },
        Some(Role::Serve { file, dir }) => runtime()?.block_on(serve(&file, &dir)),
        Some(Role::Fetch { file, dir, port }) => runtime()?.block_on(fetch(&file, &dir, port)),
        Some(Role::Send { file, connections }) => send(&file, connections),
        Some(Role::Receive { port, connections, len, dir, write }) => {
            receive(port, connections, len, &dir, write)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// What one transfer took: seconds by the clock, and of the processors on both sides.
#[derive(Clone, Copy, Debug)]
struct Took {
    wall: f64,
    sender: f64,
    receiver: f64,
}

/// Becomes this program again with a tmpfs that nobody else sees and that ends with it. Returns why that failed.
fn on_huge_pages(args: &Args) -> anyhow::Result<anyhow::Error> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a tmpfs with huge pages needs root; or name a place with --dir"
    );
    let mount = format!(
        "mount -t tmpfs -o huge=within_size,size={}m huge-pages /mnt && exec \"$0\" --dir /mnt --mib {} --rounds {}",
        4 * args.mib + 512,
        args.mib,
        args.rounds
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &mount]).arg(std::env::current_exe()?);
    Ok(anyhow::Error::new(command.exec()).context("start unshare"))
}

#[expect(clippy::print_stdout, reason = "the figures are its output")]
fn compare(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("towline-data-plane").tempdir_in(dir)?;
    let file = scratch.path().join("content");
    let len = args.mib << 20;
    // The content, the two stores, and the buffers of two nodes.
    warm::keep(3 * len + (512 << 20))?;
    write_content(&file, len)?;
    let gb = len as f64 / 1e9;
    let mut ratios = Vec::new();
    for round in 1..=args.rounds {
        let plain = best(&file, len, scratch.path(), false)?;
        let written = best(&file, len, scratch.path(), true)?;
        let ours = nodes(&file, &scratch.path().join(format!("round{round}")))?;
        ratios.push((plain.wall / ours.wall, written.wall / ours.wall));
        for (name, took) in [
            ("sendfile to a receiver that hashes", plain),
            ("sendfile to a receiver that hashes and writes", written),
            ("node to node", ours),
        ] {
            println!(
                "round {round}: {name}: {:.2} GB/s, CPU-s per GB: sender {:.2}, receiver {:.2}",
                gb / took.wall,
                took.sender / gb,
                took.receiver / gb
            );
        }
    }
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let (plain, written): (Vec<f64>, Vec<f64>) = ratios.into_iter().unzip();
    println!(
        "node to node reaches {:.2} of the receiver that hashes and {:.2} of the one that also writes (medians of {})",
        median(plain),
        median(written),
        args.rounds
    );
    println!("{} MiB in {}; machine: {}", args.mib, dir.display(), Machine::look(dir));
    Ok(())
}

/// With one connection or four, whichever is faster.
fn best(file: &Path, len: u64, dir: &Path, write: bool) -> anyhow::Result<Took> {
    let (one, four) = (raw(file, 1, len, dir, write)?, raw(file, 4, len, dir, write)?);
    Ok(if one.wall < four.wall { one } else { four })
}

/// Bytes that no cache or compression makes shorter.
fn write_content(path: &Path, len: u64) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..len >> 20 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}

fn role(args: &[&str]) -> anyhow::Result<Child> {
    let me = std::env::current_exe()?;
    Ok(Command::new(me).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

fn line(child: &mut Child) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut byte = [0; 1];
    let out = child.stdout.as_mut().context("piped")?;
    while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    ensure!(!text.is_empty(), "a side ended without a word");
    Ok(text)
}

fn raw(file: &Path, connections: usize, len: u64, dir: &Path, write: bool) -> anyhow::Result<Took> {
    let file = file.display().to_string();
    let mut sender = role(&["send", &file, &connections.to_string()])?;
    let port = line(&mut sender)?;
    let (count, len, dir, write) =
        (connections.to_string(), len.to_string(), dir.display().to_string(), write.to_string());
    let mut receiver = role(&["receive", &port, &count, &len, &dir, &write])?;
    let took = line(&mut receiver)?;
    let (wall, cpu) = took.split_once(' ').context("two numbers")?;
    let sent: f64 = line(&mut sender)?.parse()?;
    sender.wait()?;
    receiver.wait()?;
    Ok(Took { wall: wall.parse()?, sender: sent, receiver: cpu.parse()? })
}

fn nodes(file: &Path, dir: &Path) -> anyhow::Result<Took> {
    let (file, serving, fetching) = (file.display().to_string(), dir.join("a"), dir.join("b"));
    std::fs::create_dir_all(&serving)?;
    std::fs::create_dir_all(&fetching)?;
    let mut server = role(&["serve", &file, &serving.display().to_string()])?;
    let port = line(&mut server)?;
    let mut client = role(&["fetch", &file, &fetching.display().to_string(), &port])?;
    let took = line(&mut client)?;
    let (wall, cpu) = took.split_once(' ').context("two numbers")?;
    drop(server.stdin.take());
    let sent: f64 = line(&mut server)?.parse()?;
    server.wait()?;
    client.wait()?;
    std::fs::remove_dir_all(dir)?;
    Ok(Took { wall: wall.parse()?, sender: sent, receiver: cpu.parse()? })
}

/// Seconds of processor time of this process so far.
fn cpu() -> f64 {
    let ticks = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    ticks.tv_sec as f64 + ticks.tv_nsec as f64 / 1e9
}

/// Gives a file that will be received its page cache. What allocating that costs is between the file system and, in a virtual
/// machine, the host, which may have taken back what was free: up to five times what receiving costs, or nothing.
fn allocate(path: &Path, len: u64) -> std::io::Result<std::fs::File> {
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(path)?;
    let block = vec![1; PIECE_LEN as usize];
    (0..len / PIECE_LEN).try_for_each(|n| file.write_all_at(&block, n * PIECE_LEN))?;
    Ok(file)
}

#[expect(clippy::print_stdout, reason = "read by the parent")]
fn send(path: &Path, connections: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let file = std::fs::File::open(path)?;
    let pieces = file.metadata()?.len() / PIECE_LEN;
    let sockets: Vec<TcpStream> =
        (0..connections).map(|_| Ok(listener.accept()?.0)).collect::<std::io::Result<_>>()?;
    let before = cpu();
    std::thread::scope(|scope| {
        for (n, socket) in sockets.iter().enumerate() {
            let file = &file;
            scope.spawn(move || {
                for piece in (n as u64..pieces).step_by(connections) {
                    let mut at = piece * PIECE_LEN;
                    let end = at + PIECE_LEN;
                    while at < end {
                        let missing = (end - at) as usize;
                        rustix::fs::sendfile(socket, file, Some(&mut at), missing).expect("it receives");
                    }
                }
            });
        }
    });
    println!("{}", cpu() - before);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "read by the parent")]
fn receive(port: u16, connections: usize, len: u64, dir: &Path, write: bool) -> anyhow::Result<()> {
    let sockets: Vec<TcpStream> =
        (0..connections).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<std::io::Result<_>>()?;
    let into = dir.join("received");
    let written = write.then(|| allocate(&into, len)).transpose()?;
    let (started, before) = (Instant::now(), cpu());
    let pieces = len / PIECE_LEN;
    std::thread::scope(|scope| {
        let written = written.as_ref();
        for (n, mut socket) in sockets.into_iter().enumerate() {
            scope.spawn(move || {
                let mut buffer = vec![0; PIECE_LEN as usize];
                for piece in (n as u64..pieces).step_by(connections) {
                    socket.read_exact(&mut buffer).expect("it sends");
                    let index = PieceIndex(u32::try_from(piece).expect("few"));
                    std::hint::black_box(towline_artifact::hash_piece(index, &buffer));
                    if let Some(file) = written {
                        file.write_all_at(&buffer, index.offset()).expect("room for the content");
                    }
                }
            });
        }
    });
    println!("{} {}", started.elapsed().as_secs_f64(), cpu() - before);
    if write {
        std::fs::remove_file(&into)?;
    }
    Ok(())
}

/// The content as a file, for the node that has it; nobody for the other.
struct FileSource(Option<Arc<std::fs::File>>);

impl PieceSource for FileSource {
    fn fetch<'a>(
        &'a self,
        table: &'a PieceTable,
        bytes: Range<u64>,
    ) -> Pin<Box<dyn Future<Output = Result<PieceStream, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            let file = self.0.as_ref().ok_or(FetchError::NoSource { content: table.content() })?;
            let mut part = vec![0; (bytes.end - bytes.start) as usize];
            file.read_exact_at(&mut part, bytes.start)
                .map_err(|error| FetchError::broken(error.to_string()))?;
            Ok(Box::pin(stream::iter([Ok(Bytes::from(part))])) as PieceStream)
        })
    }

    fn corrupt(&self, _: ContentId) {}
}

async fn node(dir: &Path, first: Option<u16>, source: FileSource) -> anyhow::Result<(Arc<Engine>, u16)> {
    let bootstrap = first.map(|port| format!("127.0.0.1:{port}").parse()).transpose()?;
    let options = Options {
        key: ClusterKey::from_secret(b"a key for a node and another one")?,
        listen: "127.0.0.1:0".parse()?,
        bulk_listen: "127.0.0.1:0".parse()?,
        advertise: None,
        bootstrap: bootstrap.map(|source| Bootstrap::new(vec![source], None)).transpose()?,
        name: "node".to_owned(),
        zone: String::new(),
        weight: 1,
        max_connections: 16,
        limits: Limits::default(),
    };
    let network = PeerNetwork::bind(options, CancellationToken::new()).await?;
    let port = network.ports().0;
    let store = Store::open(dir, StoreOptions::default())?;
    let engine = Engine::new(store, Arc::new(source), EngineOptions::default());
    engine.set_network(network.network());
    let reporter = network.reporter();
    tokio::spawn(network.run(Arc::clone(&engine)));
    while first.is_some() && reporter.report().peers.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok((engine, port))
}

fn table(path: &Path) -> anyhow::Result<Arc<PieceTable>> {
    let mut hasher = PieceHasher::new();
    let mut file = std::fs::File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Arc::new(hasher.finish())),
            len => hasher.update(&block[..len]),
        }
    }
}

#[expect(clippy::print_stdout, reason = "read by the parent")]
async fn serve(path: &Path, dir: &Path) -> anyhow::Result<()> {
    let table = table(path)?;
    let source = FileSource(Some(Arc::new(std::fs::File::open(path)?)));
    let (engine, port) = node(dir, None, source).await?;
    let handle = engine.open(&table)?;
    engine.start_fill(&[(Arc::clone(&handle), 0..table.piece_count())]);
    while !handle.content().is_sealed() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{port}");
    let before = cpu();
    tokio::task::spawn_blocking(|| BufReader::new(std::io::stdin()).read_line(&mut String::new())).await??;
    println!("{}", cpu() - before);
    std::process::exit(0);
}

#[expect(clippy::print_stdout, reason = "read by the parent")]
async fn fetch(path: &Path, dir: &Path, port: u16) -> anyhow::Result<()> {
    let table = table(path)?;
    let (engine, _) = node(dir, Some(port), FileSource(None)).await?;
    // The decisions wait a moment after a start, for nodes that start together; that is not the data plane's.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let handle = engine.open(&table)?;
    let id = table.content().to_string();
    // Where the store keeps it; which pieces are there is not told by the file.
    allocate(&dir.join("content").join(&id[..2]).join(&id), table.file_len())?;
    let (started, before) = (Instant::now(), cpu());
    engine.start_fill(&[(Arc::clone(&handle), 0..table.piece_count())]);
    while !handle.content().is_complete() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("{} {}", started.elapsed().as_secs_f64(), cpu() - before);
    std::process::exit(0);
}
