//! Bounds on what callers send, and what their keys mean.

use std::collections::HashMap;

use crate::error::SnapshotError;
use crate::record::Labels;

/// Bytes of a key, name or parent: a path of 4096 bytes (image volumes) behind a namespace and a number, doubled.
const MAX_KEY_LEN: usize = 8 << 10;
/// Bytes of one label, key and value together: containerd's own limit.
const MAX_LABEL_LEN: usize = 4096;
/// Bytes of all labels of a snapshot: twice the 256 KiB that Kubernetes allows for the annotations of a pod, which
/// containerd may copy here.
const MAX_LABELS_LEN: usize = 512 << 10;
/// Paths of an update mask.
const MAX_MASK_PATHS: usize = 1024;

/// Label with the chain id that an extraction will be committed as.
pub(crate) const CHAIN_LABEL: &str = "containerd.io/snapshot.ref";
/// Prefix of the labels that images and containerd address to snapshotters.
const SNAPSHOT_LABEL_PREFIX: &str = "containerd.io/snapshot/";

/// Checks a key, name or parent; `what` names it in the error.
pub(crate) fn check_key(what: &'static str, key: &str) -> Result<(), SnapshotError> {
    if key.is_empty() {
        return Err(SnapshotError::Missing(what));
    }
    check_len(what, key.len(), MAX_KEY_LEN)
}

/// Checks a parent, where empty means none.
pub(crate) fn check_parent(parent: String) -> Result<Option<String>, SnapshotError> {
    check_len("parent", parent.len(), MAX_KEY_LEN)?;
    Ok(Some(parent).filter(|parent| !parent.is_empty()))
}

/// Checks the number of paths of an update mask.
pub(crate) fn check_mask(paths: &[String]) -> Result<(), SnapshotError> {
    check_len("update mask", paths.len(), MAX_MASK_PATHS)
}

/// Checks labels and drops empty ones, which containerd's stores do not keep either.
pub(crate) fn check_labels(labels: HashMap<String, String>) -> Result<Labels, SnapshotError> {
    let labels: Labels = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    check_label_sizes(&labels)?;
    Ok(labels)
}

/// Checks the sizes of labels, one by one and together.
pub(crate) fn check_label_sizes(labels: &Labels) -> Result<(), SnapshotError> {
    let mut total = 0;
    for (key, value) in labels {
        check_len("label", key.len() + value.len(), MAX_LABEL_LEN)?;
        total += key.len() + value.len();
    }
    check_len("labels", total, MAX_LABELS_LEN)
}

fn check_len(what: &'static str, found: usize, limit: usize) -> Result<(), SnapshotError> {
    if found > limit { Err(SnapshotError::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// The labels that a model snapshot keeps: those addressed to snapshotters.
pub(crate) fn snapshot_labels(mut labels: Labels) -> Labels {
    labels.retain(|key, _| key == CHAIN_LABEL || key.starts_with(SNAPSHOT_LABEL_PREFIX));
    labels
}

/// The chain id of an extraction, if it is one: `sha256:` and 64 lower-case hex digits.
pub(crate) fn chain_id(labels: &Labels) -> Option<&str> {
    let chain = labels.get(CHAIN_LABEL)?;
    let digits = chain.strip_prefix("sha256:")?;
    let hex = digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hex.then_some(chain)
}

/// What a snapshot is for, as its key tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// containerd is about to unpack a layer.
    Extraction,
    /// The kubelet asked for an image as a volume of a pod.
    ImageVolume,
    /// A container's root file system, or anything else.
    Other,
}

impl Purpose {
    /// Reads `<namespace>/<number>/<key>`, the form containerd's metadata store gives keys, or a plain key.
    ///
    /// Extraction keys start with `extract-`; the key of an image volume is the absolute path of its mount point,
    /// `.../image-volumes/<sandbox>/<image>`. Pod annotations can forge labels, but not keys.
    pub(crate) fn of(key: &str) -> Self {
        let mut parts = key.splitn(3, '/');
        let (_namespace, number, rest) = (parts.next(), parts.next(), parts.next());
        let numbered = number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let client_key = rest.filter(|_| numbered && !key.starts_with('/')).unwrap_or(key);
        if client_key.starts_with("extract-") {
            Self::Extraction
        } else if client_key.starts_with('/') && client_key.contains("/image-volumes/") {
            Self::ImageVolume
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_the_purpose() {
        let check = |key, expected| assert_eq!(Purpose::of(key), expected, "{key}");
        check("k8s.io/12/extract-1-abc sha256:00", Purpose::Extraction);
        check("extract-1", Purpose::Extraction);
        check("k8s.io/7//run/containerd/io.containerd.grpc.v1.cri/image-volumes/s/i", Purpose::ImageVolume);
        check("/run/image-volumes/s/i", Purpose::ImageVolume);
        check("k8s.io/7/0123abcd", Purpose::Other);
        check("k8s.io/7/x/extract-1", Purpose::Other);
        check("k8s.io/x/extract-1", Purpose::Other);
        check("k8s.io//extract-1", Purpose::Other);
        check("k8s.io/7/run/image-volumes/s/i", Purpose::Other);
        check("k8s.io/7/extract-1/image-volumes/", Purpose::Extraction);
        check("/7/extract-1", Purpose::Other);
        check("", Purpose::Other);
        check("//", Purpose::Other);
    }

    #[test]
    fn only_chain_ids_are_chain_ids() {
        let of = |text: &str| chain_id(&Labels::from([(CHAIN_LABEL.into(), text.into())])).is_some();
        let good = format!("sha256:{}", "0a".repeat(32));
        assert!(of(&good));
        assert!(!of(&good[..good.len() - 1]));
        assert!(!of(&format!("{good}0")));
        assert!(!of(&good.to_uppercase()));
        assert!(!of(&"x".repeat(71)));
        assert!(!of(""));
        assert!(chain_id(&Labels::new()).is_none());
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(check_key("key", "").is_err());
        assert!(check_key("key", &"k".repeat(MAX_KEY_LEN)).is_ok());
        assert!(check_key("key", &"k".repeat(MAX_KEY_LEN + 1)).is_err());
        let label = |len: usize| HashMap::from([("k".to_owned(), "v".repeat(len - 1))]);
        assert!(check_labels(label(MAX_LABEL_LEN)).is_ok());
        assert!(check_labels(label(MAX_LABEL_LEN + 1)).is_err());
        let many = |count: usize| (0..count).map(|n| (format!("{n:04}"), "v".repeat(4092))).collect();
        assert!(check_labels(many(MAX_LABELS_LEN / 4096)).is_ok());
        assert!(check_labels(many(MAX_LABELS_LEN / 4096 + 1)).is_err());
        assert_eq!(check_labels(HashMap::from([("k".into(), String::new())])).ok(), Some(Labels::new()));
    }
}
