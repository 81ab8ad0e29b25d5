//! A directory on this machine as a source.
//!
//! Its commit is `sha256:` and the hex SHA-256 of this text: the line `towline directory 1`, then for every file, sorted
//! bytewise by path, one line of the file's SHA-256 in hex, its length in decimal, `x` if its owner may run it and `-` if
//! not, and its path, with one space between them; every line ends in one `\n`. Paths hold no control characters, so the
//! lines cannot be confused.
//!
//! Symbolic links are followed where they end at a regular file inside the directory, or, for a snapshot in a Hugging
//! Face cache (`snapshots/COMMIT`), in the `blobs` directory beside `snapshots`. Like the hub's own uploader, `.git` and
//! `.cache/huggingface` at the top are left out.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use crate::error::HubError;
use crate::listing::{FileHash, Listing, RemoteFile};
use crate::paths::{MAX_FILES, PathError, PathProblem, check_path, check_paths};
use crate::source::ByteStream;
use crate::source_ref::{HubKind, RepoKind};

/// Bytes read at once.
const CHUNK_LEN: usize = 1 << 20;

/// Files hashed side by side; one disk gives no more with more.
const MAX_PARALLEL: usize = 4;

/// A local directory.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    path: String,
}

/// A file found by the walk.
struct Found {
    path: String,
    real: PathBuf,
    size: u64,
    executable: bool,
}

/// Where the files of a directory may really lie.
struct Roots(Vec<PathBuf>);

impl Roots {
    fn of(path: &str) -> Result<Self, HubError> {
        let root = fs::canonicalize(path).map_err(io_error("open directory", path))?;
        let in_cache =
            root.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
        let blobs = in_cache.and_then(Path::parent).map(|repo| repo.join("blobs"));
        Ok(Self([root].into_iter().chain(blobs).collect()))
    }

    fn root(&self) -> &Path {
        &self.0[0]
    }

    /// The file behind the relative `path`, which must be a regular one that lies in a root.
    fn find(&self, path: &str) -> Result<Found, HubError> {
        let refuse = |problem| HubError::Path(PathError { path: path.to_owned(), problem });
        let full = self.root().join(path);
        // What cannot be followed (dangling, a loop) leads nowhere good.
        let real = match fs::canonicalize(&full) {
            Err(_) if fs::symlink_metadata(&full).is_ok_and(|m| m.is_symlink()) => {
                return Err(refuse(PathProblem::Link));
            }
            real => real.map_err(io_error("open file", path))?,
        };
        if !self.0.iter().any(|root| real.starts_with(root)) {
            return Err(refuse(PathProblem::Link));
        }
        let metadata = fs::metadata(&real).map_err(io_error("open file", path))?;
        if !metadata.is_file() {
            let linked = fs::symlink_metadata(&full).is_ok_and(|m| m.is_symlink());
            return Err(refuse(if linked { PathProblem::Link } else { PathProblem::Special }));
        }
        Ok(Found { path: path.to_owned(), real, size: metadata.len(), executable: is_executable(&metadata) })
    }
}

#[cfg(unix)]
fn is_executable(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &fs::Metadata) -> bool {
    false
}

fn io_error(operation: &'static str, path: &str) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Io { operation, path, source }
}

/// Runs blocking work on the pool for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(io_error("read", "directory")(io::Error::other(error))),
        },
    }
}

impl Directory {
    pub(crate) fn new(path: String) -> Self {
        Self { path }
    }

    pub(crate) async fn resolve(&self) -> Result<Listing, HubError> {
        let path = self.path.clone();
        let found = blocking(move || walk(&path)).await?;
        // Hashing stops when this future is dropped: the readers hold only a weak reference.
        let alive = Arc::new(());
        let files = stream::iter(found)
            .map(|file| {
                let alive = Arc::downgrade(&alive);
                blocking(move || hash(&file, &alive))
            })
            .buffered(MAX_PARALLEL)
            .try_collect()
            .await?;
        let listing = Listing {
            hub: HubKind::Directory,
            kind: RepoKind::Model,
            repo: self.path.clone(),
            revision: String::new(),
            commit: String::new(),
            created: None,
            licence: None,
            url: String::new(),
            files,
        }
        .check()?;
        Ok(Listing { commit: commit(&listing.files), ..listing })
    }

    pub(crate) async fn open(&self, file: &RemoteFile, from: u64) -> Result<ByteStream, HubError> {
        let (root, path, expected) = (self.path.clone(), file.path.clone(), file.size);
        let opened = blocking(move || {
            // The path comes from a listing, yet opening files is no place for trust.
            check_path(&path)?;
            let found = Roots::of(&root)?.find(&path)?;
            if found.size != expected {
                return Err(HubError::WrongLength { path, expected, found: found.size });
            }
            let mut file = fs::File::open(&found.real).map_err(io_error("open file", &path))?;
            file.seek(SeekFrom::Start(from)).map_err(io_error("read file", &path))?;
            Ok(file)
        })
        .await?;
        let path = file.path.clone();
        let left = expected.saturating_sub(from);
        Ok(Box::pin(stream::try_unfold((opened, left), move |(mut file, left)| {
            let path = path.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                blocking(move || {
                    let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN)];
                    let len = file.read(&mut bytes).map_err(io_error("read file", &path))?;
                    if len == 0 {
                        return Err(HubError::WrongLength { path, expected, found: expected - left });
                    }
                    bytes.truncate(len);
                    Ok(Some((Bytes::from(bytes), (file, left - len as u64))))
                })
                .await
            }
        })))
    }
}

/// All files below `path`, sorted bytewise by relative path.
fn walk(path: &str) -> Result<Vec<Found>, HubError> {
    let roots = Roots::of(path)?;
    let mut found = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        let full = roots.root().join(&directory);
        for entry in fs::read_dir(&full).map_err(io_error("list directory", &full.display().to_string()))? {
            let entry = entry.map_err(io_error("list directory", &directory))?;
            let name = entry.file_name();
            let join = |name: &str| {
                if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
            };
            let Some(name) = name.to_str() else {
                let path = join(&name.to_string_lossy());
                return Err(PathError { path, problem: PathProblem::NotUtf8 }.into());
            };
            let path = join(name);
            if matches!(path.as_str(), ".git" | ".cache/huggingface") {
                continue;
            }
            check_path(&path)?;
            if entry.file_type().map_err(io_error("list directory", &path))?.is_dir() {
                pending.push(path);
                continue;
            }
            found.push(roots.find(&path)?);
            if found.len() > MAX_FILES || pending.len() > MAX_FILES {
                return Err(PathError { path, problem: PathProblem::TooMany }.into());
            }
        }
    }
    found.sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    // Before a byte is hashed: a clash would be found only after hours otherwise.
    check_paths(found.iter().map(|file| file.path.as_str()))?;
    Ok(found)
}

fn hash(found: &Found, alive: &Weak<()>) -> Result<RemoteFile, HubError> {
    let read_error = |source| io_error("read file", &found.path)(source);
    let mut file = fs::File::open(&found.real).map_err(read_error)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_LEN];
    let mut size = 0;
    loop {
        if alive.strong_count() == 0 {
            return Err(read_error(io::ErrorKind::Interrupted.into()));
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                hasher.update(&buffer[..len]);
                size += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error)),
        }
    }
    let hash = FileHash::Sha256(hasher.finalize().into());
    Ok(RemoteFile { path: found.path.clone(), size, executable: found.executable, hash })
}

/// The commit of a directory with these files, as the module's text describes it.
fn commit(files: &[RemoteFile]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"towline directory 1\n");
    for file in files {
        let FileHash::Sha256(hash) = file.hash else { unreachable!("directories are hashed with SHA-256") };
        let mark = if file.executable { 'x' } else { '-' };
        hasher.update(format!("{} {} {mark} {}\n", hex::encode(hash), file.size, file.path));
    }
    format!("sha256:{}", hex::encode(hasher.finalize()))
}
