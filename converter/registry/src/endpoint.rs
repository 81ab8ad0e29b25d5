//! Which servers stand for a registry host, and the HTTP clients that reach them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use reqwest::Url;
use tokio::io::AsyncReadExt;

use crate::client::ClientOptions;
use crate::credentials::canonical_host;
use crate::error::RegistryError;
use crate::hosts::{Capabilities, HostEntry, HostsFile, MAX_HOSTS_LEN, candidates};
use crate::repository::{DOCKER_HUB, Repository};

/// Where Docker Hub really answers.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// How long a `hosts.toml` is trusted before it is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(15);

/// The most hosts we keep servers for.
const MAX_HOSTS: usize = 1024;

/// A mirror that could not be reached is passed over for this long, so that not every range waits for it.
const MIRROR_REST: Duration = Duration::from_secs(20);

/// Idle connections kept per host: ranges run this many at a time and should not handshake anew.
const POOL_IDLE_PER_HOST: usize = 64;

/// Idle connections are closed before the servers' own limits (60 s at nginx's default of 75 s) make them fail.
const POOL_IDLE: Duration = Duration::from_secs(55);

/// Which registries are spoken to without TLS. A `hosts.toml` with an `http://` server adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// `localhost`, `127.0.0.0/8` and `::1`.
    #[default]
    Loopback,
    /// Those, and these hosts (`name[:port]`; without a port any port).
    Hosts(Vec<String>),
    /// None at all.
    Never,
}

impl PlainHttp {
    fn allows(&self, host: &str) -> bool {
        let name = host_name(host);
        let listed = |hosts: &[String]| {
            hosts.iter().any(|h| h.eq_ignore_ascii_case(host) || h.eq_ignore_ascii_case(name))
        };
        match self {
            Self::Never => false,
            Self::Loopback => is_loopback(name),
            Self::Hosts(hosts) => is_loopback(name) || listed(hosts),
        }
    }
}

/// `host` without its port; brackets of an IPv6 address stay.
fn host_name(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_loopback(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// One server that may be asked.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The API root, such as `https://host/v2`, without a slash at its end.
    root: Url,
    /// `host[:port]` of the root.
    pub(crate) host: String,
    /// Under which host credentials are looked up.
    pub(crate) credential_host: String,
    /// Tells a mirror which registry is meant, as containerd does.
    namespace: Option<String>,
    pub(crate) can: Capabilities,
    pub(crate) headers: HeaderMap,
    /// For servers with a CA or a client certificate of their own.
    http: Option<reqwest::Client>,
    /// Milliseconds after `born` until which a mirror is passed over.
    rest_until: AtomicU64,
    born: Instant,
}

impl Endpoint {
    pub(crate) fn is_plain_http(&self) -> bool {
        self.root.scheme() == "http"
    }

    /// Whether `url` has the scheme, host and port of this server: only then it may see our authorization.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.root.origin()
    }

    /// `ROOT/PATH/TAIL`. Parts are checked names: nothing in them needs escaping.
    pub(crate) fn url(&self, path: &str, tail: &str) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}/{path}/{tail}", self.root.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// A URL from a `Location` of this server. A server behind a proxy that ends TLS may call itself `http`: then the
    /// scheme we came by is kept.
    pub(crate) fn location(&self, base: &Url, location: &str) -> Option<Url> {
        let mut url = base.join(location).ok()?;
        let web =
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        if !web {
            return None;
        }
        if url.scheme() == "http" && self.root.scheme() == "https" && url.host_str() == self.root.host_str() {
            url.set_scheme("https").ok()?;
            url.set_port(self.root.port()).ok()?;
        }
        Some(url)
    }

    pub(crate) fn rest(&self) {
        let until = self.born.elapsed() + MIRROR_REST;
        self.rest_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.born.elapsed().as_millis() < u128::from(self.rest_until.load(Ordering::Relaxed))
    }
}

/// Finds the servers of a host and keeps them, with their clients, while their configuration stays the same.
pub(crate) struct Endpoints {
    plain_http: PlainHttp,
    hosts_dir: Option<PathBuf>,
    setup: Setup,
    /// Through the system's proxy, where there is one.
    outside: reqwest::Client,
    /// For loopback servers: never through a proxy.
    local: reqwest::Client,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone)]
struct Known {
    checked: Instant,
    /// The file the servers were made from.
    source: Option<(PathBuf, String)>,
    servers: Arc<[Arc<Endpoint>]>,
}

/// What every HTTP client is made from.
struct Setup {
    connect_timeout: Duration,
    user_agent: String,
    roots: Vec<reqwest::Certificate>,
}

impl Endpoints {
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, RegistryError> {
        let mut roots = Vec::new();
        for path in &options.extra_roots {
            roots.extend(read_roots(path)?);
        }
        let setup =
            Setup { connect_timeout: options.connect_timeout, user_agent: options.user_agent.clone(), roots };
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|source| RegistryError::Setup { source })
        };
        Ok(Self {
            plain_http: options.plain_http.clone(),
            hosts_dir: options.hosts_dir.clone(),
            outside: build(setup.builder())?,
            local: build(setup.builder().no_proxy())?,
            setup,
            known: Mutex::default(),
        })
    }

    /// The client that reaches `url` on behalf of `endpoint`: the server itself, or where it redirected to.
    pub(crate) fn http<'a>(&'a self, endpoint: &'a Endpoint, url: &Url) -> &'a reqwest::Client {
        match &endpoint.http {
            Some(http) => http,
            None if url.host_str().is_some_and(is_loopback) => &self.local,
            None => &self.outside,
        }
    }

    /// The servers for a repository's host, in the order they are asked. Never empty.
    pub(crate) async fn of(&self, repository: &Repository) -> Result<Arc<[Arc<Endpoint>]>, RegistryError> {
        let host = repository.host();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned();
        if let Some(known) = &known
            && (self.hosts_dir.is_none() || known.checked.elapsed() < HOSTS_TTL)
        {
            return Ok(known.servers.clone());
        }
        let source = match &self.hosts_dir {
            Some(dir) => find_hosts_file(dir, host).await?,
            None => None,
        };
        let servers = match known {
            Some(known) if known.source == source => known.servers,
            _ => self.build(host, source.as_ref())?,
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_HOSTS {
            all.clear();
        }
        all.insert(host.to_owned(), Known { checked: Instant::now(), source, servers: servers.clone() });
        Ok(servers)
    }

    fn build(
        &self,
        host: &str,
        source: Option<&(PathBuf, String)>,
    ) -> Result<Arc<[Arc<Endpoint>]>, RegistryError> {
        let file = match source {
            Some((path, text)) => HostsFile::parse(path, text)?,
            None => HostsFile::default(),
        };
        let own = if host == DOCKER_HUB { DOCKER_HUB_API } else { host };
        let scheme = if self.plain_http.allows(own) { "http" } else { "https" };
        let server = file.server.unwrap_or_else(|| HostEntry::plain(format!("{scheme}://{own}")));
        let entries = file.mirrors.into_iter().chain([server]);
        entries.map(|entry| self.endpoint(host, own, entry).map(Arc::new)).collect()
    }

    fn endpoint(&self, host: &str, own: &str, entry: HostEntry) -> Result<Endpoint, RegistryError> {
        let bad =
            || RegistryError::Config { path: entry.url.clone(), detail: "not the URL of a server".into() };
        let mut root = Url::parse(&entry.url).map_err(|_| bad())?;
        let path = root.path().trim_end_matches('/').to_owned();
        if entry.override_path || path.ends_with("/v2") {
            root.set_path(&path);
        } else {
            root.set_path(&format!("{path}/v2"));
        }
        let name = root.host_str().ok_or_else(bad)?;
        let endpoint_host = match root.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        let is_own = endpoint_host == own;
        Ok(Endpoint {
            http: self.setup.special(&entry)?,
            credential_host: canonical_host(if is_own { host } else { &endpoint_host }),
            namespace: (!is_own).then(|| host.to_owned()),
            host: if is_own { host.to_owned() } else { endpoint_host },
            can: entry.can,
            headers: entry.headers,
            rest_until: AtomicU64::new(0),
            born: Instant::now(),
            root,
        })
    }
}

impl Setup {
    /// HTTP/1.1 only: bulk ranges do better on connections of their own than in one connection's flow control.
    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(self.user_agent.clone())
            .connect_timeout(self.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
            .pool_idle_timeout(POOL_IDLE)
            .tls_certs_merge(self.roots.iter().cloned())
    }

    /// A client for a server with a CA or a client certificate of its own.
    fn special(&self, entry: &HostEntry) -> Result<Option<reqwest::Client>, RegistryError> {
        if entry.ca.is_empty() && entry.client.is_empty() {
            return Ok(None);
        }
        let mut builder = self.builder();
        for path in &entry.ca {
            builder = builder.tls_certs_merge(read_roots(path)?);
        }
        if let Some((cert, key)) = entry.client.first() {
            let mut pem = read(cert)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            let identity = reqwest::Identity::from_pem(&pem).map_err(|_| RegistryError::Config {
                path: cert.display().to_string(),
                detail: "not a client certificate with its key".into(),
            })?;
            builder = builder.identity(identity);
        }
        builder.build().map(Some).map_err(|source| RegistryError::Setup { source })
    }
}

/// Reads a PEM file that the configuration names. Small, local and rare: it does not block anybody for long.
fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path)
        .map_err(|e| RegistryError::Config { path: path.display().to_string(), detail: e.to_string() })
}

fn read_roots(path: &Path) -> Result<Vec<reqwest::Certificate>, RegistryError> {
    let error =
        |detail: &str| RegistryError::Config { path: path.display().to_string(), detail: detail.into() };
    let roots =
        reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|_| error("not PEM certificates"))?;
    if roots.is_empty() { Err(error("holds no certificate")) } else { Ok(roots) }
}

/// The first `hosts.toml` that exists for `host`.
async fn find_hosts_file(dir: &Path, host: &str) -> Result<Option<(PathBuf, String)>, RegistryError> {
    for path in candidates(dir, host) {
        let error = |detail: String| RegistryError::Config { path: path.display().to_string(), detail };
        let file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(e) => return Err(error(e.to_string())),
        };
        let mut text = String::new();
        file.take(MAX_HOSTS_LEN + 1).read_to_string(&mut text).await.map_err(|e| error(e.to_string()))?;
        if text.len() as u64 > MAX_HOSTS_LEN {
            return Err(error(format!("longer than {MAX_HOSTS_LEN} bytes")));
        }
        return Ok(Some((path, text)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_listed_hosts() {
        let listed = PlainHttp::Hosts(vec!["registry.local".into(), "other:5000".into()]);
        for (host, loopback, hosts) in [
            ("localhost", true, true),
            ("LOCALHOST:5000", true, true),
            ("127.1.2.3:5000", true, true),
            ("[::1]:5000", true, true),
            ("[::2]:5000", false, false),
            ("registry.local:5000", false, true),
            ("other:5000", false, true),
            ("other:5001", false, false),
            ("localhost.example.com", false, false),
        ] {
            assert_eq!(PlainHttp::Loopback.allows(host), loopback, "{host}");
            assert_eq!(listed.allows(host), hosts, "{host}");
            assert!(!PlainHttp::Never.allows(host), "{host}");
        }
    }

    fn endpoints() -> Endpoints {
        crate::client::install_tls_provider();
        Endpoints::new(&ClientOptions::default()).unwrap()
    }

    #[track_caller]
    fn check_urls(host: &str, toml: &str, expected: &[&str]) {
        let source = (PathBuf::from("/x/hosts.toml"), toml.to_owned());
        let servers = endpoints().build(host, Some(&source)).unwrap();
        let urls: Vec<String> = servers.iter().map(|e| e.url("a/b", "tags/list").to_string()).collect();
        assert_eq!(urls, expected);
    }

    #[test]
    fn urls_as_containerd_builds_them() {
        check_urls("example.com", "", &["https://example.com/v2/a/b/tags/list"]);
        check_urls("localhost:5000", "", &["http://localhost:5000/v2/a/b/tags/list"]);
        check_urls("docker.io", "", &["https://registry-1.docker.io/v2/a/b/tags/list"]);
        check_urls(
            "docker.io",
            "[host.'https://m/v2/proxy']\noverride_path = true\n[host.'http://n:1/x']\n",
            &[
                "https://m/v2/proxy/a/b/tags/list?ns=docker.io",
                "http://n:1/x/v2/a/b/tags/list?ns=docker.io",
                "https://registry-1.docker.io/v2/a/b/tags/list",
            ],
        );
    }

    #[test]
    fn locations_stay_on_tls_and_lose_no_origin() {
        let servers = endpoints().build("example.com:5000", None).unwrap();
        let base = servers[0].url("a", "blobs/uploads/");
        let at = |location: &str| servers[0].location(&base, location).map(|url| url.to_string());
        assert_eq!(at("/v2/a/up?x=1").unwrap(), "https://example.com:5000/v2/a/up?x=1");
        assert_eq!(at("http://example.com/v2/a/up").unwrap(), "https://example.com:5000/v2/a/up");
        assert_eq!(at("http://cdn.example.org/x").unwrap(), "http://cdn.example.org/x");
        assert_eq!(at("ftp://example.com/x"), None);
        assert_eq!(at("https://me:pw@example.com/x"), None);
        assert!(!servers[0].owns(&Url::parse("http://example.com:5000/").unwrap()));
        assert!(!servers[0].owns(&Url::parse("https://example.com/").unwrap()));
    }
}
