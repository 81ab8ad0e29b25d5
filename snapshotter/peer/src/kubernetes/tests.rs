//! Addresses and names; requests are in `tests/kubernetes.rs`.

use super::*;

#[track_caller]
fn check(host: Option<&str>, port: Option<&str>, expected: Result<&str, &str>) {
    let get = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => host.map(str::to_owned),
        "KUBERNETES_SERVICE_PORT" => port.map(str::to_owned),
        _ => None,
    };
    let found = InCluster::from_env(get, Path::new("/nowhere")).map(|cluster| cluster.api.to_string());
    let found = found.map_err(|error| error.to_string());
    assert_eq!(found.as_deref().map_err(|text| &**text), expected, "{host:?} {port:?}");
}

#[test]
fn the_environment_says_where_the_api_is() {
    let port = Some("6443");
    check(Some("10.96.0.1"), Some("443"), Ok("https://10.96.0.1/"));
    check(Some("10.96.0.1"), port, Ok("https://10.96.0.1:6443/"));
    check(Some("fd00::1"), port, Ok("https://[fd00::1]:6443/"));
    check(Some("[fd00::1]"), port, Ok("https://[fd00::1]:6443/"));
    check(Some("api.example"), port, Ok("https://api.example:6443/"));
    check(None, port, Err("KUBERNETES_SERVICE_HOST is not set"));
    check(Some(""), port, Err("KUBERNETES_SERVICE_HOST is not set"));
    let neither = Err("KUBERNETES_SERVICE_HOST is neither an address nor a name");
    for host in
        ["a/b", "me@api.example", "api.example:1", "api.example#", " ", "[10.0.0.1]", "10.1", "fe80::1%1"]
    {
        check(Some(host), port, neither);
    }
    check(Some("10.96.0.1"), None, Err("KUBERNETES_SERVICE_PORT is not set"));
    for port in ["0", "65536", "tcp://10.96.0.1:443", "-1"] {
        check(Some("10.96.0.1"), Some(port), Err("KUBERNETES_SERVICE_PORT is no port"));
    }
}

#[tokio::test]
async fn names_that_cannot_be_are_not_asked_for() {
    let get = |name: &str| Some(if name.ends_with("PORT") { "1" } else { "10.0.0.1" }.to_owned());
    let cluster = InCluster::from_env(get, Path::new("/nowhere")).expect("settings");
    for (namespace, service) in [("", "a"), ("a", ""), ("a/b", "c"), ("..", "c"), ("a", "b,c=d"), ("a", "B")]
    {
        let error = cluster.endpoints(namespace, service).await.expect_err("no names");
        assert!(matches!(error, KubernetesError::Name { .. }), "{namespace} {service}: {error:?}");
    }
    for node in ["", ".", "a/b", "../a", "a?b", &"a".repeat(1 << 20)] {
        let error = cluster.node_zone(node).await.expect_err("no name");
        assert!(matches!(&error, KubernetesError::Name { kind: "node", .. }), "{error:?}");
        assert!(error.to_string().len() < 400);
    }
    // Good names need the account's files.
    let error = cluster.node_zone("n1.example").await.expect_err("no files");
    assert!(matches!(&error, KubernetesError::File { path, .. } if path.ends_with("ca.crt")), "{error:?}");
}

#[tokio::test]
async fn an_api_that_says_nothing_is_left() {
    let mut hanging = testing::Hanging::new().await;
    hanging.cluster.timeout = Duration::from_millis(20);
    let error = hanging.cluster.endpoints("a", "b").await.expect_err("nothing");
    let expected = "the Kubernetes API did not send the EndpointSlices of service a/b within 20 ms";
    assert_eq!(error.to_string(), expected);
}
