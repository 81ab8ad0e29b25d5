//! Which paths a listing may hold. Listings come from strangers, and their paths end up in tar archives, in file trees on
//! nodes and in shells: one path that could be taken for another refuses the whole listing.

use std::collections::HashMap;
use std::fmt;

use unicode_normalization::UnicodeNormalization;

/// The most files of one listing. The hubs advise to stay below 100,000.
pub const MAX_FILES: usize = 131_072;

/// The most bytes of one component: `NAME_MAX` of every Linux file system.
const MAX_COMPONENT_LEN: usize = 255;

/// The most bytes of one path: `PATH_MAX` of Linux.
const MAX_PATH_LEN: usize = 4096;

/// The most components of one path; no model comes near, and a walk of the tree stays shallow.
const MAX_DEPTH: usize = 64;

/// The most bytes of all paths of a listing together: 512 a file, and what bounds the memory this check takes.
const MAX_TOTAL_LEN: usize = MAX_FILES * 512;

/// Top directory that holds Towline's own index in every artifact (docs/format.md).
const RESERVED: &str = ".towline";

/// A path no listing may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {shown} {problem}", shown = Shown(path))]
pub struct PathError {
    /// The path as listed.
    pub path: String,
    /// What is wrong with it.
    pub problem: PathProblem,
}

/// Escapes a hostile path and cuts it to a length that fits a message.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: String = self.0.chars().take(256).collect();
        write!(f, "{head:?}{}", if head.len() < self.0.len() { "…" } else { "" })
    }
}

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Starts with `/`.
    #[error("is absolute")]
    Absolute,
    /// Has an empty component, or is empty.
    #[error("has an empty component")]
    EmptyComponent,
    /// Has a component `.` or `..`.
    #[error("has a component that is '.' or '..'")]
    Dots,
    /// Holds a backslash, which is a separator elsewhere.
    #[error("holds a backslash")]
    Backslash,
    /// Holds NUL or another control character.
    #[error("holds a control character")]
    Control,
    /// Is not UTF-8 (local directories only).
    #[error("is not UTF-8")]
    NotUtf8,
    /// A component is too long.
    #[error("has a component longer than {MAX_COMPONENT_LEN} bytes")]
    LongComponent,
    /// The path is too long.
    #[error("is longer than {MAX_PATH_LEN} bytes")]
    LongPath,
    /// Too many components.
    #[error("is deeper than {MAX_DEPTH} components")]
    Deep,
    /// Would lie where Towline keeps its index.
    #[error("lies in the reserved directory {RESERVED:?}")]
    Reserved,
    /// Listed twice.
    #[error("is listed twice")]
    Duplicate,
    /// Is a file and, for another file, a directory.
    #[error("is both a file and a directory")]
    FileAndDirectory,
    /// Differs from another only in case or Unicode normal form.
    #[error("differs from {0:?} only in case or Unicode form")]
    Clash(String),
    /// One file too many.
    #[error("is beyond the limit of {MAX_FILES} files")]
    TooMany,
    /// The paths of the listing are too long in sum.
    #[error("takes the listing beyond {MAX_TOTAL_LEN} bytes of paths")]
    TooMuch,
    /// A symbolic link that leaves the directory or ends at something other than a file (local directories only).
    #[error("is a symbolic link that leads outside the directory or not to a regular file")]
    Link,
    /// Neither file, directory nor symbolic link (local directories only).
    #[error("is neither a regular file nor a directory")]
    Special,
}

/// Checks one path by itself.
///
/// # Errors
/// The first rule that it breaks.
pub(crate) fn check_path(path: &str) -> Result<(), PathError> {
    let fail = |problem| Err(PathError { path: path.to_owned(), problem });
    if path.len() > MAX_PATH_LEN {
        return fail(PathProblem::LongPath);
    }
    if path.starts_with('/') {
        return fail(PathProblem::Absolute);
    }
    if path.contains(char::is_control) {
        return fail(PathProblem::Control);
    }
    if path.contains('\\') {
        return fail(PathProblem::Backslash);
    }
    for (depth, component) in path.split('/').enumerate() {
        match component {
            "" => return fail(PathProblem::EmptyComponent),
            "." | ".." => return fail(PathProblem::Dots),
            _ if component.len() > MAX_COMPONENT_LEN => return fail(PathProblem::LongComponent),
            _ if depth >= MAX_DEPTH => return fail(PathProblem::Deep),
            _ if depth == 0 && fold(component) == RESERVED => return fail(PathProblem::Reserved),
            _ => {}
        }
    }
    Ok(())
}

/// Checks all paths of a listing, each by itself and all together.
///
/// # Errors
/// The first path, in the given order, that breaks a rule.
pub(crate) fn check_paths<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<(), PathError> {
    let mut tree = Tree::default();
    let mut total_len = 0;
    for (count, path) in paths.into_iter().enumerate() {
        let fail = |problem| Err(PathError { path: path.to_owned(), problem });
        total_len += path.len();
        if count >= MAX_FILES {
            return fail(PathProblem::TooMany);
        }
        if total_len > MAX_TOTAL_LEN {
            return fail(PathProblem::TooMuch);
        }
        check_path(path)?;
        tree.add(path)?;
    }
    Ok(())
}

/// All components seen so far, as a trie over folded names: memory stays linear in the length of the paths.
#[derive(Default)]
struct Tree<'a> {
    nodes: HashMap<(u32, String), Node<'a>>,
}

struct Node<'a> {
    id: u32,
    path: &'a str,
    is_file: bool,
}

impl<'a> Tree<'a> {
    fn add(&mut self, path: &'a str) -> Result<(), PathError> {
        let fail = |problem| Err(PathError { path: path.to_owned(), problem });
        let mut parent = 0;
        let mut end = 0;
        for component in path.split('/') {
            end += component.len();
            let prefix = &path[..end];
            let is_file = end == path.len();
            end += 1;
            let next_id = u32::try_from(self.nodes.len()).expect("MAX_TOTAL_LEN bounds the components") + 1;
            let node = self.nodes.entry((parent, fold(component)));
            let node = node.or_insert(Node { id: next_id, path: prefix, is_file });
            if node.path != prefix {
                return fail(PathProblem::Clash(node.path.to_owned()));
            }
            if node.id != next_id && (node.is_file || is_file) {
                let both = if node.is_file && is_file {
                    PathProblem::Duplicate
                } else {
                    PathProblem::FileAndDirectory
                };
                return Err(PathError { path: prefix.to_owned(), problem: both });
            }
            parent = node.id;
        }
        Ok(())
    }
}

/// What two names share that some file system takes for one: NFC of the name without its case.
///
/// Case is dropped by mapping each character to upper and then to lower case, which agrees with Unicode's full case
/// folding except that it also joins a few more letters (such as the dotless i); a guard may be stricter than it needs.
fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfd().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn refused(paths: &[&str], culprit: &str, problem: PathProblem) {
        let error = check_paths(paths.iter().copied()).expect_err(culprit);
        assert_eq!(error, PathError { path: culprit.to_owned(), problem });
    }

    #[test]
    fn ordinary_paths_pass() {
        let longest = "x".repeat(255);
        let deep = vec!["d"; 64].join("/");
        for paths in [
            vec![
                "config.json",
                "model-00001-of-00002.safetensors",
                "onnx/model.onnx",
                "onnx/a b.txt",
                ".gitattributes",
            ],
            vec![longest.as_str(), deep.as_str(), "..x", "x..", "a/.towline", "模型/权重.bin", ".towline2"],
            vec!["a/b", "a/c", "b", "a.b", "a-b"],
        ] {
            assert_eq!(check_paths(paths), Ok(()));
        }
    }

    #[test]
    fn each_trick_is_refused_by_name() {
        use PathProblem::*;
        refused(&["/etc/passwd"], "/etc/passwd", Absolute);
        for path in ["", "a//b", "a/", "a/b/"] {
            refused(&[path], path, EmptyComponent);
        }
        for path in ["..", ".", "a/../b", "./a", "a/."] {
            refused(&[path], path, Dots);
        }
        refused(&["a\\b"], "a\\b", Backslash);
        for path in ["a\0b", "a\nb", "a\u{7f}", "a\u{85}"] {
            refused(&[path], path, Control);
        }
        let long = "x".repeat(256);
        refused(&[&long], &long, LongComponent);
        let long = vec!["x".repeat(250); 17].join("/");
        refused(&[&long], &long, LongPath);
        let deep = vec!["d"; 65].join("/");
        refused(&[&deep], &deep, Deep);
        for path in [".towline", ".towline/index.json", ".TowLine/x"] {
            refused(&[path], path, Reserved);
        }
        refused(&["a", "b", "a"], "a", Duplicate);
        refused(&["a", "a/b"], "a", FileAndDirectory);
        refused(&["a/b/c", "a/b"], "a/b", FileAndDirectory);
        refused(&["README.md", "readme.MD"], "readme.MD", Clash("README.md".into()));
        refused(&["A/x", "a/y"], "a/y", Clash("A".into()));
        refused(&["é", "e\u{301}"], "e\u{301}", Clash("é".into()));
        refused(&["STRASSE", "straße"], "straße", Clash("STRASSE".into()));
        refused(&["σ", "ς"], "ς", Clash("σ".into()));
    }

    #[test]
    fn the_limits_on_the_whole_listing_hold() {
        let many: Vec<String> = (0..=MAX_FILES).map(|n| n.to_string()).collect();
        assert_eq!(check_paths(many[..MAX_FILES].iter().map(String::as_str)), Ok(()));
        let error = check_paths(many.iter().map(String::as_str)).expect_err("one too many");
        assert_eq!(error.problem, PathProblem::TooMany);

        let stem = vec!["y".repeat(250); 16].join("/");
        let wide: Vec<String> = (0..MAX_TOTAL_LEN / stem.len()).map(|n| format!("{stem}/{n}")).collect();
        let error = check_paths(wide.iter().map(String::as_str)).expect_err("too much");
        assert_eq!(error.problem, PathProblem::TooMuch);
    }

    #[test]
    fn messages_escape_and_stay_short() {
        let error =
            PathError { path: format!("\u{1b}[31m{}", "x".repeat(5000)), problem: PathProblem::Control };
        let shown = error.to_string();
        assert!(shown.starts_with("path \"\\u{1b}[31mx") && shown.len() < 400, "{shown}");
    }

    proptest! {
        /// The slow model looks at every pair of paths and of their prefixes.
        #[test]
        fn the_tree_agrees_with_comparing_all_pairs(paths in prop::collection::vec("[aAbé](/[aAb]){0,2}", 0..6)) {
            let prefixes = |path: &str| -> Vec<(String, bool)> {
                let cuts = path.match_indices('/').map(|(at, _)| (path[..at].to_owned(), false));
                cuts.chain([(path.to_owned(), true)]).collect()
            };
            let mut sound = true;
            for (n, one) in paths.iter().enumerate() {
                for other in &paths[..n] {
                    for (a, a_file) in prefixes(one) {
                        for (b, b_file) in prefixes(other) {
                            sound &= a == b || a.to_lowercase() != b.to_lowercase();
                            sound &= a != b || !(a_file || b_file);
                        }
                    }
                }
            }
            prop_assert_eq!(check_paths(paths.iter().map(String::as_str)).is_ok(), sound);
        }

        #[test]
        fn no_path_panics(path in any::<String>()) {
            let _ = check_paths([path.as_str(), path.as_str()]);
        }
    }
}
