//! The converter, run as its users run it: `towline convert SOURCE REF --output json`.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cache;
use crate::hub::Hub;

/// What the converter prints; docs/cli.md has the contract.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Converted {
    /// `repository@digest`.
    pub reference: String,
    /// Digest of the image index.
    pub digest: String,
    /// Where the files came from.
    pub source: Source,
    /// Files of the model.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Base layer first.
    pub layers: Vec<Layer>,
    /// What was moved.
    pub transferred: Transferred,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `huggingface`, `modelscope` or `directory`.
    pub hub: String,
    /// Repository or path.
    pub repo: String,
    /// As asked.
    pub revision: String,
    /// What the revision was at that moment.
    pub commit: String,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// Files in it.
    pub files: u64,
    /// Whether the destination had it.
    pub reused: bool,
}

/// Bytes moved.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transferred {
    /// Read from the hub.
    pub hub_bytes: u64,
    /// Written to the registry.
    pub registry_bytes: u64,
}

/// The built `towline`, with both hubs' endpoints at the stand-in and nothing of the caller's hub settings.
///
/// # Errors
/// Where it was not built.
pub fn towline(hub: Option<&Hub>) -> Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(cache::own("towline")?);
    if let Some(hub) = hub {
        for name in ["HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"]
        {
            command.env_remove(name);
        }
        command.env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        command.env("HF_ENDPOINT", hub.url()).env("MODELSCOPE_ENDPOINT", hub.url());
    }
    command.kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

/// Converts and returns what the converter printed.
///
/// # Errors
/// With the converter's own words and exit code, where it fails.
pub async fn convert(hub: Option<&Hub>, source: &str, target: &str, options: &[&str]) -> Result<Converted> {
    let mut command = towline(hub)?;
    run(command.args(["convert", source, target]).args(options)).await
}

/// Runs a prepared `towline convert`, for its JSON.
///
/// # Errors
/// As [`convert`]; what goes to standard error only where the caller has not put it elsewhere.
pub async fn run(command: &mut tokio::process::Command) -> Result<Converted> {
    let output = command.args(["--output", "json"]).output().await.context("run towline")?;
    if !output.status.success() {
        let code = output.status.code().unwrap_or(-1);
        bail!("towline convert: exit {code}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("output of towline convert")
}

/// `dir:` and the path.
#[must_use]
pub fn directory(path: &Path) -> String {
    format!("dir:{}", path.display())
}
