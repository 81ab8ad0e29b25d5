//! `towline mount` and `towline unmount`: a model at a directory of this machine.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use towline_proto::control::v1::{MountRequest, UnmountRequest};

use crate::args::{MountArgs, UnmountArgs};
use crate::daemon::{self, Model, PATIENT, check_reference, refusal};
use crate::error::Problem;
use crate::output::{self, clean, size};

/// The result as JSON (docs/cli.md).
#[derive(Debug, Serialize)]
struct Mounted {
    directory: String,
    #[serde(flatten)]
    model: Model,
}

/// Has the daemon mount a model.
///
/// # Errors
/// When the reference is no model, the directory cannot take a mount, or the daemon cannot be asked.
pub(crate) async fn mount(args: MountArgs) -> anyhow::Result<()> {
    check_reference(&args.image)?;
    let directory = text_of(&existing(&args.directory)?)?;
    let doing = || format!("mount {} at {}", args.image, clean(&directory));
    let mut client = daemon::client(&args.daemon.control, PATIENT).await?;
    let request = MountRequest { reference: args.image.clone(), directory: directory.clone() };
    let answer = client.mount(request).await.map_err(|status| refusal(&status)).with_context(doing)?;
    let model: Model = answer.into_inner().model.unwrap_or_default().into();
    let text = format!(
        "{} is mounted at {}, {} of {} here\n",
        model.name(),
        clean(&directory),
        size(model.bytes_local),
        size(model.bytes)
    );
    Ok(output::emit(args.output, &Mounted { directory, model }, || text)?)
}

/// Has the daemon take a mount away.
///
/// # Errors
/// When it is none of the daemon's, is in use, or the daemon cannot be asked.
pub(crate) async fn unmount(args: UnmountArgs) -> anyhow::Result<()> {
    let directory = text_of(&mount_point(&args.directory)?)?;
    let doing = || format!("unmount {}", clean(&directory));
    let mut client = daemon::client(&args.daemon.control, PATIENT).await?;
    let request = UnmountRequest { directory: directory.clone() };
    client.unmount(request).await.map_err(|status| refusal(&status)).with_context(doing)?;
    Ok(output::emit(args.output, &serde_json::json!({ "unmounted": directory }), String::new)?)
}

/// The directory as the daemon is told it: absolute, without symbolic links.
fn existing(directory: &Path) -> Result<PathBuf, Problem> {
    let refused = |why: String| Problem::usage(format!("directory {}: {why}", shown(directory)));
    match std::fs::canonicalize(directory) {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(refused("not a directory".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(refused(error.to_string()).hint(format!("make it first: mkdir -p {}", shown(directory))))
        }
        Err(error) => Err(refused(error.to_string())),
    }
}

/// As [`existing`], but without a look at the directory itself: what is mounted there may not answer.
fn mount_point(directory: &Path) -> Result<PathBuf, Problem> {
    let refused = |error: std::io::Error| Problem::usage(format!("directory {}: {error}", shown(directory)));
    let absolute = std::path::absolute(directory).map_err(refused)?;
    let Some((parent, name)) = absolute.parent().zip(absolute.file_name()) else { return Ok(absolute) };
    // A parent that is gone cannot have symbolic links; the daemon knows the directory by its name.
    Ok(std::fs::canonicalize(parent).map_or_else(|_| absolute.clone(), |parent| parent.join(name)))
}

fn text_of(directory: &Path) -> Result<String, Problem> {
    let text = directory.to_str().map(str::to_owned);
    text.ok_or_else(|| Problem::usage(format!("directory {}: the path is not UTF-8", shown(directory))))
}

fn shown(directory: &Path) -> String {
    clean(&directory.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_told_absolute_paths_without_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        std::fs::write(root.join("file"), b"").unwrap();
        assert_eq!(existing(&root.join("link/b/")).unwrap(), root.join("a/b"));
        assert_eq!(mount_point(&root.join("link/b/")).unwrap(), root.join("a/b"));
        assert_eq!(mount_point(&root.join("gone/b")).unwrap(), root.join("gone/b"));
        assert!(existing(&root.join("file")).unwrap_err().to_string().contains("not a directory"));
        assert!(existing(&root.join("gone")).unwrap_err().to_string().contains("No such file"));
    }
}
