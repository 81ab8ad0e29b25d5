//! The Hugging Face hub: pin a revision, list the commit page by page, resolve a file to its storage.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use crate::download::{self, Target};
use crate::error::{Denial, HubError, quoted};
use crate::http::{Ask, Http, Reply};
use crate::listing::{FileHash, Listing, RemoteFile};
use crate::paths::MAX_FILES;
use crate::retry::is_transient_status;
use crate::source::{ByteStream, is_commit, read_hash};
use crate::source_ref::{HubKind, RepoKind};

/// The most pages of one listing: [`MAX_FILES`] files and as many directories, at 1000 a page, four times over.
const MAX_PAGES: usize = 1024;

/// The most characters of a licence; identifiers have about twenty.
const MAX_LICENCE_LEN: usize = 128;

/// A repository on Hugging Face.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) http: Http,
    pub(crate) kind: RepoKind,
    pub(crate) id: String,
    /// As asked, or the hub's default branch.
    pub(crate) revision: String,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default, rename = "cardData")]
    card: Option<Value>,
}

#[derive(Deserialize)]
pub(crate) struct Row {
    r#type: String,
    path: String,
    #[serde(default)]
    oid: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

#[derive(Deserialize)]
struct CommitRow {
    id: String,
    date: Option<String>,
}

impl Repo {
    pub(crate) const DEFAULT_REVISION: &str = "main";

    pub(crate) async fn resolve(&self) -> Result<Listing, HubError> {
        let (commit, licence) = self.pin().await?;
        let files = self.list(&commit).await?;
        let created = self.created(&commit).await?;
        let page = self.segments(&[]).chain(["tree", commit.as_str()]);
        Listing {
            hub: HubKind::HuggingFace,
            kind: self.kind,
            repo: self.id.clone(),
            revision: self.revision.clone(),
            created,
            licence,
            url: self.http.url(page).into(),
            files,
            commit,
        }
        .check()
    }

    /// `prefix`, the kind where the hub wants it, and the id, one segment each.
    fn segments<'a>(&'a self, prefix: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
        let kind = if prefix.is_empty() {
            (self.kind == RepoKind::Dataset).then_some("datasets")
        } else {
            Some(self.kind.segment())
        };
        prefix.iter().copied().chain(kind).chain(self.id.split('/'))
    }

    /// The commit the revision stands for now, and the licence in its model card.
    async fn pin(&self) -> Result<(String, Option<String>), HubError> {
        let url = self.http.url(self.segments(&["api"]).chain(["revision", self.revision.as_str()]));
        let subject = format!("{}@{}", self.id, self.revision);
        let judge = |reply: &Reply| {
            self.check_status(reply, &subject, Denial::Hidden)?;
            let info: Info = reply.json()?;
            if !is_commit(&info.sha) {
                return Err(reply.unexpected("a commit that is not 40 hex digits"));
            }
            if is_commit(&self.revision) && info.sha != self.revision {
                return Err(self.moved(&self.revision, &info.sha));
            }
            Ok((info.sha, info.card.as_ref().and_then(licence)))
        };
        self.http.read(&Ask::all(url), judge).await
    }

    fn moved(&self, pinned: &str, found: &str) -> HubError {
        HubError::CommitMoved { subject: self.id.clone(), pinned: pinned.to_owned(), found: quoted(found) }
    }

    async fn list(&self, commit: &str) -> Result<Vec<RemoteFile>, HubError> {
        let first = self.http.url(self.segments(&["api"]).chain(["tree", commit]));
        let mut next = Some(first.clone());
        if let Some(url) = &mut next {
            url.set_query(Some("recursive=true&expand=false"));
        }
        let mut files = Vec::new();
        let mut pages = 0;
        while let Some(url) = next {
            let ask = Ask { url, range: None, pinned: Some((self.id.clone(), commit.to_owned())) };
            let judge = |reply: &Reply| {
                self.check_status(reply, &format!("{}@{commit}", self.id), Denial::Hidden)?;
                let rows: Vec<Row> = reply.json()?;
                Ok((rows, next_page(reply, &ask.url)?, reply.url.clone()))
            };
            let (rows, link, shown) = self.http.read(&ask, judge).await?;
            let unexpected =
                |problem: String| HubError::Unexpected { url: shown.clone(), problem: quoted(&problem) };
            for row in rows {
                if let Some(file) = file(row).map_err(unexpected)? {
                    files.push(file);
                }
            }
            if let Some(link) = &link
                && !(self.http.owns(link) && link.path() == first.path())
            {
                return Err(unexpected("a next page that is not a page of this listing".to_owned()));
            }
            pages += 1;
            if link.is_some() && (pages == MAX_PAGES || files.len() > MAX_FILES) {
                return Err(unexpected(format!(
                    "a listing of more than {MAX_FILES} files or {MAX_PAGES} pages"
                )));
            }
            next = link;
        }
        Ok(files)
    }

    /// The date in the commit's own record, or `None` where the hub has no such record. Any other failure is one: a date
    /// that is there on some days only would change the bytes of the image.
    async fn created(&self, commit: &str) -> Result<Option<String>, HubError> {
        let url = self.http.url(self.segments(&["api"]).chain(["commits", commit]));
        let judge = |reply: &Reply| {
            if reply.status == 404 {
                return Ok(None);
            }
            self.check_status(reply, &format!("{}@{commit}", self.id), Denial::Hidden)?;
            let rows: Vec<CommitRow> = reply.json()?;
            let record = rows.into_iter().next().filter(|row| row.id == commit);
            Ok(record.and_then(|row| row.date).and_then(|date| seconds(&date)))
        };
        self.http.read(&Ask::all(url), judge).await
    }

    pub(crate) async fn open(
        &self,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<ByteStream, HubError> {
        let url = self.http.url(self.segments(&[]).chain(["resolve", commit]).chain(file.path.split('/')));
        let (repo, subject) = (self.clone(), format!("{:?} of {}", file.path, self.id));
        let target = Target {
            url,
            path: file.path.clone(),
            size: file.size,
            pinned: Some((self.id.clone(), commit.to_owned())),
            refuse: Arc::new(move |reply| match repo.check_status(reply, &subject, Denial::NoFile) {
                Err(error) => error,
                Ok(()) => reply.unexpected("an error that is none"),
            }),
        };
        download::open(self.http.clone(), target, from).await
    }

    /// What an error answer means; `not_found` is what a 404 without a code means here.
    fn check_status(&self, reply: &Reply, subject: &str, not_found: Denial) -> Result<(), HubError> {
        let status = reply.status;
        if status < 400 {
            return Ok(());
        }
        let message = message(reply);
        // A signed address that has run out: asking the hub again gives a new one.
        let expired = reply.elsewhere && matches!(status, 400 | 401 | 403);
        let denial = match (status, reply.header("x-error-code")) {
            _ if expired || is_transient_status(status) => None,
            (_, Some("GatedRepo")) => Some(Denial::Gated),
            (_, Some("RevisionNotFound")) => Some(Denial::NoRevision),
            (_, Some("EntryNotFound")) => Some(Denial::NoFile),
            (401, _) if message.contains("Invalid credentials") => Some(Denial::BadToken),
            (_, Some("RepoNotFound")) | (401, _) => Some(Denial::Hidden),
            (403, _) => Some(Denial::Forbidden),
            (404, _) => Some(not_found),
            _ => None,
        };
        Err(match denial {
            Some(denial) => HubError::Denied {
                hub: HubKind::HuggingFace,
                subject: subject.to_owned(),
                denial,
                message,
                with_token: self.http.has_token(),
            },
            None => HubError::Status {
                url: reply.url.clone(),
                status: u64::from(status),
                message,
                transient: expired || is_transient_status(status),
            },
        })
    }
}

/// The hub's own words in an error answer.
fn message(reply: &Reply) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }
    let body = || serde_json::from_slice::<Body>(&reply.body).ok().map(|body| body.error);
    quoted(&reply.header("x-error-message").map(str::to_owned).or_else(body).unwrap_or_default())
}

/// One row of the tree as a file, `None` for a directory.
pub(crate) fn file(row: Row) -> Result<Option<RemoteFile>, String> {
    match row.r#type.as_str() {
        "directory" => return Ok(None),
        "file" => {}
        other => return Err(format!("an entry {:?} of type {other:?}", row.path)),
    }
    let (size, hash) = match row.lfs {
        Some(lfs) => (Some(lfs.size), read_hash(&lfs.oid).map(FileHash::Sha256)),
        None => (row.size, read_hash(&row.oid).map(FileHash::GitBlobSha1)),
    };
    match (size, hash) {
        (Some(size), Some(hash)) => Ok(Some(RemoteFile { path: row.path, size, executable: false, hash })),
        _ => Err(format!("no size or hash for {:?}", row.path)),
    }
}

/// The address of the next page in `Link: <…>; rel="next"` (RFC 8288).
fn next_page(reply: &Reply, from: &reqwest::Url) -> Result<Option<reqwest::Url>, HubError> {
    let Some(header) = reply.header("link") else { return Ok(None) };
    let Some(target) = link_next(header) else { return Ok(None) };
    from.join(target).map(Some).map_err(|_| reply.unexpected("a Link header that holds no address"))
}

/// The target with `rel="next"` of a `Link` header. Commas and semicolons may stand inside the angle brackets.
pub(crate) fn link_next(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some((target, after)) = rest.split_once('<').and_then(|(_, inside)| inside.split_once('>')) {
        let (parameters, others) = match after.find('<') {
            Some(at) => after.split_at(at),
            None => (after, ""),
        };
        let is_next = |parameter: &str| {
            let parameter = parameter.trim().trim_end_matches(',').trim_end();
            matches!(parameter.split_once('='), Some((name, value))
                if name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next"))
        };
        if parameters.split(';').any(is_next) {
            return Some(target);
        }
        rest = others;
    }
    None
}

/// The licence named in a model card: a name, or a list of names.
pub(crate) fn licence(card: &Value) -> Option<String> {
    let value = card.get("license")?;
    let text = match value {
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        _ => return None,
    };
    let printable: String = text.trim().chars().filter(|c| !c.is_control()).take(MAX_LICENCE_LEN).collect();
    (!printable.is_empty()).then_some(printable)
}

/// A date of the hub, `2025-04-28T12:34:56.000Z`, with whole seconds.
pub(crate) fn seconds(date: &str) -> Option<String> {
    let utc = date.strip_suffix("+00:00").map_or_else(|| date.to_owned(), |local| format!("{local}Z"));
    let time = humantime::parse_rfc3339(&utc).ok()?;
    (time >= SystemTime::UNIX_EPOCH).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_page_is_found() {
        for (header, expected) in [
            ("<https://h/api?cursor=a%3D>; rel=\"next\"", Some("https://h/api?cursor=a%3D")),
            ("</p?a=1,2;3>; rel=next", Some("/p?a=1,2;3")),
            ("<a>; rel=\"prev\", <b>; title=x; rel=\"next\"", Some("b")),
            ("<a>; rel=\"xet-auth\"", None),
            ("<a>; rel=\"nextish\"", None),
            ("a; rel=\"next\"", None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(link_next(header), expected, "{header}");
        }
    }

    #[test]
    fn rows_become_files() {
        let row = |json: &str| file(serde_json::from_str(json).expect(json));
        let sha256 = "a".repeat(64);
        let lfs = format!(
            r#"{{"type":"file","oid":"x","size":1,"path":"m","lfs":{{"oid":"{sha256}","size":9,"pointerSize":1}}}}"#
        );
        let weights =
            RemoteFile { path: "m".into(), size: 9, executable: false, hash: FileHash::Sha256([0xaa; 32]) };
        assert_eq!(row(&lfs), Ok(Some(weights)));
        let plain = format!(r#"{{"type":"file","oid":"{}","size":1,"path":"p"}}"#, "b".repeat(40));
        let small = RemoteFile {
            path: "p".into(),
            size: 1,
            executable: false,
            hash: FileHash::GitBlobSha1([0xbb; 20]),
        };
        assert_eq!(row(&plain), Ok(Some(small)));
        assert_eq!(row(r#"{"type":"directory","oid":"x","path":"d"}"#), Ok(None));
        for bad in [
            r#"{"type":"file","oid":"zz","size":1,"path":"p"}"#,
            r#"{"type":"file","path":"p"}"#,
            r#"{"type":"submodule","path":"p"}"#,
        ] {
            assert!(row(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cards_and_dates_are_read() {
        let read = |json: &str| licence(&serde_json::from_str(json).expect(json));
        assert_eq!(read(r#"{"license":"apache-2.0"}"#).as_deref(), Some("apache-2.0"));
        assert_eq!(read(r#"{"license":["mit","cc-by-4.0"]}"#).as_deref(), Some("mit, cc-by-4.0"));
        assert_eq!(read(r#"{"license":"a\nb"}"#).as_deref(), Some("ab"));
        assert_eq!(
            read(&format!(r#"{{"license":"{}"}}"#, "é".repeat(999))).map(|l| l.chars().count()),
            Some(128)
        );
        for none in [r#"{"license":""}"#, r#"{"license":7}"#, "{}", "[]", "null"] {
            assert_eq!(read(none), None, "{none}");
        }
        assert_eq!(seconds("2025-04-28T12:34:56.789Z").as_deref(), Some("2025-04-28T12:34:56Z"));
        assert_eq!(seconds("2025-04-28T12:34:56+00:00").as_deref(), Some("2025-04-28T12:34:56Z"));
        assert_eq!(seconds("yesterday"), None);
    }

    proptest! {
        #[test]
        fn no_header_and_no_date_panics(text in any::<String>(), link in "[<>;,=\" relnxt]{0,40}") {
            let _ = (link_next(&text), link_next(&link), seconds(&text));
        }
    }
}
