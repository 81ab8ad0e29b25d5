//! Reading a Towline image back: index, manifest, base layer, model.

use anyhow::Context;
use towline_artifact::Model;
use towline_artifact::manifest::{Manifest, oci_architecture};
use towline_artifact::model::MAX_BASE_LEN;
use towline_registry::{Digest, ImageSource};

use crate::error::Problem;
use crate::oci_digest;

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

/// Reads the image `name` (tag or digest) in `source`.
///
/// # Errors
/// When it cannot be read, or is not an image of ours, or is one that contradicts itself.
pub(crate) async fn read(source: &ImageSource, name: &str) -> anyhow::Result<Image> {
    let top = source.manifest(name).await?;
    let mut manifest = parse(&top)?;
    if manifest.is_index() {
        let chosen = manifest.choose(oci_architecture(std::env::consts::ARCH)).ok_or_else(foreign)?;
        manifest = parse(&source.manifest(oci_digest(chosen).as_ref()).await?)?;
    }
    let (base, _) = manifest.base_layer().ok_or_else(foreign)?;
    let bytes = source.blob_verified(&oci_digest(base), MAX_BASE_LEN).await?;
    let (model, base) = tokio::task::spawn_blocking(move || (Model::read(&bytes), bytes)).await?;
    let model = model.context("read the index in the base layer")?;
    if !manifest.has_layers_of(&model) {
        return Err(Problem::failed("the layers of the manifest are not those of its index").into());
    }
    Ok(Image { digest: top.digest, model, base })
}

/// The answer to an image that somebody else made.
fn foreign() -> Problem {
    Problem::failed("not an image that towline made: its first layer is not marked as one")
        .hint("package the model with `towline convert`")
}

fn parse(document: &towline_registry::Manifest) -> anyhow::Result<Manifest> {
    Manifest::parse(&document.bytes, &document.media_type).context("read the manifest")
}
