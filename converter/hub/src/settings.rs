//! Where the hubs are and who we are there, taken from the variables and files that the hubs' own tools use.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::Url;

/// The most bytes of a token file; tokens have a few dozen.
const MAX_TOKEN_FILE_LEN: u64 = 16 << 10;

const HF_DEFAULT: &str = "https://huggingface.co";
const MODELSCOPE_DEFAULT: &str = "https://www.modelscope.cn";

/// A secret that never shows: not in `Debug`, not in `Display`, which it has not.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself, for a header.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// A token of printable ASCII, as fits a header and a cookie; `None` if there is nothing but white space.
    fn read(text: &str, from: &str) -> Result<Option<Self>, SettingsError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b';' | b',' | b'"' | b'\\')) {
            return Err(SettingsError::Token { from: from.to_owned() });
        }
        Ok(Some(Self(text.to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An endpoint that is no http or https address.
    #[error("{variable} is not an http or https address without user, query and fragment")]
    Endpoint {
        /// The variable that holds it.
        variable: &'static str,
    },
    /// A token that cannot be sent.
    #[error("the token in {from} holds characters no token has")]
    Token {
        /// The variable or file that holds it.
        from: String,
    },
    /// A token file that is there and cannot be read.
    #[error("read token file {path:?}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Endpoints and tokens of both hubs.
#[derive(Clone, Debug)]
pub struct HubSettings {
    pub(crate) huggingface: Endpoint,
    pub(crate) modelscope: Endpoint,
}

/// A hub's address, without trailing slash, and the token for it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) url: Url,
    pub(crate) token: Option<Token>,
}

impl HubSettings {
    /// Reads what the hubs' own tools read, through `get` (in a program: `|name| std::env::var(name).ok()`); empty
    /// variables count as unset.
    ///
    /// Hugging Face: `HF_ENDPOINT`; the token from `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else the file
    /// `HF_TOKEN_PATH`, by default `token` in `HF_HOME`, by default `huggingface` in `XDG_CACHE_HOME`, by default
    /// `~/.cache`; none of these if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set. ModelScope: `MODELSCOPE_ENDPOINT`, else
    /// `MODELSCOPE_DOMAIN` (a bare host); the token from `MODELSCOPE_API_TOKEN`.
    ///
    /// # Errors
    /// [`SettingsError`]; its texts never hold a token. A token file that does not exist is no error.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let huggingface = Endpoint {
            url: endpoint("HF_ENDPOINT", get("HF_ENDPOINT").as_deref().unwrap_or(HF_DEFAULT))?,
            token: huggingface_token(&get)?,
        };
        let (variable, address) = match (get("MODELSCOPE_ENDPOINT"), get("MODELSCOPE_DOMAIN")) {
            (Some(address), _) => ("MODELSCOPE_ENDPOINT", address),
            (None, Some(domain)) => ("MODELSCOPE_DOMAIN", domain),
            (None, None) => ("MODELSCOPE_ENDPOINT", MODELSCOPE_DEFAULT.to_owned()),
        };
        // ModelScope's own tools put https before an address without a scheme.
        let address = if address.contains("://") { address } else { format!("https://{}", address.trim()) };
        let token = match get("MODELSCOPE_API_TOKEN") {
            Some(text) => Token::read(&text, "MODELSCOPE_API_TOKEN")?,
            None => None,
        };
        Ok(Self { huggingface, modelscope: Endpoint { url: endpoint(variable, &address)?, token } })
    }
}

fn endpoint(variable: &'static str, address: &str) -> Result<Url, SettingsError> {
    let fail = || SettingsError::Endpoint { variable };
    let url: Url = address.trim().trim_end_matches('/').parse().map_err(|_| fail())?;
    let plain = url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if !matches!(url.scheme(), "http" | "https") || !plain {
        return Err(fail());
    }
    Ok(url)
}

fn huggingface_token(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Token>, SettingsError> {
    let is_true = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
    if get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
        return Ok(None);
    }
    for variable in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = get(variable) {
            return Token::read(&text, variable);
        }
    }
    match token_path(get) {
        Some(path) => read_token_file(&path),
        None => Ok(None),
    }
}

fn token_path(get: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let home = get("HOME").map(PathBuf::from);
    let expand = |text: String| match (text.strip_prefix("~/"), &home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    };
    if let Some(path) = get("HF_TOKEN_PATH") {
        return Some(expand(path));
    }
    if let Some(path) = get("HF_HOME") {
        return Some(expand(path).join("token"));
    }
    let cache = match get("XDG_CACHE_HOME") {
        Some(path) => expand(path),
        None => home.as_ref()?.join(".cache"),
    };
    Some(cache.join("huggingface/token"))
}

fn read_token_file(path: &Path) -> Result<Option<Token>, SettingsError> {
    use std::io::Read;
    let fail = |source| SettingsError::TokenFile { path: path.to_owned(), source };
    let mut text = String::new();
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => {
            file.and_then(|file| file.take(MAX_TOKEN_FILE_LEN).read_to_string(&mut text)).map_err(fail)?
        }
    };
    Token::read(&text, &path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<HubSettings, SettingsError> {
        HubSettings::from_env(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[track_caller]
    fn check(variables: &[(&str, &str)], hf: (&str, Option<&str>), modelscope: (&str, Option<&str>)) {
        let found = settings(variables).expect("settings");
        let pair =
            |endpoint: &Endpoint| (endpoint.url.to_string(), endpoint.token.as_ref().map(|t| t.0.clone()));
        let want = |(url, token): (&str, Option<&str>)| (url.to_owned(), token.map(str::to_owned));
        assert_eq!((pair(&found.huggingface), pair(&found.modelscope)), (want(hf), want(modelscope)));
    }

    const HF: &str = "https://huggingface.co/";
    const MS: &str = "https://www.modelscope.cn/";

    #[test]
    fn variables_count_in_the_order_of_the_native_tools() {
        check(&[], (HF, None), (MS, None));
        check(&[("HF_TOKEN", " a\n"), ("HUGGING_FACE_HUB_TOKEN", "b")], (HF, Some("a")), (MS, None));
        check(&[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "b")], (HF, Some("b")), (MS, None));
        check(&[("HF_TOKEN", "a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], (HF, None), (MS, None));
        check(&[("HF_ENDPOINT", "http://mirror:8080/hf//")], ("http://mirror:8080/hf", None), (MS, None));
        check(&[("MODELSCOPE_DOMAIN", "modelscope.ai")], (HF, None), ("https://modelscope.ai/", None));
        let both =
            [("MODELSCOPE_ENDPOINT", "https://x"), ("MODELSCOPE_DOMAIN", "y"), ("MODELSCOPE_API_TOKEN", "m")];
        check(&both, (HF, None), ("https://x/", Some("m")));
    }

    #[test]
    fn token_files_are_found_where_the_native_tools_keep_them() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().to_str().expect("path");
        for (place, token) in [("own", "t-own"), ("hfhome/token", "t-home"), ("huggingface/token", "t-xdg")] {
            let path = dir.path().join(place);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            std::fs::write(path, token).expect("token");
        }
        let std_cache = dir.path().join(".cache/huggingface");
        std::fs::create_dir_all(&std_cache).expect("directory");
        std::fs::write(std_cache.join("token"), "t-std\n").expect("token");
        let hf_home = format!("{root}/hfhome");
        check(
            &[("HF_TOKEN_PATH", "~/own"), ("HOME", root), ("HF_HOME", &hf_home)],
            (HF, Some("t-own")),
            (MS, None),
        );
        check(
            &[("HF_HOME", &hf_home), ("HOME", root), ("XDG_CACHE_HOME", root)],
            (HF, Some("t-home")),
            (MS, None),
        );
        check(&[("XDG_CACHE_HOME", root), ("HOME", root)], (HF, Some("t-xdg")), (MS, None));
        check(&[("HOME", root)], (HF, Some("t-std")), (MS, None));
        check(&[("HF_HOME", root)], (HF, None), (MS, None));
        let error = settings(&[("HF_TOKEN_PATH", root)]).expect_err("a directory is no file");
        assert!(matches!(error, SettingsError::TokenFile { .. }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_telling_secrets() {
        for address in ["ftp://x", "huggingface.co", "https://u:secret@x", "https://x?secret=1", "https://"] {
            let error = settings(&[("HF_ENDPOINT", address)]).expect_err(address);
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let error = settings(&[("HF_TOKEN", "secret\u{e9}")]).expect_err("no such token");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        let found =
            settings(&[("HF_TOKEN", "hf_secret"), ("MODELSCOPE_API_TOKEN", "ms-secret")]).expect("settings");
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
    }
}
