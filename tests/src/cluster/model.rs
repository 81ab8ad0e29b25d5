//! A model that no store has seen: random files, converted to an image, hashed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::convert::{convert, directory};
use crate::scratch::Scratch;

/// Bytes written or hashed at a time.
const BLOCK_LEN: usize = 1 << 20;

/// A weight file of the model.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Its path in the model.
    pub path: String,
    /// Its bytes.
    pub len: u64,
    /// SHA-256 of what was written.
    pub sha256: String,
    /// BLAKE3 of the same bytes: the name of the content in a node's store.
    pub content: String,
}

/// A model and the image made of it.
#[derive(Debug)]
pub struct Model {
    /// Its weight files.
    pub files: Vec<Weights>,
    /// An OCI layout with the image.
    pub layout: PathBuf,
    /// Digest of the image's index.
    pub digest: String,
}

/// What a node holds, compared with what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Files whose bytes are all there and right.
    pub right: usize,
    /// Files that are not there, or not whole.
    pub missing: usize,
    /// Files of the right length with a wrong hash.
    pub wrong: usize,
}

impl Model {
    /// Writes `len` random bytes as three weight files, the last of a length that no piece ends at, and converts them.
    ///
    /// # Errors
    /// Where the disk or the converter refuses.
    pub async fn random(scratch: &Scratch, len: u64) -> Result<Self> {
        ensure!(len >= 32 << 20, "a model of the testbed has at least 32 MiB, not {len} bytes");
        let dir = scratch.subdir("model")?;
        // Half, a quarter and a byte less, a quarter and a byte more.
        let parts = [len / 2, len / 4 - 1, len - len / 2 - (len / 4 - 1)];
        let written = dir.clone();
        let files = tokio::task::spawn_blocking(move || -> Result<Vec<Weights>> {
            let named = parts.iter().enumerate().map(|(index, &len)| {
                let path = format!("model-{:05}-of-{:05}.safetensors", index + 1, parts.len());
                write(&written, path, len)
            });
            fs::write(written.join("config.json"), "{\"model_type\": \"noise\"}\n")?;
            named.collect()
        })
        .await??;
        let layout = scratch.path().join("layout");
        let target = format!("oci:{}:v1", layout.display());
        let converted = convert(None, &directory(&dir), &target, &[]).await?;
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        Ok(Self { files, layout, digest: converted.digest })
    }

    /// Bytes of the weight files.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// Whether there are no bytes; there always are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hashes what the store below `root` holds.
    ///
    /// # Errors
    /// Where what is there cannot be read.
    pub fn check(&self, root: &Path) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        for file in &self.files {
            let path = content_path(root, &file.content);
            if !path.try_exists()? || !is_whole(&path, file.len)? {
                verdict.missing += 1;
            } else if sha256_of(&path)? == file.sha256 {
                verdict.right += 1;
            } else {
                verdict.wrong += 1;
            }
        }
        Ok(verdict)
    }
}

/// Where a store keeps the bytes of a content (see the documentation of `towline-store`).
#[must_use]
pub fn content_path(root: &Path, content: &str) -> PathBuf {
    root.join("store/content").join(&content[..2]).join(content)
}

/// Whether a file has this length and no hole.
fn is_whole(path: &Path, len: u64) -> Result<bool> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).context("look for a hole")?;
    Ok(file.metadata()?.len() == len && hole == len)
}

fn write(dir: &Path, path: String, len: u64) -> Result<Weights> {
    let mut noise = StdRng::from_os_rng();
    let mut block = vec![0_u8; BLOCK_LEN];
    let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
    let mut file = File::create(dir.join(&path)).with_context(|| format!("create {path}"))?;
    let mut left = len;
    while left > 0 {
        noise.fill_bytes(&mut block);
        let part = &block[..BLOCK_LEN.min(usize::try_from(left).unwrap_or(BLOCK_LEN))];
        file.write_all(part).with_context(|| format!("write {path}"))?;
        sha256.update(part);
        blake3.update(part);
        left -= part.len() as u64;
    }
    Ok(Weights { path, len, sha256: hex::encode(sha256.finalize()), content: blake3.finalize().to_string() })
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0_u8; BLOCK_LEN]);
    loop {
        match file.read(&mut block).with_context(|| format!("read {}", path.display()))? {
            0 => return Ok(hex::encode(hash.finalize())),
            got => hash.update(&block[..got]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Model, Verdict, content_path, write};

    #[test]
    fn missing_holes_and_wrong_bytes_are_told_apart() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let files: Vec<_> = [5_000_000, 4096, 10]
            .map(|len| write(dir.path(), format!("{len}"), len).unwrap())
            .into_iter()
            .collect();
        let model = Model { files, layout: dir.path().into(), digest: String::new() };
        let check = |right, missing, wrong| {
            assert_eq!(model.check(dir.path()).unwrap(), Verdict { right, missing, wrong });
        };
        check(0, 3, 0);
        let places: Vec<_> = model.files.iter().map(|file| content_path(dir.path(), &file.content)).collect();
        for (file, place) in model.files.iter().zip(&places) {
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(dir.path().join(&file.path), place).unwrap();
        }
        check(3, 0, 0);
        fs::write(&places[2], [0; 10]).unwrap();
        fs::File::create(&places[1]).unwrap().set_len(4096).unwrap();
        check(1, 1, 1);
    }
}
