//! Reads that are answered late, out of order, wrongly or not at all.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use common::{Answer, Mapping, Mounted, TestTree, bytes, wait_for};
use rustix::mm::MapFlags;
use towline_fuse::{Errno, Op};

const MIB: usize = 1 << 20;

#[test]
fn a_read_that_waits_does_not_hold_up_others() {
    let tree = TestTree::new();
    let far = tree.add("model/far", bytes(64 * MIB, 1));
    tree.add("model/near", bytes(8 * MIB, 2));
    tree.set_answer(far, Answer::Held);
    let Some(mounted) = Mounted::start(tree) else { return };
    let path = mounted.path("model/far");
    let waiting = thread::spawn(move || fs::read(path).unwrap());
    // More reads are in flight than there are session threads.
    wait_for("read-ahead in parallel", || mounted.tree.held_count() > 8);
    assert!(mounted.mount().stats().reads_in_flight > 8);
    assert!(fs::read(mounted.path("model/near")).unwrap() == bytes(8 * MIB, 2));

    mounted.tree.set_answer(far, Answer::Now);
    let mut held = mounted.tree.take_held();
    held.reverse();
    held.into_iter().for_each(common::Held::answer);
    assert!(waiting.join().unwrap() == bytes(64 * MIB, 1));
    assert_eq!(mounted.mount().stats().reads_in_flight, 0);
}

#[test]
fn concurrent_readers_of_delayed_files_get_their_own_bytes() {
    let tree = TestTree::new();
    for number in 0..4 {
        let ino = tree.add(&format!("model/{number}"), bytes(16 * MIB + number, number as u64));
        tree.set_answer(ino, Answer::Delayed(Duration::from_millis(3)));
    }
    let Some(mounted) = Mounted::start(tree) else { return };
    thread::scope(|scope| {
        for reader in 0..12 {
            let number = reader % 4;
            let path = mounted.path(&format!("model/{number}"));
            scope.spawn(move || {
                let expected = bytes(16 * MIB + number, number as u64);
                let file = File::open(path).unwrap();
                // Each reader starts somewhere else.
                for step in 0..16 {
                    let offset = (step + reader * 5) % 16 * MIB;
                    let mut part = vec![0; MIB];
                    file.read_exact_at(&mut part, offset as u64).unwrap();
                    assert!(part == expected[offset..offset + MIB], "reader {reader} at {offset}");
                }
            });
        }
    });
}

#[track_caller]
fn check_eio(answer: Answer, panics: u64, bad_replies: u64) {
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(4096, 3));
    tree.set_answer(ino, answer);
    let Some(mounted) = Mounted::start(tree) else { return };
    let path = mounted.path("model/weights");
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{answer:?}");
    // The kernel tries a failed read-ahead once more, page by page.
    let requests = mounted.mount().stats().requests(Op::Read);
    assert!(requests > 0);
    // A panic is counted after its reply was dropped.
    wait_for("the panics to be counted", || mounted.mount().stats().panics == panics * requests);
    let stats = mounted.mount().stats();
    assert_eq!((stats.bad_replies, stats.reads_in_flight), (bad_replies * requests, 0), "{answer:?}");
    // And the file is as long as before, and readable once the trouble is over.
    mounted.tree.set_answer(ino, Answer::Now);
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
    assert!(fs::read(&path).unwrap() == bytes(4096, 3));
}

#[test]
fn a_dropped_reply_is_eio() {
    check_eio(Answer::Dropped, 0, 1);
}

#[test]
fn a_panic_is_eio_and_counted() {
    check_eio(Answer::Panic, 1, 1);
}

#[test]
fn a_short_answer_is_eio_and_not_zeros() {
    check_eio(Answer::OneByteShort, 0, 1);
}

#[test]
fn an_error_reaches_the_reader() {
    check_eio(Answer::Error(Errno::EIO), 0, 0);
}

/// Environment variable that turns this test program into a reader to be killed: what it maps.
const CHILD: &str = "TOWLINE_FUSE_TEST_MAPS";

/// Not a test of its own: the reader that another one kills.
#[test]
fn child_that_touches_a_mapping() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mapping = Mapping::new(&File::open(path).unwrap(), MapFlags::PRIVATE).unwrap();
    assert_ne!(mapping.bytes().iter().map(|byte| u64::from(*byte)).sum::<u64>(), 0);
}

/// Starts `reader` on a file whose reads are held, kills it, and sees it die although nobody answered.
#[track_caller]
fn check_killed(reader: impl FnOnce(&Path) -> Command) {
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(32 * MIB, 4));
    tree.set_answer(ino, Answer::Held);
    let Some(mounted) = Mounted::start(tree) else { return };
    let path = mounted.path("model/weights");
    let mut reader = reader(&path).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the read to arrive", || mounted.tree.held_count() > 0);
    reader.kill().unwrap();
    let mut status = None;
    wait_for("the killed reader to die", || {
        status = reader.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
    assert!(mounted.tree.held_count() > 0, "it died while its read was waiting");
    // Answers to the dead are no trouble, and its open ends with them.
    mounted.tree.take_held().into_iter().for_each(common::Held::answer);
    wait_for("the release", || mounted.tree.opens.load(SeqCst) == 0);
    mounted.tree.set_answer(ino, Answer::Now);
    assert!(fs::read(path).unwrap() == bytes(32 * MIB, 4));
}

#[test]
fn a_killed_reader_dies_although_its_read_is_not_answered() {
    check_killed(|path| {
        let mut cat = Command::new("cat");
        cat.arg(path);
        cat
    });
}

#[test]
fn a_process_killed_in_a_page_fault_dies_although_it_is_not_answered() {
    check_killed(|path| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child_that_touches_a_mapping"]).env(CHILD, path);
        child
    });
}

#[test]
fn a_killed_direct_reader_dies_once_its_read_is_answered() {
    // The kernel does not let go of a process whose O_DIRECT read a daemon has taken. `Tree::read` says so.
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(32 * MIB, 5));
    tree.set_answer(ino, Answer::Held);
    let Some(mounted) = Mounted::start(tree) else { return };
    let input = format!("if={}", mounted.path("model/weights").display());
    let mut reader = Command::new("dd")
        .args([&input, "iflag=direct", "bs=1M", "of=/dev/null"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the read to arrive", || mounted.tree.held_count() == 1);
    reader.kill().unwrap();
    mounted.tree.take_held().into_iter().for_each(common::Held::answer);
    assert!(!reader.wait().unwrap().success());
    assert_eq!(mounted.tree.held_count(), 0, "it read no further");
}
