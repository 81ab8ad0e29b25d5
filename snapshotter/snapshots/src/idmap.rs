//! The labels that describe a user namespace.

use crate::record::Labels;

/// Label with the user id mappings: `container:host:count`, separated by commas.
pub(crate) const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// Label with the group id mappings, in the same form.
pub(crate) const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// Mappings per label: the kernel takes 340 extents in a namespace (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_EXTENTS: usize = 340;

/// The id that means "no id" to the kernel.
const INVALID_ID: u32 = u32::MAX;

/// The labels do not say who root is outside.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum IdMapError {
    #[error("a mapping is not container:host:count")]
    Malformed,
    #[error("more than {MAX_EXTENTS} mappings")]
    TooMany,
    #[error("root of the container is not mapped")]
    RootUnmapped,
}

/// The user and group that root of the container is outside, if the labels describe a user namespace.
///
/// A label that is absent maps every id to itself.
pub(crate) fn root_owner(labels: &Labels) -> Result<Option<(u32, u32)>, IdMapError> {
    let (uid, gid) = (labels.get(UID_MAPPING), labels.get(GID_MAPPING));
    if uid.is_none() && gid.is_none() {
        return Ok(None);
    }
    let root = |mappings: Option<&String>| mappings.map_or(Ok(0), |mappings| host_of_root(mappings));
    Ok(Some((root(uid)?, root(gid)?)))
}

fn host_of_root(mappings: &str) -> Result<u32, IdMapError> {
    let mut root = None;
    for (n, mapping) in mappings.split(',').enumerate() {
        if n == MAX_EXTENTS {
            return Err(IdMapError::TooMany);
        }
        let (container, host, count) = parse(mapping).ok_or(IdMapError::Malformed)?;
        if container == 0 && count > 0 && root.is_none() {
            root = Some(host);
        }
    }
    root.ok_or(IdMapError::RootUnmapped)
}

fn parse(mapping: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = mapping.split(':').map(|number| {
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        number.parse().ok().filter(|&id| digits && id != INVALID_ID)
    });
    let mapping = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uid: Option<&str>, gid: Option<&str>, expected: Result<Option<(u32, u32)>, IdMapError>) {
        let pairs = [(UID_MAPPING, uid), (GID_MAPPING, gid)];
        let labels = pairs.into_iter().filter_map(|(key, value)| Some((key.into(), value?.into()))).collect();
        assert_eq!(root_owner(&labels), expected, "{uid:?} {gid:?}");
    }

    #[test]
    fn root_is_found_or_refused() {
        check(None, None, Ok(None));
        check(Some("0:1000:65536"), None, Ok(Some((1000, 0))));
        check(Some("0:1000:65536"), Some("0:2000:1"), Ok(Some((1000, 2000))));
        check(Some("5:9:1,0:1000:10"), Some("0:0:1"), Ok(Some((1000, 0))));
        check(Some("1:1000:65536"), None, Err(IdMapError::RootUnmapped));
        check(Some("0:1000:0"), None, Err(IdMapError::RootUnmapped));
        for bad in
            ["", "0", "0:1", "0:1:2:3", "0:-1:2", "0:+1:2", "0:4294967295:1", "0:99999999999:1", "0: 1:2"]
        {
            check(Some(bad), None, Err(IdMapError::Malformed));
        }
        check(Some(&vec!["0:1:1"; MAX_EXTENTS].join(",")), None, Ok(Some((1, 0))));
        check(Some(&vec!["0:1:1"; MAX_EXTENTS + 1].join(",")), None, Err(IdMapError::TooMany));
    }
}
