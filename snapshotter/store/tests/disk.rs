//! Disks that are full, broken or read-only: real file systems, mounted for the test.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Sample, can_mount, open, quiet};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use towline_artifact::{PIECE_LEN, PieceIndex};
use towline_store::{Commit, Store, StoreError};

/// A mounted file system that goes when dropped.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn tmpfs(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("mount tmpfs");
        Self { path: path.to_path_buf() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::DETACH).expect("unmount");
    }
}

#[test]
fn a_full_disk_refuses_pieces_and_nothing_else() {
    if !can_mount("a_full_disk_refuses_pieces_and_nothing_else") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs(&dir.path().join("disk"), "7M");
    let store = open(&disk.path);
    let (old, new) = (Sample::new(1, PIECE_LEN), Sample::new(2, 4 * PIECE_LEN));
    let content = store.content(Arc::clone(&old.table)).unwrap();
    old.commit_all(&content);
    content.seal().unwrap();
    drop(content);

    let content = store.content(Arc::clone(&new.table)).unwrap();
    let mut full = None;
    for index in 0..4 {
        match content.commit(&new.piece(index)) {
            Ok(_) => assert!(content.has(PieceIndex(index))),
            Err(StoreError::Full { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
                assert!(!content.has(PieceIndex(index)), "half a piece is none");
                full = full.or(Some(index));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let full = full.expect("7 MiB do not hold 10");
    assert!(full > 0);
    let given_back = store.free_bytes().unwrap();
    assert!(given_back >= 1 << 19, "the refused piece left no bytes behind, {given_back} are free");
    let mut bytes = vec![0; PIECE_LEN as usize];
    content.read_at(0, &mut bytes).unwrap();
    assert!(*bytes == *new.piece_bytes(0));
    let gap = content.read_at(PieceIndex(full).offset(), &mut bytes);
    assert!(matches!(gap, Err(StoreError::Missing { .. })));
    content.checkpoint().unwrap();

    // Not one page is left: the checkpoint cannot write its state, and the old one stays.
    let filler = disk.path.join("filler");
    let mut stuffing = File::create(&filler).unwrap();
    let stuffed = std::io::copy(&mut std::io::repeat(1), &mut stuffing);
    assert_eq!(stuffed.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let other = Sample::new(3, 9);
    assert!(matches!(store.content(Arc::clone(&other.table)), Err(StoreError::Full { .. })));
    assert_eq!(store.contents().len(), 2, "a content that could not be made is not there");
    fs::remove_file(&filler).unwrap();

    assert_eq!(store.evict(0, &|_| false).evicted, [old.id()]);
    assert!(matches!(content.commit(&new.piece(full)), Ok(Commit::New { .. })));
    store.content(Arc::clone(&other.table)).unwrap();
    store.close().unwrap();
    drop((content, store));
    let content = open(&disk.path).content(Arc::clone(&new.table)).unwrap();
    assert!(content.has(PieceIndex(full)));
}

/// A thin disk: an image on a tmpfs too small for it. Writes reach the page cache; writing back fails.
#[test]
fn pieces_that_could_not_be_synced_are_taken_back() {
    let test = "pieces_that_could_not_be_synced_are_taken_back";
    if !can_mount(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let backing = Mounted::tmpfs(&dir.path().join("backing"), "14M");
    let image = backing.path.join("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let run = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let (image, disk_path) = (image.to_str().unwrap(), disk.to_str().unwrap());
    // Without a journal, so that a failed write is the file's trouble and does not stop the file system.
    if !run("mkfs.ext4", &["-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image])
        || !run("mount", &["-o", "loop,errors=continue", image, disk_path])
    {
        eprintln!("{test} skipped: no mkfs.ext4, or no loop devices");
        return;
    }
    let disk = Mounted { path: disk };
    let store = open(&disk.path);
    let sample = Sample::new(4, 8 * PIECE_LEN);
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    content.commit(&sample.piece(0)).unwrap();
    content.checkpoint().expect("there is room for one");

    sample.commit_all(&content);
    assert!(content.is_complete(), "the page cache took them all");
    let refused = content.seal();
    assert!(matches!(refused, Err(StoreError::Io { .. } | StoreError::Full { .. })), "{refused:?}");
    assert!(content.has(PieceIndex(0)), "what was durable stays");
    assert_eq!(content.bytes_have(), PIECE_LEN, "what was not is missing again");
    assert!(!content.is_sealed());
    let state = fs::read(sample.side_path(&disk.path, ".state")).unwrap();
    assert_eq!((state[56], state[64]), (0, 1), "on disk only the first piece counts, and nothing is sealed");
    let stats = store.stats();
    assert_eq!((stats.taken_back_pieces, stats.dirty_bytes, stats.checkpoint_failures), (7, 0, 1));

    mount_remount(&backing.path, MountFlags::empty(), c"size=300M").unwrap();
    sample.commit_all(&content);
    content.seal().unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    sample.check_reads(&content);
    drop((content, store));
    assert!(open(&disk.path).get(sample.id()).unwrap().unwrap().is_sealed());
}

#[test]
fn a_read_only_disk_is_refused_with_a_reason() {
    if !can_mount("a_read_only_disk_is_refused_with_a_reason") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs(&dir.path().join("disk"), "8M");
    drop(open(&disk.path));
    mount_remount(&disk.path, MountFlags::RDONLY, c"").unwrap();
    let refused = Store::open(&disk.path, quiet());
    let rofs = Some(rustix::io::Errno::ROFS.raw_os_error());
    assert!(
        matches!(&refused, Err(StoreError::Io { source, .. }) if source.raw_os_error() == rofs),
        "{refused:?}"
    );
}
