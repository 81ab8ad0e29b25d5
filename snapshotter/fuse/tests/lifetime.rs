//! How a mount comes and goes: stale ones, names in the root, unmounting, and the end of the process.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{Answer, Mounted, TestTree, bytes, can_mount, mounts_below, wait_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use towline_fuse::{Mount, MountError, MountOptions, ROOT, Unmounted};

const MIB: usize = 1 << 20;

#[test]
fn unmounting_leaves_nothing_behind() {
    let tree = TestTree::new();
    tree.add("model/weights", bytes(MIB, 1));
    let Some(mut mounted) = Mounted::start(tree) else { return };
    fs::read(mounted.path("model/weights")).unwrap();
    assert_eq!(mounts_below(&mounted.path("")).len(), 1);
    assert!(mounted.mount().is_serving());
    assert_eq!(mounted.take().unmount().unwrap(), Unmounted::Ended);
    assert!(mounts_below(&mounted.path("")).is_empty());
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 0);
    assert_eq!(mounted.tree.opens.load(SeqCst), 0);
}

#[test]
fn bind_mounts_and_open_files_outlive_the_mount_point() {
    let tree = TestTree::new();
    tree.add("model/weights", bytes(4 * MIB, 2));
    let Some(mut mounted) = Mounted::start(tree) else { return };
    let volume = mounted.beside("volume");
    fs::create_dir(&volume).unwrap();
    mount_bind(mounted.path("model"), &volume).unwrap();
    let file = File::open(mounted.path("model/weights")).unwrap();
    assert_eq!(mounted.take().unmount().unwrap(), Unmounted::InUse);
    assert!(mounts_below(&mounted.path("")).is_empty());
    let mut all = vec![0; 4 * MIB];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(all == bytes(4 * MIB, 2));
    assert!(fs::read(volume.join("weights")).unwrap() == all);
    unmount(&volume, UnmountFlags::empty()).unwrap();
    drop(file);
    wait_for("the release", || mounted.tree.opens.load(SeqCst) == 0);
}

#[test]
fn dropping_the_handle_leaves_the_mount_served() {
    let tree = TestTree::new();
    tree.add("model/weights", bytes(MIB, 3));
    let Some(mut mounted) = Mounted::start(tree) else { return };
    drop(mounted.take());
    assert!(fs::read(mounted.path("model/weights")).unwrap() == bytes(MIB, 3));
    unmount(mounted.path(""), UnmountFlags::empty()).unwrap();
}

#[test]
fn unmounting_what_somebody_else_unmounted_is_fine() {
    let Some(mut mounted) = Mounted::start(TestTree::new()) else { return };
    unmount(mounted.path(""), UnmountFlags::empty()).unwrap();
    wait_for("the end of the session", || !mounted.mount().is_serving());
    assert_eq!(mounted.take().unmount().unwrap(), Unmounted::Ended);
}

#[test]
fn a_mount_that_is_covered_is_not_confused_with_what_covers_it() {
    let Some(mut mounted) = Mounted::start(TestTree::new()) else { return };
    let point = mounted.path("");
    mount_bind(mounted.beside(""), &point).unwrap();
    let error = mounted.take().unmount().unwrap_err();
    assert!(matches!(error, MountError::Covered { .. }), "{error}");
    assert_eq!(mounts_below(&point).len(), 2);
    unmount(&point, UnmountFlags::empty()).unwrap();
    unmount(&point, UnmountFlags::empty()).unwrap();
}

#[test]
fn a_live_mount_is_not_mounted_over() {
    let Some(mounted) = Mounted::start(TestTree::new()) else { return };
    let error = Mount::start(&mounted.path(""), TestTree::new(), MountOptions::default()).unwrap_err();
    assert!(matches!(error, MountError::Occupied { .. }), "{error}");
    assert_eq!(mounts_below(&mounted.path("")).len(), 1);
    let error =
        Mount::start(&mounted.beside("absent"), TestTree::new(), MountOptions::default()).unwrap_err();
    assert!(matches!(error, MountError::Directory { .. }), "{error}");
}

#[test]
fn a_mount_whose_connection_somebody_holds_is_left_alone_until_it_is_let_go() {
    if !can_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    // A daemon that died while a supervisor holds its descriptor: nobody answers, and nobody is told.
    let held = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40755,user_id=0,group_id=0", held.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    mount("held", &dir, "fuse.towline", MountFlags::empty(), data.as_c_str()).unwrap();
    let error = Mount::start(&dir, TestTree::new(), MountOptions::default()).unwrap_err();
    assert!(matches!(error, MountError::Occupied { .. }), "{error}");

    drop(held);
    let mount = Mount::start(&dir, TestTree::new(), MountOptions::default()).unwrap();
    assert_eq!(mount.stale_detached(), 1);
    assert_eq!(mount.unmount().unwrap(), Unmounted::Ended);
    assert!(mounts_below(&dir).is_empty());
}

#[test]
fn a_model_that_went_away_is_gone_at_once_after_forget_entry() {
    let tree = TestTree::new();
    tree.add("old/weights", bytes(MIB, 4));
    let Some(mounted) = Mounted::start(tree) else { return };
    let file = File::open(mounted.path("old/weights")).unwrap();
    // Known to the kernel for a moment longer, so that only the notification explains what follows.
    let before = Instant::now();
    fs::metadata(mounted.path("old")).unwrap();
    mounted.tree.remove_from_root("old");
    mounted.mount().forget_entry(ROOT, OsStr::new("old"));
    let gone = fs::metadata(mounted.path("old")).is_err();
    if before.elapsed() < Duration::from_millis(900) {
        assert!(gone, "the kernel still knows the name");
    }
    mounted.mount().forget_entry(ROOT, OsStr::new("never-was"));
    // What is open stays readable, and the name can come back as something else.
    let mut all = vec![0; MIB];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(all == bytes(MIB, 4));
    mounted.tree.add("old/weights", bytes(10, 5));
    assert_eq!(fs::read(mounted.path("old/weights")).unwrap(), bytes(10, 5));
}

/// Environment variable that turns this test program into a daemon to be killed: where it mounts.
const CHILD: &str = "TOWLINE_FUSE_TEST_CHILD";

/// Not a test of its own: the daemon that the next one kills.
#[test]
fn child_that_serves_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(4 * MIB, 6));
    let sealed = tree.add("model/sealed", bytes(4 * MIB, 7));
    tree.seal(sealed, &Path::new(&dir).with_file_name("content"));
    tree.set_answer(ino, Answer::Now);
    let mount = Mount::start(Path::new(&dir), tree, MountOptions::default()).unwrap();
    // Straight to the descriptor: the test harness captures what is printed.
    let mut ready = File::create(Path::new(&dir).with_file_name("ready")).unwrap();
    std::io::Write::write_all(&mut ready, format!("{}\n", mount.stale_detached()).as_bytes()).unwrap();
    // Until the parent kills this process or goes away itself.
    let _end_of_input = std::io::stdin().read_to_end(&mut Vec::new());
    drop(mount);
}

#[test]
fn a_successor_mounts_over_what_a_killed_daemon_left() {
    if !can_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let ready = scratch.path().join("ready");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_serves_until_it_is_killed"])
        .env(CHILD, &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let first_line = || File::open(&ready).ok().and_then(|file| BufReader::new(file).lines().next()?.ok());
    wait_for("the child to mount", || first_line().is_some());
    assert_eq!(first_line().unwrap(), "0");
    assert!(fs::read(dir.join("model/weights")).unwrap() == bytes(4 * MIB, 6));
    let cached = File::open(dir.join("model/weights")).unwrap();
    let sealed = File::open(dir.join("model/sealed")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let dead = fs::metadata(dir.join("model/other")).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    let tree = TestTree::new();
    tree.add("model/weights", bytes(MIB, 8));
    let mount = Mount::start(&dir, tree, MountOptions::default()).unwrap();
    assert_eq!(mount.stale_detached(), 1);
    assert_eq!(mounts_below(&dir).len(), 1);
    assert!(fs::read(dir.join("model/weights")).unwrap() == bytes(MIB, 8));

    // What passed through goes on by itself; the rest says that its daemon is gone.
    let mut all = vec![0; 4 * MIB];
    if sealed.read_exact_at(&mut all, 0).is_ok() {
        assert!(all == bytes(4 * MIB, 7));
    } else {
        eprintln!("skipped: no passthrough, so sealed files end with their daemon");
    }
    drop((cached, sealed));
    assert_eq!(mount.unmount().unwrap(), Unmounted::Ended);
    assert!(mounts_below(&dir).is_empty());
}
