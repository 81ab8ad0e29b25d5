//! From a reference to a model that the node knows, without containerd.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;
use towline_artifact::image::VERSION_LABEL;
use towline_artifact::index::FORMAT_VERSION;
use towline_artifact::manifest::{Manifest, oci_architecture};
use towline_artifact::model::MAX_BASE_LEN;
use towline_artifact::{Model, Sha256};
use towline_registry::{Client, Digest, Reference, RegistryError, Repository};

use crate::catalog::{Place, is_full};
use crate::error::{Problem, chain};
use crate::needs::Pin;
use crate::node::Node;

/// How long manifests and base layer may take together. Nobody's garbage collection waits here, as for a claim; a
/// registry that is silent is given up earlier.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(300);
/// Host, port, path, tag and digest at their longest, and then some.
const MAX_REFERENCE_LEN: usize = 1024;

/// An image in a registry, as somebody named it. Prints as one text for all spellings of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    repository: Repository,
    /// A digest wins over a tag.
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Tag(String),
    Digest(String),
}

impl FromStr for ImageName {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let problem = |why: String| {
            Problem::new(Code::InvalidArgument, format!("{:?} is no image reference: {why}", shown(text)))
                .hint("name the image as HOST/REPOSITORY[:TAG][@DIGEST]")
        };
        if text.len() > MAX_REFERENCE_LEN {
            return Err(problem(format!("longer than {MAX_REFERENCE_LEN} bytes")));
        }
        let reference: Reference = text.parse().map_err(|error| problem(chain(&error)))?;
        let repository = Repository::try_from(&reference).map_err(|error| problem(chain(&error)))?;
        let version = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => Version::Digest(digest.to_owned()),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { repository, version })
    }
}

fn shown(text: &str) -> String {
    text.chars().take(256).collect()
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

impl ImageName {
    /// Makes the model of this image known, if it is not, and pins it.
    ///
    /// A tag is looked up at each call. A digest under which a model is held already needs no network.
    pub(crate) async fn resolve(&self, node: &Arc<Node>) -> Result<Pin, Problem> {
        if let Version::Digest(_) = self.version
            && let Some(pin) = node.catalog.pin_held(&self.to_string())
        {
            return Ok(pin);
        }
        match tokio::time::timeout(RESOLVE_TIMEOUT, self.fetch(node)).await {
            Ok(result) => result,
            Err(_) => {
                let text =
                    format!("the base layer of {self} did not come within {} s", RESOLVE_TIMEOUT.as_secs());
                Err(Problem::new(Code::DeadlineExceeded, text))
            }
        }
    }

    async fn fetch(&self, node: &Arc<Node>) -> Result<Pin, Problem> {
        let client = node.origins.client();
        let image = self.image(client).await?;
        let place = Place {
            host: self.repository.host().to_owned(),
            repository: self.repository.path().to_owned(),
            reference: self.to_string(),
            manifest: image.digest.to_string(),
        };
        let bytes = match node.catalog.pin(image.base) {
            Some(pin) => Source::Known(pin),
            None => {
                let blob = image.base.to_string().parse().expect("a digest prints as one");
                let bytes = client.blob_verified(&self.repository, &blob, MAX_BASE_LEN).await;
                Source::Fetched(bytes.map_err(|error| self.unreadable(&error))?)
            }
        };
        let (name, node) = (self.clone(), Arc::clone(node));
        let adding = tokio::task::spawn_blocking(move || name.add(&node, &image, place, bytes));
        adding.await.map_err(|_| Problem::new(Code::Internal, "the model could not be read"))?
    }

    /// The manifest for this machine.
    async fn image(&self, client: &Client) -> Result<Image, Problem> {
        let (Version::Tag(version) | Version::Digest(version)) = &self.version;
        let mut document = self.document(client, version).await?;
        if document.1.is_index() {
            let chosen = document.1.choose(oci_architecture(std::env::consts::ARCH));
            let chosen = chosen.ok_or_else(|| self.foreign())?;
            document = self.document(client, &chosen.to_string()).await?;
        }
        let (digest, manifest) = document;
        let (base, version) = manifest.base_layer().ok_or_else(|| self.foreign())?;
        if version.parse() != Ok(FORMAT_VERSION) {
            let text =
                format!("{self} has format version {:?}, this build reads {FORMAT_VERSION}", shown(version));
            return Err(Problem::new(Code::FailedPrecondition, text).hint("update towlined on this node"));
        }
        Ok(Image { digest, base, manifest })
    }

    async fn document(&self, client: &Client, version: &str) -> Result<(Digest, Manifest), Problem> {
        let document = client.manifest(&self.repository, version).await;
        let document = document.map_err(|error| self.unreadable(&error))?;
        let manifest = Manifest::parse(&document.bytes, &document.media_type).map_err(|error| {
            Problem::new(Code::DataLoss, format!("the manifest of {self} cannot be read: {error}"))
        })?;
        Ok((document.digest, manifest))
    }

    fn add(&self, node: &Node, image: &Image, place: Place, source: Source) -> Result<Pin, Problem> {
        let contradiction = || {
            let text = format!("the layers of {self} are not those that the index in its base layer names");
            Problem::new(Code::DataLoss, text).hint("package the model again with `towline convert`")
        };
        let pin = match source {
            Source::Known(pin) => {
                if !image.manifest.has_layers_of(&pin.model) {
                    return Err(contradiction());
                }
                node.catalog.add_place(&pin, place).map_err(|error| unwritten(&error))?;
                pin
            }
            Source::Fetched(bytes) => {
                let model = Model::read(&bytes).map_err(|error| {
                    Problem::new(Code::DataLoss, format!("the base layer of {self}: {}", chain(&error)))
                })?;
                if !image.manifest.has_layers_of(&model) {
                    return Err(contradiction());
                }
                let pin = node.catalog.add_pinned(&bytes, model, place).map_err(|error| unwritten(&error))?;
                tracing::info!(
                    model = %pin.model.base, repository = pin.model.source.repo, commit = pin.model.source.commit,
                    files = pin.model.files.len(), bytes = pin.model.total_len(), image = %self, "model is known"
                );
                pin
            }
        };
        node.origins.add(&pin);
        Ok(pin)
    }

    fn foreign(&self) -> Problem {
        let text = format!("{self} is not an image that towline made: its first layer lacks {VERSION_LABEL}");
        Problem::new(Code::FailedPrecondition, text).hint("package the model with `towline convert`")
    }

    fn unreadable(&self, error: &RegistryError) -> Problem {
        let host = self.repository.host();
        let text = chain(error);
        match error {
            RegistryError::DigestMismatch { .. } => Problem::new(Code::DataLoss, text),
            RegistryError::Name(_) => Problem::new(Code::InvalidArgument, text),
            error if error.is_unauthorized() => Problem::new(Code::PermissionDenied, text).hint(format!(
                "`docker login {host}` writes credentials; towlined reads the file that registry.docker_config names"
            )),
            error if error.is_not_found() => Problem::new(Code::NotFound, text)
                .hint(format!("check the name with `towline inspect {self}`")),
            error => Problem { hint: error.hint(), ..Problem::new(Code::Unavailable, text) },
        }
    }
}

/// A manifest of ours, by its own account.
struct Image {
    digest: Digest,
    base: Sha256,
    manifest: Manifest,
}

/// Where the model of an image comes from.
enum Source {
    Known(Pin),
    /// The base layer, its digest checked.
    Fetched(Vec<u8>),
}

/// The catalogue could not write.
pub(crate) fn unwritten(error: &anyhow::Error) -> Problem {
    let code = if is_full(error) { Code::ResourceExhausted } else { Code::Internal };
    Problem::new(code, format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let name: ImageName = text.parse().unwrap();
        assert_eq!(name.to_string(), expected);
        assert_eq!(expected.parse::<ImageName>().unwrap(), name, "as printed");
    }

    #[test]
    fn one_image_has_one_name() {
        let digest = format!("sha256:{}", "0".repeat(64));
        check("r.example.com/a/b:v1", "r.example.com/a/b:v1");
        check("r.example.com/a/b", "r.example.com/a/b:latest");
        check("127.0.0.1:5000/m:v1", "127.0.0.1:5000/m:v1");
        check(&format!("r.example.com/a:v1@{digest}"), &format!("r.example.com/a@{digest}"));
        check("ubuntu", "docker.io/library/ubuntu:latest");
    }

    #[test]
    fn what_is_no_reference_is_said_in_one_sentence() {
        let long = format!("r.example.com/{}", "a/".repeat(1000));
        for text in ["", "oci:./out:v1", "https://r.example.com/a", "r.example.com/A", &long] {
            let problem = text.parse::<ImageName>().unwrap_err();
            assert_eq!(problem.code, Code::InvalidArgument, "{text}");
            assert!(
                problem.text.contains("is no image reference: ") && problem.text.len() < 500,
                "{problem}"
            );
            assert!(problem.hint.is_some());
        }
    }
}
