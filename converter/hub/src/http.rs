//! One HTTP client for both hubs: redirects, tokens, limits and repeats, in one place.
//!
//! Redirects are followed here and not by the client, because the token may travel only as far as the hub's own origin,
//! and because the first hop's headers name the commit. Nothing is sent over plain http unless the endpoint itself says
//! http.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use reqwest::Url;

use crate::error::{HubError, SafeUrl};
use crate::retry::{Backoff, asked_wait};
use crate::settings::Endpoint;
use crate::source_ref::HubKind;

/// Time to a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Time from a request to the headers of its answer; storage front ends were seen to take tens of seconds.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest wait for the next bytes of a body, and the window over which [`PACE_FLOOR`] is measured.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The fewest bytes that must arrive per [`IDLE_TIMEOUT`] spent waiting: 1 KiB/s, as ModelScope's client has it.
const PACE_FLOOR: u64 = 60 << 10;

/// The most redirects of one request; the hubs use two or three.
const MAX_REDIRECTS: u32 = 8;

/// The most bytes of one JSON answer. A page of 1000 files has 0.3 MB; the record of a repository of 100,000 files 15 MB.
const MAX_JSON_LEN: u64 = 64 << 20;

/// The most bytes read of an answer that is an error.
const MAX_ERROR_LEN: u64 = 64 << 10;

/// The longest a JSON answer may take from its first byte to its last.
const JSON_TIMEOUT: Duration = Duration::from_secs(300);

/// A hub's endpoint with a client for it.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    hub: HubKind,
    endpoint: Arc<Endpoint>,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) url: Url,
    /// Half-open range of bytes to ask for; `None` asks for everything.
    pub(crate) range: Option<Range<u64>>,
    /// The repository and the commit any `X-Repo-Commit` on the way must name.
    pub(crate) pinned: Option<(String, String)>,
}

impl Ask {
    pub(crate) fn all(url: Url) -> Self {
        Self { url, range: None, pinned: None }
    }
}

/// A whole answer that was read into memory.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) url: SafeUrl,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Whether redirects led away from the hub's own origin.
    pub(crate) elsewhere: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, HubError> {
        serde_json::from_slice(&self.body).map_err(|error| self.unexpected(error.to_string()))
    }

    pub(crate) fn unexpected(&self, problem: impl Into<String>) -> HubError {
        HubError::Unexpected { url: self.url.clone(), problem: crate::error::quoted(&problem.into()) }
    }
}

/// The headers of an answer, its body still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) url: SafeUrl,
    response: reqwest::Response,
    elsewhere: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    pub(crate) fn into_body(self) -> Body {
        Body { url: self.url, response: self.response, waited: Duration::ZERO, arrived: 0 }
    }

    async fn read(self) -> Result<Reply, HubError> {
        let status = self.status();
        let headers = self.response.headers().clone();
        let (url, elsewhere) = (self.url.clone(), self.elsewhere);
        let is_error = status >= 400;
        let limit = if is_error { MAX_ERROR_LEN } else { MAX_JSON_LEN };
        let mut body = self.into_body();
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await? {
                let room = usize::try_from(limit).unwrap_or(usize::MAX) - bytes.len();
                if chunk.len() > room && !is_error {
                    return Err(HubError::TooLong { url: url.clone(), limit });
                }
                bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    break;
                }
            }
            Ok(bytes)
        };
        let stalled = || HubError::Stalled { url: url.clone(), seconds: JSON_TIMEOUT.as_secs() };
        let body = tokio::time::timeout(JSON_TIMEOUT, collect).await.map_err(|_| stalled())??;
        Ok(Reply { url, status, headers, body, elsewhere })
    }
}

/// A body that is read piecewise.
#[derive(Debug)]
pub(crate) struct Body {
    url: SafeUrl,
    response: reqwest::Response,
    waited: Duration,
    arrived: u64,
}

impl Body {
    /// The next bytes, `None` at the end. Only time spent waiting here counts against the hub, not the time the caller
    /// takes between calls.
    ///
    /// Not cancel-safe: whoever gives up waiting must drop the body.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, HubError> {
        let started = Instant::now();
        let stalled = || HubError::Stalled { url: self.url.clone(), seconds: IDLE_TIMEOUT.as_secs() };
        let chunk = match tokio::time::timeout(IDLE_TIMEOUT, self.response.chunk()).await {
            Err(_) => return Err(stalled()),
            Ok(Err(source)) => return Err(transport(&self.url, source)),
            Ok(Ok(chunk)) => chunk,
        };
        self.waited += started.elapsed();
        self.arrived += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.waited >= IDLE_TIMEOUT && chunk.is_some() {
            if self.arrived < PACE_FLOOR {
                return Err(stalled());
            }
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }
}

fn transport(url: &SafeUrl, source: reqwest::Error) -> HubError {
    HubError::Transport { url: url.clone(), source: source.without_url() }
}

impl Http {
    pub(crate) fn new(hub: HubKind, endpoint: Endpoint) -> Result<Self, HubError> {
        // Several crates may come first; whoever does installs the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // HTTP/1.1 only: files that are read side by side then have connections, and windows, of their own.
        let client = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| HubError::Client { source })?;
        Ok(Self { client, hub, endpoint: Arc::new(endpoint) })
    }

    pub(crate) fn has_token(&self) -> bool {
        self.endpoint.token.is_some()
    }

    /// The endpoint's address followed by `segments`, each percent-encoded as one segment.
    pub(crate) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.url.clone();
        url.path_segments_mut().expect("http addresses have a path").pop_if_empty().extend(segments);
        url
    }

    /// Whether `url` lies at the hub's own origin.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.url.origin()
    }

    /// Asks until `judge` is content or finds something repeating will not mend; `judge` sees every whole answer, errors
    /// included.
    pub(crate) async fn read<T>(
        &self,
        ask: &Ask,
        judge: impl Fn(&Reply) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut backoff = Backoff::new();
        loop {
            let reply = match self.ask(ask).await {
                Ok(answer) => answer.read().await,
                Err(error) => Err(error),
            };
            let (error, wait) = match reply {
                Ok(reply) => match judge(&reply) {
                    Ok(value) => return Ok(value),
                    Err(error) => (error, wanted_wait(&reply.headers)),
                },
                Err(error) => (error, None),
            };
            pause(&mut backoff, error, wait).await?;
        }
    }

    /// Asks until an answer has content that `accept` takes; `refuse` turns error answers into errors.
    pub(crate) async fn open<T>(
        &self,
        ask: &Ask,
        accept: impl Fn(&Answer) -> Result<T, HubError>,
        refuse: impl Fn(&Reply) -> HubError,
    ) -> Result<(Body, T), HubError> {
        let mut backoff = Backoff::new();
        loop {
            let (error, wait) = match self.ask(ask).await {
                Err(error) => (error, None),
                Ok(answer) if answer.status() >= 400 => match answer.read().await {
                    Ok(reply) => (refuse(&reply), wanted_wait(&reply.headers)),
                    Err(error) => (error, None),
                },
                Ok(answer) => match accept(&answer) {
                    Ok(accepted) => return Ok((answer.into_body(), accepted)),
                    Err(error) => (error, None),
                },
            };
            pause(&mut backoff, error, wait).await?;
        }
    }

    /// One request and its redirects.
    async fn ask(&self, ask: &Ask) -> Result<Answer, HubError> {
        let mut url = ask.url.clone();
        let mut with_token = self.owns(&url);
        for _ in 0..=MAX_REDIRECTS {
            let shown = SafeUrl::new(&url);
            let response = self.send(&url, ask.range.as_ref(), with_token).await?;
            if let (Some((repo, pinned)), Some(found)) =
                (&ask.pinned, response.headers().get("x-repo-commit"))
                && found.as_bytes() != pinned.as_bytes()
            {
                let found = crate::error::quoted(&String::from_utf8_lossy(found.as_bytes()));
                return Err(HubError::CommitMoved { subject: repo.clone(), pinned: pinned.clone(), found });
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { url: shown, response, elsewhere: !self.owns(&url) });
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let problem = |problem| HubError::Redirect { url: shown.clone(), problem };
            (url, with_token) = next_hop(&self.endpoint.url, &url, location.unwrap_or_default(), with_token)
                .map_err(problem)?;
        }
        Err(HubError::Redirect { url: SafeUrl::new(&url), problem: "too many times" })
    }

    async fn send(
        &self,
        url: &Url,
        range: Option<&Range<u64>>,
        with_token: bool,
    ) -> Result<reqwest::Response, HubError> {
        let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let (Some(token), true) = (&self.endpoint.token, with_token) {
            request = request.bearer_auth(token.expose());
            if self.hub == HubKind::ModelScope {
                let cookie = HeaderValue::from_str(&format!("m_session_id={}", token.expose()));
                let mut cookie = cookie.expect("tokens are printable ASCII");
                cookie.set_sensitive(true);
                request = request.header(header::COOKIE, cookie);
            }
        }
        let shown = SafeUrl::new(url);
        match tokio::time::timeout(HEADERS_TIMEOUT, request.send()).await {
            Err(_) => Err(HubError::Stalled { url: shown, seconds: HEADERS_TIMEOUT.as_secs() }),
            Ok(response) => response.map_err(|source| transport(&shown, source)),
        }
    }
}

fn wanted_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    asked_wait(text("ratelimit"), text("retry-after"), SystemTime::now())
}

/// Waits before the next attempt, or gives the error back when there is none.
async fn pause(backoff: &mut Backoff, error: HubError, asked: Option<Duration>) -> Result<(), HubError> {
    if !error.is_transient() {
        return Err(error);
    }
    let Some(wait) = backoff.next_wait(asked) else { return Err(error) };
    tracing::debug!(error = %error, elapsed_ms = wait.as_millis() as u64, "hub request will be repeated");
    tokio::time::sleep(wait).await;
    Ok(())
}

/// Where a redirect leads, and whether the token goes along: only while every hop stayed at the endpoint's own origin.
pub(crate) fn next_hop(
    endpoint: &Url,
    from: &Url,
    location: &str,
    with_token: bool,
) -> Result<(Url, bool), &'static str> {
    if location.is_empty() {
        return Err("without saying where");
    }
    let to = from.join(location).map_err(|_| "to something that is no address")?;
    match (from.scheme(), to.scheme()) {
        ("http", "http") | (_, "https") => {}
        ("https", "http") => return Err("from https to http"),
        _ => return Err("to something other than http and https"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err("to an address with a user in it");
    }
    let at_home = to.origin() == endpoint.origin();
    Ok((to, with_token && at_home))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(from: &str, location: &str, expected: Result<(&str, bool), &str>) {
        let endpoint = "https://hub.example/hf".parse().expect("endpoint");
        let found = next_hop(&endpoint, &from.parse().expect(from), location, true);
        let found = found.as_ref().map(|(url, token)| (url.as_str(), *token)).map_err(|problem| *problem);
        assert_eq!(found, expected, "{location:?}");
    }

    #[test]
    fn the_token_stays_at_home() {
        let from = "https://hub.example/a/b/resolve/x/f";
        check(from, "/c/d", Ok(("https://hub.example/c/d", true)));
        check(from, "https://hub.example:443/c", Ok(("https://hub.example/c", true)));
        check(from, "https://cdn.example/c?s=1", Ok(("https://cdn.example/c?s=1", false)));
        check(from, "//cdn.example/c", Ok(("https://cdn.example/c", false)));
        check(from, "https://hub.example.evil/c", Ok(("https://hub.example.evil/c", false)));
        check(from, "https://hub.example:8443/c", Ok(("https://hub.example:8443/c", false)));
        check(from, "http://hub.example/c", Err("from https to http"));
        check(from, "http://cdn.example/c", Err("from https to http"));
        check(from, "file:///etc/passwd", Err("to something other than http and https"));
        check(from, "https://hub.example@evil/c", Err("to an address with a user in it"));
        check(from, "", Err("without saying where"));
        check(from, "https://", Err("to something that is no address"));
        check("https://cdn.example/x", "/y", Ok(("https://cdn.example/y", false)));
    }

    #[test]
    fn a_token_once_dropped_stays_dropped() {
        let endpoint: Url = "https://hub.example".parse().expect("endpoint");
        let away = "https://cdn.example/x".parse().expect("url");
        let (home, token) = next_hop(&endpoint, &away, "https://hub.example/y", false).expect("home again");
        assert_eq!((home.as_str(), token), ("https://hub.example/y", false));
    }

    proptest! {
        #[test]
        fn no_location_panics_or_leaks(location in "(https?:)?/{0,3}[a-z.@:]{0,12}(hub\\.example)?[ -~é]{0,20}") {
            let endpoint: Url = "https://hub.example".parse().expect("endpoint");
            if let Ok((to, token)) = next_hop(&endpoint, &endpoint, &location, true) {
                prop_assert_eq!(token, to.host_str() == Some("hub.example") && to.port().is_none());
                prop_assert_eq!(to.scheme(), "https");
            }
        }
    }

    #[test]
    fn revisions_and_paths_are_encoded() {
        let endpoint = Endpoint { url: "http://h:1/base".parse().expect("url"), token: None };
        let http = Http::new(HubKind::HuggingFace, endpoint).expect("client");
        let url = http.url(["api", "models", "a/b", "refs/pr/1", "x y?#%é"]);
        assert_eq!(url.as_str(), "http://h:1/base/api/models/a%2Fb/refs%2Fpr%2F1/x%20y%3F%23%25%C3%A9");
    }
}
