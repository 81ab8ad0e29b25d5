//! `towline convert`: a repository at one commit becomes an image.
//!
//! The story, in order: resolve the revision once, select and lay out the files, see what the previous image spares, read
//! the small files, stream the weights, and only when every hash agreed write configurations, manifests and, last, the
//! tag. Nothing of a run that stops before its end can be reached by a name; its blobs are the registry's garbage.

mod hashing;
mod report;
mod reuse;
mod selection;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use towline_artifact::image::INDEX_TYPE;
use towline_artifact::{Artifact, Blob, FileDigests, Sha256, assemble};
use towline_hub::SourceRef;
use towline_registry::{Destination, RegistryError};

use self::report::{DryRun, LayerReport, Report, SourceReport, Transferred};
use self::reuse::Reusable;
use self::selection::{Selection, Wishes};
use self::transfer::Transfer;
use crate::args::ConvertArgs;
use crate::error::Problem;
use crate::image::{self, Image};
use crate::output::{self, count, size};
use crate::progress::Progress;
use crate::{oci_digest, registry, source};

/// Small files that are read at the same time: each is a round trip and less than a piece of memory.
const SMALL_FILES_AT_ONCE: usize = 8;
/// Questions for blobs that are open at the same time.
const QUESTIONS_AT_ONCE: usize = 8;

/// Converts as `args` say; `stop` interrupts.
///
/// # Errors
/// Anything that keeps the image from being published.
pub(crate) async fn run(args: ConvertArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let source_ref: SourceRef = args.source.parse()?;
    let wishes = Wishes::new(&args.include, &args.exclude, args.prefix.as_deref(), &args.allow_unsafe)?;
    let destination = Destination::parse(&args.destination, &registry::client(&args.registry)?)?;
    let source = source::connect(&source_ref)?;
    let progress = Progress::new(args.quiet);

    progress.say(&format!("resolving {source_ref}"));
    let resolved = until(&stop, source.resolve()).await?;
    let listing = resolved.with_context(|| format!("list {source_ref}"))?;
    let selection = selection::select(&listing, &wishes).with_context(|| format!("package {source_ref}"))?;
    progress.say(&format!(
        "{} at {}: {}, {}",
        listing.repo,
        listing.commit,
        count(selection.plan.files.len(), "file"),
        size(selection.plan.total_len())
    ));
    let previous = if args.no_reuse { None } else { until(&stop, previous(&destination, &progress)).await? };
    let reused = until(&stop, reusable_layers(&selection, previous.as_ref(), &destination)).await??;
    if args.dry_run {
        let plan = DryRun::new(&listing, &selection, &reused);
        return Ok(output::emit(args.output, &plan, || plan.text())?);
    }

    let transfer = Arc::new(Transfer {
        source,
        listing: Arc::new(listing),
        selection,
        destination,
        progress,
        hub_bytes: AtomicU64::new(0),
        registry_bytes: AtomicU64::new(0),
    });
    let small = until(&stop, small_files(&transfer, previous.as_ref())).await??;
    let wanted: Vec<usize> = (0..reused.len()).filter(|&n| reused[n].is_none()).collect();
    if !wanted.is_empty() {
        let layers = count(wanted.len(), "weight layer");
        transfer.progress.say(&format!("writing {layers} to {}", transfer.destination));
    }
    let written = transfer.write_layers(&wanted, usize::from(args.jobs), &stop).await?;

    let mut written = written.into_iter();
    let weights: Vec<Reusable> = reused
        .iter()
        .map(|reused| {
            reused.clone().unwrap_or_else(|| {
                let layer = written.next().expect("every layer was reused or written");
                Reusable { digest: layer.digest, files: layer.files }
            })
        })
        .collect();
    let artifact = build(&transfer, small, &weights)?;
    let base_reused = until(&stop, publish(&transfer, &artifact)).await?;
    let base_reused = base_reused.with_context(|| format!("publish {}", transfer.destination))?;

    let base = LayerReport {
        digest: artifact.base.digest.to_string(),
        size: artifact.base.bytes.len() as u64,
        files: transfer.selection.plan.base_files().count(),
        reused: base_reused,
    };
    let plans = &transfer.selection.plan.weight_layers;
    let weights = weights.iter().zip(plans).zip(&reused).map(|((layer, plan), reused)| LayerReport {
        digest: layer.digest.to_string(),
        size: plan.len,
        files: plan.files.len(),
        reused: reused.is_some(),
    });
    let report = Report {
        reference: transfer.destination.pinned(&oci_digest(artifact.index.digest)),
        digest: artifact.index.digest.to_string(),
        source: SourceReport::new(&transfer.listing),
        files: transfer.selection.plan.files.len(),
        bytes: transfer.selection.plan.total_len(),
        layers: std::iter::once(base).chain(weights).collect(),
        transferred: Transferred {
            hub_bytes: transfer.hub_bytes.load(Ordering::Relaxed),
            registry_bytes: transfer.registry_bytes.load(Ordering::Relaxed),
        },
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok(output::emit(args.output, &report, || report.text())?)
}

/// Drives `work` until it ends or the user stops it.
async fn until<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Problem> {
    stop.run_until_cancelled(work).await.ok_or_else(Problem::interrupted)
}

/// The image that the destination's tag names now, if it is one of ours. Anything else only costs the reuse.
async fn previous(destination: &Destination, progress: &Progress) -> Option<Image> {
    match image::read(&destination.source(), destination.tag()).await {
        Ok(image) => Some(image),
        Err(error) => {
            let is_missing = |error: &RegistryError| error.is_not_found() || error.is_unauthorized();
            if !error.chain().any(|cause| cause.downcast_ref().is_some_and(is_missing)) {
                progress.say(&format!("nothing of the present {destination} is reused: {error:#}"));
            }
            None
        }
    }
}

/// For each weight layer the one that the previous image has and the destination still holds.
async fn reusable_layers(
    selection: &Selection,
    previous: Option<&Image>,
    destination: &Destination,
) -> Result<Vec<Option<Reusable>>, RegistryError> {
    let Selection { plan, remote } = selection;
    let Some(previous) = previous else { return Ok(vec![None; plan.weight_layers.len()]) };
    let found = reuse::reusable_layers(plan, remote, &previous.model);
    let still_there = found.into_iter().map(|layer| async move {
        match layer {
            Some(layer) if destination.has_blob(&oci_digest(layer.digest)).await? => Ok(Some(layer)),
            _ => Ok(None),
        }
    });
    futures_util::stream::iter(still_there).buffered(QUESTIONS_AT_ONCE).try_collect().await
}

/// Bytes and digests of the files in the base layer, in the plan's order.
async fn small_files(
    transfer: &Arc<Transfer>,
    previous: Option<&Image>,
) -> anyhow::Result<Vec<(Vec<u8>, FileDigests)>> {
    let Selection { plan, remote } = &transfer.selection;
    let fetch = plan.base_files().map(|n| async move {
        let known = previous
            .and_then(|old| reuse::small_file(&plan.files[n].path, &remote[n], &old.model, &old.base));
        match known {
            Some(known) => Ok(known),
            None => transfer.fetch_small(n).await,
        }
    });
    futures_util::stream::iter(fetch).buffered(SMALL_FILES_AT_ONCE).try_collect().await
}

/// Builds base layer, configurations, manifests and index from what was read.
fn build(
    transfer: &Transfer,
    small: Vec<(Vec<u8>, FileDigests)>,
    weights: &[Reusable],
) -> anyhow::Result<Artifact> {
    let plan = &transfer.selection.plan;
    let (data, small): (Vec<Vec<u8>>, Vec<FileDigests>) = small.into_iter().unzip();
    let mut digests: Vec<Option<FileDigests>> = vec![None; plan.files.len()];
    for (n, file) in plan.base_files().zip(small) {
        digests[n] = Some(file);
    }
    for (layer, made) in plan.weight_layers.iter().zip(weights) {
        for (&n, file) in layer.files.iter().zip(&made.files) {
            digests[n] = Some(file.clone());
        }
    }
    let digests: Vec<FileDigests> =
        digests.into_iter().map(|file| file.expect("every file is in some layer")).collect();
    let layers: Vec<Sha256> = weights.iter().map(|layer| layer.digest).collect();
    Ok(assemble(plan, &digests, &layers, &data, source::provenance(&transfer.listing))?)
}

/// Writes what `artifact` holds, the tag last. Whether the base layer was there already.
async fn publish(transfer: &Transfer, artifact: &Artifact) -> Result<bool, RegistryError> {
    let destination = &transfer.destination;
    let sent = |blob: &Blob| transfer.registry_bytes.fetch_add(blob.bytes.len() as u64, Ordering::Relaxed);
    let mut was_there = Vec::new();
    for blob in std::iter::once(&artifact.base).chain(&artifact.configs) {
        let digest = oci_digest(blob.digest);
        was_there.push(destination.has_blob(&digest).await?);
        if was_there.last() == Some(&false) {
            destination.put_blob(&digest, Bytes::copy_from_slice(&blob.bytes)).await?;
            sent(blob);
        }
    }
    for manifest in &artifact.manifests {
        let bytes = Bytes::copy_from_slice(&manifest.bytes);
        destination.put_manifest(manifest.media_type, bytes, &oci_digest(manifest.digest)).await?;
        sent(manifest);
    }
    destination.publish(Bytes::copy_from_slice(&artifact.index.bytes), INDEX_TYPE).await?;
    sent(&artifact.index);
    Ok(was_there[0])
}
