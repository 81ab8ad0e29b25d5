//! What is mounted where, from `/proc/self/mountinfo`. Asks no file system, so a dead one cannot hold it up.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// The mount on top of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Which directory of its file system is mounted; see [`Mounted::shows`].
    root: PathBuf,
    /// Such as `ext4` or `fuse.towline`.
    pub(crate) fs_type: String,
}

impl Mounted {
    /// Whether it is a mount of a directory called `name`, removed meanwhile or not.
    pub(crate) fn shows(&self, name: &str) -> bool {
        let root = self.root.to_string_lossy();
        Path::new(root.trim_end_matches("//deleted")).file_name() == Some(OsStr::new(name))
    }
}

/// What is mounted at `dir`, which is absolute and without symbolic links; `None` if it is no mount point.
///
/// # Errors
/// When the table cannot be read.
pub(crate) fn mounted(dir: &Path) -> io::Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(top(&String::from_utf8_lossy(&table), dir))
}

/// The last line counts: what was mounted over it comes after it (proc_pid_mountinfo(5); kernel: fs/proc_namespace.c
/// walks the namespace in the order of mounting).
fn top(table: &str, dir: &Path) -> Option<Mounted> {
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ').skip(3);
        let (root, at) = (unescape(fields.next()?), unescape(fields.next()?));
        let fs_type = tail.split(' ').next()?.to_owned();
        (Path::new(&at) == dir).then(|| Mounted { root: root.into(), fs_type })
    };
    table.lines().filter_map(mount).next_back()
}

/// Undoes the octal escapes that the kernel writes for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(3).unwrap_or(("", part));
        plain.push(u8::from_str_radix(code, 8).map_or('\\', char::from));
        plain.push_str(rest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r"22 1 254:0 / / rw,relatime - ext4 /dev/root rw
40 22 0:31 / /run/towline/models rw,nosuid,nodev shared:5 - fuse.towline towline rw,user_id=0
41 22 0:31 /aa /mnt/a\040b ro,nosuid shared:5 - fuse.towline towline rw
42 41 254:0 /var/lib/towline/store/trees/bb /mnt/a\040b ro - ext4 /dev/root rw
43 22 254:0 /var/lib/towline/store/trees/bb//deleted /mnt/c\134 ro - ext4 /dev/root rw
";

    #[track_caller]
    fn check(dir: &str, shows: &str, fs_type: &str) {
        let found = top(TABLE, Path::new(dir)).expect(dir);
        assert!(found.shows(shows) && found.fs_type == fs_type, "{found:?}");
    }

    #[test]
    fn the_mount_on_top_is_found() {
        check("/mnt/a b", "bb", "ext4");
        check("/mnt/c\\", "bb", "ext4");
        assert!(top(TABLE, Path::new("/run/towline/models")).is_some_and(|found| !found.shows("bb")));
        assert_eq!(top(TABLE, Path::new("/mnt")), None);
        assert_eq!(top("", Path::new("/")), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r"a\040b\134c\011"), "a b\\c\t");
        assert_eq!(unescape(r"plain"), "plain");
    }
}
