//! How a snapshot is mounted. Pure: paths in, mounts out.

use std::path::PathBuf;

use crate::idmap::{GID_MAPPING, UID_MAPPING};
use crate::record::{Kind, Labels};

/// A mount for containerd to make, in the words of mount(8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) kind: &'static str,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// One snapshot with its layers in place.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub(crate) kind: Kind,
    /// The snapshot's own directory, for an active snapshot or one without parents.
    pub(crate) upper: String,
    pub(crate) work: String,
    /// Directories of the parents, nearest first.
    pub(crate) lowers: Vec<String>,
    /// Whether this is a pod's volume and `lowers` is exactly the directory of a model, and how that is kept unchanged.
    pub(crate) model_volume: Option<Guard>,
    /// `uidmap=` and `gidmap=` where containerd is to map ids.
    pub(crate) remap: Vec<String>,
    /// What every overlay on this host needs.
    pub(crate) overlay_options: Vec<String>,
}

/// What keeps the files of a model volume as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The mount option `ro`.
    ReadOnlyMount,
    /// The file system itself; see [`crate::Models::refuses_changes`].
    FileSystem,
}

impl Layers {
    /// Exactly one mount: containerd's differ takes no more, and image volumes have no mount manager below 2.4.
    ///
    /// Only views and model volumes carry `ro`. A Prepare for extraction never does: containerd from 2.4 on takes
    /// `ro` there to mean that the layer is in place already.
    pub(crate) fn mount(self) -> Mount {
        let Self { kind, upper, work, lowers, model_volume, remap, overlay_options } = self;
        if let Some(guard) = model_volume {
            // No id mapping: files are world-readable, and FUSE refuses id-mapped mounts unless it asked for them.
            let source = lowers.into_iter().next().expect("a model volume has a directory");
            let options = match guard {
                Guard::ReadOnlyMount => vec!["rbind".into(), "ro".into()],
                Guard::FileSystem => vec!["rbind".into()],
            };
            return Mount { kind: "bind", source, options };
        }
        let bind = |source: String, mode: &str| {
            let options = remap.iter().cloned().chain([mode.to_owned(), "rbind".to_owned()]).collect();
            Mount { kind: "bind", source, options }
        };
        match (kind, lowers.as_slice()) {
            (Kind::Active, []) => bind(upper, "rw"),
            (_, []) => bind(upper, "ro"),
            (Kind::View | Kind::Committed, [only]) => bind(only.clone(), "ro"),
            (kind, _) => {
                let mut options = remap;
                if kind == Kind::Active {
                    options.push(format!("workdir={work}"));
                    options.push(format!("upperdir={upper}"));
                }
                options.push(format!("lowerdir={}", lowers.join(":")));
                options.extend(overlay_options);
                Mount { kind: "overlay", source: "overlay".to_owned(), options }
            }
        }
    }
}

/// `uidmap=` and `gidmap=` for the mappings in `labels`.
pub(crate) fn remap_options(labels: &Labels) -> Vec<String> {
    let option = |name, label| labels.get(label).map(|mappings| format!("{name}={mappings}"));
    [option("uidmap", UID_MAPPING), option("gidmap", GID_MAPPING)].into_iter().flatten().collect()
}

/// `path` as a text that overlayfs takes as a lower directory as it is.
pub(crate) fn overlay_path(path: PathBuf) -> Result<String, PathBuf> {
    let text = path.into_os_string().into_string().map_err(PathBuf::from)?;
    let plain = !text.contains([',', ':', '\\', '"']) && !text.contains(char::is_control);
    if text.starts_with('/') && plain { Ok(text) } else { Err(PathBuf::from(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(kind: Kind, lowers: &[&str]) -> Layers {
        Layers {
            kind,
            upper: "/r/9/fs".into(),
            work: "/r/9/work".into(),
            lowers: lowers.iter().map(|&lower| lower.to_owned()).collect(),
            model_volume: None,
            remap: Vec::new(),
            overlay_options: vec!["index=off".into()],
        }
    }

    #[track_caller]
    fn check(layers: Layers, kind: &str, source: &str, options: &[&str]) {
        let mount = layers.mount();
        assert_eq!((mount.kind, mount.source.as_str()), (kind, source));
        assert_eq!(mount.options, options);
    }

    #[test]
    fn mounts_follow_kind_and_parents() {
        check(layers(Kind::Active, &[]), "bind", "/r/9/fs", &["rw", "rbind"]);
        check(layers(Kind::View, &[]), "bind", "/r/9/fs", &["ro", "rbind"]);
        check(layers(Kind::View, &["/r/1/fs"]), "bind", "/r/1/fs", &["ro", "rbind"]);
        let lowers = ["/r/2/fs", "/r/1/fs"];
        let view = &["lowerdir=/r/2/fs:/r/1/fs", "index=off"];
        check(layers(Kind::View, &lowers), "overlay", "overlay", view);
        let active = ["workdir=/r/9/work", "upperdir=/r/9/fs", "lowerdir=/r/2/fs:/r/1/fs", "index=off"];
        check(layers(Kind::Active, &lowers), "overlay", "overlay", &active);
    }

    #[test]
    fn a_model_volume_is_one_read_only_bind() {
        let volume = |guard| Layers { model_volume: Some(guard), ..layers(Kind::Active, &["/m/a"]) };
        check(volume(Guard::ReadOnlyMount), "bind", "/m/a", &["rbind", "ro"]);
        check(volume(Guard::FileSystem), "bind", "/m/a", &["rbind"]);
    }

    #[test]
    fn mappings_go_first() {
        let labels =
            Labels::from([(UID_MAPPING.into(), "0:1:2,3:4:5".into()), (GID_MAPPING.into(), "0:6:7".into())]);
        let remap = remap_options(&labels);
        let bind = Layers { remap, ..layers(Kind::Active, &[]) };
        check(bind, "bind", "/r/9/fs", &["uidmap=0:1:2,3:4:5", "gidmap=0:6:7", "rw", "rbind"]);
        assert!(remap_options(&Labels::new()).is_empty());
    }

    #[test]
    fn awkward_paths_are_no_lower_directories() {
        for bad in ["", "a", "/a,b", "/a:b", "/a\\b", "/a\nb", "/a\"b"] {
            assert!(overlay_path(bad.into()).is_err(), "{bad}");
        }
        assert_eq!(overlay_path("/a b/ü".into()).as_deref(), Ok("/a b/ü"));
    }
}
