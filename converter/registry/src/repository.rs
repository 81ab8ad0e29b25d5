//! Where an image lives: a registry host and a path in it, checked once so that both may stand in a URL.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;
use oci_spec::image::{Digest, DigestAlgorithm};

/// The most characters a repository path may have (distribution-spec, "Pulling manifests": clients limit to 255).
const MAX_PATH_LEN: usize = 255;

/// The most characters a tag may have (distribution-spec, "Pulling manifests").
const MAX_TAG_LEN: usize = 128;

/// The most characters a host with its port may have: a DNS name has at most 253, a port and its colon 6.
const MAX_HOST_LEN: usize = 259;

/// A name that cannot be a repository, a tag or a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {expected}")]
pub struct InvalidName {
    text: String,
    expected: &'static str,
}

impl InvalidName {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(128).collect(), expected }
    }
}

/// A registry host and a repository in it, such as `registry.example.com:5000` and `models/qwen3-8b`.
///
/// Both parts are checked when it is made: neither can change the shape of a URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

impl Repository {
    /// `host` is `name[:port]`, `a.b.c.d[:port]` or `[v6][:port]`; `path` is lower-case components joined by `/`.
    ///
    /// # Errors
    /// [`InvalidName`] for anything else.
    pub fn new(host: &str, path: &str) -> Result<Self, InvalidName> {
        if !is_host(host) {
            return Err(InvalidName::new(host, "a registry host"));
        }
        if !is_path(path) {
            return Err(InvalidName::new(path, "a repository path"));
        }
        let host = if is_docker_hub(host) { DOCKER_HUB.to_owned() } else { host.to_ascii_lowercase() };
        Ok(Self { host, path: path.to_owned() })
    }

    /// Host and port as in a reference, lower case; every name of Docker Hub becomes `docker.io`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path below the host, without slashes at its ends.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl TryFrom<&Reference> for Repository {
    type Error = InvalidName;

    fn try_from(reference: &Reference) -> Result<Self, InvalidName> {
        Self::new(reference.registry(), reference.repository())
    }
}

impl FromStr for Repository {
    type Err = InvalidName;

    /// Reads `host/path`. There is no default host.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (host, path) = text
            .split_once('/')
            .ok_or_else(|| InvalidName::new(text, "a registry host and a repository path"))?;
        Self::new(host, path)
    }
}

/// The name under which references and credentials know Docker Hub.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// Whether `host` is one of the names of Docker Hub.
pub(crate) fn is_docker_hub(host: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"]
        .iter()
        .any(|name| host.eq_ignore_ascii_case(name))
}

fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => {
            let port = port.strip_prefix(':').or((port.is_empty()).then_some("0"));
            return v6.parse::<std::net::Ipv6Addr>().is_ok() && port.is_some_and(is_port);
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= MAX_HOST_LEN && name.split('.').all(label) && port.is_none_or(is_port) && means_itself(name)
}

/// Whether an address has this host in these letters. Labels alone do not make it so: in an address `127.1` and `0x7f.1`
/// are `127.0.0.1`, `1.2.3.4.5` is nothing, and `xn--` begins a name in another script.
fn means_itself(name: &str) -> bool {
    reqwest::Url::parse(&format!("https://{name}"))
        .is_ok_and(|url| url.host_str().is_some_and(|host| host.eq_ignore_ascii_case(name)))
}

fn is_path(path: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |component: &str| {
        let bytes = component.as_bytes();
        bytes.first().is_some_and(|b| is_word(*b))
            && bytes.last().is_some_and(|b| is_word(*b))
            && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'_' | b'-'))
            && !component.contains("..")
    };
    path.len() <= MAX_PATH_LEN && path.split('/').all(component)
}

/// What names a manifest inside a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ManifestName {
    Tag(String),
    Digest(Digest),
}

impl ManifestName {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') {
            let digest = text.parse().map_err(|_| InvalidName::new(text, "a tag or a digest"))?;
            return sha256(&digest).map(|_| Self::Digest(digest));
        }
        if is_tag(text) {
            Ok(Self::Tag(text.to_owned()))
        } else {
            Err(InvalidName::new(text, "a tag or a digest"))
        }
    }
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Whether `text` may be a tag.
pub(crate) fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG_LEN
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

/// The 32 bytes of a SHA-256 digest, the only algorithm we verify (and the only one registries use in practice).
pub(crate) fn sha256(digest: &Digest) -> Result<[u8; 32], InvalidName> {
    let error = || InvalidName::new(digest.as_ref(), "a SHA-256 digest");
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        return Err(error());
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest.digest(), &mut bytes).map_err(|_| error())?;
    Ok(bytes)
}

/// The SHA-256 digest with these 32 bytes.
pub(crate) fn digest_of(hash: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(hash)).parse().expect("64 lower-case hex digits are a SHA-256 digest")
}

/// SHA-256 of `bytes` as a digest.
pub(crate) fn digest_bytes(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    digest_of(&sha2::Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_and_paths_are_checked() {
        for (host, path) in [
            ("registry.example.com", "models/qwen3-8b"),
            ("localhost:5000", "a"),
            ("127.0.0.1:5000", "a/b__c/d.e"),
            ("[::1]:5000", "a"),
            ("[::1]", "a--b"),
        ] {
            assert_eq!(Repository::new(host, path).unwrap().to_string(), format!("{host}/{path}"));
        }
        for (host, path) in [
            ("", "a"),
            ("user@host", "a"),
            ("host:99999", "a"),
            ("host:+1", "a"),
            ("host", ""),
            ("host", "/a"),
            ("host", "a//b"),
            ("host", "a/../b"),
            ("host", "A"),
            ("host", "a?x=y"),
            ("[::1", "a"),
            ("[::1]x", "a"),
            ("[::1]:+80", "a"),
            ("127.1", "a"),
            ("0x7f.1", "a"),
            ("1.2.3.4.5", "a"),
            ("host.256", "a"),
            ("xn--a", "a"),
        ] {
            assert!(Repository::new(host, path).is_err(), "{host} {path}");
        }
    }

    #[test]
    fn docker_hub_has_one_name() {
        let reference: Reference = "ubuntu".parse().unwrap();
        assert_eq!(Repository::try_from(&reference).unwrap().to_string(), "docker.io/library/ubuntu");
        assert_eq!(Repository::new("registry-1.docker.io", "a/b").unwrap().host(), "docker.io");
    }

    #[test]
    fn manifests_are_named_by_tag_or_sha256() {
        assert_eq!(ManifestName::parse("v1.0").unwrap(), ManifestName::Tag("v1.0".into()));
        let digest = digest_bytes(b"");
        assert_eq!(ManifestName::parse(digest.as_ref()).unwrap(), ManifestName::Digest(digest));
        let long = "a".repeat(MAX_TAG_LEN + 1);
        for bad in ["", ".x", "a/b", "a b", "sha256:12", "md5:00112233445566778899aabbccddeeff", &long] {
            assert!(ManifestName::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_repository_keeps_a_url_in_shape(host in "[\\PC]{0,12}", path in "[a-z0-9/._?#%@:-]{0,12}") {
            if let Ok(repository) = Repository::new(&host, &path) {
                let url = reqwest::Url::parse(&format!("https://{repository}")).unwrap();
                prop_assert_eq!(url.path(), format!("/{path}"));
                prop_assert!(url.username().is_empty() && url.query().is_none() && url.fragment().is_none());
            }
        }

        #[test]
        fn every_reference_is_a_repository(path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", port in 1u16..) {
            let reference: Reference = format!("example.com:{port}/{path}:v1").parse().unwrap();
            let repository = Repository::try_from(&reference).unwrap();
            prop_assert_eq!(repository.to_string().parse::<Repository>(), Ok(repository));
        }
    }
}
