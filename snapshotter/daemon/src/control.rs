//! The control API: what `towline status` shows.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};
use towline_proto::control::v1 as api;

use crate::catalog::{KnownModel, is_index};
use crate::node::Node;

/// Serves [`api::control_server::Control`].
pub(crate) struct Service {
    pub(crate) node: Arc<Node>,
    pub(crate) started: Instant,
}

#[tonic::async_trait]
impl api::control_server::Control for Service {
    async fn status(&self, _: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let (node, started) = (Arc::clone(&self.node), self.started);
        // The store asks the file system about every content.
        let status = tokio::task::spawn_blocking(move || status(&node, started)).await;
        status.map(Response::new).map_err(|_| Status::internal("status could not be collected"))
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
        ..api::Model::default()
    }
}
