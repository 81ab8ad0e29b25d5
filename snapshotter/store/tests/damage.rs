//! Files that are not as the store left them: never wrong bytes, never a store that does not open.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::{Sample, memory_dir, open};
use towline_artifact::{PIECE_LEN, PieceIndex};
use towline_store::{StoreError, TreeContent, TreeFile};

/// Damages one of two contents, sealed or only checkpointed; the other must not notice.
#[track_caller]
fn check(what: &str, damage: impl Fn(&Path, &Sample)) {
    for seal in [true, false] {
        let dir = memory_dir();
        let (victim, other) = (Sample::new(1, PIECE_LEN + 9), Sample::new(2, PIECE_LEN + 9));
        let store = open(dir.path());
        for sample in [&victim, &other] {
            let content = store.content(Arc::clone(&sample.table)).unwrap();
            sample.commit_all(&content);
            if seal { content.seal().unwrap() } else { content.checkpoint().unwrap() }
        }
        drop(store);
        damage(dir.path(), &victim);

        let store = open(dir.path());
        other.check_reads(&store.content(Arc::clone(&other.table)).unwrap());
        let content = store.content(Arc::clone(&victim.table)).unwrap();
        assert_eq!(store.stats().quarantined, 1, "{what}");
        assert!(!content.is_sealed());
        assert_eq!(content.bytes_have(), 0, "{what}: starts anew");
        victim.commit_all(&content);
        content.seal().unwrap();
        victim.check_reads(&content);

        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
        let quarantined = store.stats().quarantine_bytes;
        assert!(quarantined > 0);
        assert_eq!(store.evict(store.stats().content_bytes, &|_| true).freed_bytes, quarantined);
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 0);
        drop((content, store));
        assert!(open(dir.path()).get(victim.id()).unwrap().unwrap().is_sealed());
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_content_is_moved_aside_and_fetched_again() {
    for at in [0, 8, 20, 30, 56, 64, 70] {
        check("state flipped", |root, sample| flip(&sample.side_path(root, ".state"), at));
    }
    for at in [0, 8, 20, 30, 60, 120] {
        check("pieces flipped", |root, sample| flip(&sample.side_path(root, ".pieces"), at));
    }
    check("state of another content", |root, sample| {
        fs::copy(Sample::new(2, PIECE_LEN + 9).side_path(root, ".state"), sample.side_path(root, ".state"))
            .unwrap();
    });
    check("state empty", |root, sample| fs::write(sample.side_path(root, ".state"), "").unwrap());
    check("state huge", |root, sample| {
        File::create(sample.side_path(root, ".state")).unwrap().set_len(1 << 40).unwrap();
    });
    check("pieces gone", |root, sample| fs::remove_file(sample.side_path(root, ".pieces")).unwrap());
    check("data gone", |root, sample| fs::remove_file(sample.data_path(root)).unwrap());
    check("data short", |root, sample| {
        File::options().write(true).open(sample.data_path(root)).unwrap().set_len(PIECE_LEN).unwrap();
    });
    check("data a link", |root, sample| {
        fs::remove_file(sample.data_path(root)).unwrap();
        symlink("/etc/hostname", sample.data_path(root)).unwrap();
    });
    check("state a directory", |root, sample| {
        fs::remove_file(sample.side_path(root, ".state")).unwrap();
        fs::create_dir(sample.side_path(root, ".state")).unwrap();
    });
}

#[test]
fn a_damaged_table_is_noticed_without_one_to_compare() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(3, PIECE_LEN + 9);
    let store = open(dir.path());
    sample.commit_all(&store.content(Arc::clone(&sample.table)).unwrap());
    store.close().unwrap();
    drop(store);
    flip(&sample.side_path(dir.path(), ".pieces"), 60);
    let store = open(dir.path());
    assert!(store.get(sample.id()).unwrap().is_none());
    assert_eq!((store.stats().quarantined, store.stats().contents), (1, 0));
}

#[test]
fn pieces_without_a_durable_bit_count_only_if_they_match() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(4, 5 * PIECE_LEN + 9);
    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    content.commit(&sample.piece(0)).unwrap();
    content.checkpoint().unwrap();
    for piece in [1, 3, 5] {
        content.commit(&sample.piece(piece)).unwrap();
    }
    drop((content, store));
    let data = File::options().write(true).open(sample.data_path(dir.path())).unwrap();
    data.write_all_at(b"junk", PieceIndex(3).offset()).unwrap();
    data.write_all_at(b"junk", PieceIndex(4).offset() + 7).unwrap();

    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    let has: Vec<_> = (0..6).filter(|piece| content.has(PieceIndex(*piece))).collect();
    assert_eq!(has, [0, 1, 5]);
    let stats = store.stats();
    assert_eq!((stats.recovered_pieces, stats.rejected_pieces), (2, 2));
    assert_eq!(stats.dirty_bytes, PIECE_LEN + 9, "what was recovered is yet to be made durable");
    store.checkpoint().unwrap();
    drop((content, store));
    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    assert_eq!(content.bytes_have(), 2 * PIECE_LEN + 9);
    assert_eq!(store.stats().recovered_pieces, 0);
    sample.commit_all(&content);
    sample.check_reads(&content);
}

#[test]
fn a_file_cut_short_while_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(5, PIECE_LEN);
    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    sample.commit_all(&content);
    File::options().write(true).open(sample.data_path(dir.path())).unwrap().set_len(10).unwrap();
    assert!(matches!(content.read_at(5, &mut [0; 10]), Err(StoreError::Truncated { .. })));
}

#[test]
fn remains_of_interrupted_writes_go_and_unknown_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(6, 100);
    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    sample.commit_all(&content);
    content.seal().unwrap();
    let file = TreeFile { path: "d/f".into(), executable: false, content: TreeContent::Sealed(sample.id()) };
    let tree = store.sealed_tree("t", &[file], &[]).unwrap();
    drop((content, store));
    let state_temp = sample.side_path(dir.path(), ".state.tmp");
    let stray = Sample::new(7, 100);
    let unknown = sample.data_path(dir.path()).with_file_name("notes");
    fs::write(&state_temp, "half").unwrap();
    fs::write(stray.data_path(dir.path()), "").unwrap();
    fs::write(&unknown, "mine").unwrap();
    let tree_temp = tree.with_file_name(".tmp-u");
    fs::rename(&tree, &tree_temp).unwrap();

    let store = open(dir.path());
    for gone in [&state_temp, &stray.data_path(dir.path()), &tree_temp] {
        assert!(fs::symlink_metadata(gone).is_err(), "{}", gone.display());
    }
    assert_eq!(fs::read(unknown).unwrap(), b"mine");
    assert_eq!(store.stats().quarantined, 0);
    assert!(!store.contents()[0].linked);
    sample.check_reads(&store.get(sample.id()).unwrap().unwrap());
}
