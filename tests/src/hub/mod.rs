//! A stand-in for both hubs: one process that serves the Hugging Face and the ModelScope API from local directories, well
//! enough that the hubs' own clients take it for the real thing (`tests/tests/hub_clients.rs` proves it).
//!
//! What it copies from the real ones because it bites: LFS files are redirected to a storage on another origin that refuses
//! credentials; small files are answered directly, with a git hash on one hub and without ranges on the other; one lists
//! in pages of 1000, the other cuts at 3000 without a word; a token that is not the right one is refused everywhere.
//!
//! A commit is the SHA-1 over the listing, and its date is fixed, so the same directory is the same commit on any day.
//! Hashes are computed when they are first needed and kept in memory. [`Log`] counts what was asked and served, [`Faults`]
//! makes the stand-in misbehave.

mod huggingface;
mod log;
mod modelscope;
mod repo;
mod storage;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use log::Log;
pub use repo::is_lfs;

use repo::{Hashes, Repo};

/// What to serve, and to whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Models by `org/name`.
    pub models: BTreeMap<String, PathBuf>,
    /// Data sets by `org/name`.
    pub datasets: BTreeMap<String, PathBuf>,
    /// The one valid token, if there is one.
    pub token: Option<String>,
    /// Repositories that show their listing to everybody and their files only with the token.
    pub gated: HashSet<String>,
    /// Repositories that do not exist without the token.
    pub private: HashSet<String>,
    /// Rows per page of a Hugging Face listing.
    pub page_len: usize,
    /// Rows at which a ModelScope listing is cut.
    pub cut_off: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            models: BTreeMap::new(),
            datasets: BTreeMap::new(),
            token: None,
            gated: HashSet::new(),
            private: HashSet::new(),
            page_len: 1000,
            cut_off: 3000,
        }
    }
}

/// How the stand-in misbehaves; all of it is off by default. Paths are those of files within any repository.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The byte at this offset of the file is inverted whenever it is served.
    pub flip: HashMap<String, u64>,
    /// The next body of the file breaks off after so many bytes; used up by that.
    pub cut_once: HashMap<String, u64>,
    /// So many of the next requests whose URL path starts thus are answered 429 with `Retry-After: 1`.
    pub too_many: HashMap<String, u32>,
    /// The listing gives this size for the file.
    pub wrong_size: HashMap<String, u64>,
    /// Files of one byte that the listing has on top, whatever their path.
    pub extra_paths: Vec<String>,
    /// Parts are answered with status 200 and a correct `Content-Range`.
    pub parts_as_200: bool,
}

/// A running stand-in. It stops when dropped.
#[derive(Debug)]
pub struct Hub {
    state: Arc<State>,
    tasks: [JoinHandle<()>; 2],
}

/// What the handlers share.
#[derive(Debug)]
struct State {
    config: Config,
    /// `http://HOST:PORT` of the hub itself.
    url: String,
    /// The same of its storage.
    storage_url: String,
    /// Whether the storage has a host of its own. Cookies know no ports: at the hub's host, honest clients bring them.
    refuses_cookies: bool,
    models: BTreeMap<String, Repo>,
    datasets: BTreeMap<String, Repo>,
    hashes: Arc<Hashes>,
    log: Log,
    faults: Mutex<Faults>,
}

impl Hub {
    /// Binds both ports and begins to serve.
    ///
    /// # Errors
    /// If a port cannot be bound.
    pub async fn start(config: Config) -> Result<Self> {
        let listener = TcpListener::bind(config.listen).await.context("bind the hub's port")?;
        let storage_ip = storage_ip(config.listen.ip());
        let storage = TcpListener::bind((storage_ip, 0)).await.context("bind the storage's port")?;
        let repos = |directories: &BTreeMap<String, PathBuf>| {
            directories.iter().map(|(id, path)| (id.clone(), Repo::new(path))).collect()
        };
        let state = Arc::new(State {
            url: format!("http://{}", listener.local_addr()?),
            storage_url: format!("http://{}", storage.local_addr()?),
            models: repos(&config.models),
            datasets: repos(&config.datasets),
            refuses_cookies: storage_ip != config.listen.ip(),
            hashes: Arc::default(),
            log: Log::default(),
            faults: Mutex::default(),
            config,
        });
        let served = state.clone();
        let hub = Router::new().fallback(move |request: Request| answer(served.clone(), request));
        let served = state.clone();
        let store = Router::new()
            .fallback(move |request: Request| storage::answer(served.clone(), Call::new(&request)));
        let serve = |listener, router: Router| {
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "hub stand-in stopped");
                }
            })
        };
        Ok(Self { state, tasks: [serve(listener, hub), serve(storage, store)] })
    }

    /// `http://HOST:PORT`, fit for `HF_ENDPOINT` and `MODELSCOPE_ENDPOINT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.state.url
    }

    /// What was asked and served so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.state.log
    }

    /// The faults, to be changed in place.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.state.faults()
    }

    /// Commit at the head of model `id`; hashes its files if need be.
    ///
    /// # Errors
    /// If there is no such model or its directory cannot be read.
    pub async fn head(&self, id: &str) -> Result<String> {
        let repo = self.state.models.get(id).with_context(|| format!("no model {id}"))?;
        Ok(repo
            .snapshot("main", &self.state.hashes)
            .await?
            .context("a repository has a head")?
            .commit
            .clone())
    }

    /// Makes `directory` the head of model `id`. The first commit stays at the tag `v1.0` and under its name.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn push(&self, id: &str, directory: &Path) -> Result<()> {
        self.state.models.get(id).with_context(|| format!("no model {id}"))?.push(directory);
        Ok(())
    }
}

/// The storage lives at an address of its own where every Linux machine has one to give.
fn storage_ip(hub: IpAddr) -> IpAddr {
    if hub == Ipv4Addr::LOCALHOST { Ipv4Addr::new(127, 0, 0, 2).into() } else { hub }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("no holder panics")
    }

    /// Whether one more 429 is due for this path.
    fn too_many(&self, path: &str) -> bool {
        let mut faults = self.faults();
        let due =
            faults.too_many.iter_mut().find(|(prefix, left)| path.starts_with(prefix.as_str()) && **left > 0);
        due.is_some_and(|(_, left)| {
            *left -= 1;
            true
        })
    }

    fn repos(&self, kind: &str) -> Option<&BTreeMap<String, Repo>> {
        match kind {
            "models" => Some(&self.models),
            "datasets" => Some(&self.datasets),
            _ => None,
        }
    }
}

/// Who is asking, as far as the token tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Anonymous,
    Known,
    /// With a token that is not the right one.
    Wrong,
}

/// A request taken apart.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    /// The path as sent.
    path: String,
    /// Its segments, decoded.
    segments: Vec<String>,
    query: HashMap<String, String>,
    headers: HeaderMap,
}

impl Call {
    fn new(request: &Request) -> Self {
        let uri: &Uri = request.uri();
        let segments = uri.path().trim_start_matches('/').split('/').map(decode).collect();
        let query = Query::try_from_uri(uri).map(|Query(map)| map).unwrap_or_default();
        let (method, headers) = (request.method().clone(), request.headers().clone());
        Self { method, path: uri.path().to_owned(), segments, query, headers }
    }

    fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The token in `Authorization`, else the one in ModelScope's cookie.
    fn token(&self) -> Option<&str> {
        let bearer = self.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let cookies = self.header("cookie").into_iter().flat_map(|value| value.split("; "));
        bearer.or_else(|| cookies.into_iter().find_map(|cookie| cookie.strip_prefix("m_session_id=")))
    }
}

fn decode(segment: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), segment.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let digits = if *first == b'%' { after.get(..2) } else { None };
        match digits.and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                bytes.extend(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn answer(state: Arc<State>, request: Request) -> Response {
    let call = Call::new(&request);
    state.log.note(&call.path, call.token());
    let caller = match (call.token(), &state.config.token) {
        (None, _) => Caller::Anonymous,
        (Some(sent), Some(valid)) if sent == valid => Caller::Known,
        (Some(_), _) => Caller::Wrong,
    };
    if state.too_many(&call.path) {
        return with_headers(text(StatusCode::TOO_MANY_REQUESTS, "slow down"), [("retry-after", "1")]);
    }
    let answered = if call.path.starts_with("/api/v1/") {
        modelscope::answer(&state, &call, caller).await
    } else {
        huggingface::answer(&state, &call, caller).await
    };
    answered.unwrap_or_else(|error| {
        tracing::error!(error = format!("{error:#}"), path = call.path, "hub stand-in could not answer");
        text(StatusCode::INTERNAL_SERVER_ERROR, "the stand-in could not read its directory")
    })
}

fn text(status: StatusCode, body: &str) -> Response {
    with_status(Response::new(Body::from(body.to_owned())), status)
}

fn json(body: &serde_json::Value) -> Response {
    with_headers(Response::new(Body::from(body.to_string())), [("content-type", "application/json")])
}

fn with_status(mut response: Response, status: StatusCode) -> Response {
    *response.status_mut() = status;
    response
}

fn with_headers<'a>(
    mut response: Response,
    headers: impl IntoIterator<Item = (&'static str, &'a str)>,
) -> Response {
    for (name, value) in headers {
        let value = header::HeaderValue::from_str(value).expect("the stand-in writes plain headers");
        response.headers_mut().insert(name, value);
    }
    response
}
