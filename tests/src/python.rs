//! Loading a model with its own Python library, on the machine and in a pod.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cache;
use crate::pod::{Spec, Volume, host_libraries};

/// Loads the sentence encoder in a directory and prints the embedding of a sentence.
const EMBED: &str = include_str!("../python/embed.py");

/// The sentence that is embedded.
const SENTENCE: &str = "a small boat can tow a large ship";

/// An embedding, and how long it took to get to it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Embedding {
    /// The vector.
    pub embedding: Vec<f32>,
    /// Seconds to load the model.
    pub load_s: f64,
}

impl Embedding {
    /// Reads what the script printed, its last line.
    ///
    /// # Errors
    /// Where that is something else.
    pub fn parse(output: &str) -> Result<Self> {
        let line = output.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("not an embedding: {output}"))
    }
}

/// The embedding by the model in `dir`, computed on this machine.
///
/// # Errors
/// Where Python fails, with what it said.
pub async fn embed(dir: &Path) -> Result<Embedding> {
    let mut command = tokio::process::Command::new(cache::venv()?.join("bin/python3"));
    command.args(["-c", EMBED]).arg(dir).arg(SENTENCE).envs(environment());
    let output = command.output().await.context("run Python")?;
    if !output.status.success() {
        bail!("embed with {}: {}", dir.display(), String::from_utf8_lossy(&output.stderr));
    }
    Embedding::parse(&String::from_utf8_lossy(&output.stdout))
}

/// A pod that does the same with the model in the image volume `reference`; its output is for [`Embedding::parse`].
///
/// The pod image has no Python: the machine's interpreter and the environment are mounted read-only.
///
/// # Errors
/// Where the environment is missing.
pub fn embedding_pod(name: &str, image: &str, reference: &str) -> Result<Spec> {
    let venv = cache::venv()?;
    let at = venv.display().to_string();
    let python = format!("{at}/bin/python3");
    let mut mounts = host_libraries();
    // Debian's BLAS is found through /etc/alternatives and the linker's cache.
    for path in ["/etc/alternatives", "/etc/ld.so.cache"] {
        if Path::new(path).exists() {
            mounts.push(Volume::host(path, path));
        }
    }
    mounts.push(Volume::host(venv, &at));
    mounts.push(Volume::image(reference, "/model"));
    Ok(Spec {
        name: name.to_owned(),
        image: image.to_owned(),
        command: [python.as_str(), "-c", EMBED, "/model", SENTENCE].map(str::to_owned).into(),
        env: environment().into(),
        mounts,
    })
}

/// No network, no progress bars, no byte code written beside read-only sources, one thread so that sums have one order.
fn environment() -> [(String, String); 6] {
    [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("OMP_NUM_THREADS", "1"),
        ("HOME", "/tmp"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
}
