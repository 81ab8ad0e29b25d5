//! What a conversion tells: the JSON contract of docs/cli.md, and text for people.

use serde::Serialize;
use towline_hub::Listing;

use super::reuse::Reusable;
use super::selection::Selection;
use crate::output::{Align, count, size, table};
use crate::source::hub_name;

/// Where the files came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SourceReport {
    hub: &'static str,
    repo: String,
    revision: String,
    commit: String,
}

impl SourceReport {
    /// The source of `listing`.
    pub(crate) fn new(listing: &Listing) -> Self {
        Self {
            hub: hub_name(listing.hub),
            repo: listing.repo.clone(),
            revision: listing.revision.clone(),
            commit: listing.commit.clone(),
        }
    }
}

/// A layer of the published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LayerReport {
    pub(crate) digest: String,
    /// Bytes of the blob.
    pub(crate) size: u64,
    /// How many files it holds.
    pub(crate) files: usize,
    /// The destination had the blob.
    pub(crate) reused: bool,
}

/// Bytes that were moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Transferred {
    /// Bytes of files read from the hub.
    pub(crate) hub_bytes: u64,
    /// Bytes of blobs and manifests written to the destination.
    pub(crate) registry_bytes: u64,
}

/// A finished conversion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// `repository@digest`.
    pub(crate) reference: String,
    /// Digest of the image index.
    pub(crate) digest: String,
    pub(crate) source: SourceReport,
    /// Files of the model; the index that is added to them does not count.
    pub(crate) files: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Base layer first.
    pub(crate) layers: Vec<LayerReport>,
    pub(crate) transferred: Transferred,
    pub(crate) elapsed_ms: u64,
}

impl Report {
    /// For people; the last line is the reference alone.
    pub(crate) fn text(&self) -> String {
        let reused = self.layers.iter().filter(|layer| layer.reused).count();
        format!(
            "{}, {} in {} ({reused} reused); {} read, {} written, {:.1} s\n{}\n",
            count(self.files, "file"),
            size(self.bytes),
            count(self.layers.len(), "layer"),
            size(self.transferred.hub_bytes),
            size(self.transferred.registry_bytes),
            std::time::Duration::from_millis(self.elapsed_ms).as_secs_f64(),
            self.reference,
        )
    }
}

/// A layer as it would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PlannedLayer {
    /// Known only when the layer is reused.
    digest: Option<String>,
    /// Bytes of the blob; of the base layer those of its files, because its index is not known yet.
    size: u64,
    files: Vec<String>,
    reused: bool,
}

/// What a conversion would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DryRun {
    dry_run: bool,
    source: SourceReport,
    files: usize,
    bytes: u64,
    layers: Vec<PlannedLayer>,
    /// Bytes of layers that would be read and written.
    bytes_to_move: u64,
}

impl DryRun {
    /// Lists the layers of `selection`; `reused` is parallel to its weight layers.
    pub(crate) fn new(listing: &Listing, selection: &Selection, reused: &[Option<Reusable>]) -> Self {
        let plan = &selection.plan;
        let path = |n: usize| plan.files[n].path.clone();
        let base = PlannedLayer {
            digest: None,
            size: plan.base_files().map(|n| plan.files[n].len).sum(),
            files: plan.base_files().map(path).collect(),
            reused: false,
        };
        let weights = plan.weight_layers.iter().zip(reused).map(|(layer, reused)| PlannedLayer {
            digest: reused.as_ref().map(|layer| layer.digest.to_string()),
            size: layer.len,
            files: layer.files.iter().map(|&n| path(n)).collect(),
            reused: reused.is_some(),
        });
        let layers: Vec<PlannedLayer> = std::iter::once(base).chain(weights).collect();
        Self {
            dry_run: true,
            source: SourceReport::new(listing),
            files: plan.files.len(),
            bytes: plan.total_len(),
            bytes_to_move: layers.iter().filter(|layer| !layer.reused).map(|layer| layer.size).sum(),
            layers,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let contents = |layer: &PlannedLayer| match &layer.files[..] {
            [] => String::new(),
            [only] => only.clone(),
            [first, .., last] => format!("{first} … {last}"),
        };
        let row = |(n, layer): (usize, &PlannedLayer)| {
            let action = if layer.reused { "reuse" } else { "move" };
            vec![
                n.to_string(),
                layer.files.len().to_string(),
                size(layer.size),
                action.to_owned(),
                contents(layer),
            ]
        };
        let rows: Vec<Vec<String>> = self.layers.iter().enumerate().map(row).collect();
        let (left, right) = (Align::Left, Align::Right);
        let columns =
            [("LAYER", right), ("FILES", right), ("SIZE", right), ("ACTION", left), ("CONTENTS", left)];
        format!(
            "{}{} at {}: {}, {}; {} to move\n",
            table(&columns, &rows),
            self.source.repo,
            self.source.commit,
            count(self.files, "file"),
            size(self.bytes),
            size(self.bytes_to_move),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_json_is_the_contract() {
        let report = Report {
            reference: "r.example.com/m@sha256:00".into(),
            digest: "sha256:00".into(),
            source: SourceReport {
                hub: "huggingface",
                repo: "a/b".into(),
                revision: "main".into(),
                commit: "c0".into(),
            },
            files: 3,
            bytes: 5 << 20,
            layers: vec![LayerReport { digest: "sha256:11".into(), size: 10, files: 2, reused: false }],
            transferred: Transferred { hub_bytes: 1, registry_bytes: 2 },
            elapsed_ms: 1500,
        };
        let expected = json!({
            "reference": "r.example.com/m@sha256:00",
            "digest": "sha256:00",
            "source": {"hub": "huggingface", "repo": "a/b", "revision": "main", "commit": "c0"},
            "files": 3,
            "bytes": 5 << 20,
            "layers": [{"digest": "sha256:11", "size": 10, "files": 2, "reused": false}],
            "transferred": {"hub_bytes": 1, "registry_bytes": 2},
            "elapsed_ms": 1500,
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let text = report.text();
        assert_eq!(text.lines().last(), Some("r.example.com/m@sha256:00"));
        assert!(
            text.starts_with("3 files, 5.0 MiB in 1 layer (0 reused); 1 B read, 2 B written, 1.5 s\n"),
            "{text}"
        );
    }
}
