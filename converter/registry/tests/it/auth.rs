//! Tokens, user names, and what is sent to whom.

use std::sync::atomic::{AtomicUsize, Ordering};

use towline_registry::{Credential, Secret};

use crate::server::{Reply, Request, Server, USER_HEADER, client, client_with, user};

fn challenge(request: &Request) -> Reply {
    let header = format!(
        "Bearer realm=\"http://{}/token\",service=\"svc\",scope=\"repository:a/b:pull\"",
        request.header("host")
    );
    Reply::new(401, &[("www-authenticate", &header)], b"")
}

/// Hands out tokens `t1`, `t2`, …; `accept` says what to answer to a request with the given token.
fn token_server(accept: impl Fn(&Request, &str) -> Reply + Send + Sync + 'static) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            let n = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, &[], format!(r#"{{"token":"t{n}","expires_in":300}}"#).as_bytes());
        }
        match request.header("authorization").strip_prefix("Bearer ") {
            None => challenge(request),
            Some(token) => accept(request, token),
        }
    })
}

#[tokio::test]
async fn a_token_is_fetched_once_and_reused() {
    let server = token_server(|_, _| Reply::new(200, &[("content-type", "x/y; z")], b"{}"));
    let client = client_with(&server.host(), user());
    for _ in 0..3 {
        assert_eq!(client.manifest(&server.repository(), "v1").await.unwrap().media_type, "x/y");
    }
    let requests = server.requests();
    let tokens: Vec<_> = requests.iter().filter(|r| r.target.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].header("authorization"), USER_HEADER);
    assert_eq!(tokens[0].target, "/token?service=svc&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(requests.len(), 5, "one refusal, one token, three manifests");
    client.forget(&server.repository());
    client.manifest(&server.repository(), "v1").await.unwrap();
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn many_requests_at_once_fetch_one_token() {
    let server = token_server(|_, _| Reply::new(200, &[], b"{}"));
    let client = client_with(&server.host(), user());
    let repository = server.repository();
    let all = (0..16).map(|_| client.manifest(&repository, "v1"));
    assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn forbidden_means_one_renewal() {
    let server = token_server(|_, token| match token {
        "t1" => Reply::new(403, &[], b""),
        _ => Reply::new(200, &[], b"{}"),
    });
    let client = client_with(&server.host(), user());
    client.manifest(&server.repository(), "v1").await.unwrap_err();
    client.manifest(&server.repository(), "v1").await.unwrap();
    assert_eq!(server.count("/token"), 2, "the second request renewed the token that the first got");
}

#[tokio::test]
async fn a_lasting_refusal_ends() {
    let denied = br#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#;
    let server = token_server(move |_, _| Reply::new(401, &[], denied));
    let error = client_with(&server.host(), user()).manifest(&server.repository(), "v1").await.unwrap_err();
    assert!(error.is_unauthorized() && !error.is_transient(), "{error}");
    assert!(error.to_string().ends_with("401 Unauthorized: DENIED: not yours"), "{error}");
    assert!(error.hint().unwrap().contains("docker login"));
    assert_eq!((server.count("/token"), server.count("/v2/")), (1, 2));
}

#[tokio::test]
async fn an_identity_token_is_traded() {
    let server = token_server(|_, _| Reply::new(200, &[], b"{}"));
    let client = client_with(&server.host(), Credential::IdentityToken(Secret::new("long/lived")));
    client.manifest(&server.repository(), "v1").await.unwrap();
    let requests = server.requests();
    let token = requests.iter().find(|r| r.target == "/token").unwrap();
    assert_eq!(token.method, "POST");
    let body = String::from_utf8(token.body.clone()).unwrap();
    assert!(
        body.contains("grant_type=refresh_token") && body.contains("refresh_token=long%2Flived"),
        "{body}"
    );
    assert!(token.header("authorization").is_empty());
}

#[tokio::test]
async fn a_failing_token_service_is_asked_once_by_many() {
    let server = Server::start(|request| {
        if request.target.starts_with("/token") { Reply::new(401, &[], b"") } else { challenge(request) }
    });
    let client = client_with(&server.host(), user());
    let repository = server.repository();
    let all = futures_util::future::join_all((0..8).map(|_| client.manifest(&repository, "v1"))).await;
    assert!(all.iter().all(|result| result.as_ref().is_err_and(|e| e.is_unauthorized())));
    assert!(server.count("/token") < 8, "{} token requests", server.count("/token"));
    let shown = format!("{:?}", all[0]);
    assert!(!shown.contains("hunter2") && !shown.contains("bWU6"), "{shown}");
}

#[tokio::test]
async fn basic_is_answered_and_kept() {
    let server = Server::start(|request| match request.header("authorization") {
        USER_HEADER => Reply::new(200, &[], b"{}"),
        _ => Reply::new(401, &[("www-authenticate", "Basic realm=x")], b""),
    });
    let client = client_with(&server.host(), user());
    client.manifest(&server.repository(), "v1").await.unwrap();
    client.manifest(&server.repository(), "v1").await.unwrap();
    assert_eq!(server.requests().len(), 3);
    let error = crate::server::client().manifest(&server.repository(), "v1").await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
}

#[tokio::test]
async fn an_anonymous_token_is_asked_for_without_credentials() {
    let server = token_server(|_, _| Reply::new(200, &[], b"{}"));
    client().manifest(&server.repository(), "v1").await.unwrap();
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.target.starts_with("/token") && r.header("authorization").is_empty()));
}

#[tokio::test]
async fn a_push_asks_for_push_and_a_mount_for_both_repositories() {
    let server = token_server(|request, _| match request.method.as_str() {
        "POST" => Reply::new(201, &[("location", "/v2/a/b/blobs/x")], b""),
        _ => Reply::new(200, &[], b""),
    });
    let client = client_with(&server.host(), user());
    let from = towline_registry::Repository::new(&server.host(), "c").unwrap();
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    assert!(client.mount_blob(&server.repository(), &digest, &from).await.unwrap());
    let requests = server.requests();
    let token = requests.iter().find(|r| r.target.starts_with("/token")).unwrap();
    assert!(
        token.target.contains("scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=repository%3Ac%3Apull"),
        "{token:?}"
    );
    assert!(requests.last().unwrap().target.ends_with("&from=c"));
}
