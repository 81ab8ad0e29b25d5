//! What the running kernel offers, found out once at start.

use std::fs;
use std::path::Path;

/// Facts about the host that decide on mount options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// Major and minor number; 0.0 if the release is unreadable.
    pub(crate) version: (u32, u32),
    /// Whether this process runs in a user namespace of its own.
    pub(crate) in_user_namespace: bool,
    /// Whether overlayfs knows the `index` option.
    pub(crate) overlay_index: bool,
}

impl Kernel {
    /// Asks `/proc` and `/sys`.
    pub(crate) fn probe() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let version = parse_version(&release);
        let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        // The option came with 4.13. The parameter is missing while the module is not loaded yet.
        let overlay_index =
            version >= (4, 13) || fs::metadata("/sys/module/overlay/parameters/index").is_ok();
        Self { release, version, in_user_namespace: !maps_everything(&uid_map), overlay_index }
    }

    /// Options that every overlay mount on `root` needs.
    ///
    /// `index=off`: with the index on, an upper directory left mounted elsewhere refuses to mount again.
    /// `userxattr`: since 5.11 overlayfs in a user namespace keeps its marks in `user.` attributes; tmpfs has none.
    pub(crate) fn overlay_options(&self, root: &Path) -> Vec<String> {
        /// `TMPFS_MAGIC` of statfs(2).
        const TMPFS: rustix::fs::FsWord = 0x0102_1994;
        let mut options = Vec::new();
        let on_tmpfs = rustix::fs::statfs(root).is_ok_and(|fs| fs.f_type == TMPFS);
        if self.in_user_namespace && !on_tmpfs && self.version >= (5, 11) {
            options.push("userxattr".to_owned());
        }
        if self.overlay_index {
            options.push("index=off".to_owned());
        }
        options
    }

    /// Whether layers of an overlay may be id-mapped mounts (5.19).
    pub(crate) fn maps_overlay_ids(&self) -> bool {
        self.version >= (5, 19)
    }
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The initial user namespace maps all 2^32 - 1 ids to themselves. An unreadable map counts as initial.
fn maps_everything(uid_map: &str) -> bool {
    let mut fields = uid_map.split_whitespace();
    uid_map.trim().is_empty()
        || (fields.next() == Some("0") && fields.next() == Some("0") && fields.next() == Some("4294967295"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_version("6.18.44-fc"), (6, 18));
        assert_eq!(parse_version("5.4"), (5, 4));
        assert_eq!(parse_version(""), (0, 0));
        assert_eq!(parse_version("x"), (0, 0));
    }

    #[test]
    fn a_namespace_is_recognised() {
        assert!(maps_everything("         0          0 4294967295\n"));
        assert!(!maps_everything("         0       1000          1\n"));
        assert!(!maps_everything("0 0 65536\n"));
    }

    #[test]
    fn options_follow_the_kernel() {
        let kernel = |in_user_namespace, version, overlay_index| Kernel {
            release: String::new(),
            version,
            in_user_namespace,
            overlay_index,
        };
        let root = Path::new("/proc");
        assert_eq!(kernel(false, (6, 1), true).overlay_options(root), ["index=off"]);
        assert_eq!(kernel(true, (6, 1), true).overlay_options(root), ["userxattr", "index=off"]);
        assert_eq!(kernel(true, (5, 10), false).overlay_options(root), Vec::<String>::new());
        assert!(kernel(false, (5, 19), true).maps_overlay_ids());
        assert!(!kernel(false, (5, 18), true).maps_overlay_ids());
    }
}
