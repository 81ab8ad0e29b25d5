//! A snapshotter on a socket, with models in memory, for the tests of its protocol.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use towline_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use towline_proto::containerd::services::snapshots::v1::{self as wire, Info};
use towline_proto::containerd::types::Mount;
use towline_snapshots::{Claim, LayerClaim, Models, Options, Refusal, RefusalKind, Snapshotter};

/// Label by which containerd asks for a chain.
pub(crate) const REF: &str = "containerd.io/snapshot.ref";
/// Label that makes a layer a model's, here.
pub(crate) const MODEL: &str = "containerd.io/snapshot/io.towline.test";

/// Models in memory: layers with the label [`MODEL`] are accepted unless told otherwise.
pub(crate) struct MemoryModels {
    pub(crate) state: Mutex<State>,
    /// A claim takes one permit to answer.
    pub(crate) gate: Semaphore,
    /// Parent of one directory per chain.
    root: PathBuf,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) claims: Vec<LayerClaim>,
    pub(crate) forgotten: Vec<String>,
    pub(crate) cleanups: usize,
    pub(crate) refusal: Option<Refusal>,
    /// Where to show a chain's files, instead of the usual place.
    pub(crate) directories: HashMap<String, PathBuf>,
}

impl MemoryModels {
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            root: root.to_owned(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// The directory of `chain`, made on first use, with one file that names the chain.
    pub(crate) fn show(&self, chain: &str) -> PathBuf {
        let dir = self.root.join(chain.trim_start_matches("sha256:"));
        std::fs::create_dir_all(&dir).expect("mkdir");
        std::fs::write(dir.join("chain"), chain).expect("write");
        dir
    }
}

#[tonic::async_trait]
impl Models for MemoryModels {
    async fn claim(&self, claim: &LayerClaim) -> Result<Claim, Refusal> {
        self.state().claims.push(claim.clone());
        self.gate.acquire().await.expect("never closed").forget();
        let state = self.state();
        match &state.refusal {
            Some(refusal) => Err(refusal.clone()),
            None if claim.labels.contains_key(MODEL) && !claim.parent_is_ordinary => Ok(Claim::Accepted),
            None => Ok(Claim::NotOurs),
        }
    }

    async fn directory(&self, chain: &str) -> Result<PathBuf, Refusal> {
        if let Some(dir) = self.state().directories.get(chain) {
            return Ok(dir.clone());
        }
        let dir = self.root.join(chain.trim_start_matches("sha256:"));
        match dir.try_exists() {
            Ok(true) => Ok(dir),
            _ => Err(Refusal::new(RefusalKind::NotFound, "no such model")),
        }
    }

    fn forget(&self, chain: &str) {
        self.state().forgotten.push(chain.to_owned());
    }

    async fn cleanup(&self) {
        self.state().cleanups += 1;
    }

    fn usage(&self, _: &str) -> (i64, i64) {
        (4096, 3)
    }
}

/// A snapshotter that listens, and a client of it.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) models: Arc<MemoryModels>,
    pub(crate) client: SnapshotsClient<Channel>,
    pub(crate) snapshotter: Snapshotter,
    stop: CancellationToken,
    server: JoinHandle<()>,
    options: Options,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(configure: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::Builder::new().prefix("tl").tempdir().expect("temp dir");
        let models = MemoryModels::new(&dir.path().join("models"));
        let mut options = Options::new(dir.path().join("root"));
        configure(&mut options);
        Self::serve(dir, models, options).await
    }

    /// Stops the server, forgets everything in memory, and starts again on the same disk.
    pub(crate) async fn restart(self) -> Self {
        let Self { dir, client, snapshotter, stop, server, options, .. } = self;
        drop(client);
        stop.cancel();
        server.await.expect("server");
        snapshotter.drain().await;
        drop(snapshotter);
        let models = MemoryModels::new(&dir.path().join("models"));
        Self::serve(dir, models, options).await
    }

    async fn serve(dir: tempfile::TempDir, models: Arc<MemoryModels>, options: Options) -> Self {
        let snapshotter = Snapshotter::open(options.clone(), models.clone()).expect("open");
        let socket = dir.path().join("s.sock");
        let _ = std::fs::remove_file(&socket);
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).expect("bind"));
        let stop = CancellationToken::new();
        let service = snapshotter.clone().into_service();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let served =
                Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stopped);
            served.await.expect("serve");
        });
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://snapshotter");
        let channel = endpoint.connect_with_connector(connect).await.expect("connect");
        let client = SnapshotsClient::new(channel);
        Self { dir, models, client, snapshotter, stop, server, options }
    }

    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Mount, Status> {
        let request = wire::PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: owned(labels),
            ..Default::default()
        };
        self.client.clone().prepare(request).await.map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) async fn view(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Mount, Status> {
        let request = wire::ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: owned(labels),
            ..Default::default()
        };
        self.client.clone().view(request).await.map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Mount, Status> {
        let request = wire::MountsRequest { key: key.to_owned(), ..Default::default() };
        self.client.clone().mounts(request).await.map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) async fn commit(&self, name: &str, key: &str, labels: &[(&str, &str)]) -> Result<(), Status> {
        let request = wire::CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            labels: owned(labels),
            ..Default::default()
        };
        self.client.clone().commit(request).await.map(drop)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = wire::RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.client.clone().remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = wire::StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        let answer = self.client.clone().stat(request).await?;
        Ok(answer.into_inner().info.expect("an answer holds an info"))
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = wire::UsageRequest { key: key.to_owned(), ..Default::default() };
        let usage = self.client.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn cleanup(&self) {
        self.client.clone().cleanup(wire::CleanupRequest::default()).await.expect("cleanup");
    }

    /// All messages of a List.
    pub(crate) async fn list(&self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = wire::ListSnapshotsRequest { filters, ..Default::default() };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut blocks = Vec::new();
        while let Some(block) = stream.message().await? {
            blocks.push(block.info);
        }
        Ok(blocks)
    }

    pub(crate) async fn names(&self, filters: &[&str]) -> BTreeSet<String> {
        let blocks = self.list(filters).await.expect("list");
        blocks.into_iter().flatten().map(|info| info.name).collect()
    }

    /// Extracts a model layer as containerd does, and looks for it as containerd does after `ALREADY_EXISTS`.
    pub(crate) async fn pull(&self, namespace: &str, chain: &str, parent: &str) -> Result<Info, Status> {
        self.models.show(chain);
        let key = format!("{namespace}/7/extract-1-x {chain}");
        let labels = [(REF, chain), (MODEL, "yes"), ("containerd.io/gc.ref", "private")];
        let status = match self.prepare(&key, parent, &labels).await {
            Ok(mount) => panic!("{chain} was not claimed: {mount:?}"),
            Err(status) => status,
        };
        if status.code() != Code::AlreadyExists {
            return Err(status);
        }
        let filter = format!("labels.\"{REF}\"=={chain},parent==\"{parent}\"");
        let found: Vec<_> = self.list(&[&filter]).await?.into_iter().flatten().collect();
        assert_eq!(found.len(), 1, "{found:?}");
        let info = found.into_iter().next().expect("one");
        assert_eq!((info.kind(), info.parent.as_str()), (wire::Kind::Committed, parent));
        assert_eq!(info.labels.get(REF).map(String::as_str), Some(chain));
        Ok(info)
    }
}

fn owned(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn only(mounts: Vec<Mount>) -> Mount {
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    mounts.into_iter().next().expect("one")
}

/// A chain id made of one byte.
pub(crate) fn chain(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

/// `labels` of an info, sorted.
pub(crate) fn sorted(info: &Info) -> BTreeMap<&str, &str> {
    info.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// Waits until `done`, at most ten seconds.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::task::yield_now().await;
    }
}

/// Whether this process may mount; says so, past the test harness, if not.
pub(crate) fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "skipped: mounting needs root");
    }
    root
}

/// A mount that goes when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Makes the mount that the snapshotter described, as containerd would.
    pub(crate) fn new(mount: &Mount, target: &Path) -> Self {
        use rustix::mount::{MountFlags, mount as mount_at, mount_bind_recursive, mount_remount};
        std::fs::create_dir_all(target).expect("mkdir");
        if mount.r#type == "bind" {
            mount_bind_recursive(&mount.source, target).expect("bind");
            if mount.options.iter().any(|option| option == "ro") {
                mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").expect("remount");
            }
        } else {
            let options = std::ffi::CString::new(mount.options.join(",")).expect("no NUL");
            let (source, kind) = (mount.source.as_str(), mount.r#type.as_str());
            mount_at(source, target, kind, MountFlags::empty(), Some(options.as_c_str())).expect("mount");
        }
        Self(target.to_owned())
    }

    /// A FUSE file system that nobody serves. It hangs until `device` is closed, and then is dead.
    pub(crate) fn fuse(device: &std::fs::File, target: &Path) -> Self {
        use rustix::mount::{MountFlags, mount as mount_at};
        use std::os::fd::AsRawFd;
        std::fs::create_dir_all(target).expect("mkdir");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("no NUL");
        mount_at("test", target, "fuse", MountFlags::empty(), Some(options.as_c_str())).expect("mount");
        Self(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH) {
            let _ = writeln!(std::io::stderr(), "unmount {}: {error}", self.0.display());
        }
    }
}
