//! The Towline daemon: serves model images to containerd, piece by piece.
//!
//! Configure, open what is on disk, mount, bind, announce, serve, drain. No step before serving needs the network.

mod catalog;
mod claims;
mod config;
mod control;
mod error;
mod host_mounts;
mod http;
mod metrics;
mod mountinfo;
mod needs;
mod node;
mod notify;
mod origin;
mod peers;
mod resolve;
#[cfg(test)]
mod testing;
mod volumes;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use towline_artifact::PIECE_LEN;
use towline_fuse::{Mount, MountOptions};
use towline_modelfs::{Engine, EngineOptions, Limits};
use towline_peer::PeerNetwork;
use towline_proto::control::v1::control_server::ControlServer;
use towline_registry::{Client, ClientOptions, DockerConfig, PlainHttp};
use towline_snapshots::Snapshotter;
use towline_store::{Store, StoreOptions};

use crate::claims::Claims;
use crate::config::{Config, LogFormat};
use crate::host_mounts::HostMounts;
use crate::node::Node;
use crate::origin::Origins;
use crate::volumes::Volumes;

/// How long the start waits for the mounts of this host to be made again; a directory may lie on a dead file system.
const RESTORE: Duration = Duration::from_secs(30);
/// How long calls under way may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// The largest message containerd sends.
const MAX_MESSAGE_LEN: usize = 16 << 20;

/// Serves model images to containerd, piece by piece, through one FUSE mount.
///
/// Runs as root on every node, before containerd. `towline containerd-config` prints what containerd needs to know.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file (TOML); without one the defaults apply, see `towlined print-config`.
    #[arg(long, value_name = "FILE", env = "TOWLINE_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the configuration in effect, defaults included, as TOML.
    PrintConfig {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE", env = "TOWLINE_CONFIG")]
        config: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (path, print) = match &arguments.command {
        Some(Command::PrintConfig { config }) => (config, true),
        None => (&arguments.config, false),
    };
    let config = match Config::load(path.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let result = if print { print_config(&config) } else { run(config) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_config(config: &Config) -> anyhow::Result<()> {
    use std::io::Write;
    let text = toml::to_string(config).context("write the configuration")?;
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let level = std::env::var("TOWLINE_LOG").unwrap_or_else(|_| config.log.level.clone());
    let filter = EnvFilter::try_new(&level).with_context(|| format!("log level {level:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn run(config: Config) -> anyhow::Result<()> {
    start_logging(&config)?;
    raise_open_files();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(DRAIN);
    result
}

/// Allows as many open files as the system lets this process have. Every content that is read or fetched has one, and
/// a shell's or an old service's 1024 are used up by a single model of many files; then not even calls are accepted.
fn raise_open_files() {
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: allowed.maximum, ..allowed };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(limit = allowed.current, %error, "limit of open files not raised");
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let stop = CancellationToken::new();
    // Before the mount is made: a port that is taken ends the start without a trace.
    let network = peers::bind(&config, &stop).await.context("join the peer network")?;
    let node = open(config, network.as_ref(), &stop)?;
    let config = &node.config;
    let models = Arc::new(Claims(Arc::clone(&node)));
    let snapshotter =
        Snapshotter::open(towline_snapshots::Options::new(config.root.join("snapshots")), models)?;
    node.forget_all_but(&snapshotter.chains());

    let mounts = restore_mounts(&node).await;
    // First, so that whoever finds the sockets finds this, too.
    let http = match config.http.listen.as_str() {
        "" => None,
        address => Some(TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?),
    };
    let snapshots = bind(&config.snapshotter_socket())?;
    let control = bind(&config.control_socket())?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(Arc::clone(&node.engine).run());
    if let Some(network) = network {
        tasks.spawn(network.run(Arc::clone(&node.engine)));
    }
    tasks.spawn(Arc::clone(&node).watch());
    let stopped = || stop.clone().cancelled_owned();
    let service = snapshotter.clone().into_service();
    let server = tonic::transport::Server::builder().add_service(
        service.max_decoding_message_size(MAX_MESSAGE_LEN).max_encoding_message_size(MAX_MESSAGE_LEN),
    );
    let serving = server.serve_with_incoming_shutdown(UnixListenerStream::new(snapshots), stopped());
    tasks.spawn(report("snapshots service", serving, stop.clone()));
    let service = control::Service::new(Arc::clone(&node), mounts, started);
    let server = tonic::transport::Server::builder().add_service(ControlServer::new(service));
    let serving = server.serve_with_incoming_shutdown(UnixListenerStream::new(control), stopped());
    tasks.spawn(report("control service", serving, stop.clone()));
    if let Some(listener) = http {
        tasks.spawn(report("HTTP service", http::serve(listener, Arc::clone(&node)), stop.clone()));
    }
    notify::ready();
    tracing::info!(
        socket = %config.snapshotter_socket().display(), root = %config.root.display(),
        models = node.catalog.models().len(), elapsed_ms = started.elapsed().as_millis() as u64, "serving"
    );

    wait_for_stop(&stop).await?;
    notify::stopping();
    stop.cancel();
    node.engine.stop();
    let drained = tokio::time::timeout(DRAIN, async {
        while tasks.join_next().await.is_some() {}
        snapshotter.drain().await;
    });
    if drained.await.is_err() {
        tracing::warn!("calls under way did not end in time");
    }
    if let Some(Err(error)) = node.mount.get().map(Mount::detach) {
        tracing::warn!(%error, "mount left behind; the next start clears it away");
    }
    let store = node.engine.store().clone();
    tokio::task::spawn_blocking(move || store.close()).await?.context("close the store")?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens what is on disk and mounts it.
fn open(
    config: Config,
    network: Option<&PeerNetwork>,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<Node>> {
    // What the store holds may be confidential. containerd and the kubelet are root, and pods see their volumes through
    // mounts, not through these paths. A directory that is there already is its owner's business.
    for dir in [&config.root, &config.run_dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
    }
    match std::fs::create_dir(config.mount_dir()) {
        // A mount that a killed daemon left there; mounting clears it away.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.with_context(|| format!("make {}", config.mount_dir().display()))?,
    }
    let store = Store::open(&config.root.join("store"), StoreOptions::default())?;
    let catalog = catalog::Catalog::open(&config.root)?;
    let client = registry_client(&config)?;
    let origins =
        Arc::new(if network.is_some() { Origins::with_peers(client) } else { Origins::new(client) });
    let engine = Engine::new(store, origins.clone(), engine_options(&config));
    if let Some(network) = network {
        engine.set_network(network.network());
    }
    let runtime = tokio::runtime::Handle::current();
    let node = Node::new(config, engine, origins, catalog, runtime, stop.clone());
    if let Some(network) = network {
        node.peers.set(network.reporter()).expect("set once");
    }
    let fuse = &node.config.fuse;
    let mut options = MountOptions { passthrough: fuse.passthrough, ..MountOptions::default() };
    options.read_ahead_kb = u32::try_from(fuse.read_ahead.0 >> 10).expect("checked with the configuration");
    if fuse.threads > 0 {
        options.threads = fuse.threads;
    }
    let dir = node.config.mount_dir();
    let mount = Mount::start(&dir, Arc::new(Volumes(Arc::clone(&node))), options)?;
    let scratch = node.config.root.join("store/version");
    if let Ok(file) = std::fs::File::open(&scratch) {
        tracing::info!(passthrough = %mount.probe_passthrough(&file), "probed");
    }
    node.mount.set(mount).expect("mounted once");
    Ok(node)
}

/// Makes the recorded mounts of this host again, before anybody is told that the daemon is ready.
async fn restore_mounts(node: &Arc<Node>) -> Arc<HostMounts> {
    let mounts = Arc::new(HostMounts::new(Arc::clone(node)));
    let restoring = Arc::clone(&mounts);
    let restored = tokio::task::spawn_blocking(move || restoring.restore());
    if tokio::time::timeout(RESTORE, restored).await.is_err() {
        tracing::error!("mounts of this host take over {} s to be made again", RESTORE.as_secs());
    }
    mounts
}

fn engine_options(config: &Config) -> EngineOptions {
    let fetch = &config.fetch;
    let pieces =
        |size: bytesize::ByteSize| u32::try_from(size.0 / PIECE_LEN).expect("checked with the configuration");
    let limits = Limits {
        runs: fetch.requests,
        reserved_for_demand: (fetch.requests / 4).max(1),
        run_pieces: pieces(fetch.request_size),
        window_pieces: pieces(fetch.window),
        ..Limits::default()
    };
    EngineOptions {
        limits,
        memory_bytes: fetch.memory.0,
        read_timeout: fetch.read_timeout,
        idle_timeout: fetch.idle_timeout,
    }
}

fn registry_client(config: &Config) -> anyhow::Result<Client> {
    let registry = &config.registry;
    let credentials = match &registry.docker_config {
        Some(path) => DockerConfig::at(path),
        None => DockerConfig::from_env(std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")),
    };
    let plain_http = match registry.plain_http.as_slice() {
        [] => PlainHttp::default(),
        hosts => PlainHttp::Hosts(hosts.to_vec()),
    };
    Ok(Client::new(ClientOptions {
        credentials: Arc::new(credentials),
        plain_http,
        idle_timeout: config.fetch.idle_timeout,
        user_agent: concat!("towlined/", env!("CARGO_PKG_VERSION")).to_owned(),
        hosts_dir: registry.hosts_dir.clone(),
        ..ClientOptions::default()
    })?)
}

/// A socket that only root can open. The store's lock has shown that no other daemon uses this root.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

/// A service that ends before the daemon is told to stop takes the daemon with it: its supervisor starts a new one.
async fn report<E: std::fmt::Display>(
    name: &'static str,
    serving: impl Future<Output = Result<(), E>>,
    stop: CancellationToken,
) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "{name} ended");
        stop.cancel();
    }
}

async fn wait_for_stop(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to terminate"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
        () = stop.cancelled() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_open_files_that_the_system_allows_are_used() {
        let before = getrlimit(Resource::Nofile);
        let lower = Rlimit { current: Some(512), ..before };
        setrlimit(Resource::Nofile, lower).unwrap();
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
