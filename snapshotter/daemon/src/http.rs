//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics;
use crate::node::Node;

/// The media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers until the daemon stops.
pub(crate) async fn serve(listener: tokio::net::TcpListener, node: Arc<Node>) -> std::io::Result<()> {
    let stop = node.stop.clone();
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(health))
        .route("/readyz", get(health))
        .with_state(node);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics_text(State(node): State<Arc<Node>>) -> impl IntoResponse {
    // The store asks the file system about every content.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics::registry(&node)).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, OPENMETRICS)], String::new()),
    }
}

/// Healthy and ready are the same: nobody is answered here before the sockets are bound, and a node without a served mount can start no
/// pod with a model.
async fn health(State(node): State<Arc<Node>>) -> impl IntoResponse {
    if node.mount.get().is_some_and(towline_fuse::Mount::is_serving) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the FUSE mount is not being served\n")
    }
}
