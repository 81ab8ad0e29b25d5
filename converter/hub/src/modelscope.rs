//! The ModelScope hub: pin a branch through its commits, list around the hub's silent limits, read with strict ranges.
//!
//! Its answers wrap everything in `{"Code":…,"Data":…}`, and the code counts, not the HTTP status. The licence it shows
//! belongs to the repository and not to a commit, so listings carry none: it could change while the commit stays.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::download::{self, Target};
use crate::error::{Denial, HubError, quoted};
use crate::http::{Ask, Http, Reply};
use crate::listing::{FileHash, Listing, RemoteFile};
use crate::paths::MAX_FILES;
use crate::range::total_of;
use crate::retry::is_transient_status;
use crate::source::{ByteStream, is_commit, read_hash};
use crate::source_ref::{HubKind, RepoKind};

/// Rows at which a listing is silently cut (`REPO_FILES_TRUNCATION_LIMIT` of ModelScope's client).
const CUT_OFF: usize = 3000;

/// Rows per page of a data set's listing; its client asks for as many.
const PAGE_LEN: usize = 200;

/// The most requests for one listing: all pages of [`MAX_FILES`] files and as many directories, with room to spare.
const MAX_REQUESTS: usize = 2048;

/// The most files whose size must be asked for one by one because the listing says 0.
const MAX_UNSIZED: usize = 256;

/// A repository on ModelScope.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) http: Http,
    pub(crate) kind: RepoKind,
    pub(crate) id: String,
    /// As asked, or the hub's default branch.
    pub(crate) revision: String,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "Code")]
    code: Option<Value>,
    #[serde(rename = "Message")]
    message: Option<String>,
    #[serde(rename = "Data")]
    data: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    pub(crate) path: String,
    r#type: String,
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<String>,
    pub(crate) mode: Option<Value>,
}

impl Row {
    pub(crate) fn is_directory(&self) -> bool {
        self.r#type == "tree"
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CommitRow {
    id: String,
    pub(crate) committed_date: Option<u64>,
}

impl Repo {
    pub(crate) const DEFAULT_REVISION: &str = "master";

    pub(crate) async fn resolve(&self) -> Result<Listing, HubError> {
        let by_commit = is_commit(&self.revision);
        let commit = if by_commit { self.revision.clone() } else { self.pin().await? };
        let rows = self.list(&commit).await?;
        // The hub may forget a commit or take a commit for its branch: if the branch moved meanwhile, the listing must be
        // shown to belong to the commit.
        if !by_commit && self.pin().await? != commit && self.list(&commit).await? != rows {
            let found = format!("other files for the same commit of {}", self.revision);
            return Err(HubError::CommitMoved { subject: self.id.clone(), pinned: commit, found });
        }
        let created = self.created(&commit).await?;
        let files = self.files(&commit, rows).await?;
        let mut page =
            self.http.url([self.kind.segment()].into_iter().chain(self.id.split('/')).chain(["files"]));
        page.query_pairs_mut().append_pair("version", &commit);
        Listing {
            hub: HubKind::ModelScope,
            kind: self.kind,
            repo: self.id.clone(),
            revision: self.revision.clone(),
            created,
            licence: None,
            url: page.into(),
            files,
            commit,
        }
        .check()
    }

    /// `api/v1/KIND/ORG/NAME/…` with a query.
    fn api(&self, tail: &[&str], query: &[(&str, &str)]) -> Url {
        let head = ["api", "v1", self.kind.segment()];
        let mut url = self.http.url(head.into_iter().chain(self.id.split('/')).chain(tail.iter().copied()));
        url.query_pairs_mut().extend_pairs(query);
        url
    }

    /// The latest commits of a branch, a tag or a commit.
    fn commits_url(&self, revision: &str) -> Url {
        self.api(&["commits"], &[("Ref", revision), ("PageNumber", "1"), ("PageSize", "10")])
    }

    /// The commit the revision stands for now.
    async fn pin(&self) -> Result<String, HubError> {
        let subject = format!("{}@{}", self.id, self.revision);
        let judge = |reply: &Reply| {
            let commits = commits(reply, self.data(reply, &subject, false)?)?;
            let head =
                commits.into_iter().next().ok_or_else(|| self.denied(&subject, Denial::NoRevision, ""))?;
            if is_commit(&head.id) {
                Ok(head.id)
            } else {
                Err(reply.unexpected("a commit that is not 40 hex digits"))
            }
        };
        self.http.read(&Ask::all(self.commits_url(&self.revision)), judge).await
    }

    /// The date in the commit's own record, asked for in the same way whether the user named the commit or a branch, so
    /// that both give the same image.
    async fn created(&self, commit: &str) -> Result<Option<String>, HubError> {
        let subject = format!("{}@{commit}", self.id);
        let judge = |reply: &Reply| {
            // Not every hub takes a commit here; one that says so will say so tomorrow.
            let data = match self.data(reply, &subject, false) {
                Err(HubError::Denied { denial: Denial::Hidden | Denial::NoRevision, .. }) => return Ok(None),
                Err(error @ HubError::Status { .. }) if !error.is_transient() => return Ok(None),
                data => data?,
            };
            let record = commits(reply, data)?.into_iter().next().filter(|row| row.id == commit);
            Ok(record.and_then(|row| row.committed_date).and_then(date))
        };
        self.http.read(&Ask::all(self.commits_url(commit)), judge).await
    }

    async fn list(&self, commit: &str) -> Result<Vec<Row>, HubError> {
        let mut rows = match self.kind {
            RepoKind::Model => self.list_model(commit).await?,
            RepoKind::Dataset => self.list_dataset(commit).await?,
        };
        rows.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(rows)
    }

    /// Lists the whole tree in one request if it fits, else directory by directory.
    async fn list_model(&self, commit: &str) -> Result<Vec<Row>, HubError> {
        let mut files = Vec::new();
        let mut seen = HashSet::from([String::new()]);
        let mut pending = vec![String::new()];
        let mut requests = 0;
        while let Some(directory) = pending.pop() {
            let rows = self.list_directory(commit, &directory, true, requests > 0).await?;
            requests += 1;
            if rows.len() < CUT_OFF {
                files.extend(rows.into_iter().filter(|row| !row.is_directory()));
            } else {
                let rows = self.list_directory(commit, &directory, false, true).await?;
                requests += 1;
                if rows.len() >= CUT_OFF {
                    return Err(HubError::CutOff { directory, limit: CUT_OFF });
                }
                for row in rows {
                    if !row.is_directory() {
                        files.push(row);
                    } else if seen.insert(row.path.clone()) {
                        pending.push(row.path);
                    }
                }
            }
            self.check_size(files.len(), requests + pending.len())?;
        }
        Ok(files)
    }

    fn check_size(&self, files: usize, requests: usize) -> Result<(), HubError> {
        if files <= MAX_FILES && requests <= MAX_REQUESTS {
            return Ok(());
        }
        let problem = format!("a listing of more than {MAX_FILES} files or {MAX_REQUESTS} requests");
        Err(HubError::Unexpected { url: crate::SafeUrl::new(&self.api(&["repo"], &[])), problem })
    }

    async fn list_directory(
        &self,
        commit: &str,
        directory: &str,
        recursive: bool,
        admitted: bool,
    ) -> Result<Vec<Row>, HubError> {
        let recursive = if recursive { "True" } else { "False" };
        let mut query = vec![("Revision", commit), ("Recursive", recursive)];
        if !directory.is_empty() {
            query.push(("Root", directory));
        }
        let rows = self.rows(self.api(&["repo", "files"], &query), admitted).await?;
        let inside = |row: &Row| directory.is_empty() || row.path.starts_with(&format!("{directory}/"));
        // The walk may see the directory itself among its entries; anything else is another directory's listing.
        match rows.iter().find(|row| !inside(row) && row.path != directory) {
            None => Ok(rows.into_iter().filter(inside).collect()),
            Some(row) => {
                let problem = format!("{:?} in the listing of {directory:?}", row.path);
                let url = crate::SafeUrl::new(&self.api(&["repo", "files"], &[]));
                Err(HubError::Unexpected { url, problem: quoted(&problem) })
            }
        }
    }

    async fn list_dataset(&self, commit: &str) -> Result<Vec<Row>, HubError> {
        let (mut files, size) = (Vec::new(), PAGE_LEN.to_string());
        for page in 1.. {
            let number = page.to_string();
            let query = [
                ("Revision", commit),
                ("Recursive", "True"),
                ("PageNumber", &number),
                ("PageSize", size.as_str()),
            ];
            let rows = self.rows(self.api(&["repo", "tree"], &query), page > 1).await?;
            let is_last = rows.len() < PAGE_LEN;
            files.extend(rows.into_iter().filter(|row| !row.is_directory()));
            self.check_size(files.len(), page)?;
            if is_last {
                break;
            }
        }
        Ok(files)
    }

    async fn rows(&self, url: Url, admitted: bool) -> Result<Vec<Row>, HubError> {
        let subject = self.id.clone();
        let judge = |reply: &Reply| rows(reply, self.data(reply, &subject, admitted)?);
        self.http.read(&Ask::all(url), judge).await
    }

    async fn files(&self, commit: &str, rows: Vec<Row>) -> Result<Vec<RemoteFile>, HubError> {
        let empty: [u8; 32] = Sha256::digest(b"").into();
        let mut files = Vec::with_capacity(rows.len());
        let mut asked = 0;
        for row in rows {
            let listing = || crate::SafeUrl::new(&self.api(&["repo", "files"], &[]));
            let unexpected =
                |problem: String| HubError::Unexpected { url: listing(), problem: quoted(&problem) };
            if row.r#type != "blob" {
                return Err(unexpected(format!("an entry {:?} of type {:?}", row.path, row.r#type)));
            }
            let Some(sha256) = row.sha256.as_deref().and_then(read_hash::<32>) else {
                return Err(unexpected(format!("no SHA-256 for {:?}", row.path)));
            };
            let size = match row.size {
                Some(size) if size > 0 || sha256 == empty => size,
                // Zero may also mean that the hub does not know.
                _ if asked < MAX_UNSIZED => {
                    asked += 1;
                    self.ask_size(commit, &row.path).await?
                }
                _ => return Err(unexpected(format!("no size for more than {MAX_UNSIZED} files"))),
            };
            let executable = row.mode.as_ref().is_some_and(is_executable);
            files.push(RemoteFile { path: row.path, size, executable, hash: FileHash::Sha256(sha256) });
        }
        Ok(files)
    }

    fn file_url(&self, commit: &str, path: &str) -> Url {
        self.api(&["repo"], &[("Revision", commit), ("FilePath", path)])
    }

    /// Length of a file for which the listing gives none, from the headers of a request for its first byte.
    async fn ask_size(&self, commit: &str, path: &str) -> Result<u64, HubError> {
        let ask = Ask { url: self.file_url(commit, path), range: Some(0..1), pinned: None };
        let accept = |answer: &crate::http::Answer| {
            let total = answer.header(http::header::CONTENT_RANGE).and_then(total_of);
            let whole = || if answer.status() == 200 { answer.content_length() } else { None };
            total.or_else(whole).ok_or_else(|| HubError::Unexpected {
                url: answer.url.clone(),
                problem: "no length of the file".to_owned(),
            })
        };
        let refuse = self.refuse(path);
        let (_, size) = self.http.open(&ask, accept, |reply| refuse(reply)).await?;
        Ok(size)
    }

    fn refuse(&self, path: &str) -> download::Refuse {
        let (repo, subject) = (self.clone(), format!("{path:?} of {}", self.id));
        Arc::new(move |reply| match repo.data(reply, &subject, false) {
            Err(HubError::Denied { hub, subject, denial: Denial::Hidden, message, with_token })
                if reply.status == 404 =>
            {
                HubError::Denied { hub, subject, denial: Denial::NoFile, message, with_token }
            }
            Err(error) => error,
            Ok(_) => reply.unexpected("an error that is none"),
        })
    }

    pub(crate) async fn open(
        &self,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<ByteStream, HubError> {
        let target = Target {
            url: self.file_url(commit, &file.path),
            path: file.path.clone(),
            size: file.size,
            pinned: None,
            refuse: self.refuse(&file.path),
        };
        download::open(self.http.clone(), target, from).await
    }

    fn denied(&self, subject: &str, denial: Denial, message: &str) -> HubError {
        HubError::Denied {
            hub: HubKind::ModelScope,
            subject: subject.to_owned(),
            denial,
            message: quoted(message),
            with_token: self.http.has_token(),
        }
    }

    /// The `Data` of an answer, or what its code means. `admitted` says that the repository was read before: then a 403 is
    /// a fault of the hub, as its own client has it.
    pub(crate) fn data(&self, reply: &Reply, subject: &str, admitted: bool) -> Result<Value, HubError> {
        let envelope: Option<Envelope> = serde_json::from_slice(&reply.body).ok();
        let body_code = envelope.as_ref().and_then(|envelope| envelope.code.as_ref()).and_then(number);
        let code = match body_code {
            Some(code) => code,
            None if reply.status < 400 => {
                return envelope
                    .and_then(|e| e.data)
                    .ok_or_else(|| reply.unexpected("no JSON with Code and Data"));
            }
            None => u64::from(reply.status),
        };
        if code == 200 {
            return Ok(envelope.and_then(|envelope| envelope.data).unwrap_or_default());
        }
        let message = envelope.and_then(|envelope| envelope.message).unwrap_or_default();
        let expired = reply.elsewhere && matches!(reply.status, 400 | 401 | 403);
        let short = u16::try_from(code).unwrap_or(if reply.status < 400 { 0 } else { reply.status });
        let transient = expired || is_transient_status(short) || (admitted && short == 403);
        let denial = match (code, short) {
            _ if transient => None,
            (10_010_103_009, _) => Some(Denial::BadToken),
            (_, 401) if self.http.has_token() => Some(Denial::BadToken),
            // Codes of this family are "no such model"; the hub does not say whether it is private.
            (10_010_101_000..=10_010_101_999 | 10_010_205_000..=10_010_205_999, _) | (_, 401 | 404) => {
                Some(Denial::Hidden)
            }
            (_, 403) => Some(Denial::Forbidden),
            _ => None,
        };
        Err(match denial {
            Some(denial) => self.denied(subject, denial, &message),
            None => HubError::Status {
                url: reply.url.clone(),
                status: code,
                message: quoted(&message),
                transient,
            },
        })
    }
}

/// The files and directories of a listing.
pub(crate) fn rows(reply: &Reply, data: Value) -> Result<Vec<Row>, HubError> {
    list(reply, data, "Files")
}

pub(crate) fn commits(reply: &Reply, data: Value) -> Result<Vec<CommitRow>, HubError> {
    list(reply, data, "Commit")
}

/// A list that is the data itself or its field `name`; absent, it is empty.
fn list<T: DeserializeOwned>(reply: &Reply, data: Value, name: &str) -> Result<Vec<T>, HubError> {
    let list = match data {
        Value::Object(mut fields) => fields.remove(name).unwrap_or_default(),
        other => other,
    };
    match list {
        Value::Null => Ok(Vec::new()),
        list => serde_json::from_value(list).map_err(|error| reply.unexpected(error.to_string())),
    }
}

/// A number, bare or in a string, as the hub writes both.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

/// Whether a git mode, in decimal, says that the owner may run the file.
pub(crate) fn is_executable(mode: &Value) -> bool {
    number(mode).is_some_and(|mode| mode & 0o170_100 == 0o100_100)
}

/// Seconds since the epoch in RFC 3339; `None` for dates after the year 9999.
pub(crate) fn date(seconds: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    (seconds < YEAR_10000).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_dates_and_numbers_are_read() {
        assert!(is_executable(&"33261".into()) && is_executable(&33_261.into()));
        for plain in [Value::from("33188"), "16384".into(), "40960".into(), "x".into(), Value::Null] {
            assert!(!is_executable(&plain), "{plain}");
        }
        assert_eq!(date(1_745_843_696).as_deref(), Some("2025-04-28T12:34:56Z"));
        assert_eq!(date(253_402_300_800), None);
        assert_eq!(date(u64::MAX), None);
    }
}
