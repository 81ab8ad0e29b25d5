//! Contents with known bytes, and stores that do nothing on their own.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towline_artifact::{ContentId, PIECE_LEN, PieceHasher, PieceIndex, PieceTable, VerifiedPiece};
use towline_store::{Content, Store, StoreOptions};

/// A file's bytes with their table.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) table: Arc<PieceTable>,
}

impl Sample {
    /// `len` bytes that differ in every piece and for every `seed`, none of their pages zero.
    pub(crate) fn new(seed: u64, len: u64) -> Self {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        };
        let words = std::iter::repeat_with(next);
        let bytes: Vec<u8> = words.flatten().take(usize::try_from(len).unwrap()).collect();
        let mut hasher = PieceHasher::new();
        hasher.update(&bytes);
        Self { bytes: bytes.into(), table: Arc::new(hasher.finish()) }
    }

    pub(crate) fn id(&self) -> ContentId {
        self.table.content()
    }

    pub(crate) fn count(&self) -> u32 {
        self.table.piece_count()
    }

    pub(crate) fn piece_bytes(&self, index: u32) -> &[u8] {
        let start = usize::try_from(u64::from(index) * PIECE_LEN).unwrap();
        &self.bytes[start..self.bytes.len().min(start + PIECE_LEN as usize)]
    }

    pub(crate) fn piece(&self, index: u32) -> VerifiedPiece {
        self.table
            .verify(PieceIndex(index), self.piece_bytes(index).to_vec().into())
            .expect("own bytes match")
    }

    pub(crate) fn commit_all(&self, content: &Content) {
        for index in 0..self.count() {
            content.commit(&self.piece(index)).expect("commit");
        }
    }

    #[track_caller]
    pub(crate) fn check_reads(&self, content: &Content) {
        let mut bytes = vec![0; self.bytes.len()];
        content.read_at(0, &mut bytes).expect("read all");
        let wrong = bytes.iter().zip(&*self.bytes).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "content {} has other bytes", self.id());
    }

    pub(crate) fn data_path(&self, root: &Path) -> PathBuf {
        let id = self.id().to_string();
        root.join("content").join(&id[..2]).join(id)
    }

    pub(crate) fn side_path(&self, root: &Path, suffix: &str) -> PathBuf {
        let mut path = self.data_path(root).into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// Checkpoints only when told.
pub(crate) fn quiet() -> StoreOptions {
    StoreOptions { checkpoint_bytes: u64::MAX, checkpoint_interval: Duration::from_secs(86_400) }
}

/// A directory in memory where there is one, for tests with more syncs than a disk makes fun.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn open(root: &Path) -> Store {
    Store::open(root, quiet()).expect("open store")
}

/// Polls until `done`, or fails after ten seconds.
#[track_caller]
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what} within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this process may mount; says so where it may not.
pub(crate) fn can_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test} skipped: it mounts file systems and needs root");
    }
    root
}
