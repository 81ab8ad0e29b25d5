//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Package models from Hugging Face, ModelScope or a directory as OCI images, and look after them.
#[derive(Debug, Parser)]
#[command(name = "towline", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Convert(ConvertArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Status(StatusArgs),
    Prefetch(PrefetchArgs),
    Release(ReleaseArgs),
    Mount(MountArgs),
    Unmount(UnmountArgs),
    Peers(PeersArgs),
    ContainerdConfig(ContainerdConfigArgs),
}

/// How results are written to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object, described in docs/cli.md.
    Json,
}

/// Package a model and push it.
///
/// The revision is resolved to a commit once, every byte is checked against the hub's own hashes, and nothing is published
/// before all of them agreed. Weights stream through memory; none are written to disk. The same input gives the same image.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline convert hf://Qwen/Qwen3-8B@main registry.example.com/models/qwen3-8b:v1
  towline convert modelscope://Qwen/Qwen3-8B registry.example.com/models/qwen3-8b:v1
  towline convert --include '*.json' --include '*.safetensors' hf://org/name oci:./out:v1
  towline convert --dry-run dir:./my-model oci:./out:latest

Tokens and endpoints come from where the native tools keep them: HF_TOKEN, HF_TOKEN_PATH,
HF_HOME, HF_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT; for registries from
`docker login`.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 130 interrupted.")]
pub(crate) struct ConvertArgs {
    /// What to package: hf://ORG/NAME[@REVISION], modelscope://ORG/NAME[@REVISION] or dir:PATH
    pub(crate) source: String,
    /// Where to put it: HOST/REPOSITORY[:TAG], or oci:DIR[:TAG] for an OCI layout on disk
    #[arg(value_name = "REF")]
    pub(crate) destination: String,
    /// Take only files that match; `*` also matches `/`, a final `/` means everything below
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Leave out files that match, even if included
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Put all files below this directory of the image, e.g. `models` for KServe
    #[arg(long, value_name = "DIR")]
    pub(crate) prefix: Option<String>,
    /// Package matching files although their format can run code when it is loaded (pickle and the like)
    #[arg(long, value_name = "GLOB")]
    pub(crate) allow_unsafe: Vec<String>,
    /// Files that are moved at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,
    /// Read everything from the hub again, also what the previous image under REF already holds
    #[arg(long)]
    pub(crate) no_reuse: bool,
    /// Only print which layers there would be
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How registries are reached.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct RegistryArgs {
    /// Speak plain HTTP to this registry; loopback addresses need no such leave
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) plain_http: Vec<String>,
}

/// Show what a packaged model holds and where it comes from.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline inspect registry.example.com/models/qwen3-8b:v1
  towline inspect --output json oci:./out:minilm")]
pub(crate) struct InspectArgs {
    /// The image: HOST/REPOSITORY[:TAG][@DIGEST] or oci:DIR[:TAG]
    #[arg(value_name = "REF")]
    pub(crate) image: String,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Compare a packaged model with its hub, without downloading weights.
///
/// Lists the repository again at the commit that the image names and compares every path, length and hash. Small files whose
/// listing has only a git hash are hashed from the image.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline verify registry.example.com/models/qwen3-8b:v1
  towline verify --source dir:./my-model oci:./out:latest")]
pub(crate) struct VerifyArgs {
    /// The image: HOST/REPOSITORY[:TAG][@DIGEST] or oci:DIR[:TAG]
    #[arg(value_name = "REF")]
    pub(crate) image: String,
    /// Compare with this source instead of the one the image names; needed for directories
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// Directory of the image that holds the files, as given to `convert --prefix`
    #[arg(long, value_name = "DIR")]
    pub(crate) prefix: Option<String>,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Show the models of this node and how far they are.
#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Refresh every second until interrupted; with JSON one object a line
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// How the daemon of this node is reached.
#[derive(Debug, ClapArgs)]
pub(crate) struct DaemonArgs {
    /// The daemon's control socket
    #[arg(long, value_name = "SOCKET", env = "TOWLINE_CONTROL", default_value = "/run/towline/control.sock")]
    pub(crate) control: PathBuf,
}

/// Fetch a model to this node and keep it, without containerd.
///
/// The daemon looks the reference up, fetches the whole model in the background, and keeps it until `towline release`,
/// restarts included. A tag is looked up each time; if it was moved, the node keeps what it names now instead.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline prefetch registry.example.com/models/qwen3-8b:v1
  towline prefetch --wait registry.example.com/models/qwen3-8b@sha256:<digest>
  towline prefetch --wait --output json registry.example.com/models/qwen3-8b:v1

Without --wait the command ends as soon as the model is known and kept; `towline status`
shows how far it is. With --wait it ends when every byte is here, verified and durable,
however often fetches fail on the way. Interrupting it does not end the fetch.

Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted.")]
pub(crate) struct PrefetchArgs {
    /// The image: HOST/REPOSITORY[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    pub(crate) image: String,
    /// Wait until every byte is here
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Give up what prefetch keeps.
///
/// The bytes go when nothing else needs them: no other reference, no mount, no image of containerd's. Needs no registry.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline release registry.example.com/models/qwen3-8b:v1")]
pub(crate) struct ReleaseArgs {
    /// The image, as given to prefetch
    #[arg(value_name = "REF")]
    pub(crate) image: String,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Mount a model at a directory of this machine, without containerd.
///
/// The directory shows the files of the model read-only, at once: reads of bytes that are not here yet wait for them. The
/// mount is made again when the daemon restarts and stays until `towline unmount`.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  mkdir -p /mnt/qwen && towline mount registry.example.com/models/qwen3-8b:v1 /mnt/qwen
  docker run --rm -v /mnt/qwen:/model:ro busybox ls /model

The mount alone fetches what is read and, unless fetch.fill is off, the rest in the background.
A model that is complete when it is mounted is a plain directory and needs no daemon to be read.")]
pub(crate) struct MountArgs {
    /// The image: HOST/REPOSITORY[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    pub(crate) image: String,
    /// Where to mount it: an existing, empty directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// End a mount that `towline mount` made.
///
/// A mount that is in use stays. The bytes go when nothing else needs them. Needs no registry.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  towline unmount /mnt/qwen")]
pub(crate) struct UnmountArgs {
    /// The directory, as given to mount
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Show the nodes that this one exchanges pieces with.
///
/// The first line is this node, with the bytes of all peers since the daemon started.
#[derive(Debug, ClapArgs)]
pub(crate) struct PeersArgs {
    /// How to write the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// Print the configuration that containerd needs.
///
/// A fragment of TOML: the daemon as a snapshotter, pulls that unpack into it, and pods that use it.
#[derive(Debug, ClapArgs)]
pub(crate) struct ContainerdConfigArgs {
    /// The socket on which towlined serves containerd
    #[arg(long, value_name = "SOCKET", default_value = "/run/towline/snapshotter.sock")]
    pub(crate) snapshotter_socket: PathBuf,
    /// The daemon's directory for data
    #[arg(long, value_name = "DIR", default_value = "/var/lib/towline")]
    pub(crate) root: PathBuf,
    /// The release of containerd
    #[arg(long, value_enum, value_name = "RELEASE", default_value = "2.4")]
    pub(crate) containerd: ContainerdVersion,
}

/// Releases of containerd that can serve image volumes lazily.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContainerdVersion {
    #[value(name = "2.1")]
    V2_1,
    #[value(name = "2.2")]
    V2_2,
    #[value(name = "2.3")]
    V2_3,
    #[value(name = "2.4")]
    V2_4,
}

impl ContainerdVersion {
    /// As written on the command line.
    pub(crate) fn release(self) -> &'static str {
        match self {
            Self::V2_1 => "2.1",
            Self::V2_2 => "2.2",
            Self::V2_3 => "2.3",
            Self::V2_4 => "2.4",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_option_takes_a_secret() {
        for command in Args::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(!["token", "password", "secret"].iter().any(|word| name.contains(word)), "{name}");
            }
        }
    }

    #[track_caller]
    fn check(line: &str, accepted: bool) {
        assert_eq!(Args::try_parse_from(line.split(' ')).is_ok(), accepted, "{line}");
    }

    #[test]
    fn what_is_accepted() {
        check("towline convert hf://a/b r.example.com/x:1", true);
        check(
            "towline convert --include a --include b --exclude c --jobs 8 --output json hf://a/b oci:d:t",
            true,
        );
        check("towline convert hf://a/b", false);
        check("towline convert --jobs 0 hf://a/b oci:d:t", false);
        check("towline convert --jobs 65 hf://a/b oci:d:t", false);
        check("towline convert --output yaml hf://a/b oci:d:t", false);
        check("towline containerd-config --containerd 2.2", true);
        check("towline containerd-config --containerd 1.7", false);
        check("towline prefetch --wait --output json r.example.com/x:1 --control /s", true);
        check("towline prefetch", false);
        check("towline release r.example.com/x:1", true);
        check("towline mount r.example.com/x:1 /mnt/x", true);
        check("towline mount r.example.com/x:1", false);
        check("towline unmount /mnt/x", true);
        check("towline peers --output json", true);
        check("towline", false);
    }
}
