//! The registry of a cluster: it serves one image from memory, counts what it sends, and can be told to misbehave.
//!
//! It answers the pull half of the OCI distribution specification: manifests by tag and digest, blobs whole and by one
//! range. Faults meet requests for weight layers only, so that a model can be looked up, with the exception of
//! [`Faults::password`], which guards everything. It runs in the harness; its sockets are in the origin's namespace.

mod count;
mod image;
mod serve;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;

pub use count::Served;

use super::netns::NetNs;
use super::network::ORIGIN;
use count::Counter;
use image::Image;

/// Where it listens.
pub const PORT: u16 = 5000;
/// Repository and tag of its image.
pub const NAME: &str = "models/noise:v1";
/// Bytes that the kernel takes of an answer beyond what it has sent: 2 ms of a link of 1 Gb/s.
const UNSENT_MAX: u32 = 256 << 10;
/// Who may pull where there is a password.
pub const USER: &str = "puller";

/// What the origin does to GETs of weight layers. The default does nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Answers that are errors.
    pub refuse: Option<Refusal>,
    /// One in so many answers has a bit turned.
    pub flip_every: Option<u64>,
    /// One in so many answers breaks off half-way.
    pub cut_every: Option<u64>,
    /// One in so many answers to ranged requests is 200 with the whole blob.
    pub whole_every: Option<u64>,
    /// Time before each answer.
    pub delay: Duration,
    /// What [`USER`] must know to get a token, without which there is nothing here.
    pub password: Option<String>,
}

/// Which requests are refused, and how.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// Its `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Only from these addresses; empty for all.
    pub from: Vec<IpAddr>,
    /// Only while more than this many weight requests are being answered.
    pub above: usize,
}

/// A running origin. It ends with the value.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<serve::Shared>,
    server: JoinHandle<()>,
}

impl Origin {
    /// Serves the image of an OCI layout inside `ns`.
    ///
    /// # Errors
    /// Where the layout cannot be read or the port cannot be had.
    pub fn start(ns: &NetNs, layout: &Path) -> Result<Self> {
        let image = Image::read(layout)?;
        // What the kernel takes and does not send, when a client breaks off, would count as sent: by default megabytes.
        let unsent = UNSENT_MAX.to_string();
        ns.enter(move || std::fs::write("/proc/sys/net/ipv4/tcp_notsent_lowat", unsent))?
            .context("limit what is unsent")?;
        let listener = ns
            .enter(|| std::net::TcpListener::bind((ORIGIN, PORT)))?
            .context("listen in the origin's namespace")?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let shared = Arc::new(serve::Shared::new(image));
        let router = serve::router(shared.clone());
        let server = tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!(%error, "origin ended");
            }
        });
        Ok(Self { shared, server })
    }

    /// `HOST:PORT`, for the configuration of daemons.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{ORIGIN}:{PORT}")
    }

    /// How nodes name the image.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}/{NAME}", self.host())
    }

    /// The path of the largest weight layer, for a plain client.
    #[must_use]
    pub fn weights_path(&self) -> String {
        let (repository, _) = NAME.split_once(':').unwrap_or((NAME, ""));
        format!("/v2/{repository}/blobs/{}", self.shared.image.largest_weights())
    }

    /// The token that it gives to who knows the password.
    #[must_use]
    pub fn token(&self) -> &str {
        self.shared.token()
    }

    /// Replaces the faults, for requests that come from now on.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().expect("no holder of this lock can panic") = faults;
    }

    /// What it has sent since it started or was last reset.
    #[must_use]
    pub fn served(&self) -> Served {
        self.counter().served()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.counter().reset();
    }

    fn counter(&self) -> &Counter {
        &self.shared.counter
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}
