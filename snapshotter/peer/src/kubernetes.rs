//! What we ask of the Kubernetes API from within a pod: which addresses a service has, and in which zone a node is.
//!
//! Read-only and without memory. Token and CA are read again for each operation, because the kubelet replaces both while
//! we run; no connection is kept, because a thousand nodes that ask every few minutes should not hold a thousand open.
//! The token goes over TLS, verified against the cluster's CA alone, to the API's address and nowhere else: no proxy, no
//! redirect. It is in no `Debug`, no error and no log, and neither is any text that the API sent.
//!
//! The service account needs the following and no more (`deploy/rbac.yaml`):
//!
//! - `list` on `endpointslices` (`discovery.k8s.io`) in the namespace of the service;
//! - `get` on `nodes`, which have no namespace: a ClusterRole.

mod error;
mod objects;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

pub use self::error::{KubernetesError, Object};
pub(crate) use self::objects::{SlicePage, node_zone};
use crate::bootstrap::MAX_ADDRESSES;
use crate::names::{is_host_name, is_label, is_subdomain};

/// The longest an operation takes, all its requests together. An API server that is well answers in milliseconds; this is
/// less than a bootstrap source is waited for, so that the log names what was slow.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// The longest that a connection takes, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes of an answer. An endpoint has some 450 in JSON, so a service of 5000 nodes with two address families
/// has 4.5 MB.
pub(crate) const MAX_ANSWER_LEN: usize = 8 << 20;

/// EndpointSlices asked for in one page. A slice has at most 1000 endpoints, so a page holds the largest cluster we are
/// made for, and fits into [`MAX_ANSWER_LEN`].
const PAGE_LIMIT: &str = "10";

/// The most pages. What a service has beyond 320 slices is not looked at.
const MAX_PAGES: usize = 32;

/// The most bytes of a token; those the kubelet makes have one or two thousand.
const MAX_TOKEN_LEN: u64 = 64 << 10;

/// The most bytes of the CA bundle.
const MAX_CA_LEN: u64 = 1 << 20;

/// Only the metadata is sent where the server can do that (all since 1.15 can): a Node's status lists its images.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";

/// The Kubernetes API as a pod's service account sees it.
#[derive(Clone, Debug)]
pub struct InCluster {
    /// `https://HOST:PORT/`.
    api: Url,
    /// Holds `token` and `ca.crt`.
    dir: PathBuf,
    timeout: Duration,
}

impl InCluster {
    /// Where the kubelet puts `token`, `ca.crt` and `namespace` in a pod.
    pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

    /// Takes the API's address from `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, which `get` reads, and the
    /// account from `dir`. Opens no file and no connection yet.
    ///
    /// Requests need a TLS provider, which the process must have installed.
    ///
    /// # Errors
    /// [`KubernetesError::NotInCluster`] when a variable is missing or holds something else.
    pub fn from_env(get: impl Fn(&str) -> Option<String>, dir: &Path) -> Result<Self, KubernetesError> {
        let read = |variable: &'static str| {
            let fail = move |problem| KubernetesError::NotInCluster { variable, problem };
            let value = get(variable).filter(|value| !value.is_empty()).ok_or_else(|| fail("is not set"))?;
            Ok((value, fail))
        };
        let (host, fail) = read("KUBERNETES_SERVICE_HOST")?;
        let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        // Some providers put a name here.
        let host = match (v6.parse::<Ipv6Addr>(), host.parse::<IpAddr>()) {
            (Ok(ip), _) => format!("[{ip}]"),
            (_, Ok(ip)) => ip.to_string(),
            _ if is_host_name(&host) => host,
            _ => return Err(fail("is neither an address nor a name")),
        };
        let (port, fail) = read("KUBERNETES_SERVICE_PORT")?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| fail("is no port"))?;
        let api = Url::parse(&format!("https://{host}:{port}/")).map_err(|_| fail("makes no address"))?;
        Ok(Self { api, dir: dir.to_owned(), timeout: OPERATION_TIMEOUT })
    }

    /// The addresses of the endpoints of `service`, each once, at most 4096. Empty when it has none, or does not exist.
    ///
    /// Every endpoint counts but those that are both terminating and no longer serving. Bootstrap differs here from load
    /// balancing: a daemon that is not ready yet may well have what we look for, when a whole cluster starts nobody is
    /// ready, and the price of a wrong address is one connection that fails, while that of a missing one may be a node
    /// alone. They come in this order, because a dead node's pod stays listed as not ready for as long as the node is
    /// known: ready; serving (they are about to leave); not ready. A condition that is not given counts as the API says:
    /// `ready` as true, `serving` as `ready`, `terminating` as false. Where the same address has several endpoints, as
    /// when it moves between slices, the best one counts.
    ///
    /// # Errors
    /// Every [`KubernetesError`] but `NotInCluster`; `Name` when `namespace` or `service` is no label.
    pub async fn endpoints(&self, namespace: &str, service: &str) -> Result<Vec<IpAddr>, KubernetesError> {
        for (kind, text) in [("namespace", namespace), ("service", service)] {
            if !is_label(text) {
                return Err(KubernetesError::Name { kind, text: error::shown(text) });
            }
        }
        let object = Object::EndpointSlices { namespace: namespace.to_owned(), service: service.to_owned() };
        self.within_time(&object, self.list(&object, namespace, service)).await
    }

    /// The zone of a node: its label `topology.kubernetes.io/zone`. `None` when it has no such label, or an empty one.
    ///
    /// # Errors
    /// Every [`KubernetesError`] but `NotInCluster`; `NotFound` when there is no such node, `Name` when there cannot be.
    pub async fn node_zone(&self, node: &str) -> Result<Option<String>, KubernetesError> {
        if !is_subdomain(node) {
            return Err(KubernetesError::Name { kind: "node", text: error::shown(node) });
        }
        let object = Object::Node { name: node.to_owned() };
        let read = async {
            let client = self.client().await?;
            let url = self.url(&["api", "v1", "nodes", node]);
            let body = self.get(&client, url, METADATA, &object).await?;
            node_zone(&body).map_err(|problem| KubernetesError::Malformed { object: object.clone(), problem })
        };
        self.within_time(&object, read).await
    }

    async fn list(
        &self,
        object: &Object,
        namespace: &str,
        service: &str,
    ) -> Result<Vec<IpAddr>, KubernetesError> {
        let client = self.client().await?;
        let group = ["apis", "discovery.k8s.io", "v1"];
        let mut base = self.url(&[&group[..], &["namespaces", namespace, "endpointslices"]].concat());
        base.query_pairs_mut()
            .append_pair("labelSelector", &format!("kubernetes.io/service-name={service}"))
            .append_pair("limit", PAGE_LIMIT);
        // Any version that the server has in memory will do. Without this each request may reach the cluster's database;
        // with it many servers ignore the limit and send everything, which MAX_ANSWER_LEN allows for.
        let mut url = base.clone();
        url.query_pairs_mut().append_pair("resourceVersion", "0");

        let mut ranked = Vec::new();
        for _ in 0..MAX_PAGES {
            let body = self.get(&client, url, "application/json", object).await?;
            let page = SlicePage::parse(&body)
                .map_err(|problem| KubernetesError::Malformed { object: object.clone(), problem })?;
            ranked.extend(page.endpoints);
            ranked.sort_unstable();
            let mut seen = HashSet::new();
            ranked.retain(|(_, ip)| seen.insert(*ip));
            ranked.truncate(MAX_ADDRESSES);
            let Some(next) = page.next else { break };
            url = base.clone();
            url.query_pairs_mut().append_pair("continue", &next);
        }
        Ok(ranked.into_iter().map(|(_, ip)| ip).collect())
    }

    async fn within_time<T>(
        &self,
        object: &Object,
        operation: impl Future<Output = Result<T, KubernetesError>>,
    ) -> Result<T, KubernetesError> {
        let limit = self.timeout;
        let timed_out = |_| KubernetesError::TimedOut { object: object.clone(), limit };
        tokio::time::timeout(limit, operation).await.map_err(timed_out)?
    }

    /// The API's address with a path of these segments.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.api.clone();
        url.path_segments_mut().expect("https addresses have a path").pop_if_empty().extend(segments);
        url
    }

    /// A client that trusts the cluster's CA as it is now, and nobody else.
    async fn client(&self) -> Result<Client, KubernetesError> {
        let pem = self.read("ca.crt", MAX_CA_LEN).await?;
        let bad = |problem| KubernetesError::BadFile { path: self.dir.join("ca.crt"), problem };
        let roots = Certificate::from_pem_bundle(&pem).map_err(|_| bad("is not PEM"))?;
        if roots.is_empty() {
            return Err(bad("holds no certificate"));
        }
        Client::builder()
            .tls_certs_only(roots)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| KubernetesError::Client { source })
    }

    /// The token as it is now, as a header that hides itself from `Debug`.
    async fn authorization(&self) -> Result<HeaderValue, KubernetesError> {
        let bytes = self.read("token", MAX_TOKEN_LEN).await?;
        let token = bytes.trim_ascii();
        let bad = |problem| KubernetesError::BadFile { path: self.dir.join("token"), problem };
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(bad("holds no token"));
        }
        let mut header =
            HeaderValue::from_bytes(&[b"Bearer ", token].concat()).map_err(|_| bad("holds no token"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, KubernetesError> {
        let path = self.dir.join(name);
        let mut bytes = Vec::new();
        let read = async { File::open(&path).await?.take(limit + 1).read_to_end(&mut bytes).await };
        match read.await {
            Err(source) => Err(KubernetesError::File { path, source }),
            Ok(len) if len as u64 > limit => Err(KubernetesError::BadFile { path, problem: "is too long" }),
            Ok(_) => Ok(bytes),
        }
    }

    /// One request: the body of a good answer.
    async fn get(
        &self,
        client: &Client,
        url: Url,
        accept: &'static str,
        object: &Object,
    ) -> Result<Vec<u8>, KubernetesError> {
        let request =
            client.get(url).header(AUTHORIZATION, self.authorization().await?).header(ACCEPT, accept);
        let response = request.send().await.map_err(|source| self.transport(object, source))?;
        let object = object.clone();
        match response.status() {
            StatusCode::OK => self.body(response, object).await,
            StatusCode::UNAUTHORIZED => Err(KubernetesError::Unauthorized { object }),
            StatusCode::FORBIDDEN => Err(KubernetesError::Forbidden { object }),
            StatusCode::NOT_FOUND => Err(KubernetesError::NotFound { object }),
            status if status.is_redirection() => Err(KubernetesError::Redirected { object }),
            status => Err(KubernetesError::Status { object, status: status.as_u16() }),
        }
    }

    async fn body(&self, mut response: Response, object: Object) -> Result<Vec<u8>, KubernetesError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| self.transport(&object, source))? {
            if chunk.len() > MAX_ANSWER_LEN - body.len() {
                return Err(KubernetesError::TooLong { object });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn transport(&self, object: &Object, source: reqwest::Error) -> KubernetesError {
        let api = self.api.origin().ascii_serialization();
        KubernetesError::Transport { object: object.clone(), api, source: source.without_url() }
    }
}

#[cfg(test)]
mod tests;
