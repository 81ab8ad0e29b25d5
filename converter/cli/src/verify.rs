//! `towline verify`: an image against the hub's own listing, without downloading weights.

use std::collections::HashMap;

use anyhow::Context;
use futures_util::TryStreamExt;
use serde::Serialize;
use towline_artifact::ModelFile;
use towline_hub::{FileHash, HashCheck, RemoteFile, SourceRef};
use towline_registry::ImageSource;

use crate::args::VerifyArgs;
use crate::error::Problem;
use crate::image::{self, Image};
use crate::inspect::own_files;
use crate::output::{self, count};
use crate::{oci_digest, registry, source};

/// The outcome as JSON (docs/cli.md).
#[derive(Debug, Serialize)]
struct Verification {
    digest: String,
    source: String,
    commit: String,
    /// Files of the image that are as the hub lists them.
    verified: usize,
    /// Files of the hub that the image does not hold: left out when it was made.
    left_out: usize,
    /// Files of the image that differ, and how.
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Difference {
    path: String,
    what: String,
}

/// What a file's listing says about the image's file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Differs(String),
    /// The listing has only a git hash, for which the bytes are needed.
    Unknown,
}

/// Compares the image that `args` name with its hub.
///
/// # Errors
/// When either cannot be read, or a file of the image is not as the hub lists it.
pub(crate) async fn run(args: VerifyArgs) -> anyhow::Result<()> {
    let (store, name) = ImageSource::parse(&args.image, &registry::client(&args.registry)?)?;
    let image = image::read(&store, &name).await.with_context(|| format!("read {}", args.image))?;
    let provenance = &image.model.source;
    let text = args.source.clone().or_else(|| source::source_text(provenance)).ok_or_else(|| {
        Problem::usage(format!(
            "the image was made from a {}, which it does not name",
            output::clean(&provenance.hub)
        ))
        .hint("say where the files are, for example with --source dir:PATH")
    })?;
    let source_ref: SourceRef = text.parse()?;
    let listing =
        source::connect(&source_ref)?.resolve().await.with_context(|| format!("list {source_ref}"))?;
    if listing.commit != provenance.commit {
        let text = format!(
            "image has commit {}, {source_ref} is at {}",
            output::clean(&provenance.commit),
            listing.commit
        );
        return Err(Problem::failed(text).into());
    }
    let prefix = args.prefix.as_deref().map(|prefix| format!("{}/", prefix.trim_end_matches('/')));
    let listed: HashMap<String, &RemoteFile> = listing
        .files
        .iter()
        .map(|file| (format!("{}{}", prefix.as_deref().unwrap_or(""), file.path), file))
        .collect();
    let mut differences = Vec::new();
    let mut verified = 0;
    for file in own_files(&image.model) {
        let verdict = match listed.get(&file.path) {
            None => Verdict::Differs("is not in the repository".to_owned()),
            Some(remote) => match compare(file, remote) {
                Verdict::Unknown => hash(&image, file, remote, &store).await?,
                known => known,
            },
        };
        match verdict {
            Verdict::Differs(what) => differences.push(Difference { path: file.path.clone(), what }),
            _ => verified += 1,
        }
    }
    let left_out = listed
        .len()
        .saturating_sub(verified + differences.iter().filter(|d| listed.contains_key(&d.path)).count());
    let outcome = Verification {
        digest: image.digest.to_string(),
        source: source_ref.to_string(),
        commit: listing.commit.clone(),
        verified,
        left_out,
        differences,
    };
    output::emit(args.output, &outcome, || outcome.text())?;
    match outcome.differences.len() {
        0 => Ok(()),
        n => Err(Problem::failed(format!("{} differ from {source_ref}", count(n, "file"))).into()),
    }
}

fn compare(file: &ModelFile, remote: &RemoteFile) -> Verdict {
    if file.table.file_len() != remote.size {
        return Verdict::Differs(format!(
            "has {} bytes, the hub lists {}",
            file.table.file_len(),
            remote.size
        ));
    }
    if file.executable != remote.executable {
        return Verdict::Differs("has another mode than the hub lists".to_owned());
    }
    match remote.hash {
        FileHash::Sha256(listed) if file.sha256.0 == listed => Verdict::Same,
        FileHash::Sha256(listed) => {
            Verdict::Differs(format!("is {}, the hub lists sha256:{}", file.sha256, hex::encode(listed)))
        }
        FileHash::GitBlobSha1(_) => Verdict::Unknown,
    }
}

/// Hashes the image's own bytes of a file for which the hub has only a git hash; such files are small.
async fn hash(
    image: &Image,
    file: &ModelFile,
    remote: &RemoteFile,
    store: &ImageSource,
) -> anyhow::Result<Verdict> {
    let mut check = HashCheck::new(remote);
    let range = file.layer_range();
    if file.layer == 0 {
        let at = |offset: u64| usize::try_from(offset).expect("the base layer is in memory");
        check.update(&image.base[at(range.start)..at(range.end)]);
    } else {
        let digest = image.model.layer_digest(file.layer).expect("the model checked the layers of its files");
        let reading = || format!("read {:?} from layer {digest}", file.path);
        let mut body = store.blob_range(&oci_digest(digest), range).await.with_context(reading)?;
        while let Some(bytes) = body.try_next().await.with_context(reading)? {
            check.update(&bytes);
        }
    }
    Ok(match check.finish() {
        Ok(sha256) if sha256 == file.sha256.0 => Verdict::Same,
        Ok(_) => Verdict::Differs("has another SHA-256 than the index of the image says".to_owned()),
        Err(error) => Verdict::Differs(error.to_string()),
    })
}

impl Verification {
    fn text(&self) -> String {
        let differences: String =
            self.differences.iter().map(|d| format!("differs: {:?} {}\n", d.path, d.what)).collect();
        // A directory does not name its commit.
        let at =
            if self.source.ends_with(&self.commit) { String::new() } else { format!(" at {}", self.commit) };
        format!(
            "{differences}{} as listed by {}{at}; {} of the repository left out\n{}\n",
            count(self.verified, "file"),
            self.source,
            count(self.left_out, "file"),
            self.digest
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::memory::digest_file;

    #[test]
    fn a_file_is_compared_with_its_listing() {
        let digests = digest_file(b"weights");
        let file = ModelFile {
            path: "w".into(),
            links: Vec::new(),
            executable: false,
            sha256: digests.sha256,
            table: digests.table.into(),
            layer: 1,
            offset: 512,
        };
        let remote = |size, hash| RemoteFile { path: "w".into(), size, executable: false, hash };
        assert_eq!(compare(&file, &remote(7, FileHash::Sha256(file.sha256.0))), Verdict::Same);
        assert_eq!(compare(&file, &remote(7, FileHash::GitBlobSha1([0; 20]))), Verdict::Unknown);
        assert!(matches!(compare(&file, &remote(8, FileHash::Sha256(file.sha256.0))), Verdict::Differs(_)));
        assert!(matches!(compare(&file, &remote(7, FileHash::Sha256([0; 32]))), Verdict::Differs(_)));
        let runs = RemoteFile { executable: true, ..remote(7, FileHash::Sha256(file.sha256.0)) };
        assert!(matches!(compare(&file, &runs), Verdict::Differs(_)));
    }
}
