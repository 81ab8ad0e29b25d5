//! How an operator names a place where first peers are found.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::names::{ends_in_number, is_host_name, is_label};

/// The most characters of a text that an error shows; the longest source has 324.
const MAX_SHOWN: usize = 400;

/// A place where first peers are found: `IP:PORT`, `[v6]:PORT`, `dns:NAME:PORT` or `kubernetes:NAMESPACE/SERVICE:PORT`.
///
/// [`fmt::Display`] writes the form that parses to the same value. What [`FromStr`] made has a port above 0 and names that
/// follow the rules; [`Bootstrap::resolve`](crate::Bootstrap::resolve) finds nothing behind a source that does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// One node.
    Static(SocketAddr),
    /// Every address a name has, as the system's resolver sees it; a headless service, for example.
    Dns {
        /// The name, as written. A dot at its end keeps the resolver from trying search domains.
        name: String,
        /// The port on every node.
        port: u16,
    },
    /// Every endpoint of a service in the cluster we are in.
    Kubernetes {
        /// The namespace of the service.
        namespace: String,
        /// The service's name.
        service: String,
        /// The port on every node, whatever ports the service has.
        port: u16,
    },
}

/// A text that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bootstrap source {text:?} {problem}")]
pub struct SourceError {
    text: String,
    problem: &'static str,
    hint: String,
}

impl SourceError {
    /// What the operator could write instead.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(address) => address.fmt(f),
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
            Self::Kubernetes { namespace, service, port } => {
                write!(f, "kubernetes:{namespace}/{service}:{port}")
            }
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let parsed = if let Some(rest) = text.strip_prefix("dns:") {
            parse_dns(rest)
        } else if let Some(rest) = text.strip_prefix("kubernetes:") {
            parse_kubernetes(rest)
        } else {
            parse_static(text)
        };
        parsed.map_err(|(problem, hint)| SourceError {
            text: text.chars().take(MAX_SHOWN).collect(),
            problem,
            hint,
        })
    }
}

/// Whether a node can have this address.
pub(crate) fn is_dialable(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

type Problem = (&'static str, String);

fn problem<T>(problem: &'static str, hint: &str) -> Result<T, Problem> {
    Err((problem, hint.to_owned()))
}

fn parse_static(text: &str) -> Result<Source, Problem> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(("is neither an address with a port nor of a known kind", static_hint(text)));
    };
    if address.port() == 0 {
        return problem("has no port", "write the port that the nodes listen on");
    }
    if !is_dialable(address.ip()) {
        return problem("is no address of a node", "write an address of another node");
    }
    Ok(Source::Static(address))
}

fn parse_dns(rest: &str) -> Result<Source, Problem> {
    let Some((name, port)) = rest.rsplit_once(':') else {
        return problem("has no port", "write dns:NAME:PORT");
    };
    let bare = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() || name.starts_with('[') || ends_in_number(bare) {
        return problem("has an address for a name", "write an address without dns: before it");
    }
    if !is_host_name(name) {
        return problem(
            "has a name that DNS does not allow",
            "a name is made of labels of at most 63 letters, digits and '-', joined by '.', with '-' at neither end",
        );
    }
    Ok(Source::Dns { name: name.to_owned(), port: parse_port(port)? })
}

fn parse_kubernetes(rest: &str) -> Result<Source, Problem> {
    let form = "write kubernetes:NAMESPACE/SERVICE:PORT";
    let Some((path, port)) = rest.rsplit_once(':') else {
        return problem("has no port", form);
    };
    let Some((namespace, service)) = path.split_once('/') else {
        return problem("does not name both a namespace and a service", form);
    };
    if !is_label(namespace) || !is_label(service) {
        return problem(
            "has a name that Kubernetes does not allow",
            "a name has at most 63 lower-case letters, digits and '-', with '-' at neither end",
        );
    }
    let (namespace, service) = (namespace.to_owned(), service.to_owned());
    Ok(Source::Kubernetes { namespace, service, port: parse_port(port)? })
}

/// Digits only: `u16::from_str` would take a `+` as well.
fn parse_port(text: &str) -> Result<u16, Problem> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    match text.parse() {
        Ok(port) if canonical => Ok(port),
        _ => problem("has no port that can be used", "a port is a number from 1 to 65535"),
    }
}

fn static_hint(text: &str) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let address = SocketAddr::new(ip, 7000).to_string();
        return format!("add the port, for example {address}");
    }
    if parse_dns(text).is_ok() {
        return format!("for a name, write dns:{text}");
    }
    "write IP:PORT, [IPv6]:PORT, dns:NAME:PORT or kubernetes:NAMESPACE/SERVICE:PORT".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dns(name: &str, port: u16) -> Source {
        Source::Dns { name: name.to_owned(), port }
    }

    fn kubernetes(namespace: &str, service: &str, port: u16) -> Source {
        Source::Kubernetes { namespace: namespace.to_owned(), service: service.to_owned(), port }
    }

    #[test]
    fn sources_are_read() {
        for (text, expected) in [
            ("10.0.0.1:7000", Source::Static(([10, 0, 0, 1], 7000).into())),
            ("[fd00::1]:1", Source::Static(SocketAddr::new("fd00::1".parse().expect("v6"), 1))),
            ("[fe80::1%3]:65535", Source::Static("[fe80::1%3]:65535".parse().expect("v6 with a scope"))),
            ("dns:peers:7000", dns("peers", 7000)),
            ("dns:Peers.example.:65535", dns("Peers.example.", 65535)),
            ("kubernetes:towline/peers:7000", kubernetes("towline", "peers", 7000)),
            ("kubernetes:0/1:1", kubernetes("0", "1", 1)),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[track_caller]
    fn check_refused(text: &str, problem: &str, hint: &str) {
        let error = text.parse::<Source>().expect_err(text);
        assert!(error.to_string().contains(problem), "{text}: {error}");
        assert!(error.hint().contains(hint), "{text}: {}", error.hint());
    }

    #[test]
    fn what_is_not_a_source_is_refused_with_a_hint() {
        check_refused("", "neither an address", "IP:PORT");
        check_refused("10.0.0.1", "neither an address", "for example 10.0.0.1:7000");
        check_refused("fd00::1", "neither an address", "for example [fd00::1]:7000");
        check_refused("peers.example:7000", "neither an address", "write dns:peers.example:7000");
        check_refused("DNS:peers:7000", "neither an address", "dns:NAME:PORT");
        check_refused(" 10.0.0.1:1", "neither an address", "IP:PORT");
        check_refused("10.0.0.1:65536", "neither an address", "IP:PORT");
        check_refused("10.0.0.1:0", "has no port", "listen on");
        check_refused("0.0.0.0:1", "no address of a node", "another node");
        check_refused("[::]:1", "no address of a node", "another node");
        check_refused("[::ffff:0.0.0.0]:1", "no address of a node", "another node");
        check_refused("224.0.0.1:1", "no address of a node", "another node");
        check_refused("255.255.255.255:1", "no address of a node", "another node");
        check_refused("[ff02::1]:1", "no address of a node", "another node");
        check_refused("dns:peers", "has no port", "dns:NAME:PORT");
        check_refused("dns::1", "DNS does not allow", "63");
        check_refused("dns:.:1", "DNS does not allow", "63");
        check_refused("dns:a..b:1", "DNS does not allow", "63");
        check_refused("dns:a:1:2", "DNS does not allow", "63");
        check_refused("dns:10.0.0.1:1", "an address for a name", "without dns:");
        check_refused("dns:127.1.:1", "an address for a name", "without dns:");
        check_refused("dns:[::1]:1", "an address for a name", "without dns:");
        check_refused("dns:::1:1", "an address for a name", "without dns:");
        for port in ["", "0", "00", "01", "+1", "-1", "65536", "1e3", "99999999999999999999", "1 "] {
            check_refused(&format!("dns:peers:{port}"), "no port that can be used", "1 to 65535");
            check_refused(&format!("kubernetes:a/b:{port}"), "no port that can be used", "1 to 65535");
        }
        check_refused("kubernetes:peers", "has no port", "NAMESPACE/SERVICE");
        check_refused("kubernetes:peers:1", "both a namespace and a service", "NAMESPACE/SERVICE");
        check_refused("kubernetes:/peers:1", "Kubernetes does not allow", "63");
        check_refused("kubernetes:a/b/c:1", "Kubernetes does not allow", "63");
        check_refused("kubernetes:a/..:1", "Kubernetes does not allow", "63");
        check_refused("kubernetes:A/b:1", "Kubernetes does not allow", "63");
    }

    #[test]
    fn an_error_shows_little_of_a_long_text() {
        let error = "x\u{1b}".repeat(1 << 20).parse::<Source>().expect_err("no source");
        let shown = error.to_string();
        assert!(
            shown.len() < 4096 && !shown.contains('\u{1b}') && error.hint().len() < 4096,
            "{}",
            shown.len()
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_is_stable(
            text in "(dns:|kubernetes:|\\[)?[a-z0-9.:%/\\[\\]-]{0,24}[ -~é]{0,4}(:[0-9+]{0,6})?"
        ) {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>(), Ok(source));
            }
        }
    }
}
