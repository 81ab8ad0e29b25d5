//! How a user names a repository.

use std::fmt;
use std::str::FromStr;

/// The most bytes one segment of a repository id may have; Hugging Face allows 96.
const MAX_SEGMENT_LEN: usize = 96;

/// The most bytes a revision may have; git hosts refuse longer names of branches and tags.
const MAX_REVISION_LEN: usize = 255;

/// Where a repository lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HubKind {
    /// The Hugging Face hub, or a server that speaks its API.
    HuggingFace,
    /// The ModelScope hub, or a server that speaks its API.
    ModelScope,
    /// A directory on this machine.
    Directory,
}

impl fmt::Display for HubKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HuggingFace => "Hugging Face",
            Self::ModelScope => "ModelScope",
            Self::Directory => "directory",
        })
    }
}

/// What kind of repository it is; hubs keep the kinds in separate name spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl RepoKind {
    /// The path segment both hubs use for the kind.
    pub(crate) fn segment(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A source as the user wrote it, syntactically sound: `hf://org/name[@rev]`, `hf://datasets/org/name[@rev]`,
/// `modelscope://org/name[@rev]`, `modelscope://datasets/org/name[@rev]` or `dir:PATH`.
///
/// The first `@` after the scheme separates the revision, which may itself hold `/` and `@`. [`fmt::Display`] writes the
/// shortest form that parses to the same value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceRef {
    hub: HubKind,
    kind: RepoKind,
    repo: String,
    revision: Option<String>,
}

impl SourceRef {
    /// Where the repository lies.
    #[must_use]
    pub fn hub(&self) -> HubKind {
        self.hub
    }

    /// Model or data set; a directory is a model.
    #[must_use]
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `org/name`, or the path of the directory as written.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The branch, tag or commit asked for; `None` means the hub's default branch.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.hub {
            HubKind::HuggingFace => "hf://",
            HubKind::ModelScope => "modelscope://",
            HubKind::Directory => "dir:",
        })?;
        if self.kind == RepoKind::Dataset {
            f.write_str("datasets/")?;
        }
        f.write_str(&self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("source {text:?} {problem}")]
pub struct ParseSourceError {
    text: String,
    problem: &'static str,
    hint: String,
}

impl ParseSourceError {
    /// What the user could write instead.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl FromStr for SourceRef {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        let fail = |(problem, hint): Problem| ParseSourceError {
            text: text.chars().take(256).collect(),
            problem,
            hint,
        };
        if let Some(path) = text.strip_prefix("dir:") {
            let repo = parse_directory(path).map_err(fail)?;
            return Ok(Self { hub: HubKind::Directory, kind: RepoKind::Model, repo, revision: None });
        }
        let (hub, rest) = if let Some(rest) = text.strip_prefix("hf://") {
            (HubKind::HuggingFace, rest)
        } else if let Some(rest) = text.strip_prefix("modelscope://") {
            (HubKind::ModelScope, rest)
        } else {
            return Err(fail(("has no known scheme", scheme_hint(text))));
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (rest, None),
        };
        let (kind, repo) = parse_repo(hub, id).map_err(fail)?;
        revision.map_or(Ok(()), check_revision).map_err(fail)?;
        Ok(Self { hub, kind, repo, revision: revision.map(str::to_owned) })
    }
}

type Problem = (&'static str, String);

fn problem<T>(problem: &'static str, hint: &str) -> Result<T, Problem> {
    Err((problem, hint.to_owned()))
}

fn parse_directory(path: &str) -> Result<String, Problem> {
    if path.is_empty() || path.contains('\0') {
        return problem("names no directory", "write dir:./path or dir:/absolute/path");
    }
    if path.starts_with("//") {
        return problem("is not a path", "a directory takes no slashes after the colon: dir:./path");
    }
    Ok(path.to_owned())
}

fn parse_repo(hub: HubKind, id: &str) -> Result<(RepoKind, String), Problem> {
    let (kind, repo) = match id.split_once('/') {
        Some(("models", repo)) => (RepoKind::Model, repo),
        Some(("datasets", repo)) => (RepoKind::Dataset, repo),
        Some(("spaces" | "studios" | "kernels" | "buckets", _)) => {
            return problem("is neither a model nor a data set", "only models and data sets can be packaged");
        }
        _ => (RepoKind::Model, id),
    };
    let Some((org, name)) = repo.split_once('/') else {
        return problem("names no repository", "write org/name, for example hf://Qwen/Qwen3-8B");
    };
    if name.contains('/') {
        let hint =
            "name the whole repository as org/name; files are chosen with include and exclude patterns";
        return problem("has too many segments", hint);
    }
    for segment in [org, name] {
        check_segment(hub, segment)?;
    }
    Ok((kind, repo.to_owned()))
}

fn check_segment(hub: HubKind, segment: &str) -> Result<(), Problem> {
    let rule = "letters, digits, '-', '_' and '.' make up a name, and neither '-' nor '.' begins or ends one";
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |c: char| matches!(c, '-' | '.');
    if segment.is_empty() {
        return problem("has an empty name", "write org/name, for example hf://Qwen/Qwen3-8B");
    }
    if segment.len() > MAX_SEGMENT_LEN {
        return problem("has a name longer than 96 bytes", rule);
    }
    if !segment.bytes().all(known) || segment.starts_with(edge) || segment.ends_with(edge) {
        return problem("has a name no hub allows", rule);
    }
    if segment.contains("..") || (hub == HubKind::HuggingFace && segment.contains("--")) {
        return problem("has a name no hub allows", "a name holds neither '..' nor (on Hugging Face) '--'");
    }
    Ok(())
}

/// The rules of `git check-ref-format`, as far as they keep a revision from being taken for something else.
fn check_revision(revision: &str) -> Result<(), Problem> {
    let hint = "after '@' write a branch, a tag or a commit";
    if revision.is_empty() || revision.len() > MAX_REVISION_LEN {
        return problem("has an empty or overlong revision", hint);
    }
    let odd = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let component = |part: &str| {
        part.is_empty() || part.starts_with(['.', '-']) || part.ends_with('.') || part.ends_with(".lock")
    };
    if revision.contains(odd)
        || revision.contains("..")
        || revision.contains("@{")
        || revision.split('/').any(component)
    {
        return problem("has a revision git would not allow", hint);
    }
    Ok(())
}

fn scheme_hint(text: &str) -> String {
    for (site, scheme) in
        [("huggingface.co/", "hf"), ("modelscope.cn/", "modelscope"), ("modelscope.ai/", "modelscope")]
    {
        if let Some((before, id)) = text.split_once(site)
            && matches!(before, "" | "https://" | "http://" | "https://www.")
        {
            let words: Vec<&str> = id.split('/').collect();
            let taken =
                if words.first().is_some_and(|w| matches!(*w, "models" | "datasets")) { 3 } else { 2 };
            return format!(
                "write {scheme}://{}",
                words.into_iter().take(taken).collect::<Vec<_>>().join("/")
            );
        }
    }
    match parse_repo(HubKind::HuggingFace, text.split('@').next().unwrap_or(text)) {
        Ok(_) => format!("write hf://{text} or modelscope://{text}, or dir:{text} for a directory"),
        Err(_) => "write hf://org/name, modelscope://org/name or dir:./path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, hub: HubKind, kind: RepoKind, repo: &str, revision: Option<&str>, shown: &str) {
        let source: SourceRef = text.parse().expect(text);
        assert_eq!((source.hub(), source.kind()), (hub, kind), "{text}");
        assert_eq!((source.repo(), source.revision()), (repo, revision), "{text}");
        assert_eq!(source.to_string(), shown);
        assert_eq!(shown.parse(), Ok(source));
    }

    #[test]
    fn sources_are_read() {
        use HubKind::{Directory, HuggingFace, ModelScope};
        use RepoKind::{Dataset, Model};
        check("hf://Qwen/Qwen3-8B", HuggingFace, Model, "Qwen/Qwen3-8B", None, "hf://Qwen/Qwen3-8B");
        check("hf://models/a/b", HuggingFace, Model, "a/b", None, "hf://a/b");
        check("hf://a/b@refs/pr/1", HuggingFace, Model, "a/b", Some("refs/pr/1"), "hf://a/b@refs/pr/1");
        check("hf://a/b@v1@x/y", HuggingFace, Model, "a/b", Some("v1@x/y"), "hf://a/b@v1@x/y");
        check("hf://datasets/a/b@main", HuggingFace, Dataset, "a/b", Some("main"), "hf://datasets/a/b@main");
        check("modelscope://a/b--c", ModelScope, Model, "a/b--c", None, "modelscope://a/b--c");
        check("modelscope://datasets/a/b", ModelScope, Dataset, "a/b", None, "modelscope://datasets/a/b");
        check("dir:./models/x@y", Directory, Model, "./models/x@y", None, "dir:./models/x@y");
        check("dir:/srv/m", Directory, Model, "/srv/m", None, "dir:/srv/m");
    }

    #[test]
    fn what_is_not_a_source_is_refused_with_a_hint() {
        for (text, problem, hint) in [
            ("", "has no known scheme", "write hf://org/name"),
            ("Qwen/Qwen3-8B@v1", "has no known scheme", "write hf://Qwen/Qwen3-8B@v1 or"),
            (
                "https://huggingface.co/Qwen/Qwen3-8B/tree/main",
                "has no known scheme",
                "write hf://Qwen/Qwen3-8B",
            ),
            ("https://www.modelscope.cn/models/a/b", "has no known scheme", "write modelscope://models/a/b"),
            ("HF://a/b", "has no known scheme", "write hf://org/name"),
            ("hf://gpt2", "names no repository", "org/name"),
            ("hf://datasets/squad", "names no repository", "org/name"),
            ("hf://spaces/a/b", "is neither a model", "only models"),
            ("hf://a/b/config.json", "has too many segments", "patterns"),
            ("hf://a/", "has an empty name", "org/name"),
            ("hf:///b", "has an empty name", "org/name"),
            ("hf://a/b--c", "has a name no hub allows", "'--'"),
            ("hf://a/..", "has a name no hub allows", "letters"),
            ("hf://a/b%2e", "has a name no hub allows", "letters"),
            ("hf://a/-b", "has a name no hub allows", "letters"),
            ("hf://a/b@", "has an empty or overlong revision", "a branch"),
            ("hf://a/b@x/../y", "has a revision git would not allow", "a branch"),
            ("hf://a/b@x y", "has a revision git would not allow", "a branch"),
            ("hf://a/b@/x", "has a revision git would not allow", "a branch"),
            ("dir:", "names no directory", "dir:./path"),
            ("dir://x", "is not a path", "dir:./path"),
        ] {
            let error = text.parse::<SourceRef>().expect_err(text);
            assert!(error.to_string().contains(problem), "{text}: {error}");
            assert!(error.hint().contains(hint), "{text}: {}", error.hint());
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_is_stable(text in "(hf://|modelscope://|dir:|)[ -~é@/.]{0,40}") {
            if let Ok(source) = text.parse::<SourceRef>() {
                prop_assert_eq!(source.to_string().parse::<SourceRef>(), Ok(source));
            }
        }
    }
}
