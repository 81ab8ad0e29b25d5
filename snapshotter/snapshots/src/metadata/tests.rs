use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::*;
use crate::request::CHAIN_LABEL;
use crate::status;

/// A disk in memory whose writes can be made to fail, and that outlives the databases opened on it.
#[derive(Clone, Debug)]
struct Disk {
    bytes: Arc<InMemoryBackend>,
    broken: Arc<AtomicBool>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { bytes: Arc::new(InMemoryBackend::new()), broken: Arc::default() }
    }
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn open(&self) -> Result<Metadata, StorageError> {
        let disk = self.clone();
        Metadata::with_opener(Box::new(move || Database::builder().create_with_backend(disk.clone())), 0)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.bytes.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.bytes.write(offset, data)
    }
}

/// A call of the service, over few names so that calls meet.
#[derive(Clone, Debug)]
enum Call {
    Create { key: u8, parent: Option<u8>, kind: bool, label: u8 },
    Adopt { chain: u8, parent: Option<u8>, label: u8 },
    Commit { name: u8, key: u8, parent: Option<u8>, label: u8 },
    Remove { key: u8 },
    Update { name: u8, mask: Vec<u8>, labels: Vec<(u8, u8)> },
    Restart,
    BreakDisk,
    MendDisk,
}

fn name(n: u8) -> String {
    match n {
        0..6 => format!("k8s.io/{n}/key"),
        n => format!("model/chain-{}", n - 6),
    }
}

fn labels(pairs: &[(u8, u8)]) -> Labels {
    let key = |k: u8| if k == 0 { CHAIN_LABEL.to_owned() } else { format!("containerd.io/snapshot/{k}") };
    pairs.iter().map(|&(k, v)| (key(k), format!("value {v}"))).collect()
}

fn mask_path(n: u8) -> String {
    match n {
        0 => "labels".to_owned(),
        1 => format!("labels.{CHAIN_LABEL}"),
        2..5 => format!("labels.containerd.io/snapshot/{}", n - 1),
        5 => "labelsx".to_owned(),
        _ => "parent".to_owned(),
    }
}

fn some_call() -> impl Strategy<Value = Call> {
    let parent = || proptest::option::weighted(0.6, 0..9u8);
    prop_oneof![
        6 => (0..9u8, parent(), any::<bool>(), 0..3u8)
            .prop_map(|(key, parent, kind, label)| Call::Create { key, parent, kind, label }),
        4 => (0..3u8, parent(), 0..3u8).prop_map(|(chain, parent, label)| Call::Adopt { chain, parent, label }),
        6 => (0..9u8, 0..9u8, proptest::option::weighted(0.2, 0..9u8), 0..3u8)
            .prop_map(|(name, key, parent, label)| Call::Commit { name, key, parent, label }),
        4 => (0..9u8).prop_map(|key| Call::Remove { key }),
        2 => (0..9u8, proptest::collection::vec(0..7u8, 0..3), proptest::collection::vec((0..4u8, 0..3u8), 0..3))
            .prop_map(|(name, mask, labels)| Call::Update { name, mask, labels }),
        1 => Just(Call::Restart),
        1 => Just(Call::BreakDisk),
        2 => Just(Call::MendDisk),
    ]
}

/// What clients can see of a snapshot, times aside.
type Seen = (String, Kind, Option<String>, Labels);

/// The rules again, by scanning a list; answers are gRPC codes, as containerd documents them.
#[derive(Clone, Debug, Default)]
struct Model {
    rows: Vec<Seen>,
    /// Chain ids of model snapshots, by name.
    chains: BTreeMap<String, String>,
}

type Code = tonic::Code;

impl Model {
    fn find(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.0 == name)
    }

    fn parent_fault(&self, parent: Option<&str>, uncommitted: Code) -> Option<Code> {
        let parent = parent?;
        match self.find(parent) {
            None => Some(Code::NotFound),
            Some(at) if self.rows[at].1 != Kind::Committed => Some(uncommitted),
            Some(_) => None,
        }
    }

    fn create(&mut self, row: Seen) -> Result<(), Code> {
        if let Some(code) = self.parent_fault(row.2.as_deref(), Code::InvalidArgument) {
            return Err(code);
        }
        if self.find(&row.0).is_some() {
            return Err(Code::AlreadyExists);
        }
        self.rows.push(row);
        Ok(())
    }

    /// Answers whether a row of this chain and parent is there already.
    fn has_adopted(&self, chain: &str, parent: Option<&str>) -> bool {
        let is_same = |row: &Seen| {
            self.chains.get(&row.0).map(String::as_str) == Some(chain) && row.2.as_deref() == parent
        };
        self.rows.iter().any(is_same)
    }

    fn commit(
        &mut self,
        name: String,
        key: &str,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<(), Code> {
        if self.find(&name).is_some() {
            return Err(Code::AlreadyExists);
        }
        let at = self.find(key).ok_or(Code::NotFound)?;
        let row = self.rows[at].clone();
        if row.1 != Kind::Active {
            return Err(Code::FailedPrecondition);
        }
        if row.2.is_some() && parent.is_some() && row.2 != parent {
            return Err(Code::InvalidArgument);
        }
        if row.2.is_none()
            && let Some(code) = self.parent_fault(parent.as_deref(), Code::FailedPrecondition)
        {
            return Err(code);
        }
        self.rows[at] = (name, Kind::Committed, row.2.or(parent), labels);
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), Code> {
        let at = self.find(key).ok_or(Code::NotFound)?;
        if self.rows.iter().any(|row| row.2.as_deref() == Some(key)) {
            return Err(Code::FailedPrecondition);
        }
        self.rows.remove(at);
        self.chains.remove(key);
        Ok(())
    }

    fn update(&mut self, name: &str, mask: &[String], labels: &Labels) -> Result<(), Code> {
        let at = self.find(name).ok_or(Code::NotFound)?;
        let mut new = self.rows[at].3.clone();
        for path in mask {
            if path == "labels" {
                new = labels.clone();
            } else if let Some(key) = path.strip_prefix("labels.") {
                new.remove(key);
                new.extend(labels.get(key).map(|value| (key.to_owned(), value.clone())));
            } else {
                return Err(Code::InvalidArgument);
            }
        }
        if mask.is_empty() {
            new = labels.clone();
        }
        if let Some(chain) = self.chains.get(name) {
            new.insert(CHAIN_LABEL.to_owned(), chain.clone());
        }
        self.rows[at].3 = new;
        Ok(())
    }

    fn apply(&mut self, call: &Call, adopted: Option<String>) -> Result<(), Code> {
        match call {
            Call::Create { key, parent, kind, label } => {
                let kind = if *kind { Kind::Active } else { Kind::View };
                self.create((name(*key), kind, parent.map(name), labels(&[(1, *label)])))
            }
            Call::Adopt { chain, parent, label } => {
                let (chain, parent) = (format!("chain-{chain}"), parent.map(name));
                if self.has_adopted(&chain, parent.as_deref()) {
                    return Ok(());
                }
                let labels = labels(&[(1, *label)])
                    .into_iter()
                    .chain([(CHAIN_LABEL.to_owned(), chain.clone())])
                    .collect();
                let name = adopted.unwrap_or_else(|| "refused".to_owned());
                self.create((name.clone(), Kind::Committed, parent, labels))?;
                self.chains.insert(name, chain);
                Ok(())
            }
            Call::Commit { name: to, key, parent, label } => {
                self.commit(name(*to), &name(*key), parent.map(name), labels(&[(2, *label)]))
            }
            Call::Remove { key } => self.remove(&name(*key)),
            Call::Update { name: of, mask, labels: pairs } => {
                let mask: Vec<_> = mask.iter().map(|&n| mask_path(n)).collect();
                self.update(&name(*of), &mask, &labels(pairs))
            }
            Call::Restart | Call::BreakDisk | Call::MendDisk => Ok(()),
        }
    }

    fn sorted(&self) -> Vec<Seen> {
        let mut rows = self.rows.clone();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }
}

fn seen(metadata: &Metadata) -> Vec<Seen> {
    let mut rows: Vec<Seen> = metadata
        .read(|index| index.list())
        .iter()
        .map(|record| (record.name.clone(), record.kind, record.parent.clone(), record.labels.clone()))
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

fn run(metadata: &Metadata, call: &Call) -> Result<(), SnapshotError> {
    match call {
        Call::Create { key, parent, kind, label } => {
            let kind = if *kind { Kind::Active } else { Kind::View };
            let id = metadata.next_id();
            let parent = parent.map(name);
            metadata.create(&name(*key), parent.as_deref(), kind, labels(&[(1, *label)]), id).map(drop)
        }
        Call::Adopt { chain, parent, label } => {
            let mut labels = labels(&[(1, *label)]);
            labels.insert("containerd.io/gc.root".to_owned(), "not for snapshotters".to_owned());
            let (chain, parent) = (format!("chain-{chain}"), parent.map(name));
            metadata.adopt(&chain, parent.as_deref(), labels, metadata.next_id())
        }
        Call::Commit { name: to, key, parent, label } => {
            let parent = parent.map(name);
            let labels = labels(&[(2, *label)]);
            metadata.commit(&name(*to), &name(*key), labels, parent.as_deref(), None).map(drop)
        }
        Call::Remove { key } => metadata.remove(&name(*key)).map(drop),
        Call::Update { name: of, mask, labels: pairs } => {
            let mask: Vec<_> = mask.iter().map(|&n| mask_path(n)).collect();
            metadata.update(&name(*of), labels(pairs), &mask).map(drop)
        }
        Call::Restart | Call::BreakDisk | Call::MendDisk => Ok(()),
    }
}

/// The name that an adoption made, if it made one: found by what was not there before.
fn new_name(before: &[Seen], after: &[Seen]) -> Option<String> {
    after.iter().find(|row| !before.iter().any(|old| old.0 == row.0)).map(|row| row.0.clone())
}

/// Plays `calls` against metadata and model; returns how many calls had an effect.
fn play(calls: &[Call]) -> usize {
    let disk = Disk::default();
    let mut metadata = disk.open().expect("a new disk works");
    let mut model = Model::default();
    let mut effects = 0;
    for call in calls {
        match call {
            Call::Restart if !disk.broken.load(Ordering::SeqCst) => {
                drop(metadata);
                metadata = disk.open().expect("what was written can be read");
            }
            Call::BreakDisk => disk.broken.store(true, Ordering::SeqCst),
            Call::MendDisk => {
                disk.broken.store(false, Ordering::SeqCst);
                metadata.recover().expect("a mended disk works");
            }
            _ => {}
        }
        let before = seen(&metadata);
        let answer = run(&metadata, call);
        let after = seen(&metadata);
        if matches!(answer, Err(SnapshotError::Storage(_))) {
            assert!(disk.broken.load(Ordering::SeqCst), "{call:?}: {answer:?}");
            assert_eq!(after, before, "a failed write is not seen");
            // Whether it reached the disk is open; the model follows what a mended disk says.
            disk.broken.store(false, Ordering::SeqCst);
            metadata.recover().expect("a mended disk works");
            let now = seen(&metadata);
            let mut with = model.clone();
            let done = with.apply(call, new_name(&before, &now));
            if now != model.sorted() {
                assert_eq!(done, Ok(()), "{call:?}");
                model = with;
            }
        } else {
            let expected = model.apply(call, new_name(&before, &after));
            let code = answer.as_ref().map(|&()| ()).map_err(status::code);
            assert_eq!(code, expected, "{call:?}: {answer:?}");
            effects += usize::from(after != before);
        }
        assert_eq!(seen(&metadata), model.sorted(), "after {call:?}");
    }
    let chains: std::collections::BTreeSet<_> = model.chains.values().cloned().collect();
    assert_eq!(metadata.read(|index| index.chains()), chains.into_iter().collect::<Vec<_>>());
    effects
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn metadata_follows_the_rules(calls in proptest::collection::vec(some_call(), 0..80)) {
        play(&calls);
    }
}

#[test]
fn a_write_that_fails_is_seen_again_only_from_disk() {
    let create = |key| Call::Create { key, parent: None, kind: true, label: 1 };
    let effects = play(&[create(0), Call::BreakDisk, create(1), create(2), Call::Restart, create(3)]);
    assert!(effects >= 3, "{effects}");
}

#[test]
fn ids_are_never_given_twice() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("metadata.redb");
    let mut used = Vec::new();
    for round in 0..3 {
        let metadata = Metadata::open(&path, 5).expect("open");
        let key = format!("k{round}");
        let id = metadata.next_id();
        metadata.create(&key, None, Kind::Active, Labels::new(), id).expect("create");
        metadata.remove(&key).expect("remove");
        used.push(id);
    }
    assert_eq!(used, [5, 6, 7]);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("metadata.redb");
    let _open = Metadata::open(&path, 0).expect("open");
    assert!(matches!(Metadata::open(&path, 0).err(), Some(StorageError::Database(_))));
}

#[test]
fn a_newer_format_and_damage_are_refused() {
    let disk = Disk::default();
    let metadata = disk.open().expect("open");
    metadata.create("a", None, Kind::Active, Labels::new(), 1).expect("create");
    drop(metadata);
    let write = |row: &[u8], format| {
        let db = Database::builder().create_with_backend(disk.clone()).expect("open");
        let transaction = db.begin_write().expect("begin");
        transaction.open_table(SNAPSHOTS).expect("table").insert("a", row).expect("insert");
        transaction.open_table(META).expect("table").insert("format", format).expect("insert");
        transaction.commit().expect("commit");
    };
    write(b"{}", 1);
    assert!(matches!(disk.open().err(), Some(StorageError::Damaged { name, .. }) if name == "a"));
    let orphan = r#"{"id":1,"kind":"active","parent":"b","created":{"seconds":0,"nanos":0},"updated":{"seconds":0,"nanos":0},"labels":{},"usage":null,"model":null}"#;
    write(orphan.as_bytes(), 1);
    assert!(matches!(disk.open().err(), Some(StorageError::Damaged { .. })));
    let own_parent = orphan.replace(r#""b""#, r#""a""#).replace("active", "committed");
    write(own_parent.as_bytes(), 1);
    assert!(matches!(disk.open().err(), Some(StorageError::Damaged { .. })));
    write(orphan.replace(r#""b""#, "null").as_bytes(), 2);
    assert!(matches!(disk.open().err(), Some(StorageError::NewerFormat { found: 2, known: 1 })));
}

#[test]
fn measured_usage_belongs_to_the_snapshot_that_was_measured() {
    let metadata = Disk::default().open().expect("open");
    let usage = Usage { bytes: 1, inodes: 2 };
    metadata.create("k", None, Kind::Active, Labels::new(), 1).expect("create");
    metadata.measured("k", 1, usage).expect("measured");
    assert_eq!(metadata.read(|index| index.get("k")).expect("there").usage, None, "active");
    metadata.commit("c", "k", Labels::new(), None, None).expect("commit");
    metadata.measured("c", 9, usage).expect("measured");
    assert_eq!(metadata.read(|index| index.get("c")).expect("there").usage, None, "another id");
    metadata.measured("c", 1, usage).expect("measured");
    assert_eq!(metadata.read(|index| index.get("c")).expect("there").usage, Some(usage));
}

#[test]
fn models_are_listed_first() {
    let metadata = Disk::default().open().expect("open");
    metadata.create("a", None, Kind::Active, Labels::new(), 1).expect("create");
    metadata.adopt("chain-0", None, Labels::new(), 2).expect("adopt");
    let names: Vec<_> =
        metadata.read(|index| index.list()).iter().map(|record| record.name.clone()).collect();
    assert_eq!(names, ["model/chain-0", "a"]);
}

#[test]
fn chains_of_layers_have_an_end() {
    let mut index = Index::default();
    let now = Timestamp::default();
    let mut parent: Option<String> = None;
    let mut depth = 0;
    let refused = loop {
        let chain = format!("chain-{depth}");
        match index.plan_adopt(&chain, parent.as_deref(), Labels::new(), depth, now) {
            Ok(ControlFlow::Continue(record)) => {
                parent = Some(record.name.clone());
                index.apply(Change::Put(record));
            }
            Ok(ControlFlow::Break(())) => panic!("{chain} is new"),
            Err(error) => break error,
        }
        depth += 1;
    };
    assert_eq!((depth, status::code(&refused)), (500, Code::ResourceExhausted));
    assert_eq!(index.find_damage(), None);
}

#[test]
fn labels_that_are_too_much_together_are_refused() {
    let metadata = Disk::default().open().expect("open");
    let many = |prefix: char| -> HashMap<String, String> {
        (0..100).map(|n| (format!("{prefix}{n:04}"), "v".repeat(4000))).collect()
    };
    let check = |labels| crate::request::check_labels(labels).expect("each half is allowed");
    metadata.create("k", None, Kind::Active, check(many('a')), 1).expect("create");
    let mask: Vec<_> = many('b').keys().map(|key| format!("labels.{key}")).collect();
    let refused = metadata.update("k", check(many('b')), &mask).expect_err("together they are too much");
    assert_eq!(status::code(&refused), Code::InvalidArgument);
}
