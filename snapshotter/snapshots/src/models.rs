//! The seam to whatever serves model images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the daemon does for the layers of model images.
///
/// Calls may be dropped at any `.await`: containerd gives up, or a deadline of [`crate::Options`] passes.
#[tonic::async_trait]
pub trait Models: Send + Sync + 'static {
    /// Decides whether a layer is served from a model instead of being downloaded and unpacked by containerd.
    ///
    /// Asked for every extraction with a chain id, also when the chain has a snapshot already: another image, or the
    /// same one in another registry, may bring a new source for the same content. Everything in `claim` is a hint
    /// from a stranger and proves nothing. containerd holds a lock meanwhile, so answer within seconds.
    ///
    /// # Errors
    /// A [`Refusal`] fails the pull. [`Claim::NotOurs`] lets containerd download the layer.
    async fn claim(&self, claim: &LayerClaim) -> Result<Claim, Refusal>;

    /// The directory that shows the files of the model chain ending in `chain`, which [`Models::claim`] accepted
    /// earlier, perhaps in a previous run of the daemon. Must not need the network.
    ///
    /// The path is absolute; where ordinary layers lie above, it also must not hold `,`, `:`, `\` or `"`.
    ///
    /// # Errors
    /// A [`Refusal`] fails the mount.
    async fn directory(&self, chain: &str) -> Result<PathBuf, Refusal>;

    /// Whether the file system at `directory`, which [`Models::directory`] gave, refuses every change by itself.
    ///
    /// A volume then needs no `ro`, and does without: the kubelet asks for an SELinux relabel of image volumes, and
    /// containerd tolerates ENOTSUP from it, which such a file system can answer, but not EROFS, which a read-only
    /// mount answers before anybody is asked.
    fn refuses_changes(&self, _directory: &Path) -> bool {
        false
    }

    /// No snapshot of `chain` is left and none is being made. Also called for chains whose claim was dropped, so
    /// `chain` may be unknown. Quick, and must not call back: heavy work belongs in [`Models::cleanup`].
    fn forget(&self, chain: &str);

    /// Frees what [`Models::forget`] left behind. Holds no lock of containerd.
    async fn cleanup(&self);

    /// Usage of the committed snapshot of `chain`, without its parents: bytes on disk and inodes. From memory only.
    fn usage(&self, chain: &str) -> (i64, i64);
}

/// What containerd says about a layer it is about to extract. None of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerClaim {
    /// The chain id containerd wants (label `containerd.io/snapshot.ref`): `sha256:` and 64 lower-case hex digits.
    pub chain_id: String,
    /// The chain id of the parent, if the parent is a model snapshot.
    pub parent_chain: Option<String>,
    /// Whether the parent is a snapshot that containerd unpacked.
    pub parent_is_ordinary: bool,
    /// All labels of the request, at most 512 KiB.
    pub labels: BTreeMap<String, String>,
}

/// The answer to a [`LayerClaim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// containerd downloads and unpacks the layer as usual.
    NotOurs,
    /// The layer's files are, or will be, in the directory of its chain. Nothing is downloaded by containerd.
    Accepted,
}

/// Why a model layer cannot be claimed or mounted. The message reaches containerd, and pod events, as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of failure it is, for whoever decides on a retry.
    pub kind: RefusalKind,
    /// One lowercase sentence without secrets.
    pub message: String,
}

impl Refusal {
    /// A refusal of `kind` that says `message`.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The kinds of [`Refusal`], one per gRPC code that containerd tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request contradicts itself or the image is malformed.
    InvalidArgument,
    /// The model is not known on this node.
    NotFound,
    /// The node or the image is not in the state that this needs.
    FailedPrecondition,
    /// The credentials at hand do not allow it.
    PermissionDenied,
    /// A limit of the node is reached.
    ResourceExhausted,
    /// It may work later.
    Unavailable,
    /// Content does not match its digest.
    DataLoss,
    /// A fault of ours.
    Internal,
}
