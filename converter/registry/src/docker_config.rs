//! The Docker client's configuration file as a source of credentials.
//!
//! Order for one repository: a credential helper for its host (`credHelpers`), an entry of `auths` that holds
//! something (longest path first), the general helper (`credsStore`). The file is read again when it has changed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::credentials::{Credential, CredentialError, Credentials, Secret, canonical_host, prefixes};
use crate::repository::DOCKER_HUB;

/// The most bytes of a configuration file: one entry has under 4 KiB, and nobody has a thousand of them.
const MAX_CONFIG_LEN: u64 = 4 << 20;

/// The most bytes a helper may print: the largest secrets in use (cloud access tokens) have under 8 KiB.
const MAX_HELPER_OUTPUT_LEN: u64 = 64 << 10;

/// How long a helper may take: it may ask a cloud's token service, which itself retries for some seconds.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What Docker calls its hub when it talks to a helper.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// What a helper says, with a failing exit status, when it simply has nothing.
const HELPER_HAS_NONE: &str = "credentials not found";

/// Base64 with or without padding: both are found in the wild.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials from `config.json` and the helpers it names.
pub struct DockerConfig {
    path: Option<PathBuf>,
    cached: Mutex<Option<(Stamp, Arc<Config>)>>,
}

/// What tells one state of the file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl DockerConfig {
    /// Reads the file at `path`, whenever it exists.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), cached: Mutex::new(None) }
    }

    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`, from the given values of `DOCKER_CONFIG` and `HOME`.
    ///
    /// With neither there are no credentials.
    #[must_use]
    pub fn from_env(docker_config: Option<OsString>, home: Option<OsString>) -> Self {
        let set = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set(docker_config).or_else(|| set(home).map(|home| home.join(".docker")));
        Self { path: dir.map(|dir| dir.join("config.json")), cached: Mutex::new(None) }
    }

    async fn config(&self) -> Result<Option<Arc<Config>>, CredentialError> {
        use std::os::unix::fs::MetadataExt;
        let Some(path) = &self.path else { return Ok(None) };
        let failed = |source| CredentialError::Read { path: path.display().to_string(), source };
        let mut file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let meta = file.metadata().await.map_err(failed)?;
        let stamp = Stamp { modified: meta.modified().ok(), len: meta.len(), inode: meta.ino() };
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((known, config)) = cached
            && known == stamp
        {
            return Ok(Some(config));
        }
        let mut text = Vec::new();
        (&mut file).take(MAX_CONFIG_LEN + 1).read_to_end(&mut text).await.map_err(failed)?;
        let config = Arc::new(Config::parse(path, &text)?);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, config.clone()));
        Ok(Some(config))
    }
}

impl Credentials for DockerConfig {
    fn for_host<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialError>> {
        Box::pin(async move {
            let Some(config) = self.config().await? else { return Ok(None) };
            match config.lookup(host, repository) {
                Lookup::Known(credential) => Ok(credential),
                Lookup::Helper { name, server } => run_helper(&name, &server).await,
            }
        })
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The parsed file, keys in one spelling. No `Debug`: it holds secrets.
pub(crate) struct Config {
    /// By `host[/path]`.
    auths: BTreeMap<String, Credential>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// Where the answer is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Known(Option<Credential>),
    Helper { name: String, server: String },
}

impl Config {
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, CredentialError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct File {
            #[serde(default)]
            auths: Option<BTreeMap<String, Entry>>,
            #[serde(default)]
            cred_helpers: Option<BTreeMap<String, String>>,
            #[serde(default)]
            creds_store: Option<String>,
        }
        let malformed =
            |detail: String| CredentialError::Malformed { path: path.display().to_string(), detail };
        if text.len() as u64 > MAX_CONFIG_LEN {
            return Err(malformed(format!("longer than {MAX_CONFIG_LEN} bytes")));
        }
        // The parser's own message may quote a value, so only its position is told.
        let file: File = serde_json::from_slice(text).map_err(|e| {
            malformed(format!("not a Docker configuration (line {}, column {})", e.line(), e.column()))
        })?;
        let mut auths = BTreeMap::new();
        for (key, entry) in file.auths.unwrap_or_default() {
            let key = canonical_key(&key);
            let credential = entry.credential().map_err(|what| malformed(format!("entry {key:?} {what}")))?;
            if let Some(credential) = credential {
                auths.insert(key, credential);
            }
        }
        let helpers = file.cred_helpers.unwrap_or_default();
        let helpers = helpers.into_iter().map(|(key, name)| (canonical_key(&key), name)).collect();
        Ok(Self { auths, helpers, store: file.creds_store.filter(|name| !name.is_empty()) })
    }

    pub(crate) fn lookup(&self, host: &str, repository: &str) -> Lookup {
        let host = canonical_host(host);
        let server = if host == DOCKER_HUB { DOCKER_HUB_SERVER.to_owned() } else { host.clone() };
        let keys: Vec<String> = prefixes(repository)
            .map(|prefix| if prefix.is_empty() { host.clone() } else { format!("{host}/{prefix}") })
            .collect();
        if let Some(name) = keys.iter().find_map(|key| self.helpers.get(key)) {
            return Lookup::Helper { name: name.clone(), server };
        }
        if let Some(credential) = keys.iter().find_map(|key| self.auths.get(key)) {
            return Lookup::Known(Some(credential.clone()));
        }
        match &self.store {
            Some(name) => Lookup::Helper { name: name.clone(), server },
            None => Lookup::Known(None),
        }
    }
}

/// One entry of `auths`.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, alias = "identityToken")]
    identitytoken: Option<String>,
    #[serde(default, alias = "registryToken")]
    registrytoken: Option<String>,
}

impl Entry {
    fn credential(self) -> Result<Option<Credential>, &'static str> {
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = set(self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = set(self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(Secret::new(token))));
        }
        if let (Some(username), Some(password)) = (set(self.username), set(self.password)) {
            return Ok(Some(Credential::Basic { username, password: Secret::new(password) }));
        }
        let Some(auth) = set(self.auth) else { return Ok(None) };
        let plain = BASE64.decode(auth.trim()).map_err(|_| "has an auth that is not base64")?;
        let plain = String::from_utf8(plain).map_err(|_| "has an auth that is not text")?;
        let (username, password) = plain.split_once(':').ok_or("has an auth without a colon")?;
        let password = Secret::new(password.trim_end_matches('\0'));
        Ok(Some(Credential::Basic { username: username.to_owned(), password }))
    }
}

/// `host[/path]` of a key of `auths`, which may be a URL with an API version at its end.
fn canonical_key(key: &str) -> String {
    let key = key.trim().trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = ["/v1", "/v2"].iter().find_map(|version| key.strip_suffix(version)).unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical_host(host)),
        None => canonical_host(key),
    }
}

/// Runs `docker-credential-NAME get`.
async fn run_helper(name: &str, server: &str) -> Result<Option<Credential>, CredentialError> {
    let helper = format!("docker-credential-{name}");
    let answer = |what: &str| CredentialError::HelperAnswer { helper: helper.clone(), what: what.to_owned() };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(answer("is not the name of a helper"));
    }
    run_program(Path::new(&helper), server, HELPER_TIMEOUT).await
}

async fn run_program(
    program: &Path,
    server: &str,
    timeout: Duration,
) -> Result<Option<Credential>, CredentialError> {
    let helper = program.display().to_string();
    let answer = |what: &str| CredentialError::HelperAnswer { helper: helper.clone(), what: what.to_owned() };
    let failed = |source| CredentialError::Helper { helper: helper.clone(), source };
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    let talk = async {
        // A helper that does not read its input may have gone already; its answer counts.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        drop(stdin);
        let mut output = Vec::new();
        stdout.take(MAX_HELPER_OUTPUT_LEN + 1).read_to_end(&mut output).await.map_err(failed)?;
        if output.len() as u64 > MAX_HELPER_OUTPUT_LEN {
            return Err(answer("printed too much"));
        }
        Ok((child.wait().await.map_err(failed)?, output))
    };
    let (status, output) = tokio::time::timeout(timeout, talk)
        .await
        .map_err(|_| answer(&format!("did not answer within {} s", timeout.as_secs())))??;
    if !status.success() {
        let has_none = String::from_utf8_lossy(&output).contains(HELPER_HAS_NONE);
        return if has_none { Ok(None) } else { Err(answer(&format!("ended with {status}"))) };
    }
    parse_helper(&output).ok_or_else(|| answer("printed no credentials"))
}

/// `None` when the output is malformed, `Some(None)` when the helper has an empty answer.
pub(crate) fn parse_helper(output: &[u8]) -> Option<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let Answer { username, secret } = serde_json::from_slice(output).ok()?;
    Some(match (username.as_str(), secret.as_str()) {
        (_, "") => None,
        ("<token>", _) => Some(Credential::IdentityToken(Secret::new(secret))),
        _ => Some(Credential::Basic { username, password: Secret::new(secret) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, CredentialError> {
        Config::parse(Path::new("config.json"), text.as_bytes())
    }

    fn basic(username: &str, password: &str) -> Lookup {
        let password = Secret::new(password);
        Lookup::Known(Some(Credential::Basic { username: username.into(), password }))
    }

    #[test]
    fn entries_of_every_kind_are_found() {
        let config = parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
                "example.com": {"username": "host", "password": "p"},
                "example.com/team": {"auth": "dGVhbTpwOnE"},
                "https://tokens.example.com/v2/": {"auth": "MDA6", "identitytoken": "it"},
                "empty.example.com": {}
            }, "HttpHeaders": {"x": "y"}}"#,
        )
        .unwrap();
        assert_eq!(config.lookup("docker.io", "library/ubuntu"), basic("hub", "secret"));
        assert_eq!(config.lookup("example.com", "other/x"), basic("host", "p"));
        assert_eq!(config.lookup("EXAMPLE.com", "team/x"), basic("team", "p:q"));
        assert_eq!(config.lookup("example.com", "teams/x"), basic("host", "p"));
        let token = Credential::IdentityToken(Secret::new("it"));
        assert_eq!(config.lookup("tokens.example.com", "x"), Lookup::Known(Some(token)));
        assert_eq!(config.lookup("empty.example.com", "x"), Lookup::Known(None));
        assert_eq!(config.lookup("unknown.example.com", "x"), Lookup::Known(None));
    }

    #[test]
    fn helpers_come_in_order() {
        let config = parse(
            r#"{"auths": {"a.com": {}, "b.com": {"auth": "dTpw"}, "c.com": {"auth": "dTpw"}},
                "credHelpers": {"c.com": "cloud"}, "credsStore": "desktop"}"#,
        )
        .unwrap();
        let helper = |name: &str, server: &str| Lookup::Helper { name: name.into(), server: server.into() };
        assert_eq!(config.lookup("a.com", "x"), helper("desktop", "a.com"));
        assert_eq!(config.lookup("docker.io", "x"), helper("desktop", DOCKER_HUB_SERVER));
        assert_eq!(config.lookup("b.com", "x"), basic("u", "p"));
        assert_eq!(config.lookup("c.com", "x"), helper("cloud", "c.com"));
    }

    #[test]
    fn a_bad_file_is_told_without_its_contents() {
        for bad in [r#"{"auths": {"a": {"auth": "hunter2!"}}}"#, r#"{"auths": "hunter2"}"#, "hunter2"] {
            let Err(error) = parse(bad) else { panic!("{bad} was taken") };
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn helper_answers() {
        let basic = Credential::Basic { username: "u".into(), password: Secret::new("s") };
        assert_eq!(parse_helper(br#"{"ServerURL":"x","Username":"u","Secret":"s"}"#), Some(Some(basic)));
        let token = Credential::IdentityToken(Secret::new("s"));
        assert_eq!(parse_helper(br#"{"Username":"<token>","Secret":"s"}"#), Some(Some(token)));
        assert_eq!(parse_helper(br#"{"Username":"","Secret":""}"#), Some(None));
        assert_eq!(parse_helper(b"no"), None);
    }

    fn script(dir: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn run_script(text: &str, timeout: Duration) -> Result<Option<Credential>, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        run_program(&script(dir.path(), text), "example.com", timeout).await
    }

    #[tokio::test]
    async fn helpers_are_run_with_bounds() {
        let limit = Duration::from_secs(20);
        let given =
            run_script(r#"read s; echo "{\"Username\":\"$1\",\"Secret\":\"$s\"}""#, limit).await.unwrap();
        let password = Secret::new("example.com");
        assert_eq!(given, Some(Credential::Basic { username: "get".into(), password }));
        let none = run_script("echo 'credentials not found in native keychain'; exit 1", limit).await;
        assert_eq!(none.unwrap(), None);
        for bad in ["echo hunter2; exit 1", "echo hunter2", "exec head -c 100000 /dev/zero"] {
            let error = run_script(bad, limit).await.unwrap_err();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let error = run_script("exec sleep 60", Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
    }

    #[tokio::test]
    async fn the_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let config = DockerConfig::from_env(Some(dir.path().into()), None);
        assert_eq!(config.for_host("h", "x").await.unwrap(), None);
        for password in ["one", "other"] {
            let text = format!(r#"{{"auths":{{"h":{{"username":"u","password":"{password}"}}}}}}"#);
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            let expected = Credential::Basic { username: "u".into(), password: Secret::new(password) };
            assert_eq!(config.for_host("h", "x").await.unwrap(), Some(expected));
        }
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        assert_eq!(config.for_host("h", "x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_helper_name_cannot_be_a_path() {
        for name in ["../evil", "a/b", "", "a b"] {
            assert!(
                matches!(run_helper(name, "x").await, Err(CredentialError::HelperAnswer { .. })),
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_file_is_survived(text in "\\PC{0,80}|\\{\"auths\":\\{\"[a-z/:.]{0,9}\":\\{\"auth\":\"[A-Za-z0-9=]{0,9}\"\\}\\}\\}") {
            if let Ok(config) = parse(&text) {
                config.lookup("example.com", "a/b");
            }
        }

        #[test]
        fn any_user_and_password_come_back(username in "[^:\\x00]{1,12}", password in "[^\\x00]{1,12}") {
            let auth = BASE64.encode(format!("{username}:{password}"));
            let config = parse(&serde_json::json!({"auths": {"h": {"auth": auth}}}).to_string()).unwrap();
            prop_assert_eq!(config.lookup("h", "x"), basic(&username, &password));
        }
    }
}
