//! Where the first peers are found: addresses an operator wrote down, names, and a cluster's own record of its pods.
//!
//! What comes out are candidates and nothing more: whether anybody listens there, and whether they may take part, is
//! found out by dialing. So an answer that is stale or incomplete does no harm, and a source that fails is passed over.
//! Nothing is kept between calls but what was last said about each source.

mod source;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

pub(crate) use self::source::is_dialable;
pub use self::source::{Source, SourceError};
use crate::kubernetes::{InCluster, KubernetesError};

/// The most sources. A handful is usual; each may hold a thread while its name is looked up.
pub(crate) const MAX_SOURCES: usize = 64;

/// The most addresses that are handed out: four times the nodes of the largest cluster we are made for, who need one
/// peer each to find the others.
pub(crate) const MAX_ADDRESSES: usize = 4096;

/// The longest that one source is waited for. All are asked at once, so this bounds the whole.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait after the first attempt, and the span in which first attempts are spread.
const QUICK: Duration = Duration::from_millis(250);

/// The wait that doubling ends at.
const STEADY: Duration = Duration::from_secs(30);

/// The longest wait before jitter: a cluster that fell apart and was mended finds together within this time, even if
/// nothing but the sources connects the parts.
const RARE: Duration = Duration::from_secs(300);

/// The peers with which a node is well connected: all of them lost at once is a failure of more than peers.
const ENOUGH: usize = 8;

/// All sources of first peers.
#[derive(Debug)]
pub struct Bootstrap {
    watched: Vec<Watched>,
    patience: Duration,
}

/// Why sources cannot be used together.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// More sources than are asked at once.
    #[error("{count} bootstrap sources are more than {MAX_SOURCES}")]
    TooManySources {
        /// How many there are.
        count: usize,
    },
    /// A Kubernetes source without a cluster to ask.
    #[error("bootstrap source {origin} needs a pod with a service account")]
    NoCluster {
        /// The first such source.
        origin: Source,
    },
}

impl Bootstrap {
    /// Takes the sources in order, those that are named twice once. `cluster` is what `kubernetes:` sources ask. Asks
    /// nobody yet.
    ///
    /// # Errors
    /// [`BootstrapError::TooManySources`] above 64; [`BootstrapError::NoCluster`] for a Kubernetes source without `cluster`.
    pub fn new(sources: Vec<Source>, cluster: Option<InCluster>) -> Result<Self, BootstrapError> {
        let mut watched: Vec<Watched> = Vec::new();
        if sources.len() > MAX_SOURCES {
            return Err(BootstrapError::TooManySources { count: sources.len() });
        }
        for source in sources {
            if watched.iter().any(|known| known.source == source) {
                continue;
            }
            let cluster = cluster.clone();
            if cluster.is_none() && matches!(source, Source::Kubernetes { .. }) {
                return Err(BootstrapError::NoCluster { origin: source });
            }
            watched.push(Watched {
                source,
                cluster,
                lookup: Arc::new(Semaphore::new(1)),
                state: Mutex::new(State::Unknown),
            });
        }
        Ok(Self { watched, patience: SOURCE_TIMEOUT })
    }

    /// Asks every source at once and returns what they know: each address once, at most 4096, none that no node can have.
    /// Takes at most 5 seconds. Where there are more addresses, each source has its share; our own may be among them.
    ///
    /// A source that fails adds nothing and takes nothing from the others. It is logged when what is wrong changes, not
    /// each time. Within a source, those likelier to answer come first; between nodes the order is the same, so whoever
    /// dials only some should choose at random.
    ///
    /// Cancel-safe: a lookup that is under way ends by itself, and no second one for that source begins before.
    pub async fn resolve(&self) -> Vec<SocketAddr> {
        merge(join_all(self.watched.iter().map(|watched| watched.resolve(self.patience))).await)
    }

    /// How long to wait before the next [`resolve`](Self::resolve).
    ///
    /// `attempt` counts attempts since the start, or since the last peer was lost; 0 asks how long to wait before the
    /// first. `jitter` is a random number from 0 to 1, fresh for each wait.
    ///
    /// With fewer than 8 peers the wait is 250 ms after the first attempt, doubling to 30 s: two nodes that found only
    /// each other need the sources as much as one that found nobody. With 8 or more it is 30 s for each 8, up to five
    /// minutes, because the more peers there are the more nodes ask, and the less any of them needs it. All waits are
    /// spread by half to either side, and first attempts over 250 ms: nodes that start together reach one address, one
    /// name server or one API server one after the other.
    #[must_use]
    pub fn next_wait(connected: usize, attempt: u32, jitter: f64) -> Duration {
        // Not `clamp` alone: it keeps NaN, which no duration can be multiplied by.
        let jitter = if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) };
        if attempt == 0 {
            return QUICK.mul_f64(jitter);
        }
        let wait = if connected < ENOUGH {
            // 2^16 × 250 ms is far above STEADY, and far below what a Duration holds.
            STEADY.min(QUICK * 2u32.pow((attempt - 1).min(16)))
        } else {
            let times = u32::try_from(connected / ENOUGH).unwrap_or(u32::MAX);
            RARE.min(STEADY.saturating_mul(times))
        };
        wait.mul_f64(0.5 + jitter)
    }
}

/// A source and what was last said about it.
#[derive(Debug)]
struct Watched {
    source: Source,
    cluster: Option<InCluster>,
    /// A lookup in the system's resolver cannot be stopped, only left behind; there is never more than one.
    lookup: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Found,
    Empty,
    Failed(String),
}

/// Why a source told nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("an earlier lookup of the name has not ended")]
    Busy,
    #[error("look the name up")]
    Lookup(#[source] io::Error),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error("not in a cluster")]
    NoCluster,
}

impl Watched {
    async fn resolve(&self, patience: Duration) -> Vec<SocketAddr> {
        let outcome = match tokio::time::timeout(patience, self.find()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::TimedOut(patience)),
        };
        self.note(&outcome);
        outcome.unwrap_or_default()
    }

    async fn find(&self) -> Result<Vec<SocketAddr>, Failure> {
        let found = match &self.source {
            Source::Static(address) => vec![*address],
            Source::Dns { name, port } => self.look_up(name.clone(), *port).await?,
            Source::Kubernetes { namespace, service, port } => {
                let cluster = self.cluster.as_ref().ok_or(Failure::NoCluster)?;
                let found = cluster.endpoints(namespace, service).await?;
                found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect()
            }
        };
        Ok(found.into_iter().filter(|address| is_dialable(address.ip())).collect())
    }

    /// What `tokio::net::lookup_host` does, on the same pool, but with a permit that stays with the thread when nobody
    /// waits for it any more: a resolver that hangs costs one thread, not one for each attempt.
    async fn look_up(&self, name: String, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let Ok(permit) = self.lookup.clone().try_acquire_owned() else { return Err(Failure::Busy) };
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            (name.as_str(), port).to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect())
        });
        // An error of the task itself is a runtime that shuts down.
        lookup.await.map_err(io::Error::other).flatten().map_err(Failure::Lookup)
    }

    /// Logs what changed.
    fn note(&self, outcome: &Result<Vec<SocketAddr>, Failure>) {
        let new = match outcome {
            Ok(found) if found.is_empty() => State::Empty,
            Ok(_) => State::Found,
            Err(failure) => State::Failed(crate::chain(failure)),
        };
        let old =
            std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), new.clone());
        if old == new {
            return;
        }
        let source = &self.source;
        match (&new, outcome) {
            (State::Failed(error), Err(Failure::Kubernetes(failure))) => {
                let hint = failure.hint();
                tracing::warn!(%source, error, hint, "bootstrap source passed over");
            }
            (State::Failed(error), _) => tracing::warn!(%source, error, "bootstrap source passed over"),
            (State::Empty, _) => tracing::info!(%source, "bootstrap source knows no address yet"),
            (State::Found | State::Unknown, _) => {
                let count = outcome.as_ref().map_or(0, Vec::len);
                tracing::info!(%source, count, "bootstrap source has addresses");
            }
        }
    }
}

/// One address of each source in turn, so that no source crowds out another.
fn merge(found: Vec<Vec<SocketAddr>>) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    let mut merged = Vec::new();
    let longest = found.iter().map(Vec::len).max().unwrap_or(0);
    for rank in 0..longest {
        for address in found.iter().filter_map(|addresses| addresses.get(rank)) {
            if merged.len() == MAX_ADDRESSES {
                return merged;
            }
            // Dual-stack resolvers give IPv4 addresses in IPv6 form, too.
            let address = match address.ip().to_canonical() {
                ip if ip == address.ip() => *address,
                ip => SocketAddr::new(ip, address.port()),
            };
            if seen.insert(address) {
                merged.push(address);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests;
