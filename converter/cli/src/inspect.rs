//! `towline inspect`: an image read back.

use anyhow::Context;
use serde::Serialize;
use towline_artifact::{Model, ModelFile, Provenance};
use towline_registry::ImageSource;

use crate::args::InspectArgs;
use crate::image::{self, Image};
use crate::output::{self, Align, clean, count, size, table};
use crate::registry;

/// An image as JSON (docs/cli.md).
#[derive(Debug, Serialize)]
struct Inspection<'a> {
    digest: String,
    source: &'a Provenance,
    bytes: u64,
    layers: Vec<Layer>,
    files: Vec<File<'a>>,
}

#[derive(Debug, Serialize)]
struct Layer {
    digest: String,
    size: u64,
    files: usize,
}

#[derive(Debug, Serialize)]
struct File<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    links: &'a [String],
    size: u64,
    executable: bool,
    sha256: String,
    /// BLAKE3 of the file, as `b3sum` prints it.
    content: String,
    layer: usize,
}

/// Prints the image that `args` name.
///
/// # Errors
/// When it cannot be read or is not one of ours.
pub(crate) async fn run(args: InspectArgs) -> anyhow::Result<()> {
    let (source, name) = ImageSource::parse(&args.image, &registry::client(&args.registry)?)?;
    let image = image::read(&source, &name).await.with_context(|| format!("inspect {}", args.image))?;
    let inspection = Inspection::new(&image);
    Ok(output::emit(args.output, &inspection, || inspection.text())?)
}

/// The files of the model, without the index that was added to them.
pub(crate) fn own_files(model: &Model) -> impl Iterator<Item = &ModelFile> {
    model.files.iter().filter(|file| !file.path.starts_with(".towline/"))
}

impl<'a> Inspection<'a> {
    fn new(image: &'a Image) -> Self {
        let model = &image.model;
        let in_layer = |n: usize| own_files(model).filter(|file| file.layer == n).count();
        let base = (model.base, model.base_len);
        let weights = model.layers.iter().map(|layer| (layer.digest, layer.size));
        let layers = std::iter::once(base).chain(weights).enumerate();
        let files = own_files(model).map(|file| File {
            path: &file.path,
            links: &file.links,
            size: file.table.file_len(),
            executable: file.executable,
            sha256: file.sha256.to_string(),
            content: file.table.content().to_string(),
            layer: file.layer,
        });
        Self {
            digest: image.digest.to_string(),
            source: &model.source,
            bytes: model.total_len(),
            layers: layers
                .map(|(n, (digest, size))| Layer { digest: digest.to_string(), size, files: in_layer(n) })
                .collect(),
            files: files.collect(),
        }
    }

    fn text(&self) -> String {
        let (left, right) = (Align::Left, Align::Right);
        let source = self.source;
        let from = if source.repo.is_empty() {
            source.hub.clone()
        } else {
            format!("{} {}", source.hub, source.repo)
        };
        let facts = [
            ("digest", Some(self.digest.clone())),
            ("source", Some(from)),
            ("commit", Some(source.commit.clone())),
            ("created", source.created.clone()),
            ("licence", source.licence.clone()),
            ("page", source.url.clone()),
            ("size", Some(format!("{}, {}", count(self.files.len(), "file"), size(self.bytes)))),
        ];
        let facts =
            facts.into_iter().filter_map(|(name, value)| Some(format!("{name:8} {}\n", clean(&value?))));
        let layers: Vec<Vec<String>> = self
            .layers
            .iter()
            .enumerate()
            .map(|(n, layer)| {
                vec![n.to_string(), size(layer.size), layer.files.to_string(), layer.digest.clone()]
            })
            .collect();
        let files: Vec<Vec<String>> = self
            .files
            .iter()
            .map(|file| {
                vec![file.layer.to_string(), size(file.size), file.sha256.clone(), file.path.to_owned()]
            })
            .collect();
        format!(
            "{}\n{}\n{}",
            facts.collect::<String>(),
            table(&[("LAYER", right), ("SIZE", right), ("FILES", right), ("DIGEST", left)], &layers),
            table(&[("LAYER", right), ("SIZE", right), ("SHA-256", left), ("PATH", left)], &files),
        )
    }
}
