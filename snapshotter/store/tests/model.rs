//! The store against a list of bools: random operations, restarts, and crashes that take what was not durable.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use common::{Sample, memory_dir, open};
use proptest::prelude::*;
use rustix::fs::FallocateFlags;
use towline_artifact::{PIECE_LEN, PieceIndex};
use towline_store::{Commit, Content, Store, StoreError};

static SAMPLES: LazyLock<[Sample; 3]> =
    LazyLock::new(|| [Sample::new(1, 3 * PIECE_LEN + 1), Sample::new(2, PIECE_LEN), Sample::new(3, 0)]);

/// What a power cut does to a piece that is not durable.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Kept,
    Zeroed,
    Punched,
    Torn,
    Flipped,
}

#[derive(Clone, Debug)]
enum Op {
    Commit(usize, u32),
    Checkpoint(usize),
    Seal(usize),
    Read(usize, u64, u64),
    Close(usize),
    Restart,
    Crash(Vec<Loss>),
    /// As `Crash`, and files of contents without a checkpoint come out empty.
    CrashEarly(Vec<Loss>),
    /// An unclean end, and a bit of the state file is wrong.
    DamageState(usize, prop::sample::Index),
    Evict,
    Remove(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let content = 0..SAMPLES.len();
    let loss = prop_oneof![
        Just(Loss::Kept),
        Just(Loss::Zeroed),
        Just(Loss::Punched),
        Just(Loss::Torn),
        Just(Loss::Flipped)
    ];
    let losses = prop::collection::vec(loss, 5);
    prop_oneof![
        12 => (content.clone(), 0..4u32).prop_map(|(content, piece)| Op::Commit(content, piece)),
        3 => content.clone().prop_map(Op::Checkpoint),
        3 => content.clone().prop_map(Op::Seal),
        4 => (content.clone(), any::<u64>(), any::<u64>()).prop_map(|(content, at, len)| Op::Read(content, at, len)),
        2 => content.clone().prop_map(Op::Close),
        1 => Just(Op::Restart),
        3 => losses.clone().prop_map(Op::Crash),
        1 => losses.prop_map(Op::CrashEarly),
        1 => (content.clone(), any::<prop::sample::Index>()).prop_map(|(content, at)| Op::DamageState(content, at)),
        1 => Just(Op::Evict),
        1 => content.prop_map(Op::Remove),
    ]
}

/// What must be true of one content.
#[derive(Clone, Debug, Default)]
struct Model {
    have: Vec<bool>,
    durable: Vec<bool>,
    recorded: bool,
    sealed: bool,
}

impl Model {
    fn new(sample: &Sample) -> Self {
        let none = vec![false; sample.count() as usize];
        Self { have: none.clone(), durable: none, recorded: false, sealed: false }
    }

    fn checkpoint(&mut self) {
        self.recorded |= self.have != self.durable;
        self.durable = self.have.clone();
    }
}

struct World {
    dir: tempfile::TempDir,
    store: Option<Store>,
    open: [Option<Arc<Content>>; 3],
    models: [Model; 3],
    /// Opened since the last unclean end: until then nothing beyond the state file counts or becomes durable.
    swept: [bool; 3],
}

impl World {
    fn new() -> Self {
        let dir = memory_dir();
        let store = Some(open(dir.path()));
        Self {
            dir,
            store,
            open: Default::default(),
            models: [0, 1, 2].map(|n| Model::new(&SAMPLES[n])),
            swept: [true; 3],
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn content(&mut self, number: usize) -> Arc<Content> {
        let store = self.store.as_ref().unwrap();
        self.swept[number] = true;
        let fresh = || store.content(Arc::clone(&SAMPLES[number].table)).unwrap();
        Arc::clone(self.open[number].get_or_insert_with(fresh))
    }

    fn stop(&mut self) {
        self.open = Default::default();
        self.store = None;
    }

    fn start(&mut self) {
        self.store = Some(open(self.dir.path()));
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Commit(n, piece) => self.commit(*n, *piece),
            Op::Checkpoint(n) => {
                self.content(*n).checkpoint().unwrap();
                self.models[*n].checkpoint();
            }
            Op::Seal(n) => self.seal(*n),
            Op::Read(n, at, len) => self.read(*n, *at, *len),
            Op::Close(n) => self.open[*n] = None,
            Op::Restart => {
                self.store().close().unwrap();
                self.stop();
                let swept = self.models.iter_mut().zip(&self.swept).filter(|(_, swept)| **swept);
                swept.for_each(|(model, _)| model.checkpoint());
                self.start();
            }
            Op::Crash(losses) => self.crash(losses, false),
            Op::CrashEarly(losses) => self.crash(losses, true),
            Op::DamageState(n, at) => self.damage_state(*n, *at),
            Op::Evict => {
                let report = self.store().evict(0, &|_| false);
                for n in 0..SAMPLES.len() {
                    if report.evicted.contains(&SAMPLES[n].id()) {
                        assert!(self.open[n].is_none());
                        self.models[n] = Model::new(&SAMPLES[n]);
                    } else {
                        let there = self.store().contents().iter().any(|info| info.id == SAMPLES[n].id());
                        assert!(self.open[n].is_some() || !there || report.used_bytes == 0);
                    }
                }
            }
            Op::Remove(n) => match self.store().remove(SAMPLES[*n].id()) {
                Ok(_) => {
                    assert!(self.open[*n].is_none());
                    self.models[*n] = Model::new(&SAMPLES[*n]);
                }
                Err(error) => assert!(matches!(error, StoreError::InUse { .. }) && self.open[*n].is_some()),
            },
        }
    }

    fn commit(&mut self, n: usize, piece: u32) {
        let sample = &SAMPLES[n];
        if sample.count() == 0 {
            return;
        }
        let piece = piece % sample.count();
        let result = self.content(n).commit(&sample.piece(piece)).unwrap();
        let have = &mut self.models[n].have;
        let had = std::mem::replace(&mut have[piece as usize], true);
        let complete = have.iter().all(|have| *have);
        assert_eq!(result, if had { Commit::AlreadyHad } else { Commit::New { complete } });
    }

    fn seal(&mut self, n: usize) {
        let result = self.content(n).seal();
        let model = &mut self.models[n];
        let missing = model.have.iter().filter(|have| !**have).count() as u32;
        match result {
            Ok(()) => {
                assert_eq!(missing, 0);
                *model = Model {
                    sealed: true,
                    recorded: true,
                    durable: model.have.clone(),
                    have: model.have.clone(),
                };
            }
            Err(StoreError::Incomplete { missing: found, .. }) => assert!(found == missing && missing > 0),
            Err(other) => panic!("{other}"),
        }
    }

    fn read(&mut self, n: usize, at: u64, len: u64) {
        let sample = &SAMPLES[n];
        let total = sample.bytes.len() as u64;
        let at = at % (total + 1);
        let len = len % (total - at + 1);
        let mut buf = vec![0xaa; len as usize];
        let result = self.content(n).read_at(at, &mut buf);
        let pieces = if len == 0 { 0..0 } else { at / PIECE_LEN..(at + len - 1) / PIECE_LEN + 1 };
        let gap = pieces.into_iter().find(|piece| !self.models[n].have[*piece as usize]);
        match (result, gap) {
            (Ok(()), None) => assert!(buf[..] == sample.bytes[at as usize..(at + len) as usize]),
            (Err(StoreError::Missing { piece, .. }), Some(gap)) => assert_eq!(u64::from(piece.0), gap),
            (result, gap) => panic!("read gave {result:?} with gap {gap:?}"),
        }
    }

    fn crash(&mut self, losses: &[Loss], early: bool) {
        self.stop();
        self.swept = [false; 3];
        let mut losses = losses.iter().cycle();
        for (sample, model) in SAMPLES.iter().zip(&mut self.models) {
            if !model.recorded && early {
                for path in [sample.data_path(self.dir.path()), sample.side_path(self.dir.path(), ".pieces")]
                {
                    if let Ok(file) = File::options().write(true).open(path) {
                        file.set_len(0).unwrap();
                    }
                }
                *model = Model::new(sample);
                continue;
            }
            for index in 0..model.have.len() {
                if !model.durable[index] {
                    let loss = *losses.next().unwrap();
                    model.have[index] &= matches!(loss, Loss::Kept);
                    lose(self.dir.path(), sample, index as u32, loss);
                }
            }
        }
        self.start();
    }

    fn damage_state(&mut self, n: usize, at: prop::sample::Index) {
        self.stop();
        self.swept = [false; 3];
        let path = SAMPLES[n].side_path(self.dir.path(), ".state");
        let damaged = if let Ok(mut bytes) = fs::read(&path) {
            let at = at.index(bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            fs::write(&path, bytes).unwrap();
            self.models[n] = Model::new(&SAMPLES[n]);
            1
        } else {
            assert!(!self.models[n].recorded);
            0
        };
        self.start();
        assert_eq!(self.store().stats().quarantined, damaged);
    }

    fn check(&mut self) {
        for n in 0..SAMPLES.len() {
            let Some(content) = &self.open[n] else { continue };
            let model = &self.models[n];
            let has: Vec<bool> =
                (0..SAMPLES[n].count()).map(|piece| content.has(PieceIndex(piece))).collect();
            assert_eq!(has, model.have, "content {n}");
            assert_eq!(content.is_complete(), model.have.iter().all(|have| *have));
            assert_eq!(content.is_sealed(), model.sealed);
            assert_eq!(content.sealed_file().is_some(), model.sealed);
            let pieces = (0..SAMPLES[n].count()).filter(|piece| model.have[*piece as usize]);
            let bytes: usize = pieces.map(|piece| SAMPLES[n].piece_bytes(piece).len()).sum();
            assert_eq!(content.bytes_have(), bytes as u64);
        }
    }
}

fn lose(root: &Path, sample: &Sample, index: u32, loss: Loss) {
    let Ok(file) = File::options().write(true).open(sample.data_path(root)) else { return };
    let (offset, bytes) = (PieceIndex(index).offset(), sample.piece_bytes(index));
    match loss {
        Loss::Kept => {}
        Loss::Zeroed => file.write_all_at(&vec![0; bytes.len()], offset).unwrap(),
        Loss::Punched => {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, hole, offset, bytes.len() as u64).unwrap();
        }
        Loss::Torn => {
            let mut torn = bytes.to_vec();
            let half = torn.len() / 2;
            torn[half..].fill(0);
            file.write_all_at(&torn, offset).unwrap();
        }
        Loss::Flipped => file.write_all_at(&[!bytes[0]], offset).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn the_store_behaves_like_a_list_of_bools(ops in prop::collection::vec(op(), 1..50)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
        // Whatever happened: everything can be had in the end.
        for n in 0..SAMPLES.len() {
            (0..SAMPLES[n].count()).for_each(|piece| world.commit(n, piece));
            world.seal(n);
            SAMPLES[n].check_reads(&world.content(n));
        }
        world.crash(&[Loss::Zeroed], true);
        for n in 0..SAMPLES.len() {
            world.content(n);
        }
        world.check();
    }
}
