//! What the previous image of the same name spares us.
//!
//! A weight layer is a pure function of its files' paths, modes, links and bytes, so a layer of the previous image that holds
//! the same ones is the layer we would make. "The same bytes" is the SHA-256 that the hub lists against the one that the
//! previous index claims. Files of the base layer are not believed but hashed again: their bytes are in memory anyway.

use std::collections::HashMap;

use towline_artifact::{FileDigests, Model, ModelFile, Plan, Sha256};
use towline_hub::{FileHash, RemoteFile};

use super::hashing::hash_small;

/// A weight layer that need not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reusable {
    /// Its digest.
    pub(crate) digest: Sha256,
    /// Digests of its files, parallel to the planned layer's.
    pub(crate) files: Vec<FileDigests>,
}

/// For each weight layer of `plan` the layer of `previous` that is the same, if there is one.
///
/// `remote` is parallel to `plan.files`. Files whose listing gives no SHA-256 are never found.
pub(crate) fn reusable_layers(plan: &Plan, remote: &[RemoteFile], previous: &Model) -> Vec<Option<Reusable>> {
    let by_path: HashMap<&str, &ModelFile> =
        previous.files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut files_in = vec![0; previous.layers.len() + 1];
    previous.files.iter().for_each(|file| files_in[file.layer] += 1);
    let reusable = |n: usize| {
        let planned = &plan.weight_layers[n];
        let olds: Vec<&ModelFile> = planned
            .files
            .iter()
            .map(|&f| by_path.get(plan.files[f].path.as_str()).copied())
            .collect::<Option<_>>()?;
        let layer = olds.first()?.layer;
        let record = previous.layers.get(layer.checked_sub(1)?)?;
        let same = olds
            .iter()
            .zip(&planned.files)
            .all(|(old, &f)| old.layer == layer && is_same(plan, remote, f, old));
        let digests = olds.iter().map(|old| FileDigests { sha256: old.sha256, table: (*old.table).clone() });
        (same && files_in[layer] == planned.files.len() && record.size == planned.len)
            .then(|| Reusable { digest: record.digest, files: digests.collect() })
    };
    (0..plan.weight_layers.len()).map(reusable).collect()
}

fn is_same(plan: &Plan, remote: &[RemoteFile], n: usize, old: &ModelFile) -> bool {
    let spec = &plan.files[n];
    let FileHash::Sha256(listed) = remote[n].hash else { return false };
    old.sha256.0 == listed
        && old.table.file_len() == spec.len
        && old.links == spec.links
        && old.executable == spec.executable
        && old.offset == plan.places[n].offset
}

/// The bytes of `file` in the previous base layer, if its file at `path` is still what the hub lists.
pub(crate) fn small_file(
    path: &str,
    file: &RemoteFile,
    previous: &Model,
    base: &[u8],
) -> Option<(Vec<u8>, FileDigests)> {
    let at = previous.files.binary_search_by(|old| old.path.as_str().cmp(path)).ok()?;
    let old = previous.files.get(at).filter(|old| old.layer == 0 && old.table.file_len() == file.size)?;
    let range = old.layer_range();
    let bytes = base.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?;
    let digests = hash_small(file, bytes).ok()?;
    Some((bytes.to_vec(), digests))
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::memory::{Package, package};
    use towline_artifact::{FileSpec, PIECE_LEN, Provenance};

    fn bytes(seed: u8) -> Vec<u8> {
        vec![seed; PIECE_LEN as usize + 1]
    }

    fn previous(files: &[(&str, &[u8])]) -> (Package, Model) {
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
        let made = package(files, source).unwrap();
        let model = Model::read(&made.artifact.base.bytes).unwrap();
        (made, model)
    }

    fn remote(path: &str, bytes: &[u8]) -> RemoteFile {
        let hash = FileHash::Sha256(Sha256::of(bytes).0);
        RemoteFile { path: path.into(), size: bytes.len() as u64, executable: false, hash }
    }

    fn plan(files: &[RemoteFile]) -> (Plan, Vec<RemoteFile>) {
        let spec = |file: &RemoteFile| FileSpec {
            executable: file.executable,
            ..FileSpec::new(file.path.clone(), file.size)
        };
        (Plan::new(files.iter().map(spec).collect()).unwrap(), files.to_vec())
    }

    /// Which weight layers of `files` (sorted by path) are found in the image of `old`.
    #[track_caller]
    fn check(old: &[(&str, &[u8])], files: &[RemoteFile], expected: &[bool]) {
        let (made, model) = previous(old);
        let (plan, remote) = plan(files);
        let found = reusable_layers(&plan, &remote, &model);
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), expected);
        for layer in found.into_iter().flatten() {
            assert!(made.weight_layers.iter().any(|(digest, _)| *digest == layer.digest));
        }
    }

    #[test]
    fn a_layer_is_reused_exactly_when_it_would_be_made_again() {
        let (one, two) = (bytes(1), bytes(2));
        let old: [(&str, &[u8]); 3] =
            [("a.safetensors", &one), ("b.safetensors", &two), ("config.json", b"{}")];
        let same = [remote("a.safetensors", &one), remote("b.safetensors", &two)];
        check(&old, &same, &[true, true]);
        check(&old, &[remote("a.safetensors", &two), same[1].clone()], &[false, true]);
        check(&old, &[remote("c.safetensors", &one)], &[false]);
        check(&old, &[RemoteFile { executable: true, ..same[0].clone() }], &[false]);
        check(&old, &[RemoteFile { size: same[0].size + 1, ..same[0].clone() }], &[false]);
        check(&old, &[RemoteFile { hash: FileHash::GitBlobSha1([0; 20]), ..same[0].clone() }], &[false]);
        // In the previous image the file was small and in the base layer.
        check(&[("a", b"x"), ("b", &one)], &[RemoteFile { size: PIECE_LEN, ..remote("a", b"x") }], &[false]);
    }

    #[test]
    fn packed_layers_are_reused_as_a_whole_or_not_at_all() {
        let data: Vec<Vec<u8>> = (0..250u8).map(|n| vec![n; 300_000]).collect();
        let names: Vec<String> = (0..250).map(|n| format!("{n:03}")).collect();
        let old: Vec<(&str, &[u8])> =
            names.iter().zip(&data).map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        let mut files: Vec<RemoteFile> = old.iter().map(|(name, bytes)| remote(name, bytes)).collect();
        let (_, model) = previous(&old);
        let count = |files: &[RemoteFile]| {
            let (plan, remote) = plan(files);
            let found = reusable_layers(&plan, &remote, &model);
            (found.iter().filter(|layer| layer.is_some()).count(), found.len())
        };
        let (found, layers) = count(&files);
        assert!(found == layers && layers == 99);
        files[249].hash = FileHash::Sha256([9; 32]);
        assert_eq!(count(&files), (layers - 1, layers));
    }

    #[test]
    fn small_files_are_hashed_again() {
        let (made, model) = previous(&[("config.json", b"{}"), ("w", &bytes(1))]);
        let base = &made.artifact.base.bytes;
        let found = small_file("config.json", &remote("config.json", b"{}"), &model, base).unwrap();
        assert_eq!((found.0.as_slice(), found.1.sha256), (&b"{}"[..], Sha256::of(b"{}")));
        assert!(small_file("config.json", &remote("config.json", b"[]"), &model, base).is_none());
        assert!(small_file("other.json", &remote("other.json", b"{}"), &model, base).is_none());
        assert!(small_file("w", &remote("w", &bytes(1)), &model, base).is_none());
    }
}
