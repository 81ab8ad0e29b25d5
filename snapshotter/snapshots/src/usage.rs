//! Disk usage of a directory tree that a container may be changing, with hostility, while it is measured.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::record::Usage;

/// Directories held open at once, one per level. What lies deeper than this counts as one entry each and is not
/// entered: a container can nest without end, and the daemon's descriptors are finite.
const MAX_DEPTH: usize = 256;
/// `st_blocks` counts in units of 512 bytes (stat(2)).
const BLOCK_LEN: i64 = 512;
/// Entries between two looks at the clock.
const CLOCK_INTERVAL: u32 = 64;

/// Bytes allocated and inodes below and including `root`; a file with several links counts once.
///
/// Symbolic links are not followed and entries that vanish are skipped. `None` if `deadline` passed first.
pub(crate) fn measure(root: &Path, deadline: Option<Instant>) -> io::Result<Option<Usage>> {
    let mut tally = Tally::default();
    let root = open(CWD, root)?;
    tally.count(&fstat(&root)?);
    let mut levels = vec![Dir::new(root)?];
    let mut until_clock = 0;
    while let Some(level) = levels.last_mut() {
        if until_clock == 0 {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            until_clock = CLOCK_INTERVAL;
        }
        until_clock -= 1;
        let Some(entry) = level.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Some(stat) = gone_is_none(statat(level.fd()?, name, AtFlags::SYMLINK_NOFOLLOW))? else {
            continue;
        };
        tally.count(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && levels.len() < MAX_DEPTH {
            let level = levels.last().expect("the loop holds a level");
            if let Some(inner) = gone_is_none(open(level.fd()?, name))? {
                levels.push(Dir::new(inner)?);
            }
        }
    }
    Ok(Some(tally.usage))
}

fn open<P: rustix::path::Arg, Fd: std::os::fd::AsFd>(at: Fd, path: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// An entry may be removed, or replaced by something else, between two looks at it.
fn gone_is_none<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Default)]
struct Tally {
    usage: Usage,
    /// Files with more than one link, by device and inode.
    linked: HashSet<(u64, u64)>,
}

impl Tally {
    fn count(&mut self, stat: &Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.inodes = self.usage.inodes.saturating_add(1);
        self.usage.bytes = self.usage.bytes.saturating_add(stat.st_blocks.saturating_mul(BLOCK_LEN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_tree_is_measured_once_per_inode() {
        let dir = tempfile::tempdir().expect("temp dir");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).expect("mkdir");
        fs::write(at("a/file"), vec![1; 100_000]).expect("write");
        fs::hard_link(at("a/file"), at("a/b/again")).expect("link");
        symlink("/", at("a/root")).expect("symlink");
        let usage = measure(dir.path(), None).expect("measure").expect("no deadline");
        assert_eq!(usage.inodes, 5, "the root, a, b, the file, the link");
        let names = ["", "a", "a/b", "a/file", "a/root"];
        let blocks = |name| fs::symlink_metadata(at(name)).expect("stat").blocks();
        let expected: u64 = names.into_iter().map(|name| blocks(name) * 512).sum();
        assert_eq!(usage.bytes, i64::try_from(expected).expect("small"));
    }

    #[test]
    fn a_passed_deadline_gives_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(measure(dir.path(), Some(Instant::now())).expect("measure"), None);
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut path = dir.path().to_owned();
        for _ in 0..MAX_DEPTH + 20 {
            path.push("d");
        }
        fs::create_dir_all(&path).expect("mkdir");
        let usage = measure(dir.path(), None).expect("measure").expect("no deadline");
        assert_eq!(usage.inodes, i64::try_from(MAX_DEPTH).expect("small") + 1);
    }

    #[test]
    fn a_link_in_place_of_the_root_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        symlink("/etc", dir.path().join("fs")).expect("symlink");
        assert!(measure(&dir.path().join("fs"), None).is_err());
    }
}
