//! Paths of files in a model: what is allowed, and which sets of paths form a tree.

use std::collections::{BTreeSet, HashMap, HashSet};

use unicode_normalization::UnicodeNormalization;

/// The most bytes of a path: Linux' `PATH_MAX` without the final NUL.
pub const MAX_PATH_LEN: usize = 4095;
/// The most bytes of one path component: Linux' `NAME_MAX`.
pub const MAX_COMPONENT_LEN: usize = 255;
/// The most components of a path. Hub repositories stay below ten; the limit bounds recursion in every reader.
pub const MAX_DEPTH: usize = 64;
/// The most files of a model. Hugging Face advises fewer than 100 000 per repository.
pub const MAX_FILES: usize = 131_072;
/// The most directories of a model: two for each file is more than any tree of data needs, and bounds what a reader
/// holds for an index of a few MiB that names millions of them.
pub const MAX_DIRECTORIES: usize = 2 * MAX_FILES;
/// The top component that holds the index; no file of a model may use it, or a name that some file systems take for it.
pub const RESERVED: &str = ".towline";

/// A path, or a set of paths, that cannot be part of a model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// The path breaks a rule on its own.
    #[error("path {path:?} {rule}")]
    Forbidden {
        /// The path, shortened for display.
        path: String,
        /// The rule, as the rest of a sentence.
        rule: &'static str,
    },
    /// Two paths are the same, or would be on a file system that ignores case or normalises names.
    #[error("paths {first:?} and {second:?} cannot be told apart on every file system")]
    Clash {
        /// The path that came first.
        first: String,
        /// The path that clashes with it.
        second: String,
    },
    /// A path is both a file and a directory.
    #[error("path {path:?} is both a file and a directory")]
    FileAndDirectory {
        /// The path.
        path: String,
    },
    /// More directories than [`MAX_DIRECTORIES`].
    #[error("{count} directories are more than the {MAX_DIRECTORIES} a model may have")]
    TooManyDirectories {
        /// How many there are.
        count: usize,
    },
    /// More than [`MAX_FILES`].
    #[error("{count} files are more than the {MAX_FILES} a model may have")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// Checks one path on its own: relative, of plain components, within the limits, not reserved.
///
/// # Errors
/// [`PathError::Forbidden`] naming the rule.
pub fn check_path(path: &str) -> Result<(), PathError> {
    let forbidden = |rule| Err(PathError::Forbidden { path: path.chars().take(256).collect(), rule });
    if path.is_empty() {
        return forbidden("is empty");
    }
    if path.len() > MAX_PATH_LEN {
        return forbidden("is longer than 4095 bytes");
    }
    if path.starts_with('/') {
        return forbidden("is absolute");
    }
    if path.contains('\\') {
        return forbidden("contains a backslash");
    }
    if path.chars().any(char::is_control) {
        return forbidden("contains a control character");
    }
    for (depth, component) in path.split('/').enumerate() {
        match component {
            "" => return forbidden("has an empty component"),
            "." | ".." => return forbidden("has a component that is . or .."),
            _ if component.len() > MAX_COMPONENT_LEN => {
                return forbidden("has a component longer than 255 bytes");
            }
            _ if depth >= MAX_DEPTH => return forbidden("has more than 64 components"),
            _ if depth == 0 && fold(component) == fold(RESERVED) => {
                return forbidden("is in .towline, which is reserved for the index");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that `paths` are the files of one tree: each allowed, no two alike, none both file and directory.
///
/// # Errors
/// The first [`PathError`] found.
pub fn check_files<'a>(paths: impl ExactSizeIterator<Item = &'a str>) -> Result<(), PathError> {
    let count = paths.len();
    if count > MAX_FILES {
        return Err(PathError::TooMany { count });
    }
    let mut by_fold: HashMap<[u8; 32], &str> = HashMap::with_capacity(count);
    let mut files: HashSet<&str> = HashSet::with_capacity(count);
    for path in paths {
        check_path(path)?;
        files.insert(path);
        if let Some(first) = by_fold.insert(fold_id(path), path) {
            return Err(PathError::Clash { first: first.to_owned(), second: path.to_owned() });
        }
    }
    let dirs = directories(files.iter().copied());
    if dirs.len() > MAX_DIRECTORIES {
        return Err(PathError::TooManyDirectories { count: dirs.len() });
    }
    let mut dirs_by_fold: HashMap<[u8; 32], &str> = HashMap::with_capacity(dirs.len());
    for dir in dirs {
        if files.contains(dir) {
            return Err(PathError::FileAndDirectory { path: dir.to_owned() });
        }
        let folded = fold_id(dir);
        let other = by_fold.get(&folded).copied().or_else(|| dirs_by_fold.insert(folded, dir));
        if let Some(first) = other {
            return Err(PathError::Clash { first: first.to_owned(), second: dir.to_owned() });
        }
    }
    Ok(())
}

/// NFC of the lower-case form: what case-insensitive and normalising file systems compare, near enough to be safe.
fn fold(path: &str) -> String {
    path.nfkc().flat_map(char::to_lowercase).nfc().collect()
}

/// What stands for [`fold`] in a table of all paths: one character may fold to eighteen.
fn fold_id(path: &str) -> [u8; 32] {
    *blake3::hash(fold(path).as_bytes()).as_bytes()
}

/// Every directory that `files` need, in bytewise order, without the root.
#[must_use]
pub fn directories<'a>(files: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut dirs = BTreeSet::new();
    for file in files {
        let mut rest = file;
        while let Some((parent, _)) = rest.rsplit_once('/') {
            if !dirs.insert(parent) {
                break;
            }
            rest = parent;
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(paths: &[&str], expected: Option<&str>) {
        let found = check_files(paths.iter().copied()).err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(found, None),
            Some(text) => {
                assert!(found.as_deref().is_some_and(|f| f.contains(text)), "{found:?} lacks {text:?}")
            }
        }
    }

    #[test]
    fn path_rules() {
        check(&["a", "b/c", "b/d e.txt", "ü/x", ".gitattributes", "x/.towline/y"], None);
        check(&[""], Some("is empty"));
        check(&["/etc/passwd"], Some("absolute"));
        check(&["a/../b"], Some(". or .."));
        check(&["a/./b"], Some(". or .."));
        check(&["a//b"], Some("empty component"));
        check(&["a/"], Some("empty component"));
        check(&["a\\b"], Some("backslash"));
        check(&["a\0b"], Some("control character"));
        check(&["a\nb"], Some("control character"));
        for reserved in [".towline", ".towline/index.json", ".TowLine/x", ".\u{ff54}owline"] {
            check(&[reserved], Some("reserved"));
        }
        check(&[&"x".repeat(255)], None);
        check(&[&"x".repeat(256)], Some("longer than 255"));
        check(&[&vec!["d"; 64].join("/")], None);
        check(&[&vec!["d"; 65].join("/")], Some("more than 64"));
        check(&[&"d/".repeat(2048)], Some("longer than 4095"));
    }

    #[test]
    fn sets_of_paths() {
        check(&["a", "a"], Some("told apart"));
        check(&["README.md", "readme.MD"], Some("told apart"));
        check(&["caf\u{e9}", "cafe\u{301}"], Some("told apart"));
        check(&["a/b", "A/c"], Some("told apart"));
        check(&["a", "A/c"], Some("told apart"));
        check(&["a", "a/b"], Some("both a file and a directory"));
    }

    #[test]
    fn few_files_may_not_make_millions_of_directories() {
        let deep = "/d".repeat(MAX_DEPTH - 2);
        let paths = |files: usize| (0..files).map(|n| format!("{n}{deep}/file")).collect::<Vec<_>>();
        let most = MAX_DIRECTORIES / (MAX_DEPTH - 1);
        let (allowed, beyond) = (paths(most), paths(most + 2));
        let result = |paths: &[String]| check_files(paths.iter().map(String::as_str));
        assert_eq!(result(&allowed), Ok(()));
        let count = (most + 2) * (MAX_DEPTH - 1);
        assert_eq!(result(&beyond), Err(PathError::TooManyDirectories { count }));
    }

    #[test]
    fn directories_are_complete_and_sorted() {
        let dirs: Vec<_> = directories(["x/y/z", "a/b", "x/q", "top"].into_iter()).into_iter().collect();
        assert_eq!(dirs, ["a", "x", "x/y"]);
    }
}
