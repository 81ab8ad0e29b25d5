//! The blobs of one OCI layout, in memory.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::Value;

/// A blob, by its digest.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) bytes: Bytes,
    /// Of a manifest or an index; other blobs have none.
    pub(super) media_type: Option<String>,
    /// Whether it is a layer above the base.
    pub(super) is_weights: bool,
}

/// All blobs of an image.
#[derive(Debug)]
pub(super) struct Image {
    blobs: HashMap<String, Blob>,
    /// Digest of what the layout's only tag names.
    top: String,
}

impl Image {
    pub(super) fn read(layout: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let top = digest(&index["manifests"][0])?;
        let mut blobs = HashMap::new();
        for entry in fs::read_dir(layout.join("blobs/sha256")).context("read the layout's blobs")? {
            let entry = entry?;
            let name = format!("sha256:{}", entry.file_name().to_string_lossy());
            let bytes = Bytes::from(fs::read(entry.path())?);
            blobs.insert(name, Blob { bytes, media_type: None, is_weights: false });
        }
        let mut image = Self { blobs, top: top.clone() };
        image.mark(&index["manifests"][0])?;
        Ok(image)
    }

    /// Notes media types and weight layers of the manifest or index that `descriptor` names, and of those below it.
    fn mark(&mut self, descriptor: &Value) -> Result<()> {
        let blob = self.blobs.get_mut(&digest(descriptor)?).context("a manifest is missing")?;
        blob.media_type = descriptor["mediaType"].as_str().map(str::to_owned);
        let manifest: Value = serde_json::from_slice(&blob.bytes).context("parse a manifest")?;
        let list = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        for below in list("manifests") {
            self.mark(&below)?;
        }
        for layer in list("layers").iter().skip(1) {
            self.blobs.get_mut(&digest(layer)?).context("a layer is missing")?.is_weights = true;
        }
        Ok(())
    }

    pub(super) fn blob(&self, digest: &str) -> Option<&Blob> {
        self.blobs.get(digest)
    }

    /// A manifest by digest, or whatever the tag names.
    pub(super) fn manifest(&self, name: &str) -> Option<(&str, &Blob)> {
        let name = if name.contains(':') { name } else { &self.top };
        self.blobs.get_key_value(name).map(|(digest, blob)| (digest.as_str(), blob))
    }

    pub(super) fn largest_weights(&self) -> &str {
        let weights = self.blobs.iter().filter(|(_, blob)| blob.is_weights);
        weights.max_by_key(|(_, blob)| blob.bytes.len()).map_or("", |(digest, _)| digest)
    }
}

fn digest(descriptor: &Value) -> Result<String> {
    match descriptor["digest"].as_str() {
        Some(digest) => Ok(digest.to_owned()),
        None => bail!("a descriptor without digest: {descriptor}"),
    }
}
