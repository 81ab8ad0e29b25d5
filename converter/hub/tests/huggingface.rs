//! The Hugging Face source against a scripted hub on the loopback.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use common::*;
use towline_hub::{Denial, FileHash, HubError};

/// What the scripted hub serves: one small file in git, one large file in a storage of its own.
struct Repo {
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Repo {
    fn new() -> Arc<Self> {
        Arc::new(Self { small: b"{}\n".to_vec(), large: noise(3 << 20) })
    }

    fn tree(&self) -> String {
        format!(
            r#"[{{"type":"directory","oid":"d","size":0,"path":"onnx"}},
                {{"type":"file","oid":"0","size":{len},"path":"onnx/model.bin",
                  "lfs":{{"oid":"{sha256}","size":{len},"pointerSize":9}},"xetHash":"***"}},
                {{"type":"file","oid":"{sha1}","size":{small},"path":"config.json"}}]"#,
            len = self.large.len(),
            sha256 = sha256(&self.large),
            sha1 = git_sha1(&self.small),
            small = self.small.len(),
        )
    }

    /// An honest hub, whose storage is at `storage`.
    fn answer(&self, seen: &Seen, storage: &str) -> Response {
        let at = |tail: &str| seen.path == format!("/api/models/org/name/{tail}");
        let pinned = [("x-repo-commit", COMMIT)];
        if at("revision/main") || at("revision/refs%2Fpr%2F1") {
            return json(info(COMMIT));
        }
        if at(&format!("tree/{COMMIT}")) {
            return json(self.tree());
        }
        if at(&format!("commits/{COMMIT}")) {
            return json(format!(
                r#"[{{"id":"{COMMIT}","date":"2025-04-28T12:34:56.000Z"}},{{"id":"0","date":""}}]"#
            ));
        }
        if seen.path == format!("/org/name/resolve/{COMMIT}/config.json") {
            let mut response = part(seen, &self.small);
            response.headers_mut().insert("x-repo-commit", COMMIT.parse().expect("header"));
            return response;
        }
        if seen.path == format!("/org/name/resolve/{COMMIT}/onnx/model.bin") {
            let location = format!("{storage}/blob?Signature=very-secret");
            return status(302, &[pinned[0], ("location", &location)], "");
        }
        not_found()
    }
}

fn info(commit: &str) -> String {
    format!(r#"{{"id":"org/name","sha":"{commit}","cardData":{{"license":"apache-2.0"}},"siblings":[]}}"#)
}

/// An honest hub and a storage that answers as `storage` says.
async fn hub(
    storage: impl Fn(&Seen, &[u8]) -> Response + Clone + Send + Sync + 'static,
) -> (Server, Server, Arc<Repo>) {
    let repo = Repo::new();
    let data = repo.clone();
    let storage = Server::start(move |seen| storage(seen, &data.large)).await;
    let (served, address) = (repo.clone(), storage.url.clone());
    let hub = Server::start(move |seen| served.answer(seen, &address)).await;
    (hub, storage, repo)
}

#[tokio::test]
async fn a_repository_is_pinned_listed_and_read() {
    let (hub, storage, repo) = hub(part).await;
    let source = source("hf://org/name@refs/pr/1", &hub.url, true);
    let listing = source.resolve().await.expect("listing");
    assert_eq!((listing.commit.as_str(), listing.revision.as_str()), (COMMIT, "refs/pr/1"));
    assert_eq!(listing.created.as_deref(), Some("2025-04-28T12:34:56Z"));
    assert_eq!(listing.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(listing.url, format!("{}/org/name/tree/{COMMIT}", hub.url));
    let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["config.json", "onnx/model.bin"]);
    assert!(matches!(listing.files[0].hash, FileHash::GitBlobSha1(_)));
    assert_eq!(download(&source, &listing, &listing.files[0]).await.expect("small file"), repo.small);
    assert_eq!(download(&source, &listing, &listing.files[1]).await.expect("large file"), repo.large);

    for seen in hub.seen() {
        assert_eq!(seen.bearer.as_deref(), Some("Bearer secret-token"), "{seen:?}");
        assert_eq!(seen.cookie, None);
    }
    let stored = storage.seen();
    assert!(!stored.is_empty() && stored.iter().all(|seen| seen.bearer.is_none()), "{stored:?}");
    assert_eq!(hub.seen_at("/api/models/org/name/revision").len(), 1, "the revision is resolved once");

    // From any byte on, and nothing past the end.
    let large = &listing.files[1];
    for from in [0, 1, large.size - 1, large.size] {
        let bytes = collect(source.open(&listing, large, from).await.expect("open")).await.expect("bytes");
        assert!(bytes == repo.large[from as usize..], "from {from}");
    }
}

#[tokio::test]
async fn pages_are_followed_to_the_last_and_nowhere_else() {
    let row =
        |name: &str| format!(r#"[{{"type":"file","oid":"{}","size":1,"path":"{name}"}}]"#, "a".repeat(40));
    let tree = format!("/api/models/org/name/tree/{COMMIT}");
    let hub = |link: &'static str| {
        let tree = tree.clone();
        Server::start(move |seen| match (seen.path.as_str(), seen.param("cursor").as_deref()) {
            (path, None) if path == tree => {
                let link = link.replace("TREE", &tree);
                let mut response = json(row("b"));
                response
                    .headers_mut()
                    .insert("link", format!("<{link}>; rel=\"next\"").parse().expect("link"));
                response
            }
            (path, Some("2")) if path == tree => json(row("a")),
            (path, _) if path.contains("/revision/") => json(info(COMMIT)),
            _ => not_found(),
        })
    };
    let good = hub("TREE?recursive=true&cursor=2").await;
    let listing = source("hf://org/name", &good.url, false).resolve().await.expect("two pages");
    let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!((paths, listing.created), (vec!["a", "b"], None));

    for bad in
        ["https://other.example/TREE?cursor=2", "/api/models/other/name/tree/x?cursor=2", "TREEx?cursor=2"]
    {
        let hub = hub(bad).await;
        let error = source("hf://org/name", &hub.url, false).resolve().await.expect_err(bad);
        assert!(matches!(error, HubError::Unexpected { .. }), "{error}");
    }
    let endless = hub("TREE?recursive=true&expand=false").await;
    let error = source("hf://org/name", &endless.url, false).resolve().await.expect_err("endless");
    assert!(error.to_string().contains("more than"), "{error}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_continued_without_loss() {
    let (hub, storage, repo) = hub(|seen, data| match seen.before {
        0 | 1 => cut_part(seen, data, 1 << 20),
        _ => part(seen, data),
    })
    .await;
    let source = source("hf://org/name", &hub.url, false);
    let listing = source.resolve().await.expect("listing");
    assert_eq!(download(&source, &listing, &listing.files[1]).await.expect("mended"), repo.large);
    let ranges: Vec<_> = storage.seen().iter().map(|seen| seen.range.map(|(first, _)| first)).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[0].is_none() && ranges[1] < ranges[2] && ranges[1] > Some(0), "{ranges:?}");
}

#[tokio::test]
async fn a_storage_that_ignores_ranges_costs_bytes_and_not_truth() {
    let (hub, _storage, repo) = hub(|seen, data| {
        let asked_whole = Seen { range: None, ..seen.clone() };
        if seen.before > 0 { part(&asked_whole, data) } else { cut_part(&asked_whole, data, 100_000) }
    })
    .await;
    let source = source("hf://org/name", &hub.url, false);
    let listing = source.resolve().await.expect("listing");
    assert_eq!(download(&source, &listing, &listing.files[1]).await.expect("whole"), repo.large);
}

#[tokio::test]
async fn wrong_bytes_are_found_out() {
    let (hub, _storage, _) = hub(|seen, data| {
        let mut data = data.to_vec();
        data[77] ^= 1;
        part(seen, &data)
    })
    .await;
    let source = source("hf://org/name", &hub.url, false);
    let listing = source.resolve().await.expect("listing");
    let error = download(&source, &listing, &listing.files[1]).await.expect_err("one bit");
    assert!(matches!(error, HubError::WrongHash { .. }) && !error.is_transient(), "{error}");
}

#[tokio::test]
async fn expired_addresses_are_renewed_and_never_shown() {
    let (hub, storage, repo) =
        hub(|seen, data| if seen.before == 0 { status(403, &[], "expired") } else { part(seen, data) }).await;
    let client = source("hf://org/name", &hub.url, false);
    let listing = client.resolve().await.expect("listing");
    assert_eq!(download(&client, &listing, &listing.files[1]).await.expect("renewed"), repo.large);
    assert_eq!((storage.seen().len(), hub.seen_at("/org/name/resolve").len()), (2, 2));

    let gone = status_hub(410).await;
    let error = client_error(&gone.0).await;
    let shown = format!("{error} {error:?}");
    assert!(
        matches!(error, HubError::Status { status: 410, .. }) && !shown.contains("very-secret"),
        "{shown}"
    );
}

async fn status_hub(code: u16) -> (Server, Server) {
    let (hub, storage, _) = hub(move |_, _| status(code, &[], "")).await;
    (hub, storage)
}

async fn client_error(hub: &Server) -> HubError {
    let source = source("hf://org/name", &hub.url, true);
    let listing = source.resolve().await.expect("listing");
    download(&source, &listing, &listing.files[1]).await.expect_err("refused")
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let hub = Server::start(|seen| match seen.path.as_str() {
        "/api/models/org/name/revision/main" if seen.before == 0 => status(429, &[("retry-after", "1")], ""),
        "/api/models/org/name/revision/main" => json(info(COMMIT)),
        _ => not_found(),
    })
    .await;
    let started = Instant::now();
    let error = source("hf://org/name", &hub.url, false).resolve().await.expect_err("there is no tree");
    assert!(matches!(error, HubError::Denied { .. }), "{error}");
    assert_eq!(hub.seen_at("/api/models/org/name/revision").len(), 2);
    assert!(started.elapsed() >= Duration::from_secs(1));

    let closed = Server::start(|_| status(429, &[("retry-after", "86400")], "come back tomorrow")).await;
    let error = source("hf://org/name", &closed.url, false).resolve().await.expect_err("a day is too long");
    assert!(error.is_transient() && error.hint().is_some(), "{error}");
    assert!(error.to_string().ends_with("answered 429"), "{error}");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    for (code, headers, token, denial, hint) in [
        (401, &[("x-error-code", "GatedRepo")][..], false, Denial::Gated, "set HF_TOKEN"),
        (403, &[("x-error-code", "GatedRepo")], true, Denial::Gated, "accept the terms"),
        (401, &[("x-error-code", "RepoNotFound")], false, Denial::Hidden, "set HF_TOKEN"),
        (404, &[("x-error-code", "RepoNotFound")], true, Denial::Hidden, "spelling"),
        (404, &[("x-error-code", "RevisionNotFound")], false, Denial::NoRevision, "branch"),
        (
            401,
            &[("x-error-message", "Invalid credentials in Authorization header")],
            true,
            Denial::BadToken,
            "renew",
        ),
        (
            403,
            &[("x-error-message", "Access to this resource is disabled.")],
            true,
            Denial::Forbidden,
            "right to read",
        ),
    ] {
        let hub = Server::start(move |_| status(code, headers, "")).await;
        let error = source("hf://org/name", &hub.url, token).resolve().await.expect_err("refused");
        let HubError::Denied { denial: found, .. } = &error else { panic!("{error}") };
        assert_eq!(*found, denial);
        assert!(error.hint().is_some_and(|text| text.contains(hint)), "{:?}", error.hint());
        assert_eq!(hub.seen().len(), 1, "a refusal is not repeated");
        assert!(!format!("{error} {error:?}").contains("secret-token"));
    }
}

#[tokio::test]
async fn another_commit_is_never_mixed_in() {
    const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffff";
    let repo = Repo::new();
    let hub = Server::start(move |seen| {
        if seen.path.contains("/resolve/") {
            return status(302, &[("x-repo-commit", OTHER), ("location", "/elsewhere")], "");
        }
        repo.answer(seen, "")
    })
    .await;
    let client = source("hf://org/name", &hub.url, false);
    let listing = client.resolve().await.expect("listing");
    let error = download(&client, &listing, &listing.files[0]).await.expect_err("another commit");
    assert!(matches!(&error, HubError::CommitMoved { found, .. } if found == OTHER), "{error}");

    let lying = Server::start(|_| json(info(OTHER))).await;
    let error =
        source(&format!("hf://org/name@{COMMIT}"), &lying.url, false).resolve().await.expect_err("not it");
    assert!(matches!(error, HubError::CommitMoved { .. }), "{error}");
}

#[tokio::test]
async fn renamed_repositories_keep_the_token() {
    let repo = Repo::new();
    let hub = Server::start(move |seen| match seen.path.strip_prefix("/api/models/old/name/revision/") {
        Some(rest) => status(307, &[("location", &format!("/api/models/org/name/revision/{rest}"))], ""),
        None => repo.answer(seen, ""),
    })
    .await;
    let error =
        source("hf://old/name", &hub.url, true).resolve().await.expect_err("only the pin is redirected here");
    assert!(matches!(error, HubError::Denied { .. }), "{error}");
    let moved = hub.seen_at("/api/models/org/name/revision/main");
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].bearer.as_deref(), Some("Bearer secret-token"));

    let circle = Server::start(|seen| status(307, &[("location", &format!("{}?x", seen.path))], "")).await;
    let error = source("hf://org/name", &circle.url, true).resolve().await.expect_err("a circle");
    assert!(matches!(error, HubError::Redirect { .. }) && circle.seen().len() < 20, "{error}");
}

#[tokio::test]
async fn hostile_listings_are_refused_by_path() {
    for (path, problem) in [
        ("../x", "'..'"),
        ("/etc/passwd", "absolute"),
        ("a\\\\b", "backslash"),
        ("a\\u0000b", "control"),
        ("A", "is listed twice"),
        (".towline/index.json", "reserved"),
    ] {
        let row =
            |path: &str| format!(r#"{{"type":"file","oid":"{}","size":1,"path":"{path}"}}"#, "a".repeat(40));
        let rows = format!("[{},{}]", row("A"), row(path));
        let hub = Server::start(move |seen| match seen.path.contains("/revision/") {
            true => json(info(COMMIT)),
            false if seen.path.contains("/tree/") => json(rows.clone()),
            false => not_found(),
        })
        .await;
        let error = source("hf://org/name", &hub.url, false).resolve().await.expect_err(path);
        assert!(matches!(error, HubError::Path(_)) && error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn nonsense_is_an_error_and_no_panic() {
    let huge = "x".repeat(300);
    for body in
        ["", "[]", "null", "{", r#"{"sha":7}"#, r#"{"sha":"main"}"#, r#"{"sha":"../../x"}"#, huge.as_str()]
    {
        let text = body.to_owned();
        let hub = Server::start(move |_| json(text.clone())).await;
        let error = source("hf://org/name", &hub.url, false).resolve().await.expect_err(body);
        assert!(matches!(error, HubError::Unexpected { .. }), "{body}: {error}");
    }
}
