//! Credentials: what they are, who is asked for them, and those kept in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use futures_util::future::BoxFuture;

use crate::repository::{DOCKER_HUB, is_docker_hub};

/// A text that never shows itself: not in `Debug`, not in errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Proof of who we are, for one registry host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User name and password (or an access token in its place).
    Basic {
        /// Name of the user; not a secret.
        username: String,
        /// Password.
        password: Secret,
    },
    /// A long-lived token that is traded for short ones at the registry's token service.
    IdentityToken(Secret),
    /// A token to be sent to the registry as it is.
    RegistryToken(Secret),
}

/// Why credentials could not be read. Never holds any part of them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The configuration file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration file is not what it should be.
    #[error("{path}: {detail}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong, without any value from the file.
        detail: String,
    },
    /// A credential helper could not be run.
    #[error("run {helper}")]
    Helper {
        /// Name of the program.
        helper: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A credential helper did not give what it should.
    #[error("{helper} {what}")]
    HelperAnswer {
        /// Name of the program.
        helper: String,
        /// What it did.
        what: String,
    },
    /// Another source of credentials failed.
    #[error("{0}")]
    Other(String),
}

/// Where credentials come from. Asked whenever a token is needed, so answers may change over time.
pub trait Credentials: Send + Sync {
    /// Credentials for `repository` (a path) on `host` (`docker.io` for Docker Hub, else `host[:port]`), or `None`
    /// for anonymous access.
    fn for_host<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialError>>;
}

/// No credentials for anybody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn for_host<'a>(
        &'a self,
        _host: &'a str,
        _repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialError>> {
        Box::pin(async { Ok(None) })
    }
}

/// The most entries [`MemoryCredentials`] keeps: one per repository that pods of one node pull from, with room.
pub const MAX_MEMORY_CREDENTIALS: usize = 4096;

/// Credentials handed over at run time, per host and repository prefix. Nothing is ever written to disk.
#[derive(Default)]
pub struct MemoryCredentials {
    entries: RwLock<BTreeMap<(String, String), Credential>>,
}

impl MemoryCredentials {
    /// Holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the credential for `prefix` and all repositories below it; an empty prefix is the whole host.
    ///
    /// Returns `false`, and keeps what was there, when [`MAX_MEMORY_CREDENTIALS`] others are held already.
    pub fn set(&self, host: &str, prefix: &str, credential: Credential) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let key = (canonical_host(host), prefix.trim_matches('/').to_owned());
        if entries.len() >= MAX_MEMORY_CREDENTIALS && !entries.contains_key(&key) {
            return false;
        }
        entries.insert(key, credential);
        true
    }

    /// Forgets what [`Self::set`] set for exactly this host and prefix; `false` when there was nothing.
    pub fn remove(&self, host: &str, prefix: &str) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&(canonical_host(host), prefix.trim_matches('/').to_owned())).is_some()
    }

    /// The credential with the longest prefix of `repository`.
    #[must_use]
    pub fn get(&self, host: &str, repository: &str) -> Option<Credential> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let host = canonical_host(host);
        prefixes(repository).find_map(|prefix| entries.get(&(host.clone(), prefix.to_owned())).cloned())
    }
}

impl Credentials for MemoryCredentials {
    fn for_host<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialError>> {
        Box::pin(async move { Ok(self.get(host, repository)) })
    }
}

impl fmt::Debug for MemoryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(entries.keys().map(|(host, prefix)| format!("{host}/{prefix}"))).finish()
    }
}

/// One spelling per host: lower case, and `docker.io` for every name of Docker Hub.
pub(crate) fn canonical_host(host: &str) -> String {
    if is_docker_hub(host) { DOCKER_HUB.to_owned() } else { host.to_ascii_lowercase() }
}

/// `repository` and its parents, longest first, ending with the empty prefix (the whole host).
pub(crate) fn prefixes(repository: &str) -> impl Iterator<Item = &str> {
    let longest = (!repository.is_empty()).then_some(repository);
    let parents = std::iter::successors(longest, |path| path.rsplit_once('/').map(|(parent, _)| parent));
    parents.chain(std::iter::once(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(name: &str) -> Credential {
        Credential::Basic { username: name.into(), password: Secret::new("hunter2") }
    }

    #[test]
    fn the_longest_prefix_wins_on_whole_components() {
        let memory = MemoryCredentials::new();
        assert!(memory.set("Example.com", "", user("host")));
        assert!(memory.set("example.com", "/team/", user("team")));
        assert!(memory.set("example.com", "team/app", user("app")));
        for (repository, expected) in [
            ("other/x", "host"),
            ("team", "team"),
            ("team/x", "team"),
            ("teams/x", "host"),
            ("team/app/y", "app"),
        ] {
            assert_eq!(memory.get("example.com", repository), Some(user(expected)), "{repository}");
        }
        assert!(memory.remove("example.com", "team"));
        assert!(!memory.remove("example.com", "team"));
        assert_eq!(memory.get("example.com", "team/x"), Some(user("host")));
        assert_eq!(memory.get("example.org", "team/x"), None);
    }

    #[test]
    fn docker_hub_is_one_host() {
        let memory = MemoryCredentials::new();
        memory.set("index.docker.io", "", user("hub"));
        assert_eq!(memory.get("docker.io", "library/ubuntu"), Some(user("hub")));
    }

    #[test]
    fn the_store_is_bounded() {
        let memory = MemoryCredentials::new();
        for n in 0..MAX_MEMORY_CREDENTIALS {
            assert!(memory.set("example.com", &n.to_string(), user("a")));
        }
        assert!(!memory.set("example.com", "one-more", user("b")));
        assert!(memory.set("example.com", "0", user("b")));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let memory = MemoryCredentials::new();
        memory.set("example.com", "a", user("me"));
        let shown =
            format!("{memory:?} {:?} {:?}", user("me"), Credential::IdentityToken(Secret::new("hunter2")));
        assert!(shown.contains("example.com/a") && !shown.contains("hunter2"), "{shown}");
    }

    proptest! {
        #[test]
        fn prefix_lookup_agrees_with_a_scan(
            set in prop::collection::vec("[ab](/[ab]){0,3}", 0..6), asked in "[ab](/[ab]){0,4}",
        ) {
            let memory = MemoryCredentials::new();
            set.iter().for_each(|prefix| assert!(memory.set("h", prefix, user(prefix))));
            let covers = |prefix: &&String| asked == **prefix || asked.starts_with(&format!("{prefix}/"));
            let expected = set.iter().filter(covers).max_by_key(|prefix| prefix.len()).map(|prefix| user(prefix));
            prop_assert_eq!(memory.get("h", &asked), expected);
        }
    }
}
