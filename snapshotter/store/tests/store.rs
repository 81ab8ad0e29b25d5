//! What a caller sees of a store on a healthy disk.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use common::{Sample, open, quiet, wait_until};
use towline_artifact::{ContentId, PIECE_LEN, PieceIndex, PieceTable};
use towline_store::{Commit, Store, StoreError, StoreOptions, TreeContent, TreeFile};

const NEW: Commit = Commit::New { complete: false };

#[test]
fn pieces_in_bytes_out_and_final_when_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 2 * PIECE_LEN + 5);
    let store = open(dir.path());
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    assert_eq!(
        (content.len(), content.piece_count(), content.bytes_have()),
        (sample.bytes.len() as u64, 3, 0)
    );
    assert_eq!(content.commit(&sample.piece(2)).unwrap(), NEW);
    assert_eq!(content.commit(&sample.piece(2)).unwrap(), Commit::AlreadyHad);
    assert_eq!(content.bytes_have(), 5);
    let missing = |range| content.missing(range).map(|piece| piece.0).collect::<Vec<_>>();
    assert_eq!(missing(PieceIndex(0)..PieceIndex(9)), [0, 1]);
    assert_eq!(missing(PieceIndex(1)..PieceIndex(1)), [0; 0]);
    assert_eq!(content.have_words(), [4]);
    assert!(matches!(content.seal(), Err(StoreError::Incomplete { missing: 2, .. })));
    assert!(content.sealed_file().is_none());

    let mut five = [0; 5];
    content.read_at(2 * PIECE_LEN, &mut five).unwrap();
    assert_eq!(five, sample.piece_bytes(2));
    let early = content.read_at(2 * PIECE_LEN - 1, &mut five);
    assert!(matches!(early, Err(StoreError::Missing { piece: PieceIndex(1), .. })), "{early:?}");
    for offset in [2 * PIECE_LEN + 1, u64::MAX] {
        assert!(matches!(content.read_at(offset, &mut five), Err(StoreError::OutOfRange { .. })));
    }
    content.read_at(content.len(), &mut []).unwrap();

    assert_eq!(content.commit(&sample.piece(0)).unwrap(), NEW);
    assert_eq!(content.commit(&sample.piece(1)).unwrap(), Commit::New { complete: true });
    assert!(content.is_complete() && !content.is_sealed());
    content.seal().unwrap();
    content.seal().unwrap();
    assert!(content.is_sealed());
    sample.check_reads(&content);
    let meta = content.sealed_file().unwrap().metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o644, 0, 0));
    content.advise_dontneed(0..u64::MAX);
    sample.check_reads(&content);
    assert_eq!(fs::read(sample.data_path(dir.path())).unwrap(), *sample.bytes);
}

#[test]
fn one_handle_per_content_and_the_directory_is_locked_while_one_lives() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(2, PIECE_LEN);
    let store = open(dir.path());
    let one = store.content(Arc::clone(&sample.table)).unwrap();
    let two = store.clone().content(Arc::clone(&sample.table)).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    let refused =
        |what| assert!(matches!(Store::open(dir.path(), quiet()), Err(StoreError::Locked { .. })), "{what}");
    refused("store is open");
    drop(store);
    refused("contents are open");
    one.commit(&sample.piece(0)).unwrap();
    one.checkpoint().unwrap();
    drop((one, two));
    let content = open(dir.path()).content(Arc::clone(&sample.table)).unwrap();
    sample.check_reads(&content);
}

#[test]
fn a_content_dropped_before_its_checkpoint_comes_back_with_its_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(3, PIECE_LEN + 1);
    let store = open(dir.path());
    store.content(Arc::clone(&sample.table)).unwrap().commit(&sample.piece(1)).unwrap();
    let again = store.content(Arc::clone(&sample.table)).unwrap();
    assert!(again.has(PieceIndex(1)) && !again.has(PieceIndex(0)));
    assert_eq!(store.stats().dirty_bytes, 1);
    drop(again);
    store.close().unwrap();
    assert_eq!(store.stats().dirty_bytes, 0);
    drop(store);
    let store = open(dir.path());
    assert!(store.get(sample.id()).unwrap().unwrap().has(PieceIndex(1)));
    assert_eq!(store.stats().recovered_pieces, 0, "nothing to verify after an orderly end");
    assert!(store.get(ContentId([9; 32])).unwrap().is_none());
}

#[test]
fn empty_contents_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let empty = Sample::new(4, 0);
    let content = store.content(Arc::clone(&empty.table)).unwrap();
    assert!(content.is_complete());
    content.read_at(0, &mut []).unwrap();
    content.seal().unwrap();
    drop((content, store));
    assert!(open(dir.path()).content(Arc::clone(&empty.table)).unwrap().is_sealed());
}

#[test]
fn a_lie_about_the_length_neither_gets_in_nor_keeps_the_truth_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sample = Sample::new(5, 2 * PIECE_LEN + 10);
    let lie = PieceTable::new(sample.id(), 2 * PIECE_LEN + 11, sample.table.digests().to_vec()).unwrap();
    let lie = Arc::new(lie);
    let lying = store.content(Arc::clone(&lie)).unwrap();
    lying.commit(&sample.piece(0)).unwrap();
    assert!(matches!(lying.commit(&sample.piece(2)), Err(StoreError::WrongPiece { .. })));
    let conflict = store.content(Arc::clone(&sample.table));
    assert!(matches!(conflict, Err(StoreError::LengthConflict { .. })), "while the lie is open");
    drop(lying);

    let content = store.content(Arc::clone(&sample.table)).unwrap();
    assert!(!content.has(PieceIndex(0)), "the unproven file gave way");
    sample.commit_all(&content);
    drop(content);
    assert!(matches!(store.content(Arc::clone(&lie)), Err(StoreError::LengthConflict { .. })), "dirty");
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(matches!(store.content(lie), Err(StoreError::LengthConflict { .. })), "from disk");
    sample.check_reads(&store.content(Arc::clone(&sample.table)).unwrap());
}

#[test]
fn threads_with_overlapping_pieces_write_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(6, 7 * PIECE_LEN + 3);
    let options = StoreOptions { checkpoint_bytes: 1, checkpoint_interval: Duration::from_millis(1) };
    let store = Store::open(dir.path(), options).unwrap();
    let content = store.content(Arc::clone(&sample.table)).unwrap();
    let pieces: Vec<_> = (0..sample.count()).map(|index| sample.piece(index)).collect();
    let worker = |start: usize| {
        let mut new = (0, 0);
        for step in 0..pieces.len() {
            let piece = &pieces[(start + step * 3) % pieces.len()];
            if let Commit::New { complete } = content.commit(piece).unwrap() {
                new = (new.0 + 1, new.1 + u32::from(complete));
            }
            assert!(content.has(piece.index()), "there after its commit returned");
            let mut bytes = vec![0; piece.bytes().len()];
            content.read_at(piece.index().offset(), &mut bytes).unwrap();
            assert!(*bytes == **piece.bytes());
        }
        new
    };
    let totals = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|start| scope.spawn(move || worker(start))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    assert_eq!(totals, (8, 1), "eight pieces written once, one of them the last");
    assert_eq!(store.stats().committed_pieces, 8);
    content.seal().unwrap();
    sample.check_reads(&content);
}

#[test]
fn the_thread_checkpoints_by_bytes_and_by_time() {
    for (bytes, interval) in [(PIECE_LEN, Duration::from_secs(86_400)), (u64::MAX, Duration::from_millis(20))]
    {
        let dir = tempfile::tempdir().unwrap();
        let sample = Sample::new(7, 3 * PIECE_LEN);
        let options = StoreOptions { checkpoint_bytes: bytes, checkpoint_interval: interval };
        let store = Store::open(dir.path(), options).unwrap();
        let content = store.content(Arc::clone(&sample.table)).unwrap();
        content.commit(&sample.piece(1)).unwrap();
        wait_until("checkpoint", || store.stats().dirty_bytes == 0);
        assert_eq!(store.stats().checkpoints, 1);
        assert!(sample.side_path(dir.path(), ".state").is_file());
    }
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_used_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let samples: Vec<_> = (10..15).map(|seed| Sample::new(seed, PIECE_LEN)).collect();
    for (age, sample) in samples.iter().enumerate() {
        let content = store.content(Arc::clone(&sample.table)).unwrap();
        sample.commit_all(&content);
        content.seal().unwrap();
        drop(content);
        let when = std::time::UNIX_EPOCH + Duration::from_secs(1000 + age as u64);
        let pieces = fs::File::options().write(true).open(sample.side_path(dir.path(), ".pieces")).unwrap();
        pieces.set_modified(when).unwrap();
    }
    let ids: Vec<_> = samples.iter().map(Sample::id).collect();
    assert_eq!(store.contents().iter().map(|info| info.id).collect::<Vec<_>>(), ids);
    let tree = [TreeFile { path: "a".into(), executable: false, content: TreeContent::Sealed(ids[0]) }];
    let path = store.sealed_tree("t", &tree, &[]).unwrap();
    let used = store.stats().content_bytes;
    assert_eq!(used, 5 * PIECE_LEN);

    assert_eq!(store.evict(used, &|_| false).evicted, []);
    let report = store.evict(used - 1, &|id| id == ids[1]);
    assert_eq!((report.evicted, report.freed_bytes, report.kept), (vec![ids[2]], PIECE_LEN, 2));
    let open = store.get(ids[3]).unwrap().unwrap();
    assert!(matches!(store.remove(ids[3]), Err(StoreError::InUse { .. })));
    let report = store.evict(0, &|id| id == ids[1]);
    assert_eq!((report.evicted, report.used_bytes, report.kept), (vec![ids[4]], 3 * PIECE_LEN, 3));
    samples[3].check_reads(&open);

    drop(open);
    assert_eq!(store.remove(ids[3]).unwrap(), PIECE_LEN);
    assert_eq!(store.remove(ids[3]).unwrap(), 0);
    assert_eq!(store.remove(ids[0]).unwrap(), 0, "the tree keeps the bytes");
    assert_eq!(fs::read(path.join("a")).unwrap(), *samples[0].bytes);
    store.remove_tree("t").unwrap();
    assert_eq!(store.contents().iter().map(|info| info.id).collect::<Vec<_>>(), [ids[1]]);
    let fresh = store.content(Arc::clone(&samples[4].table)).unwrap();
    assert_eq!(fresh.bytes_have(), 0, "an evicted content starts anew");
}

#[test]
fn a_content_with_pieces_that_are_not_durable_is_evicted_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sample = Sample::new(16, PIECE_LEN + 1);
    store.content(Arc::clone(&sample.table)).unwrap().commit(&sample.piece(0)).unwrap();
    assert_eq!(store.evict(0, &|_| false).evicted, [sample.id()]);
    store.checkpoint().unwrap();
    assert!(fs::read_dir(sample.data_path(dir.path()).parent().unwrap()).unwrap().next().is_none());
}

#[test]
fn sealed_trees_share_bytes_and_look_the_same_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (weights, tool, late) = (Sample::new(20, PIECE_LEN + 1), Sample::new(21, 100), Sample::new(22, 100));
    for sample in [&weights, &tool, &late] {
        sample.commit_all(&store.content(Arc::clone(&sample.table)).unwrap());
    }
    for sample in [&weights, &tool] {
        store.get(sample.id()).unwrap().unwrap().seal().unwrap();
    }
    let file = |path: &str, executable, content| TreeFile { path: path.into(), executable, content };
    let mut files = vec![
        file("model/a.bin", false, TreeContent::Sealed(weights.id())),
        file("model/same.bin", false, TreeContent::Sealed(weights.id())),
        file("bin/run", true, TreeContent::Sealed(tool.id())),
        file("config.json", false, TreeContent::Inline(b"{}".to_vec())),
        file("empty/late", false, TreeContent::Sealed(late.id())),
    ];
    let unsealed = store.sealed_tree("sha256-aa", &files, &[]);
    assert!(matches!(unsealed, Err(StoreError::NotSealed { content }) if content == late.id()));
    assert_eq!(store.trees().unwrap(), [""; 0], "nothing half is left");
    files.pop();
    let path = store.sealed_tree("sha256-aa", &files, &["empty/dir".into()]).unwrap();
    assert_eq!(store.sealed_tree("sha256-aa", &files, &[]).unwrap(), path);
    assert_eq!(store.trees().unwrap(), ["sha256-aa"]);
    let meta = |name: &str| fs::symlink_metadata(path.join(name)).unwrap();
    assert_eq!(meta("model/a.bin").ino(), fs::metadata(weights.data_path(dir.path())).unwrap().ino());
    assert_eq!(meta("model/a.bin").nlink(), 3);
    assert_eq!(fs::read(path.join("bin/run")).unwrap(), *tool.bytes);
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"{}");
    for (name, mode) in [
        ("", 0o755),
        ("model", 0o755),
        ("empty/dir", 0o755),
        ("bin/run", 0o755),
        ("config.json", 0o644),
        ("model/same.bin", 0o644),
    ] {
        assert_eq!((meta(name).permissions().mode() & 0o7777, meta(name).mtime()), (mode, 0), "{name:?}");
    }
    assert_eq!(fs::metadata(tool.data_path(dir.path())).unwrap().mode() & 0o777, 0o644, "the original stays");
    assert!(store.stats().tree_bytes > 0);
    store.remove_tree("sha256-aa").unwrap();
    store.remove_tree("sha256-aa").unwrap();
    assert!(fs::symlink_metadata(&path).is_err());
    assert!(matches!(store.sealed_tree("../x", &files, &[]), Err(StoreError::TreeName { .. })));
    assert!(matches!(store.remove_tree("../content"), Err(StoreError::TreeName { .. })));
}

#[test]
fn foreign_and_future_directories_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    assert!(matches!(Store::open(dir.path(), quiet()), Err(StoreError::NotAStore { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("version"), "towline-store 2\n").unwrap();
    let future = Store::open(dir.path(), quiet());
    assert!(
        matches!(&future, Err(StoreError::Version { found, .. }) if found == "towline-store 2"),
        "{future:?}"
    );
}
