//! `towline containerd-config`: what containerd must be told so that images reach the daemon lazily.

use std::path::Path;

use crate::args::{ContainerdConfigArgs, ContainerdVersion};
use crate::error::Problem;

/// Name of the snapshotter in containerd's configuration.
const NAME: &str = "towline";

/// Prints the fragment that `args` ask for.
///
/// # Errors
/// As [`render`], and faults of stdout.
pub(crate) fn run(args: &ContainerdConfigArgs) -> anyhow::Result<()> {
    crate::output::write(&render(args)?)?;
    Ok(())
}

/// The fragment as TOML, a comment on every line that is not plain.
///
/// # Errors
/// [`Problem`] for paths that are not absolute or cannot stand in a TOML literal string.
fn render(args: &ContainerdConfigArgs) -> Result<String, Problem> {
    let socket = literal("--snapshotter-socket", &args.snapshotter_socket)?;
    let root = literal("--root", &args.root)?;
    let release = args.containerd.release();
    // containerd 2.3 brought configuration version 4 and still reads version 3; older releases know 3 at most
    // (containerd RELEASES.md, "Daemon Configuration").
    let version = match args.containerd {
        ContainerdVersion::V2_1 | ContainerdVersion::V2_2 => 3,
        ContainerdVersion::V2_3 | ContainerdVersion::V2_4 => 4,
    };
    let lines: &[(&str, &str)] = &[
        (&format!("# Towline as the snapshotter of containerd {release}."), ""),
        ("# Merge into /etc/containerd/config.toml, start towlined, then restart containerd.", ""),
        (&format!("version = {version}"), "version of the configuration file, once per file"),
        ("", ""),
        (&format!("[proxy_plugins.{NAME}]"), "a snapshotter served by another process"),
        ("  type = 'snapshot'", "the kind of plugin it is"),
        (&format!("  address = {socket}"), "where towlined listens"),
        (&format!("[proxy_plugins.{NAME}.exports]"), "what containerd may know about it"),
        (&format!("  root = {root}"), "must exist; the kubelet's disk statistics are taken from here"),
        (
            "  enable_remote_snapshot_annotations = 'true'",
            "names image and layer to towlined; without it containerd downloads all layers itself",
        ),
        ("", ""),
        ("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]", "pulls may unpack into Towline"),
        ("  platform = 'linux'", "with this machine's architecture"),
        (&format!("  snapshotter = '{NAME}'"), "the plugin above"),
        ("  differ = 'walking'", "containerd's own, for the layers of ordinary images"),
        ("", ""),
        (
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
            "any entry replaces the built-in list:",
        ),
        ("  platform = 'linux'", "so list overlayfs again,"),
        ("  snapshotter = 'overlayfs'", "for those who ask for it by name"),
        ("  differ = 'walking'", "as built in"),
        ("", ""),
        ("[plugins.'io.containerd.cri.v1.images']", "images and image volumes of pods"),
        (&format!("  snapshotter = '{NAME}'"), "the node's default; there is no choice per image or volume"),
        ("", ""),
        (
            "# Leave these at their defaults in [plugins.'io.containerd.cri.v1.images']; a change makes containerd use its",
            "",
        ),
        (
            "# older pull: disable_snapshot_annotations, discard_unpacked_layers, max_concurrent_downloads.",
            "",
        ),
    ];
    Ok(lines.iter().map(|&(text, comment)| line(text, comment)).collect())
}

fn line(text: &str, comment: &str) -> String {
    /// Column of the comments; longer lines push theirs to the right.
    const COLUMN: usize = 48;
    if comment.is_empty() { format!("{text}\n") } else { format!("{text:COLUMN$} # {comment}\n") }
}

/// `path` as a TOML literal string, which has no escapes.
fn literal(option: &str, path: &Path) -> Result<String, Problem> {
    let text = path.to_str().filter(|text| !text.contains('\'') && !text.contains(char::is_control));
    match text {
        Some(text) if path.is_absolute() => Ok(format!("'{text}'")),
        Some(_) => Err(Problem::usage(format!("{option} {} is not an absolute path", path.display()))),
        None => Err(Problem::usage(format!("{option} has a quote, a control character or is not UTF-8"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(containerd: ContainerdVersion, socket: &str) -> ContainerdConfigArgs {
        ContainerdConfigArgs { snapshotter_socket: socket.into(), root: "/data/towline".into(), containerd }
    }

    #[track_caller]
    fn check(containerd: ContainerdVersion, version: i64) {
        let text = render(&args(containerd, "/run/t.sock")).unwrap();
        let toml: toml::Table = text.parse().expect("valid TOML");
        assert_eq!(toml["version"].as_integer(), Some(version));
        let plugin = &toml["proxy_plugins"]["towline"];
        assert_eq!(plugin["address"].as_str(), Some("/run/t.sock"));
        assert_eq!(plugin["exports"]["root"].as_str(), Some("/data/towline"));
        assert_eq!(plugin["exports"]["enable_remote_snapshot_annotations"].as_str(), Some("true"));
        let unpack = toml["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"].as_array().unwrap();
        let names: Vec<_> = unpack.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
        assert_eq!(names, ["towline", "overlayfs"]);
        assert_eq!(toml["plugins"]["io.containerd.cri.v1.images"]["snapshotter"].as_str(), Some("towline"));
    }

    #[test]
    fn every_release_gets_a_version_it_reads() {
        check(ContainerdVersion::V2_1, 3);
        check(ContainerdVersion::V2_2, 3);
        check(ContainerdVersion::V2_3, 4);
        check(ContainerdVersion::V2_4, 4);
    }

    #[test]
    fn paths_cannot_break_out_of_the_string() {
        for socket in ["relative.sock", "/run/'x", "/run/\nx"] {
            assert!(render(&args(ContainerdVersion::V2_4, socket)).is_err(), "{socket:?}");
        }
    }
}
