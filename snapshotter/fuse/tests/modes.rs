//! I/O modes on the real kernel: when files are sealed while they are open, nobody notices.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use common::{Answer, Mapping, Mounted, TestTree, bytes, mounts_below, wait_for};
use rustix::mm::MapFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use towline_fuse::{MountOptions, Op, PassthroughMode, Stats};

const MIB: usize = 1 << 20;

fn weights(len: usize) -> Option<(Mounted, u64)> {
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(len, 1));
    let mounted = Mounted::start(tree)?;
    mounted.has_passthrough().then_some((mounted, ino))
}

#[track_caller]
fn opens(stats: Stats, cached: u64, passthrough: u64) {
    assert_eq!((stats.cached_opens, stats.passthrough_opens), (cached, passthrough), "cached, passthrough");
}

#[test]
fn a_file_sealed_while_open_passes_through_once_the_last_cached_open_is_gone() {
    let Some((mounted, ino)) = weights(4 * MIB) else { return };
    let path = mounted.path("model/weights");
    let expected = bytes(4 * MIB, 1);
    let check = |file: &File| {
        let mut part = vec![0; 4 * MIB];
        file.read_exact_at(&mut part, 0).unwrap();
        assert!(part == expected);
    };
    let early = File::open(&path).unwrap();
    let mapping = Mapping::new(&early, MapFlags::PRIVATE).unwrap();
    mounted.seal(ino);
    let late = File::open(&path).unwrap();
    check(&late);
    opens(mounted.mount().stats(), 2, 0);

    // The descriptors are gone, the mapping still counts.
    drop((early, late));
    wait_for("one release", || mounted.mount().stats().files_open == 1);
    check(&File::open(&path).unwrap());
    opens(mounted.mount().stats(), 3, 0);
    assert!(mapping.bytes() == expected);
    drop(mapping);
    wait_for("all releases", || mounted.mount().stats().files_open == 0);

    // From now on the daemon is not asked any more.
    let reads = mounted.mount().stats().requests(Op::Read);
    mounted.tree.set_answer(ino, Answer::Panic);
    let through = File::open(&path).unwrap();
    check(&through);
    assert!(Mapping::new(&through, MapFlags::SHARED).unwrap().bytes() == expected);
    opens(mounted.mount().stats(), 3, 1);
    assert_eq!(mounted.mount().stats().requests(Op::Read), reads);

    // While it lives every open passes through, even if the tree does not offer the file.
    mounted.tree.unseal(ino);
    check(&File::open(&path).unwrap());
    opens(mounted.mount().stats(), 3, 2);
    drop(through);
    wait_for("all releases", || mounted.mount().stats().files_open == 0);
    mounted.tree.set_answer(ino, Answer::Now);
    check(&File::open(&path).unwrap());
    opens(mounted.mount().stats(), 4, 2);
}

#[test]
fn opens_of_files_that_are_sealed_and_unsealed_all_the_time_never_fail() {
    const READERS: usize = 6;
    const ROUNDS: usize = 400;
    let tree = TestTree::new();
    let inos: Vec<_> =
        (0..3).map(|file| tree.add(&format!("model/{file}"), bytes(64 * 1024 + file, file as u64))).collect();
    let Some(mounted) = Mounted::start(tree) else { return };
    if !mounted.has_passthrough() {
        return;
    }
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let paths: Vec<_> = (0..3).map(|file| mounted.path(&format!("model/{file}"))).collect();
                scope.spawn(move || {
                    let expected: Vec<_> = (0..3).map(|file| bytes(64 * 1024 + file, file as u64)).collect();
                    for round in 0..ROUNDS {
                        let number = (round * 7 + reader) % 3;
                        let file = File::open(&paths[number]).expect("an open never fails");
                        if round % 3 == 0 {
                            assert!(
                                Mapping::new(&file, MapFlags::PRIVATE).unwrap().bytes() == expected[number]
                            );
                        } else {
                            let mut all = vec![0; expected[number].len()];
                            file.read_exact_at(&mut all, 0).expect("a read never fails");
                            assert!(all == expected[number], "wrong bytes");
                        }
                    }
                })
            })
            .collect();
        while !readers.iter().all(thread::ScopedJoinHandle::is_finished) {
            for ino in &inos {
                mounted.seal(*ino);
                thread::yield_now();
                mounted.tree.unseal(*ino);
            }
        }
    });
    wait_for("all releases", || mounted.mount().stats().files_open == 0);
    let stats = mounted.mount().stats();
    assert_eq!(mounted.tree.opens.load(SeqCst), 0, "one release for each open");
    assert_eq!(stats.cached_opens + stats.passthrough_opens, (READERS * ROUNDS) as u64);
    assert!(stats.cached_opens > 0 && stats.passthrough_opens > 0, "both modes were used: {stats:?}");
    assert_eq!(stats.passthrough_refusals, 0);
}

/// An overlay whose lower directory is a model on the mount, as a rootfs snapshot would have it.
struct Overlay<'a> {
    dir: std::path::PathBuf,
    _lower: &'a Mounted,
}

impl<'a> Overlay<'a> {
    fn start(lower: &'a Mounted, model: &str) -> Self {
        let at = |name: &str| {
            let dir = lower.beside(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let (upper, work, dir) = (at("upper"), at("work"), at("merged"));
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.path(model).display(),
            upper.display(),
            work.display()
        );
        let data = std::ffi::CString::new(data).unwrap();
        mount("overlay", &dir, "overlay", MountFlags::empty(), data.as_c_str()).unwrap();
        Self { dir, _lower: lower }
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        unmount(&self.dir, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn an_overlay_on_top_reads_right_in_both_modes() {
    let Some((mounted, ino)) = weights(8 * MIB + 5) else { return };
    let expected = bytes(8 * MIB + 5, 1);
    let overlay = Overlay::start(&mounted, "model");
    let path = overlay.dir.join("weights");
    let check = |path: &Path| {
        let file = File::open(path).unwrap();
        let mut all = vec![0; expected.len()];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all == expected);
        assert!(Mapping::new(&file, MapFlags::PRIVATE).unwrap().bytes() == expected);
    };
    check(&path);
    let stats = mounted.mount().stats();
    assert!(stats.cached_opens > 0 && stats.passthrough_opens == 0);
    wait_for("all releases", || mounted.mount().stats().files_open == 0);
    mounted.seal(ino);
    mounted.tree.set_answer(ino, Answer::Panic);
    check(&path);
    assert!(mounted.mount().stats().passthrough_opens > 0);
    // Writing goes to the upper directory.
    fs::write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    drop(overlay);
    assert!(mounts_below(&mounted.beside("merged")).is_empty());
}

#[test]
fn a_cache_on_a_stacked_file_system_is_read_through_the_daemon_and_says_why() {
    let Some((below, _)) = weights(1) else { return };
    let overlay = Overlay::start(&below, "model");
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(MIB, 2));
    let Some(mounted) = Mounted::start(tree) else { return };
    assert_eq!(mounted.mount().passthrough(), PassthroughMode::Untried);
    mounted.tree.seal(ino, &overlay.dir.join("content"));
    assert!(fs::read(mounted.path("model/weights")).unwrap() == bytes(MIB, 2));
    let PassthroughMode::Off { reason } = mounted.mount().passthrough() else { panic!("it is on") };
    assert!(reason.contains("stacked"), "{reason}");
    let stats = mounted.mount().stats();
    assert_eq!((stats.cached_opens, stats.passthrough_opens, stats.passthrough_refusals), (1, 0, 1));
}

#[test]
fn passthrough_can_be_switched_off() {
    let tree = TestTree::new();
    let ino = tree.add("model/weights", bytes(MIB, 3));
    let options = MountOptions { passthrough: false, ..MountOptions::default() };
    let Some(mounted) = Mounted::start_with(tree, options) else { return };
    mounted.seal(ino);
    assert!(fs::read(mounted.path("model/weights")).unwrap() == bytes(MIB, 3));
    opens(mounted.mount().stats(), 1, 0);
    assert!(matches!(mounted.mount().passthrough(), PassthroughMode::Off { .. }));
}
