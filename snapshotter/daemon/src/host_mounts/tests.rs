use super::*;
use crate::testing::{add, complete, of_commit, prefetched, restart, two_weights};

const V1: &str = "r.example.com/m:v1";

/// Takes away what a test left mounted below its directory.
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    }
}

fn may_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        #[expect(clippy::print_stderr, reason = "says why nothing was tested")]
        {
            eprintln!("skipped: mounts need root");
        }
    }
    is_root
}

fn text(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[track_caller]
fn refused(result: Result<(), Problem>, code: Code, part: &str) {
    let problem = result.expect_err(part);
    assert_eq!(problem.code, code, "{problem}");
    assert!(problem.text.contains(part), "{problem}");
}

#[tokio::test]
async fn directories_that_cannot_take_a_mount_are_refused_and_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (node, pin) = prefetched(&root, &two_weights(), "v1");
    std::fs::create_dir_all(root.join("full/empty")).unwrap();
    std::fs::create_dir_all(root.join("run/here")).unwrap();
    std::fs::write(root.join("file"), b"").unwrap();
    let mounts = HostMounts::new(Arc::clone(&node));
    let mount = |dir: &str| mounts.mount(&pin, V1, dir);
    let bad = Code::InvalidArgument;
    refused(mount("full/empty"), bad, "not absolute");
    refused(mount(text(&root.join("gone"))), bad, "No such file");
    refused(mount(text(&root.join("file"))), bad, "no directory");
    refused(mount(text(&root.join("full"))), bad, "not empty");
    refused(mount(text(&root.join("run/here"))), bad, "the daemon needs");
    refused(mount(text(&root)), bad, "the daemon needs");
    refused(mount("/proc"), bad, "something is mounted there");
    refused(mount("/"), bad, "the daemon needs");
    refused(mount(&format!("/{}", "x/".repeat(3000))), bad, "too long");
    // Nothing is served here, and the model is not complete.
    refused(mount(text(&root.join("full/empty"))), Code::Unavailable, "not being served");
    assert!(pin.needs.holds().is_empty());
    refused(mounts.unmount(text(&root.join("full/empty"))), Code::NotFound, "nothing that towline mounted");
}

#[tokio::test]
async fn a_mount_is_read_only_holds_its_model_and_is_made_again() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let at = root.join("a b");
    std::fs::create_dir(&at).unwrap();
    std::os::unix::fs::symlink(&at, root.join("link")).unwrap();
    let _mounts = Mounts(at.clone());
    let (node, pin) = prefetched(&root, &two_weights(), "v1");
    complete(&node, &pin);
    let mounts = HostMounts::new(Arc::clone(&node));
    mounts.mount(&pin, V1, text(&root.join("link"))).unwrap();
    assert_eq!(std::fs::read(at.join("b.bin")).unwrap()[..2], [2, 2]);
    let written = std::fs::write(at.join("config.json"), b"").unwrap_err();
    assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mounts.mount(&pin, V1, text(&at)).unwrap();
    let other = add(&node, &of_commit("d"), "v2");
    refused(mounts.mount(&other, V1, text(&at)), Code::AlreadyExists, "another model is mounted");
    assert_eq!(pin.needs.holds().mounts, [HeldMount { directory: text(&at).into(), reference: V1.into() }]);
    drop((pin, other, mounts, node));

    // As after a reboot: recorded, and nothing is mounted.
    rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW).unwrap();
    let node = restart(&root);
    let mounts = HostMounts::new(Arc::clone(&node));
    mounts.restore();
    assert_eq!(std::fs::read(at.join("a.bin")).unwrap()[..2], [1, 1]);
    // As after a crash of the daemon: it is still there and stays as it is.
    let reading = std::fs::File::open(at.join("a.bin")).unwrap();
    mounts.restore();
    refused(mounts.unmount(text(&at)), Code::FailedPrecondition, "in use");
    assert_eq!(node.catalog.models().len(), 1, "held");
    drop(reading);
    mounts.unmount(text(&at)).unwrap();
    assert!(mounted(&at).unwrap().is_none());
    node.remove_dead();
    assert!(node.catalog.models().is_empty());
}

#[tokio::test]
async fn a_directory_that_went_or_was_taken_is_told_and_may_be_settled() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let at = root.join("m");
    std::fs::create_dir(&at).unwrap();
    let _mounts = Mounts(at.clone());
    let (node, pin) = prefetched(&root, &two_weights(), "v1");
    complete(&node, &pin);
    let mounts = HostMounts::new(Arc::clone(&node));
    mounts.mount(&pin, V1, text(&at)).unwrap();
    rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW).unwrap();
    std::fs::remove_dir(&at).unwrap();
    mounts.restore();
    assert_eq!(pin.needs.holds().mounts.len(), 1, "still recorded");

    std::fs::create_dir(&at).unwrap();
    rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
    mounts.restore();
    assert_eq!(mounted(&at).unwrap().unwrap().fs_type, "tmpfs", "a stranger's mount stays");
    refused(mounts.unmount(text(&at)), Code::FailedPrecondition, "something else was mounted over");
    rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW).unwrap();
    mounts.mount(&pin, V1, text(&at)).unwrap();
    assert!(at.join("a.bin").exists(), "the recorded mount is made when it is asked for again");
    rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW).unwrap();
    mounts.unmount(text(&at)).unwrap();
    assert!(pin.needs.holds().is_empty());
}
