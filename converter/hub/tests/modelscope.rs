//! The ModelScope source against a scripted hub on the loopback.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use common::*;
use towline_hub::{Denial, FileHash, HubError};

/// Files by path; directories follow from them.
type Files = BTreeMap<String, Vec<u8>>;

const CUT_OFF: usize = 3000;

fn data(data: &str) -> Response {
    json(format!(r#"{{"Code":200,"Success":true,"Message":"","RequestId":"r","Data":{data}}}"#))
}

fn commits() -> Response {
    data(&format!(r#"{{"Commit":[{{"Id":"{COMMIT}","CommittedDate":1745843696}}],"TotalCount":1}}"#))
}

/// Rows below `root` as the hub gives them: all or only the direct ones, cut at its limit.
fn rows(files: &Files, root: &str, recursive: bool) -> Vec<String> {
    let prefix = if root.is_empty() { String::new() } else { format!("{root}/") };
    let mut rows = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(&prefix)) {
        let mode = if path.ends_with(".sh") { 33261 } else { 33188 };
        let row = format!(
            r#"{{"Path":"{path}","Type":"blob","Size":{},"Sha256":"{}","Mode":"{mode}"}}"#,
            bytes.len(),
            sha256(bytes).to_uppercase()
        );
        rows.insert(path.clone(), row);
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at >= prefix.len()) {
            let directory = &path[..at];
            rows.insert(directory.to_owned(), format!(r#"{{"Path":"{directory}","Type":"tree","Size":0}}"#));
        }
    }
    let direct = |path: &str| !path[prefix.len()..].contains('/');
    rows.into_iter().filter(|(path, _)| recursive || direct(path)).map(|(_, row)| row).take(CUT_OFF).collect()
}

/// An honest hub.
fn answer(files: &Files, seen: &Seen) -> Response {
    match seen.path.strip_prefix("/api/v1/models/org/name/") {
        Some("commits") => commits(),
        Some("repo/files") => {
            assert_eq!(seen.param("Revision").as_deref(), Some(COMMIT), "only the commit is listed");
            let recursive = seen.param("Recursive").as_deref() == Some("True");
            let rows = rows(files, &seen.param("Root").unwrap_or_default(), recursive);
            data(&format!(r#"{{"Files":[{}]}}"#, rows.join(",")))
        }
        Some("repo") => match files.get(&seen.param("FilePath").unwrap_or_default()) {
            Some(bytes) => part(seen, bytes),
            None => status(404, &[], r#"{"Code":10010205001,"Message":"no file","Success":false}"#),
        },
        _ => not_found(),
    }
}

fn files(paths: &[&str]) -> Arc<Files> {
    Arc::new(paths.iter().map(|path| ((*path).to_owned(), path.as_bytes().to_vec())).collect())
}

async fn hub(files: &Arc<Files>) -> Server {
    let files = files.clone();
    Server::start(move |seen| answer(&files, seen)).await
}

#[tokio::test]
async fn a_repository_is_pinned_listed_and_read() {
    let files = files(&["a b.txt", "run.sh", "sub/deep/model.bin"]);
    let hub = hub(&files).await;
    let source = source("modelscope://org/name", &hub.url, true);
    let listing = source.resolve().await.expect("listing");
    assert_eq!((listing.commit.as_str(), listing.revision.as_str()), (COMMIT, "master"));
    assert_eq!(listing.created.as_deref(), Some("2025-04-28T12:34:56Z"));
    let found: Vec<_> = listing.files.iter().map(|file| (file.path.as_str(), file.executable)).collect();
    assert_eq!(found, [("a b.txt", false), ("run.sh", true), ("sub/deep/model.bin", false)]);
    for file in &listing.files {
        assert!(matches!(file.hash, FileHash::Sha256(_)));
        assert_eq!(download(&source, &listing, file).await.expect("file"), files[&file.path]);
    }
    for seen in hub.seen() {
        assert_eq!(seen.bearer.as_deref(), Some("Bearer secret-token"));
        assert_eq!(seen.cookie.as_deref(), Some("m_session_id=secret-token"));
    }
}

#[tokio::test]
async fn a_branch_and_its_commit_give_the_same_listing() {
    let hub = hub(&files(&["a"])).await;
    let by_branch = source("modelscope://org/name@master", &hub.url, false).resolve().await.expect("branch");
    let by_commit =
        source(&format!("modelscope://org/name@{COMMIT}"), &hub.url, false).resolve().await.expect("commit");
    assert_eq!((by_branch.created, by_branch.files), (by_commit.created, by_commit.files));
}

#[tokio::test]
async fn listings_past_the_silent_limit_are_walked() {
    let mut files = Files::new();
    for n in 0..2900 {
        files.insert(format!("a/{n}"), b"x".to_vec());
        files.insert(format!("b/{}/{n}", n % 3), b"y".to_vec());
    }
    files.insert("top".into(), b"t".to_vec());
    let expected: Vec<String> = files.keys().cloned().collect();
    let files = Arc::new(files);
    let hub = hub(&files).await;
    let listing = source("modelscope://org/name", &hub.url, false).resolve().await.expect("walked");
    let found: Vec<String> = listing.files.into_iter().map(|file| file.path).collect();
    assert_eq!(found, expected);
    assert!(hub.seen_at("/api/v1/models/org/name/repo/files").len() < 12);
}

#[tokio::test]
async fn a_directory_nobody_can_list_is_an_error() {
    let many: Files = (0..CUT_OFF).map(|n| (format!("a/{n}"), b"x".to_vec())).collect();
    let hub = hub(&Arc::new(many)).await;
    let error = source("modelscope://org/name", &hub.url, false).resolve().await.expect_err("cut off");
    assert!(matches!(&error, HubError::CutOff { directory, limit: CUT_OFF } if directory == "a"), "{error}");
}

#[tokio::test]
async fn a_part_may_come_with_status_200_if_its_range_is_right() {
    let content = noise(1 << 20);
    let files = Arc::new(Files::from([("m".to_owned(), content.clone())]));
    let served = files.clone();
    let hub = Server::start(move |seen| {
        let mut response = answer(&served, seen);
        *response.status_mut() = axum::http::StatusCode::OK;
        response
    })
    .await;
    let client = source("modelscope://org/name", &hub.url, false);
    let listing = client.resolve().await.expect("listing");
    let bytes =
        collect(client.open(&listing, &listing.files[0], 1000).await.expect("open")).await.expect("bytes");
    assert!(bytes == content[1000..]);

    // The same status with a range that was not asked for is refused, however often it comes.
    let lying = Server::start(move |seen| match seen.path.ends_with("/repo") {
        true => {
            let shifted = Seen { range: Some((0, Some(content.len() as u64 - 1))), ..seen.clone() };
            let mut response = part(&shifted, &content);
            *response.status_mut() = axum::http::StatusCode::OK;
            response
        }
        false => answer(&files, seen),
    })
    .await;
    let client = source("modelscope://org/name", &lying.url, false);
    let listing = client.resolve().await.expect("listing");
    let error = client.open(&listing, &listing.files[0], 1000).await.err().expect("not the range asked for");
    assert!(matches!(error, HubError::BadRange { .. }), "{error}");
}

#[tokio::test]
async fn the_code_in_the_body_counts() {
    for (http, code, token, denial) in [
        (200, "10010101001", false, Denial::Hidden),
        (400, "10010103009", true, Denial::BadToken),
        (404, "404", false, Denial::Hidden),
        (200, "403", false, Denial::Forbidden),
    ] {
        let body = format!(r#"{{"Code":{code},"Message":"the hub's words","Success":false}}"#);
        let hub = Server::start(move |_| status(http, &[], &body)).await;
        let error = source("modelscope://org/name", &hub.url, token).resolve().await.expect_err("refused");
        assert!(
            matches!(&error, HubError::Denied { denial: found, .. } if *found == denial),
            "{code}: {error}"
        );
        assert!(error.to_string().contains("the hub's words") && error.hint().is_some(), "{error}");
        assert_eq!(hub.seen().len(), 1);
    }
    // A passing fault in the body is waited for although the status is 200.
    let served = files(&["a"]);
    let hub = Server::start(move |seen| match seen.before {
        0 if seen.path.ends_with("/repo/files") => json(r#"{"Code":503,"Message":"busy"}"#),
        _ => answer(&served, seen),
    })
    .await;
    source("modelscope://org/name", &hub.url, false).resolve().await.expect("the second time");
}

#[tokio::test]
async fn vanished_commits_and_moving_branches_are_errors() {
    let gone =
        Server::start(
            |seen| if seen.path.ends_with("commits") { commits() } else { data(r#"{"Files":[]}"#) },
        )
        .await;
    let error = source("modelscope://org/name", &gone.url, false).resolve().await.expect_err("no files");
    assert!(matches!(error, HubError::Empty { .. }), "{error}");

    // The branch moves between the two looks at it, and the hub lists the new files under the old commit.
    let moving = Server::start(|seen| match (seen.path.ends_with("commits"), seen.before) {
        (true, 0) => commits(),
        (true, _) => data(&format!(r#"{{"Commit":[{{"Id":"{}"}}]}}"#, "f".repeat(40))),
        (false, before) => {
            let files = Files::from([(format!("file-{before}"), b"x".to_vec())]);
            data(&format!(r#"{{"Files":[{}]}}"#, rows(&files, "", true).join(",")))
        }
    })
    .await;
    let error = source("modelscope://org/name", &moving.url, false).resolve().await.expect_err("moved");
    assert!(matches!(error, HubError::CommitMoved { .. }), "{error}");
}

#[tokio::test]
async fn a_size_the_listing_lacks_is_asked_for() {
    let files = files(&["weights"]);
    let hub = Server::start(move |seen| {
        if seen.path.ends_with("/repo/files") {
            let row = rows(&files, "", true).remove(0).replace(r#""Size":7"#, r#""Size":0"#);
            return data(&format!(r#"{{"Files":[{row}]}}"#));
        }
        answer(&files, seen)
    })
    .await;
    let listing = source("modelscope://org/name", &hub.url, false).resolve().await.expect("listing");
    assert_eq!(listing.files[0].size, 7);
}

#[tokio::test]
async fn data_sets_are_paged_and_a_stray_403_is_forgiven() {
    let rows: Vec<String> = (0..450)
        .map(|n| format!(r#"{{"Path":"f{n:03}","Type":"blob","Size":1,"Sha256":"{}"}}"#, "a".repeat(64)))
        .collect();
    let hub = Server::start(move |seen| match seen.path.strip_prefix("/api/v1/datasets/org/name/") {
        Some("commits") => commits(),
        Some("repo/tree") => {
            let page: usize = seen.param("PageNumber").expect("page").parse().expect("number");
            if page == 2 && seen.before == 0 {
                return status(403, &[], r#"{"Code":403,"Message":"access denied"}"#);
            }
            let page = rows.chunks(200).nth(page - 1).unwrap_or_default();
            data(&format!(r#"{{"Files":[{}]}}"#, page.join(",")))
        }
        _ => not_found(),
    })
    .await;
    let listing = source("modelscope://datasets/org/name", &hub.url, false).resolve().await.expect("listing");
    assert_eq!(listing.files.len(), 450);
}

#[tokio::test]
async fn rows_that_are_no_files_are_errors() {
    let good = format!(r#""Sha256":"{}""#, "a".repeat(64));
    for row in [
        r#"{"Path":"a","Type":"blob","Size":1}"#.to_owned(),
        r#"{"Path":"a","Type":"blob","Size":1,"Sha256":"xyz"}"#.to_owned(),
        format!(r#"{{"Path":"a","Type":"commit","Size":1,{good}}}"#),
        format!(r#"{{"Path":"a","Type":"blob","Size":-1,{good}}}"#),
        format!(r#"{{"Path":"../a","Type":"blob","Size":1,{good}}}"#),
        "7".to_owned(),
    ] {
        let text = row.clone();
        let hub = Server::start(move |seen| match seen.path.ends_with("commits") {
            true => commits(),
            false => data(&format!(r#"{{"Files":[{text}]}}"#)),
        })
        .await;
        let error = source("modelscope://org/name", &hub.url, false).resolve().await.expect_err(&row);
        assert!(matches!(error, HubError::Unexpected { .. } | HubError::Path(_)), "{row}: {error}");
    }
    let html = Server::start(|_| Response::new(Body::from("<html>maintenance</html>"))).await;
    let error = source("modelscope://org/name", &html.url, false).resolve().await.expect_err("no JSON");
    assert!(matches!(error, HubError::Unexpected { .. }), "{error}");
}
