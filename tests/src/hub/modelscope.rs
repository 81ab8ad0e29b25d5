//! The part of the ModelScope API that clients need to look a repository up, list it and download it.

use std::sync::Arc;

use anyhow::Result;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::repo::{Entry, Snapshot, TAG};
use super::{Call, Caller, Faults, State, json as json_response, storage, text, with_headers, with_status};

fn success(data: &Value) -> Response {
    json_response(
        &json!({ "Code": 200, "Success": true, "Message": "success", "RequestId": "stand-in", "Data": data }),
    )
}

/// The code is in the body; the status goes with it only as far as the real hub has it so.
fn refusal(status: StatusCode, code: u64, message: &str) -> Response {
    let body =
        json!({ "Code": code, "Success": false, "Message": message, "RequestId": "stand-in", "Data": null });
    with_status(json_response(&body), status)
}

pub(super) async fn answer(state: &Arc<State>, call: &Call, caller: Caller) -> Result<Response> {
    if caller == Caller::Wrong {
        return Ok(refusal(StatusCode::BAD_REQUEST, 10_010_103_009, "the access token is not valid"));
    }
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    let (kind, id, rest) = match segments.as_slice() {
        ["api", "v1", "repos", "internalAccelerationInfo"] => {
            return Ok(success(&json!({ "InternalRegionQueryAddress": "" })));
        }
        ["api", "v1", kind, org, name, rest @ ..] => (*kind, format!("{org}/{name}"), rest),
        _ => return Ok(text(StatusCode::NOT_FOUND, "")),
    };
    let hidden = state.config.private.contains(&id) && caller != Caller::Known;
    let Some(repo) = state.repos(kind).and_then(|repos| repos.get(&id)).filter(|_| !hidden) else {
        return Ok(refusal(StatusCode::NOT_FOUND, 10_010_205_001, "the repository does not exist"));
    };
    let asked =
        [call.param("Revision"), call.param("Ref"), "master"].into_iter().find(|name| !name.is_empty());
    let Some(snapshot) = repo.snapshot(asked.unwrap_or("master"), &state.hashes).await? else {
        return Ok(refusal(StatusCode::NOT_FOUND, 10_010_205_002, "the revision does not exist"));
    };
    Ok(match rest {
        [] => success(
            &json!({ "Id": 1, "Path": id.split('/').next(), "Name": id.split('/').nth(1), "Revision": "master" }),
        ),
        ["revisions"] => {
            let branch = json!({ "Revision": "master", "CreatedAt": snapshot.date });
            let tag = json!({ "Revision": TAG, "CreatedAt": snapshot.date });
            success(&json!({ "RevisionMap": { "Branches": [branch], "Tags": [tag] } }))
        }
        ["commits"] => {
            let history = repo.history(&snapshot, &state.hashes).await?;
            let row = |one: &Arc<Snapshot>| json!({ "Id": one.commit, "ShortId": &one.commit[..8], "CommittedDate": one.date });
            let rows: Vec<Value> = history.iter().map(row).collect();
            success(&json!({ "Commit": rows, "TotalCount": rows.len() }))
        }
        ["repo", "files"] if kind == "models" => {
            let mut rows = rows(state, call, &snapshot);
            rows.truncate(state.config.cut_off);
            success(&json!({ "Files": rows }))
        }
        ["repo", "tree"] if kind == "datasets" => {
            let number = |name: &str, default: usize| call.param(name).parse().unwrap_or(default).max(1);
            let (page, len) = (number("PageNumber", 1), number("PageSize", 100).min(200));
            let rows: Vec<Value> =
                rows(state, call, &snapshot).into_iter().skip((page - 1) * len).take(len).collect();
            success(&json!({ "Files": rows }))
        }
        ["repo"] => {
            if state.config.gated.contains(&id) && caller != Caller::Known {
                return Ok(refusal(StatusCode::FORBIDDEN, 403, "access to the repository is restricted"));
            }
            download(state, call, &snapshot).await?
        }
        _ => text(StatusCode::NOT_FOUND, ""),
    })
}

/// Entries below `Root`, directories first.
fn rows(state: &State, call: &Call, snapshot: &Snapshot) -> Vec<Value> {
    let recursive = matches!(call.param("Recursive"), "True" | "true");
    let root = call.param("Root").trim_matches('/');
    let prefix = if root.is_empty() { String::new() } else { format!("{root}/") };
    let inside = |path: &str| path.strip_prefix(&prefix).is_some_and(|tail| recursive || !tail.contains('/'));
    let faults = state.faults().clone();
    let directory =
        |path: &str| json!({ "Path": path, "Name": base(path), "Type": "tree", "Size": 0, "Mode": "16384" });
    let mut rows: Vec<Value> =
        snapshot.directories().into_iter().filter(|path| inside(path)).map(directory).collect();
    rows.extend(
        snapshot.files.iter().filter(|file| inside(&file.path)).map(|file| row(file, snapshot, &faults)),
    );
    let extra = |path: &String| json!({ "Path": path, "Name": base(path), "Type": "blob", "Size": 1, "Sha256": "1".repeat(64), "Mode": "33188" });
    rows.extend(faults.extra_paths.iter().map(extra));
    rows
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn row(file: &Entry, snapshot: &Snapshot, faults: &Faults) -> Value {
    json!({
        "Path": file.path, "Name": base(&file.path), "Type": "blob", "Sha256": file.sha256, "IsLFS": file.lfs,
        "Size": faults.wrong_size.get(&file.path).copied().unwrap_or(file.size),
        "Mode": if file.executable { "33261" } else { "33188" },
        "Revision": snapshot.commit, "CommittedDate": snapshot.date,
    })
}

async fn download(state: &Arc<State>, call: &Call, snapshot: &Snapshot) -> Result<Response> {
    let Some(file) = snapshot.file(call.param("FilePath")) else {
        return Ok(refusal(StatusCode::NOT_FOUND, 10_010_205_003, "the file does not exist"));
    };
    if !file.lfs {
        // As the real hub: what lies in git is sent whole, whatever range was asked for.
        return storage::body(state, call, &file.disk, &file.path, false).await;
    }
    let address = storage::address(state, &file.sha256, &file.path);
    Ok(with_headers(text(StatusCode::FOUND, ""), [("location", address.as_str())]))
}
