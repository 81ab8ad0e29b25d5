//! Authorization headers: which to send, when to get a new one, and one attempt at a time per scope.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use http::HeaderValue;
use http::header::ACCEPT;
use reqwest::Url;

use crate::challenge::{Challenge, scopes};
use crate::credentials::{Credential, Credentials, Secret};
use crate::error::{Reason, TokenError, clean};

/// The most scopes we remember: repositories × (pull, push) in use at once, with room. Others just ask again.
const MAX_SLOTS: usize = 4096;

/// The most bytes of a token service's answer; the largest tokens in use have under 16 KiB.
const MAX_ANSWER_LEN: usize = 256 << 10;

/// The life of a token whose service does not say (distribution token specification: 60 s).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// The longest life we believe.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A token is renewed this long before its end, or at three quarters of a short life: a request may take a while to
/// reach the registry, and clocks differ.
const MARGIN: Duration = Duration::from_secs(30);

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ScopeKey {
    /// `host[:port]` of the server that checks the token.
    pub(crate) host: String,
    /// Host and repository under which credentials are looked up.
    pub(crate) credential_host: String,
    pub(crate) repository: String,
    pub(crate) push: bool,
    /// The repository a blob is mounted from.
    pub(crate) mount_from: Option<String>,
}

/// Where and how to ask a token service.
pub(crate) struct Route<'a> {
    pub(crate) http: &'a reqwest::Client,
    /// The registry itself is reached without TLS, so its realm may be, too.
    pub(crate) plain_http: bool,
    pub(crate) timeout: Duration,
}

/// Authorization headers by scope.
pub(crate) struct Tokens {
    credentials: Arc<dyn Credentials>,
    slots: Mutex<HashMap<ScopeKey, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Held while one request gets a token; the others wait here. It guards no data: a waiter that is cancelled, or a
    /// holder that is, leaves nothing half done. Never taken while `state` is held.
    flight: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    challenge: Option<Challenge>,
    header: Option<HeaderValue>,
    /// `None`: as long as the registry takes it.
    expires: Option<Instant>,
    failed: Option<(Instant, Arc<TokenError>)>,
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tokens {
    pub(crate) fn new(credentials: Arc<dyn Credentials>) -> Self {
        Self { credentials, slots: Mutex::default() }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<ScopeKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: &ScopeKey) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            return slot.clone();
        }
        if slots.len() >= MAX_SLOTS {
            let now = Instant::now();
            slots.retain(|_, slot| slot.state().expires.is_some_and(|expires| expires > now));
            if slots.len() >= MAX_SLOTS {
                slots.clear();
            }
        }
        slots.entry(key.clone()).or_default().clone()
    }

    /// Drops every header for a repository, for all servers that stand for its host.
    pub(crate) fn forget(&self, credential_host: &str, repository: &str) {
        self.slots().retain(|key, _| key.credential_host != credential_host || key.repository != repository);
    }

    /// The header to send; `None` when none is known to be needed. An expired token is replaced first.
    pub(crate) async fn current(
        &self,
        key: &ScopeKey,
        route: Route<'_>,
    ) -> Result<Option<HeaderValue>, Arc<TokenError>> {
        let Some(slot) = self.slots().get(key).cloned() else { return Ok(None) };
        let state = slot.state().clone();
        let Some(header) = state.header else { return Ok(None) };
        if state.expires.is_none_or(|expires| expires > Instant::now()) {
            return Ok(Some(header));
        }
        self.renew(key, route, None, Some(&header)).await
    }

    /// A header in place of `used`, which the registry refused with `challenge`.
    ///
    /// `None` when nothing is known about how to authorize: the refusal stands. Of several requests at once, one asks
    /// and all take its answer, good or bad.
    pub(crate) async fn renew(
        &self,
        key: &ScopeKey,
        route: Route<'_>,
        challenge: Option<Challenge>,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Arc<TokenError>> {
        let slot = self.slot(key);
        let arrived = Instant::now();
        let _flight = slot.flight.lock().await;
        let known = slot.state().clone();
        if known.header.is_some() && known.header.as_ref() != used {
            return Ok(known.header);
        }
        if let Some((at, error)) = known.failed
            && at >= arrived
        {
            return Err(error);
        }
        let Some(challenge) = challenge.or(known.challenge) else { return Ok(None) };
        match self.obtain(key, &route, &challenge).await {
            Ok((mut header, life)) => {
                header.set_sensitive(true);
                let expires = life.map(|life| Instant::now() + life.saturating_sub(MARGIN.min(life / 4)));
                let header = Some(header);
                *slot.state() =
                    State { challenge: Some(challenge), header: header.clone(), expires, failed: None };
                Ok(header)
            }
            Err(error) => {
                let error = Arc::new(error);
                let failed = Some((Instant::now(), error.clone()));
                *slot.state() = State { challenge: Some(challenge), failed, ..State::default() };
                Err(error)
            }
        }
    }

    async fn obtain(
        &self,
        key: &ScopeKey,
        route: &Route<'_>,
        challenge: &Challenge,
    ) -> Result<(HeaderValue, Option<Duration>), TokenError> {
        let host = &key.credential_host;
        let credential = self
            .credentials
            .for_host(host, &key.repository)
            .await
            .map_err(|source| TokenError::Credentials { host: host.clone(), source })?;
        let missing = || TokenError::Missing { host: host.clone() };
        match (challenge, credential) {
            (_, Some(Credential::RegistryToken(token))) => Ok((bearer(&token).ok_or_else(missing)?, None)),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                Ok((basic(&username, &password), None))
            }
            (Challenge::Basic, _) => Err(missing()),
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let realm = check_realm(realm, route.plain_http)?;
                let own =
                    format!("repository:{}:{}", key.repository, if key.push { "pull,push" } else { "pull" });
                let extra = key.mount_from.as_ref().map(|from| format!("repository:{from}:pull"));
                let scopes = scopes(scope.as_deref(), &own, extra.as_deref());
                let (token, life) = ask(route, realm, service.as_deref(), &scopes, credential).await?;
                Ok((bearer(&token).ok_or_else(missing)?, Some(life)))
            }
        }
    }
}

/// The realm may be on any host, but is asked over TLS unless the registry itself does without.
pub(crate) fn check_realm(realm: &str, plain_http: bool) -> Result<Url, TokenError> {
    let refused = || TokenError::RealmRefused { realm: clean(realm) };
    let url = Url::parse(realm).map_err(|_| refused())?;
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && plain_http);
    if !scheme || !url.username().is_empty() || url.password().is_some() || url.host_str().is_none() {
        return Err(refused());
    }
    Ok(url)
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.expose()));
    HeaderValue::try_from(format!("Basic {pair}")).expect("base64 is a header value")
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()
}

/// Asks the token service (distribution token specification; OAuth2 for identity tokens). Follows no redirects.
async fn ask(
    route: &Route<'_>,
    mut realm: Url,
    service: Option<&str>,
    scopes: &[String],
    credential: Option<Credential>,
) -> Result<(Secret, Duration), TokenError> {
    let host = realm.host_str().unwrap_or_default().to_owned();
    let request = match credential {
        Some(Credential::IdentityToken(token)) => {
            let mut form = Url::parse("form:").expect("a constant URL");
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("client_id", "towline")
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", token.expose());
            let body = form.query().unwrap_or_default().to_owned();
            route.http.post(realm).header("content-type", "application/x-www-form-urlencoded").body(body)
        }
        other => {
            {
                let mut query = realm.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                scopes.iter().for_each(|scope| {
                    query.append_pair("scope", scope);
                });
            }
            let request = route.http.get(realm);
            match other {
                Some(Credential::Basic { username, password }) => {
                    let mut header = basic(&username, &password);
                    header.set_sensitive(true);
                    request.header("authorization", header)
                }
                _ => request,
            }
        }
    };
    let exchange = async {
        let unreachable = |source: reqwest::Error| TokenError::Unreachable {
            host: host.clone(),
            source: source.without_url(),
        };
        let response = request.header(ACCEPT, "application/json").send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(unreachable)?);
            if body.len() > MAX_ANSWER_LEN {
                return Err(TokenError::Unreadable { host: host.clone() });
            }
        }
        if !status.is_success() {
            return Err(TokenError::Refused { host: host.clone(), status, reason: Reason::parse(&body) });
        }
        parse_token(&body).ok_or_else(|| TokenError::Unreadable { host: host.clone() })
    };
    match tokio::time::timeout(route.timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(TokenError::Stalled { host: host.clone(), after: route.timeout }),
    }
}

pub(crate) fn parse_token(body: &[u8]) -> Option<(Secret, Duration)> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = set(answer.token).or(set(answer.access_token))?;
    let life = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let life = life.filter(|life| !life.is_zero()).unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
    Some((Secret::new(token), life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_needs_tls_unless_the_registry_has_none() {
        assert!(check_realm("https://auth.example.com/token", false).is_ok());
        assert!(check_realm("http://localhost:5001/token", true).is_ok());
        for (realm, plain) in [
            ("http://auth.example.com/token", false),
            ("ftp://auth.example.com/token", true),
            ("https://me:pw@auth.example.com/", false),
            ("/token", false),
            ("", false),
        ] {
            assert!(check_realm(realm, plain).is_err(), "{realm}");
        }
    }

    #[test]
    fn token_answers() {
        let read = |text: &str| {
            parse_token(text.as_bytes()).map(|(t, life)| (t.expose().to_owned(), life.as_secs()))
        };
        assert_eq!(read(r#"{"token":"t","expires_in":300}"#), Some(("t".into(), 300)));
        assert_eq!(read(r#"{"token":"","access_token":"a"}"#), Some(("a".into(), 60)));
        assert_eq!(read(r#"{"token":"t","expires_in":-5}"#), Some(("t".into(), 60)));
        assert_eq!(read(r#"{"token":"t","expires_in":1e300}"#), Some(("t".into(), 60)));
        assert_eq!(read(r#"{"token":"t","expires_in":999999999}"#), Some(("t".into(), 24 * 3600)));
        assert_eq!(read("{}"), None);
        assert_eq!(read("<html>"), None);
    }
}
