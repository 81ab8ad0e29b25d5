//! The control API: what the `towline` command asks this node, and tells it to do.
//!
//! Whatever changes something is done in a task of its own and is durable when it is answered; a caller that goes away
//! ends the answer and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use towline_peer::{PeerReport, Reporter};
use towline_proto::control::v1 as api;

use crate::catalog::{KnownModel, is_index};
use crate::error::Problem;
use crate::host_mounts::HostMounts;
use crate::needs::Pin;
use crate::node::Node;
use crate::resolve::ImageName;

/// Time between two answers of a prefetch that is waited for.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// References looked up at once. Each may hold a base layer of 256 MiB.
const MAX_RESOLVING: usize = 4;
/// Prefetches waited for at once.
const MAX_WAITING: usize = 64;
/// References under which one model is kept.
const MAX_KEPT: usize = 64;
/// How long a change may take that needs no network. What takes longer goes on without its caller.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves [`api::control_server::Control`].
pub(crate) struct Service {
    node: Arc<Node>,
    mounts: Arc<HostMounts>,
    started: Instant,
    resolving: Semaphore,
    waiting: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(node: Arc<Node>, mounts: Arc<HostMounts>, started: Instant) -> Self {
        let resolving = Semaphore::new(MAX_RESOLVING);
        Self { node, mounts, started, resolving, waiting: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// The model of a reference, and the reference as it is kept.
    async fn resolve(&self, reference: &str) -> Result<(Pin, String), Problem> {
        let name: ImageName = reference.parse()?;
        let turn = tokio::time::timeout(CHANGE_TIMEOUT, self.resolving.acquire()).await;
        let _turn = turn.map_err(|_| {
            Problem::new(Code::ResourceExhausted, "too many references are being looked up; try again later")
        })?;
        Ok((name.resolve(&self.node).await?, name.to_string()))
    }

    /// Runs a change on the blocking pool, to its end, and removes what nothing needs after it.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Arc<Node>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let node = Arc::clone(&self.node);
        let changing = tokio::task::spawn_blocking(move || {
            let result = change(&node);
            node.remove_dead();
            result
        });
        match tokio::time::timeout(CHANGE_TIMEOUT, changing).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Problem::new(Code::Internal, "the change panicked; the log tells more")),
            Err(_) => {
                let text =
                    format!("the disk took over {} s; the change may yet be made", CHANGE_TIMEOUT.as_secs());
                Err(Problem::new(Code::DeadlineExceeded, text))
            }
        }
    }
}

#[tonic::async_trait]
impl api::control_server::Control for Service {
    type PrefetchStream = ReceiverStream<Result<api::PrefetchProgress, Status>>;

    async fn status(&self, _: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let (node, started) = (Arc::clone(&self.node), self.started);
        // The store asks the file system about every content.
        let status = tokio::task::spawn_blocking(move || status(&node, started)).await;
        status.map(Response::new).map_err(|_| Status::internal("status could not be collected"))
    }

    async fn prefetch(
        &self,
        request: Request<api::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let api::PrefetchRequest { reference, wait } = request.into_inner();
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_WAITING} prefetches are being waited for");
            Problem::new(Code::ResourceExhausted, text)
                .hint("prefetch without --wait, and watch `towline status`")
        })?;
        let (pin, reference) = self.resolve(&reference).await?;
        let known = Arc::clone(pin.model());
        self.change(move |node| {
            keep(node, &pin, &reference)?;
            node.start_fill(pin.model());
            Ok(())
        })
        .await?;
        let (sender, answers) = mpsc::channel(1);
        tokio::spawn(tell(Arc::clone(&self.node), known, wait, sender, place));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn release(
        &self,
        request: Request<api::ReleaseRequest>,
    ) -> Result<Response<api::ReleaseResponse>, Status> {
        let name: ImageName = request.into_inner().reference.parse()?;
        let reference = name.to_string();
        self.change(move |node| release(node, &reference)).await?;
        Ok(Response::new(api::ReleaseResponse {}))
    }

    async fn mount(
        &self,
        request: Request<api::MountRequest>,
    ) -> Result<Response<api::MountResponse>, Status> {
        let api::MountRequest { reference, directory } = request.into_inner();
        let (pin, reference) = self.resolve(&reference).await?;
        let mounts = Arc::clone(&self.mounts);
        let known = Arc::clone(pin.model());
        self.change(move |_| mounts.mount(&pin, &reference, &directory)).await?;
        self.node.start_fill_later(&known);
        Ok(Response::new(api::MountResponse { model: Some(model(&known)) }))
    }

    async fn unmount(
        &self,
        request: Request<api::UnmountRequest>,
    ) -> Result<Response<api::UnmountResponse>, Status> {
        let directory = request.into_inner().directory;
        let mounts = Arc::clone(&self.mounts);
        self.change(move |_| mounts.unmount(&directory)).await?;
        Ok(Response::new(api::UnmountResponse {}))
    }

    async fn peers(&self, _: Request<api::PeersRequest>) -> Result<Response<api::PeersResponse>, Status> {
        Ok(Response::new(peers(&self.node)))
    }
}

/// Keeps a model under `reference`, which gives up what else it kept: the tag was moved.
fn keep(node: &Node, pin: &Pin, reference: &str) -> Result<(), Problem> {
    node.catalog.change_holds(|known, holds| {
        if known.is_none_or(|known| known.slot != pin.slot) {
            holds.kept.retain(|kept| kept != reference);
        } else if !holds.kept.iter().any(|kept| kept == reference) {
            if holds.kept.len() == MAX_KEPT {
                let text = format!("the model is kept under {MAX_KEPT} references already");
                return Err(
                    Problem::new(Code::ResourceExhausted, text).hint("release some with `towline release`")
                );
            }
            holds.kept.push(reference.to_owned());
        }
        Ok(())
    })?;
    tracing::info!(image = reference, model = %pin.model.base, "model is kept");
    Ok(())
}

fn release(node: &Node, reference: &str) -> Result<(), Problem> {
    let released = node.catalog.change_holds(|_, holds| -> Result<(), Problem> {
        holds.kept.retain(|kept| kept != reference);
        Ok(())
    })?;
    if released == 0 {
        return Err(Problem::new(Code::NotFound, format!("{reference} is not kept on this node")).hint(
            "release a model by the reference that it was prefetched by; `towline status` shows the models",
        ));
    }
    tracing::info!(image = reference, "model is released");
    Ok(())
}

/// Tells how far a model is: once, or until all of it is here. `_place` is free again when that ends.
async fn tell(
    node: Arc<Node>,
    known: Arc<KnownModel>,
    wait: bool,
    sender: mpsc::Sender<Result<api::PrefetchProgress, Status>>,
    _place: OwnedSemaphorePermit,
) {
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_stopping = tokio::select! {
            biased;
            () = sender.closed() => return,
            () = node.stop.cancelled() => true,
            _ = ticks.tick() => false,
        };
        // Before it is told: what is told last includes the end.
        let is_whole = known.is_sealed();
        let answer = match () {
            () if is_whole || !wait => Ok(api::PrefetchProgress { model: Some(model(&known)) }),
            () if is_stopping => {
                Err(Status::unavailable("the daemon is stopping; it goes on when it is back"))
            }
            () if !node.is_known(&known) => Err(Status::aborted("the model was released meanwhile")),
            () => Ok(api::PrefetchProgress { model: Some(model(&known)) }),
        };
        let is_last = is_whole || !wait || answer.is_err();
        // A caller that does not read holds up nobody but itself; the end of the daemon is not held up for long.
        if sender.send(answer).await.is_err() || is_last {
            return;
        }
    }
}

/// The peers of this node. One without a cluster key has none.
fn peers(node: &Node) -> api::PeersResponse {
    let Some(report) = node.peers.get().map(Reporter::report) else { return api::PeersResponse::default() };
    let peer = |peer: &PeerReport| api::Peer {
        id: peer.id.clone(),
        name: peer.name.clone(),
        zone: peer.zone.clone(),
        address: peer.address.map(|address| address.to_string()).unwrap_or_default(),
        contents: u32::try_from(peer.contents).unwrap_or(u32::MAX),
        bytes_from: peer.bytes_from,
        bytes_to: peer.bytes_to,
        connected_seconds: peer.connected.as_secs(),
        // Rounded up: a ban that has not ended is never zero.
        banned_seconds: peer.banned.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
    };
    api::PeersResponse {
        enabled: true,
        self_: Some(peer(&report.own)),
        peers: report.peers.iter().map(peer).collect(),
    }
}

fn status(node: &Node, started: Instant) -> api::StatusResponse {
    let store = node.engine.store().stats();
    let passthrough =
        node.mount.get().map_or("not mounted".to_owned(), |mount| mount.passthrough().to_string());
    api::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: started.elapsed().as_secs(),
        passthrough,
        models: node.catalog.models().iter().map(|known| model(known)).collect(),
        store: Some(api::Store {
            contents: store.contents,
            contents_sealed: store.sealed_contents,
            bytes: store.content_bytes,
        }),
    }
}

fn model(known: &KnownModel) -> api::Model {
    let place = known.places().pop();
    let holds = known.needs.holds();
    let source = &known.model.source;
    let last_error = known.open_handles().find_map(|handle| handle.last_error()).unwrap_or_default();
    let complete = known.is_sealed();
    let state = match () {
        () if complete => api::State::Complete,
        () if !last_error.is_empty() => api::State::Waiting,
        () if known.fill.lock().is_ok_and(|fill| fill.is_some()) => api::State::Fetching,
        () => api::State::Idle,
    };
    let repo = if source.repo.is_empty() { "" } else { ":" };
    api::Model {
        reference: place.as_ref().map(|place| place.reference.clone()).unwrap_or_default(),
        manifest: place.map(|place| place.manifest).unwrap_or_default(),
        source: format!("{}{repo}{}", source.hub, source.repo),
        commit: source.commit.clone(),
        files: known.model.files.iter().filter(|file| !is_index(&file.path)).count() as u64,
        bytes: known.model.total_len(),
        bytes_local: known.bytes_local(),
        bytes_from_peers: known.open_handles().map(|handle| handle.peer_bytes()).sum(),
        bytes_from_origin: known.open_handles().map(|handle| handle.fetched_bytes()).sum(),
        state: state.into(),
        last_error,
        kept: !holds.kept.is_empty(),
        mounts: holds.mounts.into_iter().map(|mount| mount.directory).collect(),
    }
}

#[cfg(test)]
mod tests;
