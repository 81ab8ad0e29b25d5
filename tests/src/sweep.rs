//! Removing what a run left: its processes, its containers, its mounts, its cgroups and its directory.
//!
//! What belongs to a run is decided by evidence, never by a name: a process by the mark in its environment
//! ([`crate::scratch::MARK`]; containerd's shims inherit it), a container by containerd's own record below the run's
//! directory, a mount by its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::scratch::MARK;

/// How long killed processes may take to go. A process in uninterruptible sleep may take longer; it is then reported.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many looks in a row must find nothing. A process that is just becoming another program has no environment for a moment, and a
/// machine that is busy makes it a long one.
const LOOKS: usize = 5;

/// What becomes of the directory of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// It goes.
    Removed,
    /// It stays for a person to look at.
    Kept,
}

/// Ends everything of the run in `dir`. What could not be ended or removed is returned, one sentence each.
#[must_use]
pub fn sweep(dir: &Path, directory: Directory) -> Vec<String> {
    let mut left = Vec::new();
    let containers = containers(dir);
    let deadline = Instant::now() + PATIENCE;
    let mut quiet = 0;
    loop {
        let mut alive = marked_processes(dir);
        alive.extend(containers.iter().filter_map(Container::running_init));
        quiet = if alive.is_empty() { quiet + 1 } else { 0 };
        if quiet == LOOKS {
            break;
        }
        if Instant::now() > deadline {
            left.extend(alive.iter().map(|pid| format!("process {} did not end", pid.as_raw_nonzero())));
            break;
        }
        for pid in alive {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for mount in mounts_below(dir).iter().rev() {
        if let Err(error) = unmount(mount, UnmountFlags::DETACH) {
            left.push(format!("{} stays mounted: {error}", mount.display()));
        }
    }
    containers.iter().for_each(Container::remove_cgroups);
    // A mount that stayed must not be emptied: what is below it may belong to somebody else.
    if left.is_empty()
        && directory == Directory::Removed
        && let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        left.push(format!("{} stays: {error}", dir.display()));
    }
    left
}

/// The mount points at or below `dir`, in mount order.
#[must_use]
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|text| PathBuf::from(unescape(text)));
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Undoes the octal escapes that the kernel writes for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Living processes whose environment carries the mark of the run in `dir`.
fn marked_processes(dir: &Path) -> Vec<Pid> {
    let wanted = format!("{MARK}={}", dir.display());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// A container that a containerd of the run knew.
#[derive(Debug)]
struct Container {
    id: String,
    init: Option<i32>,
}

impl Container {
    /// The container's first process, if it lives and its cgroup says that it is this container's.
    fn running_init(&self) -> Option<Pid> {
        let pid = self.init?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        if !cgroup.contains(&self.id) {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let zombie = status.lines().any(|line| line.starts_with("State:") && line.contains('Z'));
        if zombie { None } else { Pid::from_raw(pid) }
    }

    /// Removes the container's empty cgroups, of every hierarchy; containerd puts them at `/k8s.io/<id>`.
    fn remove_cgroups(&self) {
        let own = Path::new("k8s.io").join(&self.id);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for place in hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = fs::remove_dir(place.join(&own));
        }
    }
}

/// The containers of every node of the run: `<dir>/<node>/state/io.containerd.runtime.v2.task/<namespace>/<id>`.
fn containers(dir: &Path) -> Vec<Container> {
    let mut level = vec![dir.to_path_buf()];
    for fixed in [Some("state/io.containerd.runtime.v2.task"), None, None] {
        let children = level.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        level = children
            .map(|entry| entry.path())
            .map(|path| fixed.map_or(path.clone(), |below| path.join(below)))
            .collect();
    }
    level
        .iter()
        .filter_map(|path| {
            let id = path.file_name()?.to_str()?.to_owned();
            let init =
                fs::read_to_string(path.join("init.pid")).ok().and_then(|text| text.trim().parse().ok());
            Some(Container { id, init })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn unescape_restores_what_the_kernel_escaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape("/plain"), "/plain");
    }
}
