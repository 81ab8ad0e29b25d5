//! Packaging a model that fits in memory: for tests, examples and tools that make small models.

use sha2::Digest;

use crate::image::{Artifact, AssembleError, FileDigests, assemble};
use crate::index::Provenance;
use crate::piece::{PieceHasher, Sha256};
use crate::plan::{FileSpec, Plan, PlanError, Segment};

/// A packaged model with all its bytes.
#[derive(Clone, Debug)]
pub struct Package {
    /// The layout.
    pub plan: Plan,
    /// Base layer, configurations, manifests and index.
    pub artifact: Artifact,
    /// Digest and bytes of each weight layer.
    pub weight_layers: Vec<(Sha256, Vec<u8>)>,
}

/// A model that cannot be packaged.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// See [`PlanError`].
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// See [`AssembleError`].
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// Digests of a file in memory.
#[must_use]
pub fn digest_file(bytes: &[u8]) -> FileDigests {
    let mut hasher = PieceHasher::new();
    hasher.update(bytes);
    FileDigests { sha256: Sha256::of(bytes), table: hasher.finish() }
}

/// Packages `files`, path and bytes each.
///
/// # Errors
/// [`PackageError`] when the files cannot form a model.
pub fn package(files: &[(&str, &[u8])], source: Provenance) -> Result<Package, PackageError> {
    let specs = files.iter().map(|(path, bytes)| FileSpec::new(*path, bytes.len() as u64)).collect();
    let plan = Plan::new(specs)?;
    let bytes_of = |n: usize| {
        let path = &plan.files[n].path;
        files.iter().find(|(name, _)| name == path).expect("the plan has the files it was given").1
    };
    let digests: Vec<FileDigests> = (0..plan.files.len()).map(|n| digest_file(bytes_of(n))).collect();
    let weight_layers: Vec<(Sha256, Vec<u8>)> = plan
        .weight_layers
        .iter()
        .map(|layer| {
            let mut bytes = Vec::new();
            for segment in &layer.segments {
                match segment {
                    Segment::Bytes(fixed) => bytes.extend(fixed),
                    Segment::File(n) => bytes.extend(bytes_of(*n)),
                }
            }
            (Sha256(sha2::Sha256::digest(&bytes).into()), bytes)
        })
        .collect();
    let layer_digests: Vec<Sha256> = weight_layers.iter().map(|(digest, _)| *digest).collect();
    let base_data: Vec<&[u8]> = plan.base_files().map(bytes_of).collect();
    let artifact = assemble(&plan, &digests, &layer_digests, &base_data, source)?;
    Ok(Package { plan, artifact, weight_layers })
}
