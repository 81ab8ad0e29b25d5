//! The few fields that are read of Kubernetes' JSON, and what they mean.
//!
//! Problems are told in our own words: those of the JSON parser repeat what it read.

use std::net::IpAddr;

use serde::Deserialize;

/// Well-known label of a Node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The most bytes of a label's value (Kubernetes, "Labels and Selectors").
const MAX_LABEL_VALUE_LEN: usize = 63;

/// The most bytes of a continue token; those in use have some 150. It becomes part of an address.
const MAX_CONTINUE_LEN: usize = 4096;

/// How likely an endpoint is to be of use; the best comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Ready,
    Serving,
    NotReady,
}

/// What one page of EndpointSlices says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlicePage {
    /// In the order of the page; an address may be there more than once.
    pub(crate) endpoints: Vec<(Rank, IpAddr)>,
    /// Asks for the next page.
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
struct SliceList {
    kind: String,
    #[serde(default)]
    metadata: ListMetadata,
    items: Option<Vec<Slice>>,
}

#[derive(Default, Deserialize)]
struct ListMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

// Go writes an empty list as null.
#[derive(Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct Node {
    kind: String,
    metadata: NodeMetadata,
}

#[derive(Deserialize)]
struct NodeMetadata {
    labels: Option<Labels>,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(rename = "topology.kubernetes.io/zone")]
    zone: Option<String>,
}

impl SlicePage {
    /// Reads an `EndpointSliceList` of any address families.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let list: SliceList = json(body)?;
        if list.kind != "EndpointSliceList" {
            return Err("is no EndpointSliceList".to_owned());
        }
        let next = list.metadata.next.filter(|next| !next.is_empty());
        if next.as_ref().is_some_and(|next| next.len() > MAX_CONTINUE_LEN) {
            return Err(format!("has a continue token of more than {MAX_CONTINUE_LEN} bytes"));
        }
        let endpoints =
            list.items.into_iter().flatten().flat_map(|slice| slice.endpoints.into_iter().flatten());
        Ok(Self { endpoints: endpoints.filter_map(|endpoint| endpoint.judge()).collect(), next })
    }
}

impl Endpoint {
    /// Only the first address counts, as for every consumer (EndpointSlice API, field `addresses`). Slices of type FQDN
    /// have names instead, which are left out.
    fn judge(&self) -> Option<(Rank, IpAddr)> {
        let ip = self.addresses.as_ref()?.first()?.parse().ok()?;
        Some((self.conditions.rank()?, ip))
    }
}

impl Conditions {
    fn rank(&self) -> Option<Rank> {
        let ready = self.ready.unwrap_or(true);
        let serving = self.serving.unwrap_or(ready);
        match (ready, serving, self.terminating.unwrap_or(false)) {
            (true, _, _) => Some(Rank::Ready),
            (false, true, _) => Some(Rank::Serving),
            (false, false, false) => Some(Rank::NotReady),
            (false, false, true) => None,
        }
    }
}

/// The zone in a `Node`, or in a `PartialObjectMetadata` of one.
///
/// # Errors
/// What is wrong with the bytes.
pub(crate) fn node_zone(body: &[u8]) -> Result<Option<String>, String> {
    let node: Node = json(body)?;
    if !matches!(&*node.kind, "Node" | "PartialObjectMetadata") {
        return Err("is no Node".to_owned());
    }
    let zone = node.metadata.labels.and_then(|labels| labels.zone).filter(|zone| !zone.is_empty());
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match zone {
        Some(zone) if zone.len() > MAX_LABEL_VALUE_LEN || !zone.bytes().all(known) => {
            Err(format!("has a value of {ZONE_LABEL} that no label can have"))
        }
        zone => Ok(zone),
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            serde_json::error::Category::Eof => format!("ends early, after {} bytes", body.len()),
            serde_json::error::Category::Data => {
                format!("has a field that is missing or of another type (line {line}, column {column})")
            }
            _ => format!("is no JSON (line {line}, column {column})"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::Rank::{NotReady, Ready, Serving};
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(conditions: &str, expected: Option<Rank>) {
        let endpoint = format!(r#"{{"addresses":["10.0.0.1"],"conditions":{conditions}}}"#);
        let list = format!(r#"{{"kind":"EndpointSliceList","items":[{{"endpoints":[{endpoint}]}}]}}"#);
        let page = SlicePage::parse(list.as_bytes()).expect(conditions);
        assert_eq!(page.endpoints.first().map(|(rank, _)| *rank), expected, "{conditions}");
    }

    #[test]
    fn conditions_decide_the_rank() {
        check("{}", Some(Ready));
        check(r#"{"ready":true,"serving":true,"terminating":false}"#, Some(Ready));
        check(r#"{"ready":null,"serving":null,"terminating":null}"#, Some(Ready));
        // publishNotReadyAddresses.
        check(r#"{"ready":true,"serving":false,"terminating":true}"#, Some(Ready));
        check(r#"{"ready":false,"serving":true,"terminating":true}"#, Some(Serving));
        check(r#"{"ready":false,"serving":true}"#, Some(Serving));
        check(r#"{"ready":false}"#, Some(NotReady));
        check(r#"{"ready":false,"serving":false,"terminating":false}"#, Some(NotReady));
        check(r#"{"ready":false,"serving":false,"terminating":true}"#, None);
        check(r#"{"ready":false,"terminating":true}"#, None);
    }

    /// As `kubectl get --raw` shows a list of a dual-stack service, shortened.
    const LIST: &str = r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1",
        "metadata":{"resourceVersion":"1234","continue":"eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ","remainingItemCount":3},
        "items":[
        {"metadata":{"name":"peers-4","namespace":"towline","labels":{"kubernetes.io/service-name":"peers"}},
         "addressType":"IPv4","ports":[{"name":"","protocol":"TCP","port":7000}],
         "endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},
                       "targetRef":{"kind":"Pod","name":"towlined-x"},"nodeName":"n1","zone":"z1"},
                      {"addresses":["10.0.0.2","10.9.9.9"],"conditions":{"ready":false}}]},
        {"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}],"ports":null},
        {"addressType":"IPv4","endpoints":null,"ports":[]},
        {"addressType":"FQDN","endpoints":[{"addresses":["n1.example"]}]},
        {"endpoints":[{"addresses":[]},{"addresses":null},{}]}]}"#;

    #[test]
    fn a_list_as_the_api_writes_it() {
        let ip = |text: &str| text.parse::<IpAddr>().expect(text);
        let page = SlicePage::parse(LIST.as_bytes()).expect("a list");
        let endpoints = vec![(Ready, ip("10.0.0.1")), (NotReady, ip("10.0.0.2")), (Ready, ip("fd00::1"))];
        assert_eq!(page, SlicePage { endpoints, next: Some("eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ".into()) });

        for empty in [r#"{"metadata":{"continue":""},"items":[],"#, r#"{"items":null,"#, "{"] {
            let page = SlicePage::parse(format!(r#"{empty}"kind":"EndpointSliceList"}}"#).as_bytes());
            assert_eq!(page, Ok(SlicePage { endpoints: vec![], next: None }), "{empty}");
        }
    }

    #[track_caller]
    fn check_refused(list: &str, problem: &str) {
        let shown: String = list.chars().take(80).collect();
        let error = SlicePage::parse(list.as_bytes()).expect_err(&shown);
        assert!(error.contains(problem) && !error.contains("secret"), "{shown}: {error}");
    }

    #[test]
    fn what_is_no_list_is_refused_in_our_words() {
        check_refused("", "ends early");
        check_refused(&LIST[..LIST.len() - 1], "ends early");
        check_refused("<html>secret</html>", "is no JSON");
        check_refused(r#"{"kind":"secret"}"#, "is no EndpointSliceList");
        check_refused(r#"{"items":[]}"#, "has a field that is missing or of another type");
        check_refused(
            r#"{"kind":"EndpointSliceList","items":"secret"}"#,
            "has a field that is missing or of another type (line 1",
        );
        check_refused(&format!(r#"{{"x":{}"#, "[".repeat(1 << 16)), "ends early");
        check_refused(&"[".repeat(1 << 16), "has a field that is missing");
        let long = |len| {
            format!(r#"{{"kind":"EndpointSliceList","metadata":{{"continue":"{}"}}}}"#, "x".repeat(len))
        };
        check_refused(&long(4097), "continue token of more than 4096 bytes");
        assert!(SlicePage::parse(long(4096).as_bytes()).is_ok());
    }

    #[test]
    fn zones_of_nodes() {
        let zone = |kind: &str, metadata: &str| {
            node_zone(format!(r#"{{"kind":"{kind}","metadata":{metadata}}}"#).as_bytes())
        };
        let labels = r#"{"name":"n","labels":{"a":"b","topology.kubernetes.io/zone":"eu-1_a.x"}}"#;
        assert_eq!(zone("Node", labels), Ok(Some("eu-1_a.x".into())));
        assert_eq!(zone("PartialObjectMetadata", labels), Ok(Some("eu-1_a.x".into())));
        assert_eq!(zone("Node", r#"{"labels":{"topology.kubernetes.io/zone":""}}"#), Ok(None));
        assert_eq!(zone("Node", r#"{"labels":null}"#), Ok(None));
        assert_eq!(zone("Node", "{}"), Ok(None));
        assert_eq!(zone("Status", "{}"), Err("is no Node".into()));
        let of_len = |len| zone("Node", &format!(r#"{{"labels":{{"{ZONE_LABEL}":"{}"}}}}"#, "z".repeat(len)));
        assert_eq!(of_len(63), Ok(Some("z".repeat(63))));
        assert!(of_len(64).is_err());
        for odd in ["a b", "a\\nb", "é", "a/b"] {
            let error = zone("Node", &format!(r#"{{"labels":{{"{ZONE_LABEL}":"{odd}"}}}}"#));
            assert_eq!(error, Err(format!("has a value of {ZONE_LABEL} that no label can have")), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn damaged_answers_never_panic(at in 0..LIST.len(), byte in any::<u8>(), cut in 0..LIST.len()) {
            let mut bytes = LIST.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = SlicePage::parse(&bytes);
            let _ = SlicePage::parse(&bytes[..cut]);
            let _ = node_zone(&bytes);
        }
    }
}
