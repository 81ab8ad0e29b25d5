//! The part of the Hugging Face API that clients need to look a repository up, list it and download it.

use std::sync::Arc;

use anyhow::Result;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::repo::{Entry, Repo, Snapshot, TAG};
use super::{Call, Caller, State, json as json_response, storage, text, with_headers, with_status};

/// An answer that is an error, as the real hub words it.
fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let response = with_status(json_response(&json!({ "error": message })), status);
    let response = with_headers(response, [("x-error-message", message)]);
    if code.is_empty() { response } else { with_headers(response, [("x-error-code", code)]) }
}

pub(super) async fn answer(state: &Arc<State>, call: &Call, caller: Caller) -> Result<Response> {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    if caller == Caller::Wrong {
        return Ok(refusal(StatusCode::UNAUTHORIZED, "", "Invalid credentials in Authorization header"));
    }
    let (kind, org, name, rest, is_api) = match segments.as_slice() {
        ["api", kind @ ("models" | "datasets"), org, name, rest @ ..] => (*kind, *org, *name, rest, true),
        ["datasets", org, name, rest @ ..] => ("datasets", *org, *name, rest, false),
        [org, name, rest @ ..] => ("models", *org, *name, rest, false),
        _ => return Ok(text(StatusCode::NOT_FOUND, "")),
    };
    let id = format!("{org}/{name}");
    let hidden = state.config.private.contains(&id) && caller != Caller::Known;
    let Some(repo) = state.repos(kind).and_then(|repos| repos.get(&id)).filter(|_| !hidden) else {
        let status = if caller == Caller::Known { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED };
        return Ok(refusal(status, "RepoNotFound", "Repository not found"));
    };
    let revision = match rest {
        ["revision" | "tree" | "commits" | "resolve", revision, ..] => revision,
        _ => "main",
    };
    let Some(snapshot) = repo.snapshot(revision, &state.hashes).await? else {
        return Ok(refusal(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id"));
    };
    Ok(match (is_api, rest) {
        (true, [] | ["revision", _]) => json_response(&info(state, &id, &snapshot)),
        (true, ["refs"]) => refs(state, repo).await?,
        (true, ["commits", _]) => commits(state, repo, &snapshot).await?,
        (true, ["tree", _, below @ ..]) => tree(state, call, &snapshot, &below.join("/")),
        (false, ["resolve", _, path @ ..]) => {
            if state.config.gated.contains(&id) && caller != Caller::Known {
                let message =
                    format!("Access to model {id} is restricted. You must be authenticated to access it.");
                return Ok(refusal(StatusCode::UNAUTHORIZED, "GatedRepo", &message));
            }
            resolve(state, call, &snapshot, &path.join("/")).await?
        }
        _ => text(StatusCode::NOT_FOUND, ""),
    })
}

fn date(seconds: u64) -> String {
    // Commits are made at midnight, 2025-01-01 and the days after it; tests push fewer than thirty of them.
    let day = 1 + (seconds - 1_735_689_600) / 86_400;
    format!("2025-01-{day:02}T00:00:00.000Z")
}

fn info(state: &State, id: &str, snapshot: &Snapshot) -> Value {
    let siblings: Vec<Value> = snapshot.files.iter().map(|file| json!({ "rfilename": file.path })).collect();
    let gated = if state.config.gated.contains(id) { json!("auto") } else { json!(false) };
    json!({
        "_id": &snapshot.commit[..24], "id": id, "modelId": id, "sha": snapshot.commit,
        "lastModified": date(snapshot.date), "private": state.config.private.contains(id), "gated": gated,
        "disabled": false, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
        "cardData": snapshot.licence.as_ref().map(|name| json!({ "license": name })),
    })
}

async fn refs(state: &State, repo: &Repo) -> Result<Response> {
    let mut heads = Vec::new();
    for name in ["main", TAG] {
        let commit = repo.snapshot(name, &state.hashes).await?.map(|snapshot| snapshot.commit.clone());
        heads.push(commit.unwrap_or_default());
    }
    Ok(json_response(&json!({
        "branches": [{ "name": "main", "ref": "refs/heads/main", "targetCommit": heads[0] }],
        "tags": [{ "name": TAG, "ref": format!("refs/tags/{TAG}"), "targetCommit": heads[1] }],
        "converts": [],
    })))
}

async fn commits(state: &State, repo: &Repo, snapshot: &Snapshot) -> Result<Response> {
    let history = repo.history(snapshot, &state.hashes).await?;
    let rows: Vec<Value> = history
        .iter()
        .map(|one| json!({ "id": one.commit, "title": "Commit", "message": "", "date": date(one.date), "authors": [] }))
        .collect();
    Ok(json_response(&Value::Array(rows)))
}

/// One page of the entries below `root`; the cursor is the number of the first one.
fn tree(state: &State, call: &Call, snapshot: &Snapshot, root: &str) -> Response {
    let recursive = matches!(call.param("recursive"), "true" | "True" | "1");
    let prefix = if root.is_empty() { String::new() } else { format!("{root}/") };
    let inside = |path: &str| path.strip_prefix(&prefix).is_some_and(|tail| recursive || !tail.contains('/'));
    let faults = state.faults().clone();
    let directories = snapshot.directories().into_iter().filter(|path| inside(path));
    let mut rows: Vec<Value> = directories
        .map(|path| json!({ "type": "directory", "oid": "0".repeat(40), "size": 0, "path": path }))
        .collect();
    rows.extend(snapshot.files.iter().filter(|file| inside(&file.path)).map(|file| row(file, &faults)));
    let extra = |path: &String| json!({ "type": "file", "oid": "1".repeat(40), "size": 1, "path": path });
    rows.extend(faults.extra_paths.iter().map(extra));
    let from = call.param("cursor").parse().unwrap_or(0).min(rows.len());
    let to = rows.len().min(from + state.config.page_len);
    let response = json_response(&Value::Array(rows[from..to].to_vec()));
    if to == rows.len() {
        return response;
    }
    let next = format!("<{}{}?recursive={recursive}&cursor={to}>; rel=\"next\"", state.url, call.path);
    with_headers(response, [("link", next.as_str())])
}

fn row(file: &Entry, faults: &super::Faults) -> Value {
    let size = faults.wrong_size.get(&file.path).copied().unwrap_or(file.size);
    let mut row = json!({ "type": "file", "oid": file.git_sha1, "size": size, "path": file.path });
    if file.lfs {
        row["lfs"] = json!({ "oid": file.sha256, "size": size, "pointerSize": 134 });
    }
    row
}

async fn resolve(state: &Arc<State>, call: &Call, snapshot: &Snapshot, path: &str) -> Result<Response> {
    let pinned = [("x-repo-commit", snapshot.commit.as_str())];
    let Some(file) = snapshot.file(path) else {
        return Ok(with_headers(refusal(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found"), pinned));
    };
    if !file.lfs {
        let response = storage::body(state, call, &file.disk, &file.path, true).await?;
        let etag = format!("\"{}\"", file.git_sha1);
        return Ok(with_headers(with_headers(response, pinned), [("etag", etag.as_str())]));
    }
    let (etag, size) = (format!("\"{}\"", file.sha256), file.size.to_string());
    let address = storage::address(state, &file.sha256, &file.path);
    let response = with_headers(text(StatusCode::FOUND, ""), pinned);
    let linked = [("x-linked-etag", etag.as_str()), ("x-linked-size", &size), ("location", &address)];
    Ok(with_headers(response, linked))
}
