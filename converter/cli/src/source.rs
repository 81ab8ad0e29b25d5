//! Hubs as this command sets them up, and their names in images and reports.

use towline_artifact::Provenance;
use towline_hub::{HubKind, HubSettings, Listing, RepoKind, Source, SourceRef};

/// Connects to the hub of `source` with the endpoints and tokens of its native tools.
///
/// # Errors
/// Settings that cannot be used, and a system without certificates.
pub(crate) fn connect(source: &SourceRef) -> anyhow::Result<Source> {
    let settings = HubSettings::from_env(|name| std::env::var(name).ok())?;
    Ok(Source::connect(source, &settings)?)
}

/// The hub's name in an index (docs/format.md, `source.hub`).
pub(crate) fn hub_name(hub: HubKind) -> &'static str {
    match hub {
        HubKind::HuggingFace => "huggingface",
        HubKind::ModelScope => "modelscope",
        HubKind::Directory => "directory",
    }
}

/// Where the files come from, as the image tells it. A directory's path is this machine's business and stays out.
pub(crate) fn provenance(listing: &Listing) -> Provenance {
    let is_directory = listing.hub == HubKind::Directory;
    Provenance {
        hub: hub_name(listing.hub).to_owned(),
        kind: match listing.kind {
            RepoKind::Model => "model".to_owned(),
            RepoKind::Dataset => "dataset".to_owned(),
        },
        repo: if is_directory { String::new() } else { listing.repo.clone() },
        commit: listing.commit.clone(),
        created: listing.created.clone(),
        licence: listing.licence.clone(),
        url: page(listing),
    }
}

/// The repository's page on the public hub at this commit. Not from the endpoint in use: through a mirror the same
/// commit must give the same image.
fn page(listing: &Listing) -> Option<String> {
    let Listing { repo, commit, .. } = listing;
    match (listing.hub, listing.kind) {
        (HubKind::HuggingFace, RepoKind::Model) => {
            Some(format!("https://huggingface.co/{repo}/tree/{commit}"))
        }
        (HubKind::HuggingFace, RepoKind::Dataset) => {
            Some(format!("https://huggingface.co/datasets/{repo}/tree/{commit}"))
        }
        (HubKind::ModelScope, RepoKind::Model) => {
            Some(format!("https://www.modelscope.cn/models/{repo}/files?version={commit}"))
        }
        (HubKind::ModelScope, RepoKind::Dataset) => {
            Some(format!("https://www.modelscope.cn/datasets/{repo}/files?version={commit}"))
        }
        (HubKind::Directory, _) => None,
    }
}

/// The source that `provenance` names; `None` for a directory or a hub this build does not know.
pub(crate) fn source_text(provenance: &Provenance) -> Option<String> {
    let scheme = match provenance.hub.as_str() {
        "huggingface" => "hf",
        "modelscope" => "modelscope",
        _ => return None,
    };
    let kind = if provenance.kind == "dataset" { "datasets/" } else { "" };
    Some(format!("{scheme}://{kind}{}@{}", provenance.repo, provenance.commit))
}
