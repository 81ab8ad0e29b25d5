//! The Kubernetes client and the sources that use it, against a stand-in for the API server.

mod stand_in;

use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;

use tempfile::TempDir;
use towline_peer::{Bootstrap, InCluster, KubernetesError, Source};

use self::stand_in::{Api, Authority, Reply, Request};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.a-secret";

/// The files of a service account in a directory of its own.
fn account(authority: &Authority) -> TempDir {
    let dir = TempDir::new().expect("directory");
    authority.write_account(dir.path(), &format!("{TOKEN}\n"));
    dir
}

/// A list of endpoints, ready or not, and what asks for the rest.
fn slices(endpoints: &[(&str, bool)], next: &str) -> Reply {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, ready)| format!(r#"{{"addresses":["{ip}"],"conditions":{{"ready":{ready}}}}}"#))
        .collect();
    let endpoints = endpoints.join(",");
    Reply::json(&format!(
        r#"{{"kind":"EndpointSliceList","metadata":{{"continue":"{next}"}},"items":[{{"endpoints":[{endpoints}]}}]}}"#
    ))
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

/// Everything an error says, to a log and to a debugger.
fn told(error: &KubernetesError) -> String {
    let mut text = format!("{error:?} {error} {:?}", error.hint());
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// The error for one answer to everything.
async fn error_for(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (KubernetesError, Api) {
    let authority = Authority::new();
    let api = Api::start(&authority, reply).await;
    let dir = account(&authority);
    let error = api.cluster(dir.path()).endpoints("towline", "peers").await.expect_err("no good answer");
    (error, api)
}

#[tokio::test]
async fn pages_are_followed_and_the_ready_come_first() {
    let authority = Authority::new();
    let dir = account(&authority);
    let api = Api::start(&authority, |request| {
        if !request.target.contains("continue=") {
            slices(&[("10.0.0.4", false), ("10.0.0.9", true), ("10.0.0.1", false)], "page/2&limit=1")
        } else if request.target.contains("continue=page%2F2%26limit%3D1") {
            slices(&[("10.0.0.2", true), ("fd00::1", true), ("10.0.0.1", true)], "3")
        } else {
            slices(&[("10.0.0.9", false)], "")
        }
    })
    .await;

    let found = api.cluster(dir.path()).endpoints("towline", "peers").await.expect("endpoints");
    assert_eq!(found, ips(&["10.0.0.1", "10.0.0.2", "10.0.0.9", "fd00::1", "10.0.0.4"]));

    let path = "/apis/discovery.k8s.io/v1/namespaces/towline/endpointslices";
    let query = "labelSelector=kubernetes.io%2Fservice-name%3Dpeers&limit=10";
    let requests = api.requests();
    let targets: Vec<_> = requests.iter().map(|request| &*request.target).collect();
    assert_eq!(
        targets,
        [
            // A resource version and a continue token together are refused by the API.
            format!("{path}?{query}&resourceVersion=0"),
            format!("{path}?{query}&continue=page%2F2%26limit%3D1"),
            format!("{path}?{query}&continue=3"),
        ]
    );
    for request in &requests {
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    }
}

#[tokio::test]
async fn pages_without_end_and_addresses_without_number_are_bounded() {
    let authority = Authority::new();
    let dir = account(&authority);
    let api = Api::start(&authority, |request| {
        let page: u8 =
            request.target.rsplit_once("continue=").map_or(0, |(_, page)| page.parse().expect("ours"));
        let of_page: Vec<_> = (0..=255).map(|n| format!("10.1.{page}.{n}")).collect();
        let of_page: Vec<_> = of_page.iter().map(|ip| (&**ip, page == 31)).collect();
        slices(&of_page, &(page + 1).to_string())
    })
    .await;
    let found = api.cluster(dir.path()).endpoints("towline", "peers").await.expect("endpoints");
    assert_eq!((api.requests().len(), found.len()), (32, 4096));
    // Those of the last page are ready, and are there although the first pages were enough.
    assert_eq!(found[..2], ips(&["10.1.31.0", "10.1.31.1"]));
}

#[tokio::test]
async fn zone_of_a_node() {
    let authority = Authority::new();
    let dir = account(&authority);
    let api = Api::start(&authority, |request| {
        let zone = match &*request.target {
            "/api/v1/nodes/n1.example" => r#","labels":{"topology.kubernetes.io/zone":"eu-1a"}"#,
            "/api/v1/nodes/n2" => r#","labels":{"topology.kubernetes.io/region":"eu"}"#,
            _ => return Reply::status("404 Not Found", "{}"),
        };
        Reply::json(&format!(r#"{{"kind":"PartialObjectMetadata","metadata":{{"name":"n"{zone}}}}}"#))
    })
    .await;
    let cluster = api.cluster(dir.path());
    assert_eq!(cluster.node_zone("n1.example").await.expect("a node").as_deref(), Some("eu-1a"));
    assert_eq!(cluster.node_zone("n2").await.expect("a node"), None);
    let accept = api.requests()[0].header("accept").map(str::to_owned);
    assert!(accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata")));
    let error = cluster.node_zone("n3").await.expect_err("no node");
    assert!(matches!(error, KubernetesError::NotFound { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("NODE_NAME")));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    /// Repeats the token wherever an answer may hold text.
    fn answer(status: &'static str) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        move |request| {
            let token = request.header("authorization").expect("a token");
            Reply::status(status, &format!(r#"{{"kind":"Status","message":"{token}","reason":"{token}"}}"#))
        }
    }
    for (status, sentence, hint) in [
        ("401 Unauthorized", "does not accept the service account's token (401,", Some("clock")),
        (
            "403 Forbidden",
            "may not read the EndpointSlices of service towline/peers (403)",
            Some("deploy/rbac.yaml"),
        ),
        ("404 Not Found", "does not know the EndpointSlices of service towline/peers (404)", Some("1.21")),
        ("410 Gone", "answers 410 for the EndpointSlices", None),
        ("429 Too Many Requests", "answers 429 for the EndpointSlices", None),
        ("500 Internal Server Error", "answers 500 for the EndpointSlices", None),
        ("204 No Content", "answers 204 for the EndpointSlices", None),
        ("200 OK", "is no EndpointSliceList", None),
    ] {
        let (error, _api) = error_for(answer(status)).await;
        assert!(error.to_string().contains(sentence), "{status}: {error}");
        assert_eq!(error.hint().is_some(), hint.is_some(), "{status}");
        assert!(error.hint().unwrap_or_default().contains(hint.unwrap_or_default()), "{status}");
        assert!(!told(&error).contains("secret"), "{status}: {}", told(&error));
    }
}

#[tokio::test]
async fn garbage_is_refused_and_does_not_reach_the_error() {
    for body in [
        r#"{"kind":"EndpointSliceList","items":"TOKEN"}"#,
        r#"{"kind":"EndpointSliceList","items":[{"endpoints":[{"addresses":{"TOKEN":1}}]}]}"#,
        r#"{"kind":"TOKEN"}"#,
        "<html>TOKEN</html>",
        "",
    ] {
        let (error, _api) = error_for(move |_| Reply::json(&body.replace("TOKEN", TOKEN))).await;
        assert!(matches!(error, KubernetesError::Malformed { .. }), "{body}: {error:?}");
        assert!(!told(&error).contains("secret"), "{body}: {}", told(&error));
    }
    // Not even HTTP, and a body that ends early.
    for answer in
        ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n{"]
    {
        let authority = Authority::new();
        let api = Api::start(&authority, move |_| Reply::Bytes(answer.into())).await;
        let dir = account(&authority);
        let cluster = api.cluster(dir.path());
        let asked = tokio::spawn(async move { cluster.endpoints("towline", "peers").await });
        // A client that waits for more learns that there is none.
        while api.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(api);
        let error = asked.await.expect("no panic").expect_err("no answer");
        assert!(matches!(error, KubernetesError::Transport { .. }), "{answer}: {error:?}");
        assert!(!told(&error).contains("secret"), "{}", told(&error));
    }
}

#[tokio::test]
async fn a_huge_answer_is_cut_off() {
    for head in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let (error, api) = error_for(move |_| Reply::Endless(head)).await;
        assert!(matches!(error, KubernetesError::TooLong { .. }), "{error:?}");
        // What the server could send is what was read, and what buffers on the way hold.
        assert!(api.sent() < 24 << 20, "{} bytes", api.sent());
    }
    // An error's body is not read at all.
    let (error, api) = error_for(|_| Reply::Endless("HTTP/1.1 500 No\r\n\r\n")).await;
    assert!(matches!(error, KubernetesError::Status { status: 500, .. }), "{error:?}");
    assert!(api.sent() < 16 << 20, "{} bytes", api.sent());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let authority = Authority::new();
    let dir = account(&authority);
    // As trustworthy as the API itself, and yet somebody else.
    let elsewhere = Api::start(&authority, |_| slices(&[("10.6.6.6", true)], "")).await;
    let target = elsewhere.address;
    for status in ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"] {
        let api = Api::start(&authority, move |_| {
            let location = format!("location: https://{target}/apis");
            Reply::Bytes(format!("HTTP/1.1 {status}\r\n{location}\r\ncontent-length: 0\r\n\r\n").into())
        })
        .await;
        let error = api.cluster(dir.path()).endpoints("towline", "peers").await.expect_err("no answer");
        assert!(matches!(error, KubernetesError::Redirected { .. }), "{error:?}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

/// The token must not be sent to whoever answers at the API's address.
#[track_caller]
fn check_untrusted(error: &KubernetesError, api: &Api) {
    assert!(matches!(error, KubernetesError::Transport { .. }), "{error:?}");
    let told = told(error);
    assert!(told.contains("certificate") && !told.contains("secret"), "{told}");
    assert!(api.connections() > 0 && api.requests().is_empty());
}

#[tokio::test]
async fn only_the_clusters_ca_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let dir = account(&authority);
    let other = Api::start(&stranger, |_| slices(&[("10.6.6.6", true)], "")).await;
    check_untrusted(
        &other.cluster(dir.path()).endpoints("towline", "peers").await.expect_err("a stranger"),
        &other,
    );
    check_untrusted(&other.cluster(dir.path()).node_zone("n1").await.expect_err("a stranger"), &other);
    // The right CA, and the name of another server.
    let named = Api::start_as(&authority, "127.0.0.2", |_| slices(&[("10.6.6.6", true)], "")).await;
    check_untrusted(
        &named.cluster(dir.path()).endpoints("towline", "peers").await.expect_err("a name"),
        &named,
    );
    // A CA that was replaced counts from the next request on.
    let cluster = other.cluster(dir.path());
    stranger.write_account(dir.path(), TOKEN);
    assert_eq!(cluster.endpoints("towline", "peers").await.expect("now known"), ips(&["10.6.6.6"]));
}

#[tokio::test]
async fn a_token_that_rotates_is_read_again_for_each_request() {
    let authority = Authority::new();
    let dir = account(&authority);
    let token: PathBuf = dir.path().join("token");
    let rotate = token.clone();
    let api = Api::start(&authority, move |request| match request.target.rsplit_once("continue=") {
        None => {
            std::fs::write(&rotate, "second").expect("write");
            slices(&[("10.0.0.1", true)], "2")
        }
        Some(_) => slices(&[], ""),
    })
    .await;
    let cluster: InCluster = api.cluster(dir.path());
    cluster.endpoints("towline", "peers").await.expect("endpoints");
    std::fs::write(&token, "third").expect("write");
    cluster.endpoints("towline", "peers").await.expect("endpoints");
    let requests = api.requests();
    let tokens: Vec<_> = requests.iter().filter_map(|request| request.header("authorization")).collect();
    assert_eq!(tokens, [&*format!("Bearer {TOKEN}"), "Bearer second", "Bearer third", "Bearer second"]);
    assert!(!format!("{cluster:?}").contains("second"));
}

#[tokio::test]
async fn account_files_are_checked_before_anybody_is_asked() {
    let authority = Authority::new();
    let api = Api::start(&authority, |_| slices(&[], "")).await;
    for (file, bytes, problem) in [
        ("token", &b""[..], "holds no token"),
        ("token", b" \n", "holds no token"),
        ("token", b"a\r\nx-evil: 1", "holds no token"),
        ("token", "t\u{f6}ken-secret".as_bytes(), "holds no token"),
        ("token", &[b'x'; 65_537], "is too long"),
        ("ca.crt", b"", "holds no certificate"),
        ("ca.crt", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "is not PEM"),
        ("ca.crt", &[b'x'; 1_048_577], "is too long"),
    ] {
        let dir = account(&authority);
        std::fs::write(dir.path().join(file), bytes).expect("write");
        let error = api.cluster(dir.path()).endpoints("towline", "peers").await.expect_err(problem);
        assert!(matches!(error, KubernetesError::BadFile { .. }), "{error:?}");
        assert!(error.to_string().contains(file) && error.to_string().ends_with(problem), "{error}");
        assert!(error.hint().is_some() && !told(&error).contains("secret"));
        std::fs::remove_file(dir.path().join(file)).expect("remove");
        let error = api.cluster(dir.path()).endpoints("towline", "peers").await.expect_err("no file");
        assert!(matches!(&error, KubernetesError::File { path, .. } if path.ends_with(file)), "{error:?}");
    }
    assert_eq!(api.connections(), 0);
}

#[tokio::test]
async fn sources_in_a_cluster_and_one_that_fails() {
    let authority = Authority::new();
    let dir = account(&authority);
    let api = Api::start(&authority, |request| {
        if request.target.contains("/namespaces/forbidden/") {
            return Reply::status("403 Forbidden", "{}");
        }
        slices(&[("10.0.0.2", true), ("fd00::2", false), ("0.0.0.0", true), ("10.0.0.1", true)], "")
    })
    .await;
    let sources = ["kubernetes:forbidden/peers:7000", "10.0.0.1:7000", "kubernetes:towline/peers:7000"];
    let sources = sources.map(|text| text.parse::<Source>().expect(text));
    let bootstrap = Bootstrap::new(sources.into(), Some(api.cluster(dir.path()))).expect("sources");
    for _ in 0..2 {
        let found: Vec<_> = bootstrap.resolve().await.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:7000", "10.0.0.2:7000", "[fd00::2]:7000"]);
    }
    assert!(!format!("{bootstrap:?}").contains("secret"));
}
