//! An OCI image layout on disk: writing.
//!
//! A blob is written to `.towline-ingest/`, hashed on the way, synced, and renamed into place. Tags of several writers
//! are kept apart by a lock on a file there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use oci_spec::image::Digest;
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Object, RegistryError};
use crate::layout::{LAYOUT_VERSION, Layout, REF_NAME, damaged, disk, tag_of};
use crate::pull::MAX_MANIFEST_LEN;
use crate::repository::{InvalidName, digest_bytes, digest_of, is_tag};

/// Where blobs are before they are whole. In the layout, so that a rename stays on one file system.
const INGEST_DIR: &str = ".towline-ingest";

/// In the ingest directory, never replaced or removed: a lock on a file that is replaced would guard nothing.
const LOCK_FILE: &str = "lock";

/// The most bytes per item of the writer's queue, and its items: 8 MiB in all, as for an upload.
const SLICE_LEN: usize = 512 << 10;
const SLICES: usize = 16;

/// Remains of writers that crashed are removed when they have not been touched for this long.
const REMAINS_AGE: Duration = Duration::from_secs(24 * 3600);

enum Item {
    Bytes(Bytes),
    End,
}

/// A file that is removed unless it is kept.
struct Temp(Option<PathBuf>);

impl Temp {
    /// Makes a new file in the ingest directory.
    fn create(dir: &Path) -> io::Result<(Self, File)> {
        let path = dir.join(INGEST_DIR).join(format!("{:032x}", rand::random::<u128>()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok((Self(Some(path)), file))
    }

    /// Renames it, and makes the rename durable.
    fn keep_as(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.0 {
            fs::rename(path, target)?;
            self.0 = None;
        }
        sync_dir(target)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(path = %path.display(), %error, "temporary file left behind");
        }
    }
}

fn sync_dir(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A blob on its way into a layout. Dropping it gives it up.
#[derive(Debug)]
pub struct LayoutBlob {
    layout: Layout,
    announced: Option<u64>,
    written: u64,
    buffer: Option<mpsc::Sender<Item>>,
    writer: JoinHandle<Result<(Temp, [u8; 32]), RegistryError>>,
}

impl std::fmt::Debug for Temp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl LayoutBlob {
    /// Writes the next bytes; waits while the queue (8 MiB) is full. Not cancel-safe.
    ///
    /// # Errors
    /// [`RegistryError::Disk`], [`RegistryError::UploadLen`] past the announced length. The blob is dead then.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), RegistryError> {
        self.written += bytes.len() as u64;
        if self.announced.is_some_and(|announced| self.written > announced) {
            return Err(self.wrong_len());
        }
        while !bytes.is_empty() {
            let slice = bytes.split_to(bytes.len().min(SLICE_LEN));
            self.send(Item::Bytes(slice)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, item: Item) -> Result<(), RegistryError> {
        if let Some(buffer) = &self.buffer
            && buffer.send(item).await.is_ok()
        {
            return Ok(());
        }
        if self.buffer.take().is_some() {
            self.written().await?;
        }
        Err(damaged(self.layout.dir(), "the write has failed before"))
    }

    async fn written(&mut self) -> Result<(Temp, [u8; 32]), RegistryError> {
        let gone = || damaged(self.layout.dir(), "the writer stopped");
        (&mut self.writer).await.map_err(|_| gone())?
    }

    fn wrong_len(&self) -> RegistryError {
        let announced = self.announced.unwrap_or(self.written);
        RegistryError::UploadLen {
            place: self.layout.place(Object::Upload),
            written: self.written,
            announced,
        }
    }

    /// Makes the blob durable and visible if `digest` is that of its bytes.
    ///
    /// # Errors
    /// [`RegistryError::DigestMismatch`], [`RegistryError::UploadLen`], [`RegistryError::Disk`].
    pub async fn commit(mut self, digest: &Digest) -> Result<(), RegistryError> {
        if self.announced.is_some_and(|announced| self.written != announced) {
            return Err(self.wrong_len());
        }
        let target = self.layout.blob_path(digest)?;
        self.send(Item::End).await?;
        self.buffer = None;
        let (temp, hash) = self.written().await?;
        let actual = digest_of(&hash);
        if actual != *digest {
            let place = self.layout.place(Object::Blob(digest.clone()));
            return Err(RegistryError::DigestMismatch { place, expected: digest.clone(), actual });
        }
        blocking(move || temp.keep_as(&target).map_err(|e| disk(&target, e))).await
    }

    /// Gives the blob up; its temporary file is gone when this returns.
    pub async fn abort(mut self) {
        self.buffer = None;
        // The writer ends with an error that says just this.
        let _ = self.written().await;
    }
}

impl Layout {
    /// Begins to write a blob whose digest is known only at its end. `len` is its size in bytes, if known.
    ///
    /// # Errors
    /// [`RegistryError::Disk`]; [`RegistryError::Layout`] when the directory is something else.
    pub async fn start_blob(&self, len: Option<u64>) -> Result<LayoutBlob, RegistryError> {
        self.prepare().await?;
        let (buffer, items) = mpsc::channel(SLICES);
        let dir = self.dir().to_owned();
        let (temp, file) = blocking(move || Temp::create(&dir).map_err(|e| disk(&dir, e))).await?;
        let writer = tokio::task::spawn_blocking(move || write_all(temp, file, items));
        Ok(LayoutBlob { layout: self.clone(), announced: len, written: 0, buffer: Some(buffer), writer })
    }

    /// Writes a blob that is in memory, unless it is there.
    ///
    /// # Errors
    /// As [`LayoutBlob::commit`].
    pub async fn put_blob(&self, digest: &Digest, bytes: Bytes) -> Result<(), RegistryError> {
        if self.blob_len(digest).await? == Some(bytes.len() as u64) {
            return Ok(());
        }
        let mut blob = self.start_blob(Some(bytes.len() as u64)).await?;
        blob.write(bytes).await?;
        blob.commit(digest).await
    }

    /// Writes a manifest and lets `tag` name it, and nothing else. Other tags stay.
    ///
    /// # Errors
    /// [`RegistryError::TooLarge`] above [`MAX_MANIFEST_LEN`], [`RegistryError::Layout`] for a damaged `index.json`.
    pub async fn publish(&self, tag: &str, media_type: &str, bytes: Bytes) -> Result<Digest, RegistryError> {
        if !is_tag(tag) {
            return Err(InvalidName::new(tag, "a tag").into());
        }
        if bytes.len() as u64 > MAX_MANIFEST_LEN {
            let place = self.place(Object::Manifest(tag.to_owned()));
            return Err(RegistryError::TooLarge { place, limit: MAX_MANIFEST_LEN });
        }
        let digest = digest_bytes(&bytes);
        let entry = json!({
            "mediaType": media_type,
            "digest": digest.to_string(),
            "size": bytes.len(),
            "annotations": { REF_NAME: tag },
        });
        self.prepare().await?;
        self.put_blob(&digest, bytes).await?;
        let dir = self.dir().to_owned();
        let lock = blocking(move || lock(&dir)).await?;
        let index = self.read_index().await?.map(|(index, _)| index);
        let index = with_tag(index.unwrap_or_else(empty_index), tag, entry);
        let dir = self.dir().to_owned();
        blocking(move || {
            let text = serde_json::to_vec(&index).map_err(|e| disk(&dir, e.into()))?;
            let replaced = replace(&dir, "index.json", &text);
            drop(lock);
            replaced
        })
        .await?;
        Ok(digest)
    }

    /// Makes the directories and the marker file where they are missing.
    async fn prepare(&self) -> Result<(), RegistryError> {
        let dir = self.dir().to_owned();
        blocking(move || {
            let missing =
                || fs::metadata(dir.join("oci-layout")).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
            if missing()
                && fs::read_dir(&dir).is_ok_and(|mut entries| entries.any(|entry| is_foreign(&entry)))
            {
                return Err(damaged(&dir, "a directory with other contents, not an image layout"));
            }
            sub_dir(&dir, "blobs/sha256")?;
            sub_dir(&dir, INGEST_DIR)?;
            remove_remains(&dir.join(INGEST_DIR), SystemTime::now());
            if missing() {
                let _lock = lock(&dir)?;
                if missing() {
                    let text = json!({ "imageLayoutVersion": LAYOUT_VERSION }).to_string();
                    replace(&dir, "oci-layout", text.as_bytes())?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn sub_dir(dir: &Path, name: &str) -> Result<(), RegistryError> {
    let path = dir.join(name);
    fs::create_dir_all(&path).map_err(|e| disk(&path, e))
}

/// Whether a name cannot be that of a layout in the making, by us or by another writer at this moment.
fn is_foreign(entry: &io::Result<fs::DirEntry>) -> bool {
    let ours = [INGEST_DIR, "blobs", "oci-layout", "index.json"];
    entry.as_ref().is_ok_and(|entry| ours.iter().all(|name| entry.file_name() != *name))
}

/// Waits for the sole right to replace the layout's small files, held until the file is closed.
fn lock(dir: &Path) -> Result<File, RegistryError> {
    let path = dir.join(INGEST_DIR).join(LOCK_FILE);
    let take = || {
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        file.lock().map(|()| file)
    };
    take().map_err(|e| disk(&path, e))
}

fn empty_index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] })
}

/// The index with `tag` naming `entry` and nothing else.
fn with_tag(mut index: Value, tag: &str, entry: Value) -> Value {
    if let Some(manifests) = index["manifests"].as_array_mut() {
        manifests.retain(|other| tag_of(other) != Some(tag));
        manifests.push(entry);
    }
    index
}

fn write_all(
    temp: Temp,
    mut file: File,
    mut items: mpsc::Receiver<Item>,
) -> Result<(Temp, [u8; 32]), RegistryError> {
    let path = temp.0.clone().unwrap_or_default();
    let mut hasher = sha2::Sha256::new();
    loop {
        match items.blocking_recv() {
            Some(Item::Bytes(bytes)) => {
                file.write_all(&bytes).map_err(|e| disk(&path, e))?;
                hasher.update(&bytes);
            }
            Some(Item::End) => break,
            None => return Err(damaged(&path, "given up")),
        }
    }
    file.sync_all().map_err(|e| disk(&path, e))?;
    Ok((temp, hasher.finalize().into()))
}

/// Replaces a small file in one step.
fn replace(dir: &Path, name: &str, text: &[u8]) -> Result<(), RegistryError> {
    let target = dir.join(name);
    let write = || {
        let (temp, mut file) = Temp::create(dir)?;
        file.write_all(text)?;
        file.sync_all()?;
        temp.keep_as(&target)
    };
    write().map_err(|e| disk(&target, e))
}

/// Removes what crashed writers left. Best effort: it only costs space.
fn remove_remains(dir: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCK_FILE) {
        let touched = entry.metadata().and_then(|meta| meta.modified());
        if touched.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > REMAINS_AGE)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(RegistryError::Disk { path: "file work".into(), source: io::Error::other(e) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tags_behave_like_a_map(writes in prop::collection::vec(("[a-c]", 0u32..5), 0..12)) {
            let mut model = std::collections::BTreeMap::new();
            let mut index = json!({ "manifests": [{"digest": "untagged"}], "x": 1 });
            for (tag, n) in &writes {
                model.insert(tag.clone(), n.to_string());
                index = with_tag(index, tag, json!({"digest": n.to_string(), "annotations": {REF_NAME: tag}}));
            }
            let all = index["manifests"].as_array().unwrap();
            let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
            let tagged: Vec<_> = all.iter().filter_map(|e| Some((tag_of(e)?.to_owned(), digest(e)))).collect();
            prop_assert_eq!(tagged.len(), model.len());
            prop_assert_eq!(tagged.into_iter().collect::<std::collections::BTreeMap<_, _>>(), model);
            prop_assert!(all.iter().any(|e| digest(e) == "untagged"));
            prop_assert_eq!(&index["x"], 1);
        }
    }
}
