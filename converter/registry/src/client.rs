//! The client: one request through servers, authorization, redirects and repetitions.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};

use crate::answer::{challenge_of, check_range, read_reason};
use crate::credentials::{Anonymous, Credentials};
use crate::endpoint::{Endpoint, Endpoints, PlainHttp};
use crate::error::{Object, Place, RegistryError, TokenError};
use crate::locations::Locations;
use crate::repository::Repository;
use crate::retry::{Budget, RetryPolicy, retry_after};
use crate::token::{Route, ScopeKey, Tokens};

/// The most redirects of one request. Registries in use need one, a chain of caches two.
const MAX_REDIRECTS: u32 = 5;

/// The slowest link on which a request body that is sent whole must still get through: 256 KiB/s.
const MIN_UPLOAD_RATE: u32 = 256 << 10;

/// How a [`Client`] behaves. `Default` is anonymous and suits a registry on the internet.
#[derive(Clone)]
pub struct ClientOptions {
    /// Where credentials come from.
    pub credentials: Arc<dyn Credentials>,
    /// Which registries are spoken to without TLS.
    pub plain_http: PlainHttp,
    /// Limit for connecting, TLS included.
    pub connect_timeout: Duration,
    /// Limit without any byte, while waiting for an answer or within a body.
    pub idle_timeout: Duration,
    /// Sent with every request.
    pub user_agent: String,
    /// Repetitions.
    pub retry: RetryPolicy,
    /// PEM bundles of certificate authorities to trust besides the system's.
    pub extra_roots: Vec<PathBuf>,
    /// A directory as containerd's `config_path`: `HOST/hosts.toml`.
    pub hosts_dir: Option<PathBuf>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credentials: Arc::new(Anonymous),
            plain_http: PlainHttp::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            user_agent: concat!("towline/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: RetryPolicy::default(),
            extra_roots: Vec::new(),
            hosts_dir: None,
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("plain_http", &self.plain_http)
            .field("retry", &self.retry)
            .field("hosts_dir", &self.hosts_dir)
            .finish_non_exhaustive()
    }
}

/// A client for all registries. Clones share connections and tokens: make one per process.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Attempts for one request, where they are fewer than the policy's.
    attempts: u32,
}

struct Inner {
    idle_timeout: Duration,
    retry: RetryPolicy,
    budget: Budget,
    endpoints: Endpoints,
    tokens: Tokens,
    locations: Locations,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What a request needs a server to be willing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Pull,
    Resolve,
    Push,
}

/// One request, before it is known which server gets it.
pub(crate) struct Call<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) object: Object,
    pub(crate) need: Need,
    pub(crate) method: Method,
    /// The URL's path below the repository, with its query if it has one.
    pub(crate) tail: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The answer must be exactly these bytes of the object. Not empty.
    pub(crate) range: Option<Range<u64>>,
    pub(crate) mount_from: Option<&'a str>,
    /// Besides the time the body takes.
    pub(crate) patience: Option<Duration>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        repository: &'a Repository,
        object: Object,
        need: Need,
        method: Method,
        tail: String,
    ) -> Self {
        Self {
            repository,
            object,
            need,
            method,
            tail,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            range: None,
            mount_from: None,
            patience: None,
        }
    }

    pub(crate) fn place(&self, host: &str) -> Box<Place> {
        let repository = Some(self.repository.clone());
        Box::new(Place { object: self.object.clone(), repository, host: host.to_owned() })
    }

    fn can(&self, endpoint: &Endpoint) -> bool {
        match self.need {
            Need::Pull => endpoint.can.pull,
            Need::Resolve => endpoint.can.resolve,
            Need::Push => endpoint.can.push,
        }
    }

    fn scope(&self, endpoint: &Endpoint) -> ScopeKey {
        ScopeKey {
            host: endpoint.host.clone(),
            credential_host: endpoint.credential_host.clone(),
            repository: self.repository.path().to_owned(),
            push: self.need == Need::Push,
            mount_from: self.mount_from.map(str::to_owned),
        }
    }
}

/// A successful answer, its body still to be read.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// The server that was asked, which may have redirected.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Where the answer came from.
    pub(crate) url: Url,
    pub(crate) place: Box<Place>,
}

/// Chooses ring for every TLS connection of the process, unless the process has chosen already.
pub(crate) fn install_tls_provider() {
    // Fails only when a provider is installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    /// Makes a client. Reads the system's and the given CA certificates; connects to nobody.
    ///
    /// # Errors
    /// [`RegistryError::Config`] for an unusable CA file, [`RegistryError::Setup`] when TLS cannot be set up.
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        install_tls_provider();
        let endpoints = Endpoints::new(&options)?;
        let inner = Inner {
            idle_timeout: options.idle_timeout,
            budget: Budget::new(options.retry.budget),
            retry: options.retry,
            endpoints,
            tokens: Tokens::new(options.credentials),
            locations: Locations::default(),
        };
        let attempts = inner.retry.attempts;
        Ok(Self { inner: Arc::new(inner), attempts })
    }

    /// The same client, with its tokens and connections, that makes one attempt for each request: for callers that decide
    /// themselves when to try again, and where.
    #[must_use]
    pub fn without_repetitions(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), attempts: 1 }
    }

    /// Drops the tokens and redirects held for `repository`: its credentials were withdrawn.
    pub fn forget(&self, repository: &Repository) {
        self.inner.tokens.forget(repository.host(), repository.path());
        self.inner.locations.forget(repository);
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.inner.idle_timeout
    }

    pub(crate) fn locations(&self) -> &Locations {
        &self.inner.locations
    }

    pub(crate) fn http(&self, endpoint: &Endpoint, url: &Url) -> reqwest::Client {
        self.inner.endpoints.http(endpoint, url).clone()
    }

    /// Sends a call to the servers of its repository in order, and returns the first success.
    ///
    /// The last server, the registry itself, has the full number of attempts and the last word; mirrors before it
    /// have one attempt, and rest for a while when they cannot be reached.
    pub(crate) async fn call(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let endpoints = self.inner.endpoints.of(call.repository).await?;
        let able: Vec<_> = endpoints.iter().filter(|endpoint| call.can(endpoint)).collect();
        let Some((last, mirrors)) = able.split_last() else {
            let place = call.place(call.repository.host());
            return Err(RegistryError::Protocol {
                place,
                what: "no server in hosts.toml has this capability",
            });
        };
        for mirror in mirrors {
            if mirror.is_resting() {
                continue;
            }
            match self.attempt(mirror, call, None).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if matches!(error, RegistryError::Transport { .. } | RegistryError::Stalled { .. }) {
                        mirror.rest();
                    }
                    tracing::debug!(image = %call.repository, host = %mirror.host, %error, "mirror passed over");
                }
            }
        }
        self.call_at(last, call, None).await
    }

    /// Sends a call to one server, and to one URL there if given, with repetitions.
    pub(crate) async fn call_at(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call<'_>,
        url: Option<&Url>,
    ) -> Result<Answer, RegistryError> {
        let mut failed = 0;
        loop {
            let error = match self.attempt(endpoint, call, url).await {
                Ok(answer) => {
                    self.inner.budget.succeeded();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            failed += 1;
            if !self.pause(failed, &error, error.retry_after()).await {
                return Err(error);
            }
        }
    }

    /// One attempt at one URL of a server.
    pub(crate) async fn attempt_at(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call<'_>,
        url: &Url,
    ) -> Result<Answer, RegistryError> {
        self.attempt(endpoint, call, Some(url)).await
    }

    /// Waits before the next attempt; `false` when there shall be none.
    pub(crate) async fn pause(
        &self,
        failed: u32,
        error: &RegistryError,
        retry_after: Option<Duration>,
    ) -> bool {
        if !error.is_transient() || failed >= self.attempts {
            return false;
        }
        let Some(wait) = self.inner.retry.wait(failed, retry_after, rand::random()) else { return false };
        if !self.inner.budget.take() {
            return false;
        }
        tracing::debug!(attempt = failed, wait_ms = wait.as_millis() as u64, %error, "trying again");
        tokio::time::sleep(wait).await;
        true
    }

    /// One attempt, with one renewal of the authorization when the server refuses it.
    ///
    /// 403 counts as 401: some registries answer so to an expired token.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call<'_>,
        url: Option<&Url>,
    ) -> Result<Answer, RegistryError> {
        let url = url.cloned().unwrap_or_else(|| endpoint.url_of(call));
        let mut authorization = self.authorization(endpoint, call).await?;
        let mut renewed = false;
        loop {
            let (response, from) = self.send(endpoint, call, &url, authorization.as_ref()).await?;
            let status = response.status();
            let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if denied && !renewed && endpoint.owns(&from) {
                renewed = true;
                let challenge = challenge_of(response.headers());
                let host = &endpoint.host;
                let fresh = self
                    .inner
                    .tokens
                    .renew(
                        &call.scope(endpoint),
                        self.route(endpoint, &url),
                        challenge,
                        authorization.as_ref(),
                    )
                    .await
                    .map_err(|source| RegistryError::Token { place: call.place(host), source })?;
                if fresh.is_some() {
                    authorization = fresh;
                    continue;
                }
            }
            let host = if endpoint.owns(&from) { endpoint.host.clone() } else { host_of(&from) };
            return self.judge(call, endpoint, response, from, call.place(&host)).await;
        }
    }

    fn route<'a>(&'a self, endpoint: &'a Endpoint, url: &Url) -> Route<'a> {
        let timeout = self.inner.idle_timeout;
        Route {
            http: self.inner.endpoints.http(endpoint, url),
            plain_http: endpoint.is_plain_http(),
            timeout,
        }
    }

    /// The header we expect to need.
    pub(crate) async fn authorization(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let url = endpoint.url_of(call);
        let current = self.inner.tokens.current(&call.scope(endpoint), self.route(endpoint, &url)).await;
        current.map_err(|source: Arc<TokenError>| RegistryError::Token {
            place: call.place(&endpoint.host),
            source,
        })
    }

    /// Accepts an answer, or makes an error of it.
    pub(crate) async fn judge_response(
        &self,
        call: &Call<'_>,
        endpoint: &Arc<Endpoint>,
        response: Response,
        url: Url,
    ) -> Result<Answer, RegistryError> {
        let host = if endpoint.owns(&url) { endpoint.host.clone() } else { host_of(&url) };
        self.judge(call, endpoint, response, url, call.place(&host)).await
    }

    async fn judge(
        &self,
        call: &Call<'_>,
        endpoint: &Arc<Endpoint>,
        response: Response,
        url: Url,
        place: Box<Place>,
    ) -> Result<Answer, RegistryError> {
        if response.status().is_success() {
            if let Some(range) = &call.range {
                check_range(&response, range, &place)?;
            }
            return Ok(Answer { response, endpoint: endpoint.clone(), url, place });
        }
        let status = response.status();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let reason = read_reason(response).await;
        Err(RegistryError::Refused { place, status, reason, retry_after })
    }

    /// Sends one request and follows redirects of reads. Our authorization is sent to the server's own origin only.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Url), RegistryError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let host = host_of(&url);
            let http = self.inner.endpoints.http(endpoint, &url);
            let mut request = http.request(call.method.clone(), url.clone()).headers(call.headers.clone());
            if endpoint.owns(&url) {
                request = request.headers(endpoint.headers.clone());
                if let Some(authorization) = authorization {
                    request = request.header(AUTHORIZATION, authorization.clone());
                }
            }
            if !call.body.is_empty() {
                request = request.body(call.body.clone());
            } else if matches!(call.method, Method::POST | Method::PUT) {
                request = request.header(CONTENT_LENGTH, 0);
            }
            let response = self.answer(call, request, &host).await?;
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            url = redirect_target(call, endpoint, &url, &response)?;
        }
        Err(RegistryError::Redirect { place: call.place(&host_of(&url)), why: "there are too many" })
    }

    async fn answer(
        &self,
        call: &Call<'_>,
        request: reqwest::RequestBuilder,
        host: &str,
    ) -> Result<Response, RegistryError> {
        let sending = Duration::from_secs(call.body.len() as u64 / u64::from(MIN_UPLOAD_RATE));
        let patience = call.patience.unwrap_or(self.inner.idle_timeout) + sending;
        match tokio::time::timeout(patience, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                Err(RegistryError::Transport { place: call.place(host), source: error.without_url() })
            }
            Err(_) => Err(RegistryError::Stalled { place: call.place(host), idle: patience }),
        }
    }
}

impl Endpoint {
    fn url_of(&self, call: &Call<'_>) -> Url {
        let (tail, query) = call.tail.split_once('?').unwrap_or((&call.tail, ""));
        let mut url = self.url(call.repository.path(), tail);
        if !query.is_empty() {
            let query = match url.query() {
                Some(own) => format!("{own}&{query}"),
                None => query.to_owned(),
            };
            url.set_query(Some(&query));
        }
        url
    }
}

fn redirect_target(
    call: &Call<'_>,
    endpoint: &Endpoint,
    url: &Url,
    response: &Response,
) -> Result<Url, RegistryError> {
    let refused = |why| RegistryError::Redirect { place: call.place(&host_of(url)), why };
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(refused("a write is not repeated elsewhere"));
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| refused("it says not where to"))?;
    endpoint.location(url, location).ok_or_else(|| refused("its target is not a web address"))
}

/// The host of a URL for messages.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
