//! Sealed trees: a model as a plain directory of hard links, with no daemon in the path of a read.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use towline_artifact::ContentId;

use crate::disk::{self, Root};
use crate::error::{StoreError, doing, quoted};
use crate::opened::{make_canonical, open_data};
use crate::slot::lock;
use crate::store::Store;

/// The most bytes a tree's name may have, so that it fits a file name with any prefix of ours.
const MAX_NAME_LEN: usize = 128;

/// The most bytes one component of a path may have (`NAME_MAX`).
const MAX_COMPONENT_LEN: usize = 255;

/// The most bytes a path in a tree may have: `PATH_MAX` less room for the store's own directory.
const MAX_PATH_LEN: usize = 3072;

/// Unfinished trees start with this, which no tree's name does.
const UNFINISHED: &str = ".tmp-";

/// A file of a sealed tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFile {
    /// Where it is in the tree: components of UTF-8 joined by `/`, none of them empty, `.` or `..`.
    pub path: String,
    /// Mode 0755 rather than 0644.
    pub executable: bool,
    /// What is in it.
    pub content: TreeContent,
}

/// The bytes of a file in a sealed tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeContent {
    /// A sealed content of the store; linked, or copied for an executable file.
    Sealed(ContentId),
    /// These bytes, for small files that are no contents of the store.
    Inline(Vec<u8>),
}

impl Store {
    /// Makes directory `trees/NAME` with these files and directories, and returns its path.
    ///
    /// Directories that hold a file need not be listed. Everything has time 0, directories mode 0755. Links keep their
    /// contents from being evicted. The tree appears whole and durable or not at all; if there is one of this name it
    /// is returned as it is, so a name must stand for one list of files.
    ///
    /// # Errors
    /// [`StoreError::NotSealed`]; [`StoreError::TreeName`] and [`StoreError::TreePath`] for names that do not fit;
    /// [`StoreError::Full`] and [`StoreError::Io`].
    pub fn sealed_tree(
        &self,
        name: &str,
        files: &[TreeFile],
        dirs: &[String],
    ) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        let all_dirs = plan_dirs(files, dirs)?;
        let _one_at_a_time = lock(&self.inner.trees);
        let trees = self.inner.root.trees();
        let path = trees.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(path);
        }
        let unfinished = trees.join(format!("{UNFINISHED}{name}"));
        disk::remove_dir_all(&unfinished)?;
        let built = self.build(&unfinished, files, &all_dirs).and_then(|()| {
            fs::rename(&unfinished, &path).map_err(doing("create", path.display()))?;
            disk::sync_dir(&trees)
        });
        if let Err(error) = built {
            // The next attempt or the next start removes what this leaves.
            let _ = disk::remove_dir_all(&unfinished);
            return Err(error);
        }
        Ok(path)
    }

    fn build(&self, top: &Path, files: &[TreeFile], dirs: &BTreeSet<&str>) -> Result<(), StoreError> {
        make_dir(top)?;
        // Ascending order: a parent comes before its children.
        dirs.iter().try_for_each(|dir| make_dir(&top.join(dir)))?;
        for file in files {
            let path = top.join(&file.path);
            match &file.content {
                TreeContent::Sealed(id) => self.place(*id, &path, file.executable)?,
                TreeContent::Inline(bytes) => write(&path, file.executable, |out| out.write_all(bytes))?,
            }
        }
        dirs.iter().rev().try_for_each(|dir| finish_dir(&top.join(dir)))?;
        finish_dir(top)
    }

    /// Links or copies a sealed content, which cannot be evicted meanwhile.
    fn place(&self, id: ContentId, path: &Path, executable: bool) -> Result<(), StoreError> {
        let slot = self.slot(id).ok_or(StoreError::NotSealed { content: id })?;
        let gate = slot.gate();
        if gate.dead || !slot.is_sealed() {
            return Err(StoreError::NotSealed { content: id });
        }
        let data = self.inner.root.data(id);
        if !executable {
            return fs::hard_link(&data, path).map_err(doing("link", path.display()));
        }
        let mut source = open_data(&data, true).map_err(doing("open", data.display()))?;
        write(path, true, |out| std::io::copy(&mut source, out).map(drop))
    }

    /// Removes a tree, if there is one. Its contents may be evicted after that. Mounts of it keep what they have open.
    ///
    /// # Errors
    /// [`StoreError::TreeName`] and [`StoreError::Io`].
    pub fn remove_tree(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        let _one_at_a_time = lock(&self.inner.trees);
        let trees = self.inner.root.trees();
        let (path, doomed) = (trees.join(name), trees.join(format!("{UNFINISHED}{name}")));
        disk::remove_dir_all(&doomed)?;
        match fs::rename(&path, &doomed) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(doing("remove", path.display())(error)),
            Ok(()) => disk::remove_dir_all(&doomed),
        }
    }

    /// Names of the trees, ascending.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn trees(&self) -> Result<Vec<String>, StoreError> {
        let mut names = entries(&self.inner.root)?;
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        Ok(names)
    }
}

/// Removes what an interrupted build or removal left.
pub(crate) fn remove_unfinished(root: &Root) -> Result<(), StoreError> {
    for name in entries(root)?.iter().filter(|name| name.starts_with(UNFINISHED)) {
        if let Err(error) = disk::remove_dir_all(&root.trees().join(name)) {
            tracing::warn!(error = &error as &dyn std::error::Error, "unfinished tree not removed");
        }
    }
    Ok(())
}

fn entries(root: &Root) -> Result<Vec<String>, StoreError> {
    let dir = root.trees();
    let entries = fs::read_dir(&dir).map_err(doing("list", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let fits = name.len() <= MAX_NAME_LEN
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
    if fits { Ok(()) } else { Err(StoreError::TreeName { name: quoted(name) }) }
}

fn check_path(path: &str) -> Result<(), StoreError> {
    let fits = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= MAX_COMPONENT_LEN && !part.contains('\0')
    };
    if path.len() <= MAX_PATH_LEN && path.split('/').all(fits) {
        Ok(())
    } else {
        Err(StoreError::TreePath { path: quoted(path) })
    }
}

/// Checks every path; returns all directories, those that only a file implies included.
pub(crate) fn plan_dirs<'a>(
    files: &'a [TreeFile],
    dirs: &'a [String],
) -> Result<BTreeSet<&'a str>, StoreError> {
    let mut all = BTreeSet::new();
    let mut add_parents = |path: &'a str| all.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    for dir in dirs {
        check_path(dir)?;
        add_parents(dir);
    }
    let mut names = BTreeSet::new();
    for file in files {
        check_path(&file.path)?;
        add_parents(&file.path);
        if !names.insert(file.path.as_str()) {
            return Err(StoreError::TreePath { path: quoted(&file.path) });
        }
    }
    all.extend(dirs.iter().map(String::as_str));
    match names.intersection(&all).next() {
        Some(both) => Err(StoreError::TreePath { path: quoted(both) }),
        None => Ok(all),
    }
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().mode(0o755).create(path).map_err(doing("create", path.display()))
}

/// Gives a directory its final looks and makes its names durable. Nothing may be added after that.
fn finish_dir(path: &Path) -> Result<(), StoreError> {
    let finish = || {
        let dir = File::open(path)?;
        make_canonical(&dir, 0o755)?;
        dir.sync_all()
    };
    finish().map_err(doing("finish", path.display()))
}

fn write(
    path: &Path,
    executable: bool,
    fill: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), StoreError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        fill(&mut file)?;
        make_canonical(&file, if executable { 0o755 } else { 0o644 })?;
        file.sync_all()
    };
    write().map_err(doing("write", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(files: &[&str], dirs: &[&str]) -> Option<Vec<String>> {
        let file = |path: &&str| TreeFile {
            path: (*path).into(),
            executable: false,
            content: TreeContent::Inline(Vec::new()),
        };
        let files: Vec<_> = files.iter().map(file).collect();
        let dirs: Vec<_> = dirs.iter().map(ToString::to_string).collect();
        Some(plan_dirs(&files, &dirs).ok()?.into_iter().map(Into::into).collect())
    }

    #[test]
    fn implied_directories_are_planned_parents_first() {
        assert_eq!(plan(&["a/b/c", "d"], &["x/y"]).unwrap(), ["a", "a/b", "x", "x/y"]);
        assert_eq!(plan(&[], &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn paths_that_step_outside_or_clash_are_refused() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b", &"x".repeat(256)] {
            assert_eq!(plan(&[bad], &[]), None, "file {bad:?}");
            assert_eq!(plan(&[], &[bad]), None, "directory {bad:?}");
        }
        assert_eq!(plan(&["a", "a"], &[]), None);
        assert_eq!(plan(&["a", "a/b"], &[]), None);
        assert_eq!(plan(&["a"], &["a"]), None);
    }

    #[test]
    fn names_are_plain() {
        for bad in ["", ".", "..", ".tmp-a", "-a", "a/b", "A", "ä", "a\0", &"a".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0f.1-x_y", &"a".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
