//! What a process sees on the mount: names, attributes, bytes, and refusals.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use common::{Mapping, Mounted, TestTree, bytes};
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr, statvfs};
use rustix::io::Errno;
use rustix::mm::MapFlags;
use towline_fuse::{MountOptions, Op};

const MANY: usize = 5000;

fn names(dir: &Path) -> Vec<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_directory_with_thousands_of_names_lists_each_once() {
    let tree = TestTree::new();
    for number in 0..MANY {
        tree.add(&format!("model/shard-{number:05}"), bytes(number % 3, number as u64));
    }
    let Some(mounted) = Mounted::start(tree) else { return };
    for round in ["cold", "from the kernel's cache"] {
        let names = names(&mounted.path("model"));
        assert_eq!(names.len(), MANY, "{round}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), MANY, "{round}");
    }
    // With attributes, as `ls -l` asks.
    let sizes: u64 =
        fs::read_dir(mounted.path("model")).unwrap().map(|e| e.unwrap().metadata().unwrap().size()).sum();
    assert_eq!(sizes, (0..MANY as u64).map(|number| number % 3).sum());
    assert_eq!(mounted.mount().stats().panics, 0);
}

#[test]
fn a_listing_keeps_its_snapshot_while_names_of_the_root_come_and_go() {
    let tree = TestTree::new();
    for number in 0..2000 {
        tree.add_dir(&format!("model-{number:04}"));
    }
    let Some(mounted) = Mounted::start(tree) else { return };
    let mut listing = fs::read_dir(mounted.path("")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();
    for number in 0..1000 {
        mounted.tree.remove_from_root(&format!("model-{number:04}"));
    }
    let mut seen = BTreeSet::from([first]);
    for entry in listing {
        assert!(seen.insert(entry.unwrap().file_name()), "a name appeared twice");
    }
    for number in 1000..2000 {
        assert!(seen.contains(&OsString::from(format!("model-{number:04}"))), "{number} is missing");
    }
    assert_eq!(names(&mounted.path("")).len(), 1000, "a new listing shows what is there now");
}

#[test]
fn deep_directories_and_attributes_are_canonical() {
    let tree = TestTree::new();
    let deep = format!("model/{}", ["d"; 200].join("/"));
    tree.add(&format!("{deep}/leaf"), bytes(513, 1));
    tree.add("model/run.sh", bytes(1, 2));
    let Some(mounted) = Mounted::start(tree) else { return };
    let leaf = fs::metadata(mounted.path(&format!("{deep}/leaf"))).unwrap();
    assert_eq!((leaf.mode(), leaf.uid(), leaf.gid()), (0o100_644, 0, 0));
    assert_eq!((leaf.mtime(), leaf.mtime_nsec(), leaf.ctime(), leaf.atime()), (0, 0, 0, 0));
    assert_eq!((leaf.size(), leaf.blocks(), leaf.nlink()), (513, 2, 1));
    assert_eq!(fs::metadata(mounted.path("model/run.sh")).unwrap().mode(), 0o100_755);
    assert_eq!(fs::metadata(mounted.path("model")).unwrap().mode(), 0o040_755);
    assert_eq!(fs::read(mounted.path(&format!("{deep}/leaf"))).unwrap(), bytes(513, 1));
}

#[test]
fn every_byte_is_right_at_the_boundary_sizes() {
    const REQUEST: usize = 1 << 20;
    let sizes = [0, 1, 4095, 4096, 4097, REQUEST - 1, REQUEST, REQUEST + 1, 20 * REQUEST + 17];
    let tree = TestTree::new();
    for (seed, size) in sizes.iter().enumerate() {
        tree.add(&format!("model/{size}"), bytes(*size, seed as u64));
    }
    let Some(mounted) = Mounted::start(tree) else { return };
    for (seed, size) in sizes.iter().enumerate() {
        let path = mounted.path(&format!("model/{size}"));
        let expected = bytes(*size, seed as u64);
        assert!(fs::read(&path).unwrap() == expected, "{size} bytes, read");
        if *size > 0 {
            let file = File::open(&path).unwrap();
            for flags in [MapFlags::PRIVATE, MapFlags::SHARED] {
                assert!(
                    Mapping::new(&file, flags).unwrap().bytes() == expected,
                    "{size} bytes, mapped {flags:?}"
                );
            }
        }
    }
}

#[test]
fn direct_reads_and_seeks_behave() {
    const LEN: usize = 3 << 20;
    let tree = TestTree::new();
    tree.add("model/weights", bytes(LEN + 100, 3));
    let Some(mounted) = Mounted::start(tree) else { return };
    let path = mounted.path("model/weights");
    let expected = bytes(LEN + 100, 3);

    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut aligned = vec![0_u8; LEN + 4096];
    let start = aligned.as_ptr().align_offset(4096);
    let buffer = &mut aligned[start..start + LEN];
    direct.read_exact_at(buffer, 0).unwrap();
    assert!(buffer == &expected[..LEN]);

    let mut file = File::open(&path).unwrap();
    let seek = |offset, whence| rustix::fs::seek(&file, offset_of(offset, whence));
    assert_eq!(seek(5, "data"), Ok(5));
    assert_eq!(seek(5, "hole"), Ok(LEN as u64 + 100));
    assert_eq!(seek(LEN as u64 + 100, "data"), Err(Errno::NXIO));
    file.seek(SeekFrom::End(-3)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, expected[LEN + 97..]);
    file.sync_all().unwrap();
}

fn offset_of(offset: u64, whence: &str) -> rustix::fs::SeekFrom {
    if whence == "data" { rustix::fs::SeekFrom::Data(offset) } else { rustix::fs::SeekFrom::Hole(offset) }
}

#[test]
fn what_would_modify_is_refused_with_the_number_that_callers_expect() {
    let tree = TestTree::new();
    tree.add("model/weights", bytes(100, 4));
    let Some(mounted) = Mounted::start(tree) else { return };
    let file = mounted.path("model/weights");
    let new = mounted.path("model/new");
    #[track_caller]
    fn erofs<T>(result: io::Result<T>) {
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(libc::EROFS));
    }
    erofs(OpenOptions::new().write(true).open(&file));
    erofs(OpenOptions::new().read(true).append(true).open(&file));
    erofs(OpenOptions::new().read(true).write(true).truncate(true).open(&file));
    erofs(File::create(&new));
    erofs(fs::create_dir(&new));
    erofs(fs::remove_file(&file));
    erofs(fs::remove_dir(mounted.path("model")));
    erofs(fs::rename(&file, &new));
    erofs(fs::hard_link(&file, &new));
    erofs(std::os::unix::fs::symlink("weights", &new));
    erofs(fs::set_permissions(&file, fs::Permissions::from_mode(0o600)));
    erofs(std::os::unix::fs::chown(&file, Some(1000), Some(1000)));
    erofs(File::open(&file).unwrap().set_modified(std::time::SystemTime::now()));
    erofs(rustix::fs::mkfifoat(rustix::fs::CWD, &new, rustix::fs::Mode::RUSR).map_err(io::Error::from));
    // The kubelet's relabel, every time and not only the first.
    for _ in 0..2 {
        let label = b"system_u:object_r:container_file_t:s0";
        assert_eq!(setxattr(&file, "security.selinux", label, XattrFlags::empty()), Err(Errno::NOTSUP));
        assert_eq!(setxattr(&file, "user.note", label, XattrFlags::empty()), Err(Errno::NOTSUP));
        assert_eq!(removexattr(&file, "user.note"), Err(Errno::NOTSUP));
        assert_eq!(getxattr(&file, "user.note", &mut [0_u8; 64]), Err(Errno::NOTSUP));
        assert_eq!(listxattr(&file, &mut [0_u8; 64]), Ok(0));
    }
    assert_eq!(fs::read(&file).unwrap(), bytes(100, 4));
    assert!(mounted.mount().stats().requests(Op::Modify) >= 10);
}

#[test]
fn names_that_are_missing_are_not_remembered_and_statfs_answers() {
    let Some(mounted) = Mounted::start(TestTree::new()) else { return };
    assert_eq!(fs::metadata(mounted.path("late")).unwrap_err().kind(), io::ErrorKind::NotFound);
    mounted.tree.add("late/config.json", b"{}".to_vec());
    assert_eq!(fs::read(mounted.path("late/config.json")).unwrap(), b"{}");
    let stat = statvfs(mounted.path("late")).unwrap();
    assert_eq!((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize), (1 << 40, 1 << 39));
    assert_eq!(stat.f_namemax, 255);
}

#[test]
fn what_is_immutable_is_asked_once() {
    let tree = TestTree::new();
    tree.add("model/weights", bytes(1 << 20, 5));
    let Some(mounted) = Mounted::start(tree) else { return };
    let path = mounted.path("model/weights");
    fs::read(&path).unwrap();
    let before = mounted.mount().stats();
    for _ in 0..10 {
        fs::read(&path).unwrap();
    }
    let stats = mounted.mount().stats();
    let more = |op| stats.requests(op) - before.requests(op);
    assert_eq!(more(Op::Read), 0, "the page cache outlives the open");
    assert!(more(Op::Getattr) <= 1, "after bytes arrived the kernel doubts the access time once");
    assert!(more(Op::Lookup) <= 10, "at most the name in the root is asked again");
    assert_eq!(more(Op::Open), 10);
    assert_eq!(more(Op::Other), 0, "no flush, no attribute look-ups");
}

#[test]
fn the_read_ahead_is_set_on_the_mount() {
    let options = MountOptions { read_ahead_kb: 4096, ..MountOptions::default() };
    let Some(mounted) = Mounted::start_with(TestTree::new(), options) else { return };
    let Some(actual) = mounted.mount().read_ahead_kb() else {
        eprintln!("skipped: /sys is not readable");
        return;
    };
    assert_eq!(actual, 4096);
    let device = fs::metadata(mounted.path("")).unwrap().dev();
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    assert_eq!(fs::read_to_string(bdi).unwrap().trim(), "4096");
}
