//! Where the parts that `tests/setup.sh` fetched and built are, and where our own binaries are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The cache directory: `TOWLINE_CACHE`, or `/var/cache/towline`, as in `tests/setup.sh`.
#[must_use]
pub fn dir() -> PathBuf {
    std::env::var_os("TOWLINE_CACHE").map_or_else(|| PathBuf::from("/var/cache/towline"), PathBuf::from)
}

/// A program that `tests/setup.sh` built into the cache, `containerd` for example.
///
/// # Errors
/// Where it is missing, with the command that builds it.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = dir().join("bin").join(name);
    if !path.is_file() {
        bail!("{} is missing: run tests/setup.sh test", path.display());
    }
    Ok(path)
}

/// The directory of the built tools, to be put in front of a `PATH`.
#[must_use]
pub fn tools_dir() -> PathBuf {
    dir().join("bin")
}

/// The Python environment that `tests/setup.sh` made.
///
/// # Errors
/// Where it is missing, with the command that makes it.
pub fn venv() -> Result<PathBuf> {
    let path = dir().join("venv");
    if !path.join("bin/python3").exists() {
        bail!("{} is missing: run tests/setup.sh test", path.display());
    }
    Ok(path)
}

/// One of this workspace's own binaries, `towlined` or `tl-reader` for example, beside the running program.
///
/// Test programs run in `target/release/deps`, binaries in `target/release`; both are looked at.
///
/// # Errors
/// Where it was not built.
pub fn own(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let found = program.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let near = program.parent().unwrap_or(Path::new("/"));
        format!("{name} was not built (looked near {}): run cargo build --release", near.display())
    })
}
