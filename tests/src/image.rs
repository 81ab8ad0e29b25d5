//! Small OCI images made here: the pod's root file system, the pause image, and a plain model image.
//!
//! Layers are uncompressed tar; what is written is an OCI layout, which `skopeo` pushes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::model::files_below;

/// An OCI layout with one image.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The layout's directory.
    pub dir: PathBuf,
    /// The image's name in it.
    pub tag: String,
    /// Digest of the image's manifest.
    pub manifest: String,
    /// Digests of the layers, the base first; they are the diff ids too.
    pub layers: Vec<String>,
}

/// An OCI layout being written.
#[derive(Debug)]
pub struct LayoutWriter {
    dir: PathBuf,
    layers: Vec<Value>,
}

impl LayoutWriter {
    /// Starts a layout in `dir`, which is made.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        Ok(Self { dir: dir.to_path_buf(), layers: Vec::new() })
    }

    /// Adds a layer that holds what `fill` appends.
    ///
    /// # Errors
    /// What `fill` or the disk says.
    pub fn layer(&mut self, fill: impl FnOnce(&mut Builder<HashingWriter>) -> Result<()>) -> Result<()> {
        let part = self.dir.join("part");
        let file = File::create(&part).with_context(|| format!("create {}", part.display()))?;
        let writer =
            HashingWriter { out: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), len: 0 };
        let mut tar = Builder::new(writer);
        fill(&mut tar)?;
        let mut done = tar.into_inner()?;
        done.out.flush()?;
        let hex = hex::encode(done.hash.finalize());
        fs::rename(&part, self.blob(&hex))?;
        self.layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{hex}"),
            "size": done.len,
        }));
        Ok(())
    }

    /// Ends the image with the given default command and names it `tag`.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn finish(self, tag: &str, command: &[&str]) -> Result<Layout> {
        let layers: Vec<String> =
            self.layers.iter().map(|layer| layer["digest"].as_str().unwrap_or_default().to_owned()).collect();
        let config = self.write_json(&json!({
            "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Entrypoint": command },
            "rootfs": { "type": "layers", "diff_ids": layers },
        }))?;
        let manifest = self.write_json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": self.layers,
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(
            self.dir.join("index.json"),
            json!({ "schemaVersion": 2, "manifests": [entry] }).to_string(),
        )?;
        Ok(Layout { dir: self.dir, tag: tag.to_owned(), manifest: manifest.0, layers })
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(hex)
    }

    fn write_json(&self, value: &Value) -> Result<(String, usize)> {
        let text = value.to_string();
        let hex = hex::encode(Sha256::digest(&text));
        fs::write(self.blob(&hex), &text)?;
        Ok((format!("sha256:{hex}"), text.len()))
    }
}

fn descriptor(media_type: &str, blob: &(String, usize)) -> Value {
    json!({ "mediaType": media_type, "digest": blob.0, "size": blob.1 })
}

/// A file that is hashed as it is written.
#[derive(Debug)]
pub struct HashingWriter {
    out: BufWriter<File>,
    hash: Sha256,
    len: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The names under which the pod image offers busybox.
const APPLETS: [&str; 16] = [
    "sh",
    "cat",
    "ls",
    "sleep",
    "dd",
    "wc",
    "sha256sum",
    "stat",
    "find",
    "mount",
    "echo",
    "true",
    "false",
    "cp",
    "id",
    "head",
];

/// Writes an image that holds a statically linked busybox and runs `command` by default.
///
/// # Errors
/// Where busybox is missing or the disk refuses.
pub fn busybox(dir: &Path, tag: &str, command: &[&str]) -> Result<Layout> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.context("busybox is missing: run tests/setup.sh test")?;
    let mut image = LayoutWriter::create(dir)?;
    image.layer(|tar| {
        for dir in ["bin", "etc", "tmp"] {
            append(tar, dir, EntryType::Directory, 0o755, &[])?;
        }
        append(tar, "bin/busybox", EntryType::Regular, 0o755, &fs::read(busybox).context("read busybox")?)?;
        append(tar, "etc/passwd", EntryType::Regular, 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
        for name in APPLETS {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, format!("bin/{name}"), "busybox")?;
        }
        Ok(())
    })?;
    image.finish(tag, command)
}

/// Writes the files below `model` as a plain image: one uncompressed layer per file, in path order.
///
/// # Errors
/// Where a file cannot be read or the disk refuses.
pub fn plain_model(model: &Path, dir: &Path, tag: &str) -> Result<Layout> {
    let mut image = LayoutWriter::create(dir)?;
    for path in files_below(model)? {
        image.layer(|tar| {
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                append(tar, &parent.to_string_lossy(), EntryType::Directory, 0o755, &[])?;
            }
            let file = File::open(model.join(&path)).with_context(|| format!("open {}", path.display()))?;
            let mut header = header(EntryType::Regular, 0o644, file.metadata()?.len());
            tar.append_data(&mut header, &path, io::BufReader::with_capacity(1 << 20, file))?;
            Ok(())
        })?;
    }
    image.finish(tag, &[])
}

fn header(kind: EntryType, mode: u32, len: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len);
    header
}

fn append(
    tar: &mut Builder<HashingWriter>,
    path: &str,
    kind: EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = header(kind, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("append {path}"))
}
