//! What the daemon answers when containerd extracts a layer or mounts a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towline_artifact::image::{DIGEST_LABEL, POSITION_LABEL, VERSION_LABEL};
use towline_artifact::index::FORMAT_VERSION;
use towline_artifact::model::MAX_BASE_LEN;
use towline_artifact::{Model, ModelError, Sha256};
use towline_registry::{Reference, RegistryError, Repository};
use towline_snapshots::{Claim, LayerClaim, Models, Refusal, RefusalKind};

use crate::catalog::{KnownModel, Place, is_full, is_index};
use crate::error::chain;
use crate::metrics::Declined;
use crate::node::Node;

/// Label with the reference of the image being pulled; containerd sets it where the proxy plugin's exports ask for it.
const IMAGE_LABEL: &str = "containerd.io/snapshot/cri.image-ref";
/// Label with the digest of the image's manifest, likewise.
const MANIFEST_LABEL: &str = "containerd.io/snapshot/cri.manifest-digest";
/// How long the base layer may take. containerd's garbage collection waits for a claim.
const BASE_TIMEOUT: Duration = Duration::from_secs(45);

/// [`Models`] over the node.
pub(crate) struct Claims(pub(crate) Arc<Node>);

/// Why a claim does not lead to a lazy layer.
enum Failure {
    /// The image is one of ours, but this node cannot serve it lazily now.
    Declined(Declined, String),
    /// The image is broken or lies: nobody shall use it.
    Refused(Refusal),
}

#[tonic::async_trait]
impl Models for Claims {
    async fn claim(&self, claim: &LayerClaim) -> Result<Claim, Refusal> {
        let Some(version) = claim.labels.get(VERSION_LABEL) else { return Ok(Claim::NotOurs) };
        let image = claim.labels.get(IMAGE_LABEL).map_or("(unknown)", String::as_str);
        let result = match version.parse() {
            Ok(FORMAT_VERSION) => self.claim_layer(claim).await,
            _ => {
                let text = format!("format version {version:?}, this build reads {FORMAT_VERSION}");
                Err(Failure::Declined(Declined::Version, text))
            }
        };
        match result {
            Ok(()) => {
                self.0.metrics.claimed();
                Ok(Claim::Accepted)
            }
            Err(Failure::Refused(refusal)) => {
                tracing::error!(image, chain = claim.chain_id, error = %refusal, "model image refused");
                Err(refusal)
            }
            Err(Failure::Declined(reason, detail)) if self.0.declined(reason, image, &detail) => {
                let message =
                    format!("model image {image} cannot be served lazily and strict is set: {detail}");
                Err(Refusal::new(RefusalKind::FailedPrecondition, message))
            }
            Err(Failure::Declined(..)) => Ok(Claim::NotOurs),
        }
    }

    async fn directory(&self, chain: &str) -> Result<PathBuf, Refusal> {
        let unknown =
            || Refusal::new(RefusalKind::NotFound, format!("model with chain id {chain} is not known"));
        let id: Sha256 = chain.parse().map_err(|_| unknown())?;
        let (known, layer) = self.0.catalog.by_chain(id).ok_or_else(unknown)?;
        self.0.volume_opened();
        crate::volumes::directory(&self.0, &known, layer)
            .ok_or_else(|| Refusal::new(RefusalKind::Unavailable, "the FUSE mount is not being served"))
    }

    fn refuses_changes(&self, directory: &Path) -> bool {
        self.0.mount.get().is_some_and(|mount| directory.starts_with(mount.dir()))
    }

    fn forget(&self, chain: &str) {
        if let Ok(chain) = chain.parse() {
            self.0.forget(chain);
        }
    }

    async fn cleanup(&self) {
        let node = Arc::clone(&self.0);
        // A panic there is logged by its hook and leaves the rest for the next cleanup.
        let _ended = tokio::task::spawn_blocking(move || node.remove_dead()).await;
    }

    fn usage(&self, chain: &str) -> (i64, i64) {
        let found = chain.parse().ok().and_then(|id| self.0.catalog.by_chain(id));
        let Some((known, layer)) = found else { return (0, 0) };
        let files =
            known.model.files.iter().filter(|file| file.layer == layer && !is_index(&file.path)).count();
        let bytes = if layer == 0 { known.model.base_len } else { layer_bytes(&known, layer) };
        (i64::try_from(bytes).unwrap_or(i64::MAX), i64::try_from(files).unwrap_or(i64::MAX))
    }
}

/// Bytes on disk of the files in a weight layer.
fn layer_bytes(known: &KnownModel, layer: usize) -> u64 {
    let files = known.weight_files().filter(|&n| known.model.files[n].layer == layer);
    files.filter_map(|n| known.opened(n)).map(|handle| handle.content().bytes_have()).sum()
}

impl Claims {
    async fn claim_layer(&self, claim: &LayerClaim) -> Result<(), Failure> {
        let malformed = |what: &str| Failure::Refused(Refusal::new(RefusalKind::InvalidArgument, what));
        let chain: Sha256 =
            claim.chain_id.parse().map_err(|_| malformed("chain id is not a SHA-256 digest"))?;
        if claim.parent_is_ordinary {
            let text = "a model layer lies above a layer that containerd unpacked".to_owned();
            return Err(Failure::Declined(Declined::Stack, text));
        }
        match &claim.parent_chain {
            None => self.claim_base(chain, &claim.labels).await,
            Some(parent) => {
                let parent =
                    parent.parse().map_err(|_| malformed("parent chain id is not a SHA-256 digest"))?;
                self.claim_weights(parent, chain, &claim.labels).await
            }
        }
    }

    /// Layer 0: its digest is its chain id, so what is read here is what every later chain id commits to.
    async fn claim_base(&self, digest: Sha256, labels: &BTreeMap<String, String>) -> Result<(), Failure> {
        if labels.get(POSITION_LABEL).is_some_and(|position| position != "0") {
            let text = "the image does not begin with the base layer of its model".to_owned();
            return Err(Failure::Declined(Declined::Stack, text));
        }
        if labels.get(DIGEST_LABEL).is_some_and(|label| *label != digest.to_string()) {
            let text = format!("base layer annotation names another digest than the chain id {digest}");
            return Err(Failure::Refused(Refusal::new(RefusalKind::InvalidArgument, text)));
        }
        let place = place(labels);
        let node = Arc::clone(&self.0);
        if let Some(known) = node.catalog.pull(digest) {
            // Another image with the same model may be a better source. Without a place the old ones have to do.
            if let Ok((place, _)) = place {
                tokio::task::spawn_blocking(move || {
                    let added = node.catalog.add_place(&known, place);
                    node.origins.add(&known);
                    added
                })
                .await
                .map_err(|error| internal(&error))?
                .map_err(|error| unwritten(&error))?;
            }
            return Ok(());
        }
        let (place, repository) = place?;
        let bytes = self.fetch_base(&repository, digest).await?;
        let added = tokio::task::spawn_blocking(move || {
            let model = Model::read(&bytes).map_err(|error| broken(&place, &error))?;
            let known = node.catalog.add(&bytes, model, place).map_err(|error| unwritten(&error))?;
            node.origins.add(&known);
            tracing::info!(
                model = %known.model.base, repository = known.model.source.repo, commit = known.model.source.commit,
                files = known.model.files.len(), bytes = known.model.total_len(), "model is known"
            );
            if known.chains.len() == 1 {
                node.start_fill_later(&known);
            }
            Ok(())
        });
        added.await.map_err(|error| internal(&error))?
    }

    async fn fetch_base(&self, repository: &Repository, digest: Sha256) -> Result<Vec<u8>, Failure> {
        let blob = digest.to_string().parse().expect("a digest prints as one");
        let fetching = self.0.origins.client().blob_verified(repository, &blob, MAX_BASE_LEN);
        match tokio::time::timeout(BASE_TIMEOUT, fetching).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(self.fetch_failure(&error)),
            Err(_) => {
                let text = format!("base layer {digest} of {repository} did not come within 45 s");
                Err(Failure::Declined(Declined::Registry, text))
            }
        }
    }

    fn fetch_failure(&self, error: &RegistryError) -> Failure {
        let text = chain(error);
        match error {
            RegistryError::DigestMismatch { .. } => {
                Failure::Refused(Refusal::new(RefusalKind::DataLoss, text))
            }
            error if error.is_unauthorized() => Failure::Declined(Declined::Credentials, text),
            _ => Failure::Declined(Declined::Registry, text),
        }
    }

    /// Layer k: the chain id must be the one that the index in layer 0 leads to.
    async fn claim_weights(
        &self,
        parent: Sha256,
        chain: Sha256,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let Some((known, below)) = self.0.catalog.by_chain(parent) else {
            let text = format!("model with chain id {parent} is not known");
            return Err(Failure::Refused(Refusal::new(RefusalKind::FailedPrecondition, text)));
        };
        if known.chains.get(below + 1) != Some(&chain) {
            let image = labels.get(IMAGE_LABEL).map_or("(unknown)", String::as_str);
            let text = format!(
                "layer {} of image {image} is not the one that the index in its base layer names",
                below + 1
            );
            return Err(Failure::Refused(Refusal::new(RefusalKind::InvalidArgument, text)));
        }
        if below + 2 == known.chains.len() {
            self.0.start_fill_later(&known);
        }
        Ok(())
    }
}

/// Where the image being pulled lies, from containerd's labels.
fn place(labels: &BTreeMap<String, String>) -> Result<(Place, Repository), Failure> {
    let Some(reference) = labels.get(IMAGE_LABEL) else {
        let text = "containerd does not tell the image reference: set enable_remote_snapshot_annotations = \"true\" in \
                    the exports of the proxy plugin, and name the plugin in the transfer service's unpack_config \
                    (`towline containerd-config` prints both)";
        return Err(Failure::Declined(Declined::Labels, text.to_owned()));
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::Declined(Declined::Labels, format!("image reference {reference:?}: {error}"))
    };
    let parsed: Reference = reference.parse().map_err(|error| unreadable(&error))?;
    let repository =
        Repository::new(parsed.registry(), parsed.repository()).map_err(|error| unreadable(&error))?;
    let place = Place {
        host: repository.host().to_owned(),
        repository: repository.path().to_owned(),
        reference: reference.clone(),
        manifest: labels.get(MANIFEST_LABEL).cloned().unwrap_or_default(),
    };
    Ok((place, repository))
}

fn broken(place: &Place, error: &ModelError) -> Failure {
    let text = format!("image {}: {}", place.reference, chain(error));
    Failure::Refused(Refusal::new(RefusalKind::DataLoss, text))
}

/// The catalogue could not write.
fn unwritten(error: &anyhow::Error) -> Failure {
    let kind = if is_full(error) { RefusalKind::ResourceExhausted } else { RefusalKind::Internal };
    Failure::Refused(Refusal::new(kind, format!("{error:#}")))
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Refused(Refusal::new(RefusalKind::Internal, chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::testing::{claims, two_weights};

    fn claim(parent: Option<Sha256>, diff_id: Sha256) -> LayerClaim {
        LayerClaim {
            chain_id: towline_artifact::chain_id(parent, diff_id).to_string(),
            parent_chain: parent.map(|parent| parent.to_string()),
            parent_is_ordinary: false,
            labels: [(VERSION_LABEL.to_owned(), FORMAT_VERSION.to_string())].into(),
        }
    }

    #[tokio::test]
    async fn only_the_chain_that_the_base_layer_commits_to_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let made = two_weights();
        let (claims, model) = claims(dir.path(), &made);
        let chain = model.chain_ids();
        let (first, second) = (model.layers[0].digest, model.layers[1].digest);
        assert_eq!(claims.claim(&claim(None, model.base)).await, Ok(Claim::Accepted));
        assert_eq!(claims.claim(&claim(Some(chain[0]), first)).await, Ok(Claim::Accepted));
        assert_eq!(claims.claim(&claim(Some(chain[1]), second)).await, Ok(Claim::Accepted));
        // The layers in another order, one twice, a foreign one: all above the genuine base layer.
        for (parent, layer) in
            [(chain[0], second), (chain[1], first), (chain[2], second), (chain[0], Sha256([7; 32]))]
        {
            let refusal = claims.claim(&claim(Some(parent), layer)).await.expect_err("not in the index");
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
            assert!(refusal.message.contains("not the one that the index"), "{refusal}");
        }
        let unlabelled = LayerClaim { labels: BTreeMap::new(), ..claim(Some(chain[0]), first) };
        assert_eq!(claims.claim(&unlabelled).await, Ok(Claim::NotOurs));
        let above_ordinary = LayerClaim { parent_is_ordinary: true, ..claim(None, model.base) };
        assert_eq!(claims.claim(&above_ordinary).await, Ok(Claim::NotOurs), "counted and logged");
    }

    #[tokio::test]
    async fn what_is_known_survives_a_restart_and_goes_with_its_last_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let made = two_weights();
        let (first, model) = claims(dir.path(), &made);
        assert!(first.directory(&model.base.to_string()).await.is_err(), "nothing is mounted");
        drop(first);
        let catalog = Catalog::open(dir.path()).unwrap();
        let (known, layer) = catalog.by_chain(model.chain_ids()[2]).expect("known after a restart");
        assert_eq!((layer, known.places()[0].reference.as_str()), (2, "127.0.0.1:1/m:v1"));
        let config = known.model.files.iter().position(|file| file.path == "config.json").unwrap();
        assert_eq!(known.read_base(config, 0, 2).unwrap(), b"{}");
        drop((catalog, known));
        let (again, _) = claims(dir.path(), &made);
        again.forget(&model.chain_ids()[2].to_string());
        again.cleanup().await;
        assert!(again.0.catalog.by_chain(model.base).is_some(), "the base layer's snapshot is still there");
        again.forget(&model.base.to_string());
        again.cleanup().await;
        assert!(again.0.catalog.by_chain(model.base).is_none());
        drop(again);
        assert!(Catalog::open(dir.path()).unwrap().models().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("models")).unwrap().count(), 0);
    }
}
