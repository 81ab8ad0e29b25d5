//! containerd's `hosts.toml`: which servers stand for a registry, in which order, and how they are trusted.
//!
//! Reads what decides where a request goes and how it is secured (`server`, `host`, `capabilities`, `ca`, `client`,
//! `header`, `override_path`). Other keys are left alone, as the file is containerd's. `skip_verify` is refused: an
//! image may be checked by digest, but credentials would go to whoever answers.

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use crate::error::RegistryError;

/// The most bytes of a `hosts.toml`.
pub(crate) const MAX_HOSTS_LEN: u64 = 256 << 10;

/// The most mirrors of one registry: each may cost a connect timeout before the next is asked.
const MAX_MIRRORS: usize = 16;

/// One server that may stand for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostEntry {
    /// `scheme://host[:port][/path]` without a slash at its end.
    pub(crate) url: String,
    pub(crate) can: Capabilities,
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key files for mutual TLS; the key may be in the certificate's file.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) headers: HeaderMap,
    /// The URL's path already is the API root; `/v2` is not added.
    pub(crate) override_path: bool,
}

/// What a server may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Blobs, and manifests by digest.
    pub(crate) pull: bool,
    /// Manifests by tag.
    pub(crate) resolve: bool,
    /// Writing.
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, push: true };
}

impl HostEntry {
    pub(crate) fn plain(url: String) -> Self {
        let headers = HeaderMap::new();
        Self {
            url,
            can: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            headers,
            override_path: false,
        }
    }
}

/// The servers for one registry, to be asked in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostsFile {
    pub(crate) mirrors: Vec<HostEntry>,
    /// The registry itself; `None` when the file does not say, which means the host by its own name.
    pub(crate) server: Option<HostEntry>,
}

/// Where the file for `host` may be, most specific first, as containerd looks for it.
pub(crate) fn candidates(dir: &Path, host: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    // A colon cannot stand in a directory name everywhere, so containerd also takes `host_port_`.
    if let Some((name, port)) = host.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        names.push(format!("{name}_{port}_"));
    }
    names.extend([host.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| dir.join(name).join("hosts.toml")).collect()
}

impl HostsFile {
    /// Parses the text of the file at `path`; relative `ca` and `client` files are beside it.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, RegistryError> {
        let error = |detail: String| RegistryError::Config { path: path.display().to_string(), detail };
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| error(e.message().to_owned()))?;
        let mirrors = match table.remove("host") {
            None => Table::new(),
            Some(Value::Table(hosts)) => hosts,
            Some(_) => return Err(error("host is not a table".into())),
        };
        if mirrors.len() > MAX_MIRRORS {
            return Err(error(format!("more than {MAX_MIRRORS} hosts")));
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mirrors = mirrors
            .into_iter()
            .map(|(url, value)| match value {
                Value::Table(entry) => read_entry(dir, &url, &entry).map_err(&error),
                _ => Err(error(format!("host {url:?} is not a table"))),
            })
            .collect::<Result<_, _>>()?;
        let server = match table.get("server") {
            None => {
                refuse_skip_verify("server", &table).map_err(&error)?;
                None
            }
            Some(Value::String(url)) => Some(read_entry(dir, url, &table).map_err(&error)?),
            Some(_) => return Err(error("server is not a string".into())),
        };
        Ok(Self { mirrors, server })
    }
}

fn refuse_skip_verify(url: &str, entry: &Table) -> Result<(), String> {
    match entry.get("skip_verify") {
        None | Some(Value::Boolean(false)) => Ok(()),
        Some(_) => Err(format!(
            "skip_verify for {url:?} is refused; give the server's certificate authority with ca"
        )),
    }
}

fn read_entry(dir: &Path, url: &str, entry: &Table) -> Result<HostEntry, String> {
    refuse_skip_verify(url, entry)?;
    let can = match entry.get("capabilities") {
        None => Capabilities::ALL,
        Some(value) => {
            let words = strings(value).ok_or("capabilities is not a list of strings")?;
            let has = |word: &str| words.iter().any(|w| w == word);
            Capabilities { pull: has("pull"), resolve: has("resolve"), push: has("push") }
        }
    };
    let ca = match entry.get("ca") {
        None => Vec::new(),
        Some(value) => strings(value).ok_or("ca is not a string or a list of strings")?,
    };
    let client = match entry.get("client") {
        None => Vec::new(),
        Some(value) => {
            client_pairs(value).ok_or("client is not a file, a list of files or a list of pairs")?
        }
    };
    let override_path = match entry.get("override_path") {
        None => false,
        Some(Value::Boolean(set)) => *set,
        Some(_) => return Err("override_path is not a boolean".into()),
    };
    let mut headers = HeaderMap::new();
    if let Some(value) = entry.get("header") {
        let table = value.as_table().ok_or("header is not a table")?;
        for (name, value) in table {
            let name = HeaderName::try_from(name.as_str()).map_err(|_| "header has a bad name")?;
            for value in strings(value).ok_or("header has a value that is not a string")? {
                let mut value = HeaderValue::try_from(value).map_err(|_| "header has a bad value")?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
    }
    Ok(HostEntry {
        url: server_url(url)?,
        can,
        ca: ca.into_iter().map(|file| dir.join(file)).collect(),
        client: client
            .into_iter()
            .map(|(cert, key)| (dir.join(cert), key.map(|key| dir.join(key))))
            .collect(),
        headers,
        override_path,
    })
}

/// A URL without user, query and fragment; `https` unless it says otherwise.
fn server_url(text: &str) -> Result<String, String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let bad = || format!("{:?} is not the URL of a server", text.chars().take(128).collect::<String>());
    let url = reqwest::Url::parse(&with_scheme).map_err(|_| bad())?;
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let web = matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
    if !bare || !web || url.fragment().is_some() {
        return Err(bad());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `"pem"`, `["pem", …]` or `[["cert", "key"], …]`.
fn client_pairs(value: &Value) -> Option<Vec<(String, Option<String>)>> {
    let pair = |item: &Value| match item {
        Value::String(both) => Some((both.clone(), None)),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(cert), Value::String(key)] if key.is_empty() => Some((cert.clone(), None)),
            [Value::String(cert), Value::String(key)] => Some((cert.clone(), Some(key.clone()))),
            _ => None,
        },
        _ => None,
    };
    match value {
        Value::Array(items) => items.iter().map(pair).collect(),
        one => Some(vec![pair(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<HostsFile, String> {
        HostsFile::parse(Path::new("/c/example.com/hosts.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn hosts_keep_their_order() {
        let file = parse(
            r#"
            server = "https://registry-1.docker.io"
            capabilities = ["pull", "resolve"]
            [host."https://zebra.example.com"]
              capabilities = ["pull"]
              ca = "ca.pem"
            [host."http://10.0.0.1:5000/v2/proxy"]
              capabilities = ["pull", "resolve", "push"]
              ca = ["/a.pem", "b.pem"]
              client = [["c.pem", "c.key"], ["d.pem", ""]]
              override_path = true
              dial_timeout = "1s"
              [host."http://10.0.0.1:5000/v2/proxy".header]
                x-custom = ["a", "b"]
            [host."alpha.example.com"]
            "#,
        )
        .unwrap();
        let urls: Vec<_> = file.mirrors.iter().map(|m| m.url.as_str()).collect();
        assert_eq!(
            urls,
            ["https://zebra.example.com", "http://10.0.0.1:5000/v2/proxy", "https://alpha.example.com"]
        );
        assert_eq!(file.mirrors[0].can, Capabilities { pull: true, resolve: false, push: false });
        assert_eq!(file.mirrors[0].ca, [Path::new("/c/example.com/ca.pem")]);
        assert_eq!(file.mirrors[1].ca, [Path::new("/a.pem"), Path::new("/c/example.com/b.pem")]);
        let key = Some(PathBuf::from("/c/example.com/c.key"));
        assert_eq!(
            file.mirrors[1].client,
            [("/c/example.com/c.pem".into(), key), ("/c/example.com/d.pem".into(), None)]
        );
        assert!(file.mirrors[1].override_path);
        assert_eq!(file.mirrors[1].headers.get_all("x-custom").iter().count(), 2);
        assert_eq!(file.mirrors[2].can, Capabilities::ALL);
        assert_eq!(file.server.unwrap().can, Capabilities { pull: true, resolve: true, push: false });
    }

    #[test]
    fn an_unverified_server_is_refused() {
        for text in [
            "[host.'https://a']\nskip_verify = true",
            "server = 'https://a'\nskip_verify = true",
            "skip_verify = true",
        ] {
            assert!(parse(text).unwrap_err().contains("skip_verify"), "{text}");
        }
        assert!(parse("[host.'https://a']\nskip_verify = false").is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "server = 1",
            "host = 1",
            "[host]\na = 1",
            "server = 'ftp://a'",
            "server = 'https://user:pw@a'",
            "server = 'https://a?x'",
            "[host.'https://a']\ncapabilities = 1",
            "[host.'https://a']\nca = [1]",
            "[host.'https://a']\noverride_path = 'yes'",
            "[host.'https://a'.header]\n'b c' = 'x'",
            "=",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let many: String = (0..=MAX_MIRRORS).map(|n| format!("[host.'https://h{n}']\n")).collect();
        assert!(parse(&many).is_err());
    }

    #[test]
    fn directories_as_containerd_looks_for_them() {
        let names = |host| -> Vec<String> {
            let paths = candidates(Path::new("/c"), host);
            paths.iter().map(|p| p.display().to_string()).collect()
        };
        assert_eq!(names("a.com"), ["/c/a.com/hosts.toml", "/c/_default/hosts.toml"]);
        assert_eq!(names("a.com:5000")[0], "/c/a.com_5000_/hosts.toml");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}|(server|host|ca|client|\\[host\\.'https://[a-z]{1,3}'\\]|[a-z]{1,4}) ?=? ?['\"\\[\\]a-z0-9\n]{0,20}") {
            let _ = parse(&text);
        }
    }
}
