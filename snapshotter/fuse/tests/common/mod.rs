//! A tree in memory whose reads can be held back, delayed, dropped and so on, and a mount of it that cleans up.
#![allow(dead_code, unreachable_pub, reason = "each test program uses another part of it")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use towline_fuse::{
    Attr, DirEntry, Errno, Ino, Kind, Mount, MountOptions, Opened, PassthroughMode, ROOT, ReadReply, StatFs,
    Tree,
};

/// How long a test waits for something that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How a file answers reads.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Now,
    /// From another thread, after this long.
    Delayed(Duration),
    /// Kept until [`TestTree::answer_held`].
    Held,
    /// Forgotten.
    Dropped,
    Panic,
    OneByteShort,
    Error(Errno),
}

enum Node {
    Directory(BTreeMap<String, Ino>),
    File { data: Arc<Vec<u8>>, executable: bool, answer: Answer, sealed: Option<Arc<File>> },
}

pub struct Held {
    pub data: Arc<Vec<u8>>,
    pub offset: u64,
    pub len: u32,
    pub reply: ReadReply,
}

impl Held {
    pub fn answer(self) {
        let start = self.offset as usize;
        self.reply.data(&self.data[start..start + self.len as usize]);
    }
}

/// Files and directories made up by a test.
pub struct TestTree {
    nodes: RwLock<BTreeMap<Ino, Node>>,
    held: Mutex<Vec<Held>>,
    timer: Sender<(Instant, Held)>,
    /// Opens minus releases.
    pub opens: AtomicI64,
}

impl TestTree {
    pub fn new() -> Arc<Self> {
        let (timer, due) = channel();
        thread::spawn(move || answer_when_due(&due));
        let nodes = BTreeMap::from([(ROOT, Node::Directory(BTreeMap::new()))]);
        Arc::new(Self { nodes: RwLock::new(nodes), held: Mutex::default(), timer, opens: AtomicI64::new(0) })
    }

    /// Adds a file and the directories on the way to it; returns its number.
    pub fn add(&self, path: &str, data: Vec<u8>) -> Ino {
        let node = Node::File {
            data: Arc::new(data),
            executable: path.ends_with(".sh"),
            answer: Answer::Now,
            sealed: None,
        };
        self.insert(path, node)
    }

    pub fn add_dir(&self, path: &str) -> Ino {
        self.insert(path, Node::Directory(BTreeMap::new()))
    }

    fn insert(&self, path: &str, node: Node) -> Ino {
        let mut nodes = self.nodes.write().unwrap();
        let mut parent = ROOT;
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            let next = nodes.last_key_value().unwrap().0 + 1;
            let Some(Node::Directory(children)) = nodes.get_mut(&parent) else {
                panic!("{path}: not a directory")
            };
            parent = *children.entry(dir.to_owned()).or_insert(next);
            nodes.entry(parent).or_insert_with(|| Node::Directory(BTreeMap::new()));
        }
        let ino = nodes.last_key_value().unwrap().0 + 1;
        let Some(Node::Directory(children)) = nodes.get_mut(&parent) else {
            panic!("{path}: not a directory")
        };
        children.insert(name.to_owned(), ino);
        nodes.insert(ino, node);
        ino
    }

    /// Takes a name out of the root.
    pub fn remove_from_root(&self, name: &str) {
        let mut nodes = self.nodes.write().unwrap();
        let Some(Node::Directory(children)) = nodes.get_mut(&ROOT) else { panic!("the root is a directory") };
        children.remove(name).expect("it is there");
    }

    pub fn set_answer(&self, ino: Ino, wanted: Answer) {
        match self.nodes.write().unwrap().get_mut(&ino) {
            Some(Node::File { answer, .. }) => *answer = wanted,
            _ => panic!("{ino} is not a file"),
        }
    }

    /// Writes the file's bytes to `path` and lets it be read from there.
    pub fn seal(&self, ino: Ino, path: &Path) {
        match self.nodes.write().unwrap().get_mut(&ino) {
            Some(Node::File { data, sealed, .. }) => {
                if !path.exists() {
                    fs::write(path, data.as_slice()).unwrap();
                }
                *sealed = Some(Arc::new(File::open(path).unwrap()));
            }
            _ => panic!("{ino} is not a file"),
        }
    }

    pub fn unseal(&self, ino: Ino) {
        match self.nodes.write().unwrap().get_mut(&ino) {
            Some(Node::File { sealed, .. }) => *sealed = None,
            _ => panic!("{ino} is not a file"),
        }
    }

    /// Reads that are being held, newest last.
    pub fn held_count(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    pub fn take_held(&self) -> Vec<Held> {
        std::mem::take(&mut self.held.lock().unwrap())
    }

    fn attr_of(nodes: &BTreeMap<Ino, Node>, ino: Ino) -> Result<Attr, Errno> {
        match nodes.get(&ino).ok_or(Errno::ESTALE)? {
            Node::Directory(_) => {
                Ok(Attr { ino, kind: Kind::Directory, size: 0, executable: false, links: 2 })
            }
            Node::File { data, executable, .. } => {
                Ok(Attr { ino, kind: Kind::File, size: data.len() as u64, executable: *executable, links: 1 })
            }
        }
    }
}

fn answer_when_due(due: &Receiver<(Instant, Held)>) {
    let mut waiting = Vec::<(Instant, Held)>::new();
    loop {
        let now = Instant::now();
        let next = waiting.iter().map(|(at, _)| *at).min();
        match due.recv_timeout(next.map_or(DEADLINE, |at| at.saturating_duration_since(now))) {
            Ok(read) => waiting.push(read),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        // The newest first, to be out of order.
        for index in (0..waiting.len()).rev() {
            if waiting[index].0 <= now {
                waiting.swap_remove(index).1.answer();
            }
        }
    }
}

impl Tree for TestTree {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, Errno> {
        let nodes = self.nodes.read().unwrap();
        match nodes.get(&parent).ok_or(Errno::ESTALE)? {
            Node::Directory(children) => {
                let ino = name.to_str().and_then(|name| children.get(name)).ok_or(Errno::ENOENT)?;
                Self::attr_of(&nodes, *ino)
            }
            Node::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        Self::attr_of(&self.nodes.read().unwrap(), ino)
    }

    fn entries(&self, ino: Ino) -> Result<Arc<[DirEntry]>, Errno> {
        let nodes = self.nodes.read().unwrap();
        match nodes.get(&ino).ok_or(Errno::ESTALE)? {
            Node::Directory(children) => children
                .iter()
                .map(|(name, ino)| {
                    Ok(DirEntry { ino: *ino, kind: Self::attr_of(&nodes, *ino)?.kind, name: name.clone() })
                })
                .collect(),
            Node::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    fn open(&self, ino: Ino) -> Result<Opened, Errno> {
        match self.nodes.read().unwrap().get(&ino).ok_or(Errno::ESTALE)? {
            Node::Directory(_) => Err(Errno::EISDIR),
            Node::File { sealed, .. } => {
                self.opens.fetch_add(1, SeqCst);
                Ok(Opened { sealed: sealed.clone() })
            }
        }
    }

    fn released(&self, _: Ino) {
        self.opens.fetch_sub(1, SeqCst);
    }

    fn read(&self, ino: Ino, offset: u64, len: u32, reply: ReadReply) {
        let nodes = self.nodes.read().unwrap();
        let Some(Node::File { data, answer, .. }) = nodes.get(&ino) else {
            return reply.error(Errno::EISDIR);
        };
        let (data, answer) = (Arc::clone(data), *answer);
        drop(nodes);
        let read = Held { data, offset, len, reply };
        match answer {
            Answer::Now => read.answer(),
            Answer::Delayed(delay) => {
                self.timer.send((Instant::now() + delay, read)).expect("the timer runs")
            }
            Answer::Held => self.held.lock().unwrap().push(read),
            Answer::Dropped => drop(read),
            Answer::Panic => panic!("a read that panics, on purpose"),
            Answer::OneByteShort => read.reply.data(&read.data[..len as usize - 1]),
            Answer::Error(errno) => read.reply.error(errno),
        }
    }

    fn statfs(&self) -> StatFs {
        StatFs { total_bytes: 1 << 40, free_bytes: 1 << 39, files: self.nodes.read().unwrap().len() as u64 }
    }
}

/// A mount in a temporary directory, taken away at the end whatever happened.
pub struct Mounted {
    mount: Option<Mount>,
    pub tree: Arc<TestTree>,
    scratch: tempfile::TempDir,
}

impl Mounted {
    /// Mounts `tree`, or says why this machine cannot and returns `None`.
    pub fn start(tree: Arc<TestTree>) -> Option<Self> {
        Self::start_with(tree, MountOptions { threads: 4, ..MountOptions::default() })
    }

    pub fn start_with(tree: Arc<TestTree>, options: MountOptions) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("mnt");
        fs::create_dir(&dir).unwrap();
        let mount = Mount::start(&dir, tree.clone(), options).unwrap();
        Some(Self { mount: Some(mount), tree, scratch })
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("it is mounted")
    }

    pub fn take(&mut self) -> Mount {
        self.mount.take().expect("it is mounted")
    }

    /// A path on the mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join("mnt").join(path)
    }

    /// A path beside the mount, on a real file system.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    /// Seals a file, kept beside the mount.
    pub fn seal(&self, ino: Ino) {
        self.tree.seal(ino, &self.beside(&format!("content-{ino}")));
    }

    /// Whether passthrough works here; says why if not.
    pub fn has_passthrough(&self) -> bool {
        let probe = self.beside("probe");
        fs::write(&probe, b"probe").unwrap();
        match self.mount().probe_passthrough(&File::open(probe).unwrap()) {
            PassthroughMode::On => true,
            mode => {
                eprintln!("skipped: passthrough is {mode}");
                false
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.tree.take_held());
        if let Some(mount) = self.mount.take()
            && let Err(error) = mount.unmount()
        {
            eprintln!("left mounted: {error}");
        }
    }
}

/// Whether this machine can mount FUSE; says so if it cannot.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root()
        && File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// Bytes that depend on their place in the file and on `seed`, so that a mix-up shows.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        // xorshift64: quick, and every word another.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}

/// Waits for `condition`, and fails loudly if it does not come true.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The mount points that `/proc/self/mountinfo` lists at or below `dir`.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    table.lines().map(point).filter(|point| Path::new(point).starts_with(dir)).collect()
}

/// A read-only mapping of a whole file.
pub struct Mapping {
    address: *mut std::ffi::c_void,
    len: usize,
}

// SAFETY: the mapping is read-only memory that lives until it is dropped, wherever that happens.
#[allow(unsafe_code, reason = "mmap is what is tested")]
unsafe impl Send for Mapping {}

#[allow(unsafe_code, reason = "mmap is what is tested")]
impl Mapping {
    pub fn new(file: &File, flags: rustix::mm::MapFlags) -> rustix::io::Result<Self> {
        let len = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping at an address of the kernel's choosing, which aliases nothing.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, rustix::mm::ProtFlags::READ, flags, file, 0)
        }?;
        Ok(Self { address, len })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped readable at `address` until drop; files of a mount never change.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.len) }
    }
}

#[allow(unsafe_code, reason = "mmap is what is tested")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and no slice of it outlives `self`.
        unsafe { rustix::mm::munmap(self.address, self.len) }.expect("it is mapped");
    }
}
