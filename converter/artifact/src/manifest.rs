//! Reading image indexes and manifests back: which of them is ours, and whether its layers are those of its model.
//!
//! What is read here proves nothing by itself; the caller has checked its digest, and the base layer decides.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::{ARCHITECTURES, INDEX_TYPE, MANIFEST_TYPE, VERSION_LABEL};
use crate::model::Model;
use crate::piece::Sha256;
use crate::plan::MAX_WEIGHT_LAYERS;

/// The most layers a manifest of ours has: the base layer and those of weights.
const MAX_LAYERS: usize = 1 + MAX_WEIGHT_LAYERS;

/// An image index or an image manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    media_type: Option<String>,
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Sha256,
    artifact_type: Option<String>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

impl Manifest {
    /// Reads a document that the registry called `media_type`; what it calls itself counts more.
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Self, serde_json::Error> {
        let mut manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.media_type.is_none() && !media_type.is_empty() {
            manifest.media_type = Some(media_type.to_owned());
        }
        Ok(manifest)
    }

    /// Whether this is an image index.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.media_type.as_deref() == Some(INDEX_TYPE)
    }

    /// The manifest of an index for `architecture` (in Go's spelling), or else for another that we write: model files
    /// suit every machine, and all platforms have the same layers.
    #[must_use]
    pub fn choose(&self, architecture: &str) -> Option<Sha256> {
        let is_ours = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            descriptor.artifact_type.is_none()
                && platform
                    .is_some_and(|p| p.os == "linux" && ARCHITECTURES.contains(&p.architecture.as_str()))
        };
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|platform| platform.architecture == architecture)
        };
        let ours = || self.manifests.iter().filter(is_ours);
        ours().find(fits).or_else(|| ours().next()).map(|descriptor| descriptor.digest)
    }

    /// Digest and format version of the base layer, if this is the manifest of an image that says to be ours.
    #[must_use]
    pub fn base_layer(&self) -> Option<(Sha256, &str)> {
        let is_manifest = self.media_type.as_deref().is_none_or(|media_type| media_type == MANIFEST_TYPE);
        if !is_manifest || self.artifact_type.is_some() || self.layers.len() > MAX_LAYERS {
            return None;
        }
        let first = self.layers.first()?;
        Some((first.digest, first.annotations.get(VERSION_LABEL)?))
    }

    /// Whether the layers are exactly those that the index in the base layer of `model` commits to.
    #[must_use]
    pub fn has_layers_of(&self, model: &Model) -> bool {
        let layers = self.layers.iter().map(|layer| layer.digest);
        layers.eq(std::iter::once(model.base).chain(model.layers.iter().map(|layer| layer.digest)))
    }
}

/// What Go, and so OCI, calls the architecture that Rust calls `name`.
#[must_use]
pub fn oci_architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Provenance;
    use crate::memory::{Package, package};

    fn made(data: &[u8]) -> Package {
        let text = || "x".to_owned();
        let source = Provenance {
            hub: text(),
            kind: text(),
            repo: text(),
            commit: text(),
            created: None,
            licence: None,
            url: None,
        };
        package(&[("a", data)], source).unwrap()
    }

    fn parse(bytes: &[u8]) -> Manifest {
        Manifest::parse(bytes, "").unwrap()
    }

    #[test]
    fn the_manifests_that_we_write_are_found() {
        let made = made(b"b").artifact;
        let index = parse(&made.index.bytes);
        assert!(index.is_index() && index.base_layer().is_none());
        for (n, name) in ["x86_64", "aarch64"].into_iter().enumerate() {
            assert_eq!(index.choose(oci_architecture(name)), Some(made.manifests[n].digest));
        }
        assert_eq!(index.choose("riscv64"), Some(made.manifests[0].digest));
        let manifest = parse(&made.manifests[1].bytes);
        assert_eq!(manifest.base_layer(), Some((made.base.digest, "2")));
        assert!(manifest.choose("amd64").is_none());
        assert_eq!(parse(&made.manifests[2].bytes).base_layer(), None, "the twin is no image");
    }

    #[test]
    fn layers_are_compared_with_the_model() {
        let weights = vec![7; 5 << 20];
        let made = made(&weights).artifact;
        let model = Model::read(&made.base.bytes).unwrap();
        let manifest = parse(&made.manifests[0].bytes);
        assert!(manifest.has_layers_of(&model));
        let mut fewer = manifest.clone();
        fewer.layers.pop();
        assert!(!fewer.has_layers_of(&model));
        let mut other = manifest;
        other.layers[1].digest = Sha256([7; 32]);
        assert!(!other.has_layers_of(&model));
    }

    #[test]
    fn strangers_are_told_apart() {
        assert!(Manifest::parse(b"<html>", INDEX_TYPE).is_err());
        let empty = Manifest::parse(b"{\"layers\":[]}", "").unwrap();
        assert!(empty.base_layer().is_none() && !empty.is_index());
        assert!(Manifest::parse(b"{\"manifests\":[]}", INDEX_TYPE).unwrap().is_index());
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let made = made(b"b").artifact;
        let text = String::from_utf8(made.manifests[0].bytes.clone()).unwrap();
        assert!(parse(text.replace(MANIFEST_TYPE, docker).as_bytes()).base_layer().is_none());
    }
}
