//! A proxy in front of a registry that counts what passes and can spoil it.
//!
//! It forwards every request to the registry on a connection of its own. Faults apply to GETs of blobs only, so that
//! manifests resolve and the fault meets the code that moves weights.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_RANGE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a proxy does to GETs of blobs. The default does nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Time between a request and its being forwarded.
    pub delay: Duration,
    /// Every request is answered with this status.
    pub refuse: Option<StatusCode>,
    /// Requests for these blobs are answered with 403.
    pub forbid: HashSet<String>,
    /// Blob digest → offset in the blob of a byte of which the lowest bit is turned.
    pub flip: HashMap<String, u64>,
    /// An answer breaks off after this many bytes of content.
    pub cut_after: Option<u64>,
}

/// What has passed a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// GETs of blobs, answered or not.
    pub blob_gets: u64,
    /// Bytes of blob content sent on.
    pub blob_bytes: u64,
    /// The most GETs of blobs that were in flight at once.
    pub most_in_flight: u64,
    /// Bytes of content sent on, per blob digest.
    pub bytes_of: HashMap<String, u64>,
}

/// A proxy of the run. It ends with the value.
#[derive(Debug)]
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    faults: Faults,
    passed: Passed,
    in_flight: u64,
}

impl Origin {
    /// Starts a proxy in front of the registry at `upstream`.
    ///
    /// # Errors
    /// Where no loopback port can be had.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared { upstream, state: Mutex::default() });
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "proxy ended");
            }
        });
        Ok(Self { addr, shared, server })
    }

    /// Where it listens; use it as the host part of references.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the faults, for requests that come from now on.
    pub fn set(&self, faults: Faults) {
        self.shared.state().faults = faults;
    }

    /// What has passed so far.
    #[must_use]
    pub fn passed(&self) -> Passed {
        self.shared.state().passed.clone()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.shared.state().passed = Passed::default();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Counted> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

/// A GET of a blob in flight.
#[derive(Debug)]
struct Flight(Arc<Shared>);

impl Flight {
    fn start(shared: &Arc<Shared>) -> (Self, Faults) {
        let mut state = shared.state();
        state.in_flight += 1;
        state.passed.blob_gets += 1;
        state.passed.most_in_flight = state.passed.most_in_flight.max(state.in_flight);
        (Self(shared.clone()), state.faults.clone())
    }

    fn count(&self, digest: &str, bytes: usize) {
        let mut state = self.0.state();
        state.passed.blob_bytes += bytes as u64;
        *state.passed.bytes_of.entry(digest.to_owned()).or_default() += bytes as u64;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let digest = request.uri().path().split_once("/blobs/").map(|(_, digest)| digest.to_owned());
    let answer = match digest {
        Some(digest) if request.method() == Method::GET => pass_blob(&shared, request, digest).await,
        _ => forward(shared.upstream, request).await,
    };
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

async fn pass_blob(shared: &Arc<Shared>, request: Request, digest: String) -> Result<Response> {
    let (flight, faults) = Flight::start(shared);
    if !faults.delay.is_zero() {
        tokio::time::sleep(faults.delay).await;
    }
    let forbidden = faults.forbid.contains(&digest).then_some(StatusCode::FORBIDDEN);
    if let Some(status) = faults.refuse.or(forbidden) {
        return Ok(status.into_response());
    }
    let (parts, body) = forward(shared.upstream, request).await?.into_parts();
    let range = parts.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let mut offset = range.and_then(first_byte).unwrap_or(0);
    let flip = faults.flip.get(&digest).copied().filter(|_| parts.status.is_success());
    let mut left = faults.cut_after.unwrap_or(u64::MAX);
    let spoilt = body.into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        let len = chunk.len() as u64;
        if len > left {
            return Err(std::io::Error::other("cut"));
        }
        left -= len;
        let chunk = flip_in(chunk, offset, flip);
        offset += len;
        flight.count(&digest, chunk.len());
        Ok(chunk)
    });
    Ok(Response::from_parts(parts, Body::from_stream(spoilt)))
}

/// Turns the lowest bit of the byte at blob offset `flip`, if it is in `chunk`, which starts at `offset`.
fn flip_in(chunk: Bytes, offset: u64, flip: Option<u64>) -> Bytes {
    let place = flip.and_then(|flip| flip.checked_sub(offset)).and_then(|place| usize::try_from(place).ok());
    match place {
        Some(place) if place < chunk.len() => {
            let mut bytes = chunk.to_vec();
            bytes[place] ^= 1;
            bytes.into()
        }
        _ => chunk,
    }
}

/// The first number of `bytes 5-9/100`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

async fn forward(upstream: SocketAddr, request: Request) -> Result<Response> {
    let stream = TcpStream::connect(upstream).await.with_context(|| format!("connect to {upstream}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // The Host header stays the caller's, so that upload locations lead back through here.
    let answer = sender.send_request(request).await.context("forward a request")?;
    Ok(answer.map(Body::new))
}

#[cfg(test)]
mod tests {
    use super::{Bytes, first_byte, flip_in};

    #[test]
    fn content_range_gives_the_first_byte() {
        assert_eq!(first_byte("bytes 5-9/100"), Some(5));
        assert_eq!(first_byte("bytes */100"), None);
    }

    #[test]
    fn one_bit_is_turned_where_it_is_asked_for() {
        let chunk = Bytes::from_static(&[0, 0, 0]);
        assert_eq!(flip_in(chunk.clone(), 10, Some(11)), &[0, 1, 0][..]);
        assert_eq!(flip_in(chunk.clone(), 10, Some(13)), chunk);
        assert_eq!(flip_in(chunk.clone(), 10, Some(9)), chunk);
        assert_eq!(flip_in(chunk.clone(), 10, None), chunk);
    }
}
