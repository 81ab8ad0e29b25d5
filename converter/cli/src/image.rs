//! Reading a Towline image back: index, manifest, base layer, model.

use anyhow::Context;
use serde::Deserialize;
use towline_artifact::image::{ARCHITECTURES, INDEX_TYPE, MANIFEST_TYPE, VERSION_LABEL};
use towline_artifact::model::MAX_BASE_LEN;
use towline_artifact::{Model, Sha256};
use towline_registry::{Digest, ImageSource};

use crate::error::Problem;
use crate::oci_digest;

/// The most layers a manifest of ours has: the base layer and 99 of weights.
const MAX_LAYERS: usize = 1 + towline_artifact::plan::MAX_WEIGHT_LAYERS;

/// An image whose model has been read and found sound.
#[derive(Debug)]
pub(crate) struct Image {
    /// Digest of what the reference names: the image index, or a single manifest.
    pub(crate) digest: Digest,
    /// The model.
    pub(crate) model: Model,
    /// The base layer, whose digest has been checked.
    pub(crate) base: Vec<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Sha256,
    artifact_type: Option<String>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// Reads the image `name` (tag or digest) in `source`.
///
/// # Errors
/// When it cannot be read, or is not an image of ours, or is one that contradicts itself.
pub(crate) async fn read(source: &ImageSource, name: &str) -> anyhow::Result<Image> {
    let top = source.manifest(name).await?;
    let document = parse(&top.bytes)?;
    let document = if document.media_type.as_deref().unwrap_or(&top.media_type) == INDEX_TYPE {
        let manifest = choose(&document.manifests).ok_or_else(foreign)?;
        parse(&source.manifest(oci_digest(manifest).as_ref()).await?.bytes)?
    } else {
        document
    };
    let base = base_layer(&document).ok_or_else(foreign)?;
    let bytes = source.blob_verified(&oci_digest(base), MAX_BASE_LEN).await?;
    let (model, base) = tokio::task::spawn_blocking(move || (Model::read(&bytes), bytes)).await?;
    let model = model.context("read the index in the base layer")?;
    let layers = document.layers.iter().map(|layer| layer.digest);
    if !layers.eq(std::iter::once(model.base).chain(model.layers.iter().map(|layer| layer.digest))) {
        return Err(Problem::failed("the layers of the manifest are not those of its index").into());
    }
    Ok(Image { digest: top.digest, model, base })
}

/// The answer to an image that somebody else made.
fn foreign() -> Problem {
    Problem::failed("not an image that towline made: its first layer is not marked as one")
        .hint("package the model with `towline convert`")
}

fn parse(bytes: &[u8]) -> anyhow::Result<Document> {
    serde_json::from_slice(bytes).context("read the manifest")
}

/// The image manifest of an index; all platforms have the same layers.
fn choose(manifests: &[Descriptor]) -> Option<Sha256> {
    let is_ours = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        descriptor.artifact_type.is_none()
            && platform.is_some_and(|p| p.os == "linux" && ARCHITECTURES.contains(&p.architecture.as_str()))
    };
    manifests.iter().find(is_ours).map(|descriptor| descriptor.digest)
}

fn base_layer(document: &Document) -> Option<Sha256> {
    let is_manifest = document.media_type.as_deref().is_none_or(|media_type| media_type == MANIFEST_TYPE);
    if !is_manifest || document.artifact_type.is_some() || document.layers.len() > MAX_LAYERS {
        return None;
    }
    let first = document.layers.first()?;
    first.annotations.contains_key(VERSION_LABEL).then_some(first.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::Provenance;
    use towline_artifact::memory::package;

    #[test]
    fn the_manifests_that_we_write_are_found() {
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
        let made = package(&[("a", b"b")], source).unwrap().artifact;
        let chosen = choose(&parse(&made.index.bytes).unwrap().manifests);
        assert_eq!(chosen, Some(made.manifests[0].digest));
        assert_eq!(base_layer(&parse(&made.manifests[1].bytes).unwrap()), Some(made.base.digest));
        assert_eq!(base_layer(&parse(&made.manifests[2].bytes).unwrap()), None, "the twin is no image");
        assert!(parse(b"<html>").is_err());
        assert!(base_layer(&parse(b"{\"layers\":[]}").unwrap()).is_none());
    }
}
