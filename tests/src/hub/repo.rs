//! A repository: a directory per commit, hashed when first asked for.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

/// The tag every repository has, at its first commit.
pub(super) const TAG: &str = "v1.0";

/// Files from this length on are LFS files, whatever their name: the hubs' limit for plain git files.
const LFS_LEN: u64 = 10 << 20;

/// Midnight of 1 January 2025 in seconds since the epoch: when the first commit was made. Each later one is a day younger.
const FIRST_COMMIT: u64 = 1_735_689_600;

/// Whether the hubs keep such a file outside git.
#[must_use]
pub fn is_lfs(path: &str, len: u64) -> bool {
    let names = [".safetensors", ".bin", ".onnx"];
    len >= LFS_LEN || names.iter().any(|name| path.ends_with(name))
}

/// All commits of one repository, oldest first.
#[derive(Debug)]
pub(super) struct Repo {
    commits: Mutex<Vec<Arc<Commit>>>,
}

#[derive(Debug)]
struct Commit {
    directory: PathBuf,
    number: u64,
    snapshot: OnceCell<Arc<Snapshot>>,
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// 40 hex digits.
    pub(super) commit: String,
    /// Seconds since the epoch.
    pub(super) date: u64,
    /// Sorted by path.
    pub(super) files: Vec<Entry>,
    /// Licence named in the front matter of README.md.
    pub(super) licence: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) disk: PathBuf,
    pub(super) size: u64,
    pub(super) executable: bool,
    pub(super) lfs: bool,
    pub(super) sha256: String,
    pub(super) git_sha1: String,
}

impl Snapshot {
    pub(super) fn file(&self, path: &str) -> Option<&Entry> {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok().map(|at| &self.files[at])
    }

    /// Every directory, sorted.
    pub(super) fn directories(&self) -> BTreeSet<&str> {
        let paths = self.files.iter().map(|file| file.path.as_str());
        paths.flat_map(|path| path.match_indices('/').map(move |(at, _)| &path[..at])).collect()
    }
}

impl Repo {
    pub(super) fn new(directory: &Path) -> Self {
        let repo = Self { commits: Mutex::default() };
        repo.push(directory);
        repo
    }

    pub(super) fn push(&self, directory: &Path) {
        let mut commits = self.commits.lock().expect("no holder panics");
        let (directory, number) = (directory.to_owned(), commits.len() as u64);
        commits.push(Arc::new(Commit { directory, number, snapshot: OnceCell::new() }));
    }

    /// The repository at a branch, the tag or a commit; `None` if there is no such revision.
    pub(super) async fn snapshot(
        &self,
        revision: &str,
        hashes: &Arc<Hashes>,
    ) -> Result<Option<Arc<Snapshot>>> {
        let commits = self.commits.lock().expect("no holder panics").clone();
        match revision {
            "main" | "master" => Ok(Some(commits[commits.len() - 1].snapshot(hashes).await?)),
            TAG => Ok(Some(commits[0].snapshot(hashes).await?)),
            _ => {
                for commit in commits {
                    let snapshot = commit.snapshot(hashes).await?;
                    if snapshot.commit == revision {
                        return Ok(Some(snapshot));
                    }
                }
                Ok(None)
            }
        }
    }

    /// The commits from `snapshot` back to the first.
    pub(super) async fn history(
        &self,
        snapshot: &Snapshot,
        hashes: &Arc<Hashes>,
    ) -> Result<Vec<Arc<Snapshot>>> {
        let commits = self.commits.lock().expect("no holder panics").clone();
        let mut history = Vec::new();
        for commit in commits.into_iter().rev() {
            let one = commit.snapshot(hashes).await?;
            if one.date <= snapshot.date {
                history.push(one);
            }
        }
        Ok(history)
    }
}

impl Commit {
    async fn snapshot(&self, hashes: &Arc<Hashes>) -> Result<Arc<Snapshot>> {
        let scan = || async {
            let (directory, date, hashes) =
                (self.directory.clone(), FIRST_COMMIT + self.number * 86_400, hashes.clone());
            let snapshot = tokio::task::spawn_blocking(move || scan(&directory, date, &hashes)).await??;
            anyhow::Ok(Arc::new(snapshot))
        };
        self.snapshot.get_or_try_init(scan).await.cloned()
    }
}

fn scan(root: &Path, date: u64, hashes: &Hashes) -> Result<Snapshot> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let disk = entry?.path();
            let metadata = fs::metadata(&disk).with_context(|| format!("stat {}", disk.display()))?;
            if metadata.is_dir() {
                pending.push(disk);
                continue;
            }
            let relative = disk.strip_prefix(root).expect("entries lie below the root");
            let Some(path) = relative.to_str().map(str::to_owned) else {
                bail!("{} is not UTF-8", disk.display())
            };
            let digests = hashes.of(&disk, &metadata)?;
            files.push(Entry {
                lfs: is_lfs(&path, metadata.len()),
                size: metadata.len(),
                executable: metadata.mode() & 0o100 != 0,
                sha256: hex::encode(digests.sha256),
                git_sha1: hex::encode(digests.git_sha1),
                path,
                disk,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = Sha1::new();
    hasher.update(format!("commit of {date}\n"));
    for file in &files {
        hasher.update(format!("{} {} {} {}\n", file.sha256, file.size, file.executable, file.path));
    }
    let licence = fs::read_to_string(root.join("README.md")).ok().and_then(|text| licence(&text));
    Ok(Snapshot { commit: hex::encode(hasher.finalize()), date, files, licence })
}

/// The `license:` of a model card's front matter.
fn licence(card: &str) -> Option<String> {
    let (front, _) = card.strip_prefix("---\n")?.split_once("\n---")?;
    front.lines().find_map(|line| line.strip_prefix("license:")).map(|name| name.trim().to_owned())
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Digests {
    sha256: [u8; 32],
    git_sha1: [u8; 20],
}

/// Digests of files seen so far, by identity of the file, and where each content lies.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    known: Mutex<HashMap<Identity, Digests>>,
    places: Mutex<HashMap<String, PathBuf>>,
}

/// Device, inode, length, and time of change in seconds and nanoseconds.
type Identity = (u64, u64, u64, i64, i64);

impl Hashes {
    /// Where a file with this SHA-256 lies, if one was hashed.
    pub(super) fn place(&self, sha256: &str) -> Option<PathBuf> {
        self.places.lock().expect("no holder panics").get(sha256).cloned()
    }

    fn of(&self, path: &Path, metadata: &fs::Metadata) -> Result<Digests> {
        let identity =
            (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        let known = self.known.lock().expect("no holder panics").get(&identity).copied();
        let digests = match known {
            Some(digests) => digests,
            None => hash(path, metadata.len()).with_context(|| format!("hash {}", path.display()))?,
        };
        self.known.lock().expect("no holder panics").insert(identity, digests);
        self.places.lock().expect("no holder panics").insert(hex::encode(digests.sha256), path.to_owned());
        Ok(digests)
    }
}

fn hash(path: &Path, len: u64) -> std::io::Result<Digests> {
    let mut file = File::open(path)?;
    let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
    git.update(format!("blob {len}\0"));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(Digests { sha256: sha256.finalize().into(), git_sha1: git.finalize().into() });
        }
        sha256.update(&buffer[..len]);
        git.update(&buffer[..len]);
    }
}
