//! Which files of a listing are packaged, and under which names.

use std::collections::HashMap;

use towline_artifact::path::check_path;
use towline_artifact::{FileSpec, Plan};
use towline_hub::{Listing, Patterns, RemoteFile};

use crate::error::Problem;

/// Extensions of formats whose loaders run what the file says: pickles and the containers around them. `.bin` is here
/// because PyTorch checkpoints have that name; what else is called so must be allowed by name.
const UNSAFE_EXTENSIONS: [&str; 11] =
    ["bin", "ckpt", "dill", "joblib", "mar", "nemo", "pickle", "pkl", "pt", "pth", "ptl"];
/// Names that an error lists before it only counts.
const MAX_NAMED: usize = 10;

/// What the user asks for.
#[derive(Debug)]
pub(crate) struct Wishes {
    patterns: Patterns,
    prefix: Option<String>,
    /// `None` allows nothing: an empty [`Patterns`] would select everything.
    allow_unsafe: Option<Patterns>,
}

impl Wishes {
    /// Reads the options.
    ///
    /// # Errors
    /// Patterns that cannot be meant, and prefixes that are no directory of an image.
    pub(crate) fn new(
        include: &[String],
        exclude: &[String],
        prefix: Option<&str>,
        allow_unsafe: &[String],
    ) -> anyhow::Result<Self> {
        let prefix = prefix.map(|prefix| prefix.strip_suffix('/').unwrap_or(prefix));
        if let Some(prefix) = prefix {
            check_path(prefix).map_err(|error| Problem::usage(format!("--prefix: {error}")))?;
        }
        let none: &[String] = &[];
        let allow_unsafe =
            (!allow_unsafe.is_empty()).then(|| Patterns::new(allow_unsafe, none)).transpose()?;
        Ok(Self {
            patterns: Patterns::new(include, exclude)?,
            prefix: prefix.map(str::to_owned),
            allow_unsafe,
        })
    }
}

/// The layout, and where each of its files comes from.
#[derive(Debug)]
pub(crate) struct Selection {
    /// The layout of the image.
    pub(crate) plan: Plan,
    /// Parallel to `plan.files`.
    pub(crate) remote: Vec<RemoteFile>,
}

/// Chooses, checks and lays out the files of `listing`.
///
/// # Errors
/// When nothing is selected, when a selected file is in an unsafe format that was not allowed, or when the files cannot
/// form an image.
pub(crate) fn select(listing: &Listing, wishes: &Wishes) -> anyhow::Result<Selection> {
    let selected: Vec<&RemoteFile> =
        listing.files.iter().filter(|file| wishes.patterns.selects(&file.path)).collect();
    if selected.is_empty() {
        let text = format!("none of the {} files is selected", listing.files.len());
        return Err(Problem::failed(text).hint("check --include and --exclude; `*` also matches `/`").into());
    }
    let refused: Vec<&str> =
        selected.iter().map(|file| file.path.as_str()).filter(|p| is_refused(p, wishes)).collect();
    if !refused.is_empty() {
        return Err(unsafe_formats(&refused).into());
    }
    let name = |path: &str| {
        wishes.prefix.as_ref().map_or_else(|| path.to_owned(), |prefix| format!("{prefix}/{path}"))
    };
    let specs = selected
        .iter()
        .map(|file| FileSpec { executable: file.executable, ..FileSpec::new(name(&file.path), file.size) });
    let plan = Plan::new(specs.collect())?;
    let mut by_name: HashMap<String, RemoteFile> =
        selected.iter().map(|file| (name(&file.path), (*file).clone())).collect();
    let remote = plan
        .files
        .iter()
        .map(|spec| by_name.remove(&spec.path).expect("the plan has the files it was given"));
    let remote = remote.collect();
    Ok(Selection { plan, remote })
}

fn is_refused(path: &str, wishes: &Wishes) -> bool {
    is_unsafe(path) && !wishes.allow_unsafe.as_ref().is_some_and(|allowed| allowed.selects(path))
}

fn is_unsafe(path: &str) -> bool {
    let extension =
        path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, extension)| extension);
    extension
        .is_some_and(|extension| UNSAFE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn unsafe_formats(paths: &[&str]) -> Problem {
    let mut named =
        paths.iter().take(MAX_NAMED).map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ");
    if paths.len() > MAX_NAMED {
        named.push_str(&format!(" and {} more", paths.len() - MAX_NAMED));
    }
    let mut extensions: Vec<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
    extensions.sort_unstable();
    extensions.dedup();
    let exclude = extensions.iter().map(|x| format!("--exclude '*.{x}'")).collect::<Vec<_>>().join(" ");
    let (files, are) =
        if paths.len() == 1 { ("file", "is in a format") } else { ("files", "are in formats") };
    Problem::failed(format!("{} {files} {are} that can run code when loaded: {named}", paths.len())).hint(
        format!(
            "leave out what is not needed ({exclude}), or allow it by name (--allow-unsafe {:?})",
            paths[0]
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_hub::{FileHash, HubKind, RepoKind};

    fn listing(paths: &[&str]) -> Listing {
        let file = |path: &&str| RemoteFile {
            path: (*path).to_owned(),
            size: 5 << 20,
            executable: false,
            hash: FileHash::Sha256([0; 32]),
        };
        Listing {
            hub: HubKind::HuggingFace,
            kind: RepoKind::Model,
            repo: "a/b".into(),
            revision: "main".into(),
            commit: "0".repeat(40),
            created: None,
            licence: None,
            url: String::new(),
            files: paths.iter().map(file).collect(),
        }
    }

    fn wishes(include: &[&str], exclude: &[&str], prefix: Option<&str>, allow: &[&str]) -> Wishes {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Wishes::new(&owned(include), &owned(exclude), prefix, &owned(allow)).unwrap()
    }

    /// Selected paths, or the error and its hint.
    #[track_caller]
    fn check(paths: &[&str], wishes: &Wishes, expected: Result<&[&str], &str>) {
        match (select(&listing(paths), wishes), expected) {
            (Ok(found), Ok(expected)) => {
                let names: Vec<&str> = found.plan.files.iter().map(|file| file.path.as_str()).collect();
                assert_eq!(names, expected);
                assert!(found.remote.iter().zip(&names).all(|(remote, name)| name.ends_with(&remote.path)));
            }
            (Err(error), Err(expected)) => {
                let text = crate::error::describe(&error);
                assert!(text.contains(expected), "{text:?} lacks {expected:?}");
            }
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn patterns_and_prefix() {
        let paths = ["a/x.gguf", "b.json", "model.safetensors"];
        check(&paths, &wishes(&[], &[], None, &[]), Ok(&paths));
        check(&paths, &wishes(&["*.json"], &[], None, &[]), Ok(&["b.json"]));
        check(
            &paths,
            &wishes(&[], &["a/"], Some("models"), &[]),
            Ok(&["models/b.json", "models/model.safetensors"]),
        );
        check(&paths, &wishes(&[], &["*"], None, &[]), Err("none of the 3 files is selected"));
        for prefix in ["/models", "..", ".towline", "a//b", ""] {
            assert!(Wishes::new(&[], &[], Some(prefix), &[]).is_err(), "{prefix}");
        }
        check(&["b"], &wishes(&[], &[], Some("x/y/"), &[]), Ok(&["x/y/b"]));
    }

    #[test]
    fn formats_that_run_code_must_be_allowed_by_name() {
        let paths = ["data.PKL", "model.safetensors", "pytorch_model.bin"];
        let refusal =
            "2 files are in formats that can run code when loaded: \"data.PKL\", \"pytorch_model.bin\"";
        check(&paths, &wishes(&[], &[], None, &[]), Err(refusal));
        check(&paths, &wishes(&[], &[], None, &[]), Err("--exclude '*.PKL' --exclude '*.bin'"));
        check(&paths, &wishes(&[], &[], None, &["*.bin"]), Err("1 file is in a format that"));
        check(
            &paths,
            &wishes(&[], &["*.PKL"], None, &["pytorch_model.bin"]),
            Ok(&["model.safetensors", "pytorch_model.bin"]),
        );
        check(
            &["bin", "x.bin/config.json", "a.safetensors"],
            &wishes(&[], &[], None, &[]),
            Ok(&["a.safetensors", "bin", "x.bin/config.json"]),
        );
        let many: Vec<String> = (0..12).map(|n| format!("{n:02}.pt")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(&many, &wishes(&[], &[], None, &[]), Err("\"09.pt\" and 2 more"));
    }
}
