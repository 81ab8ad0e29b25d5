//! What the kernel is told about an inode, and for how long it may believe it.

use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo};

use crate::{Attr, Ino, Kind, ROOT};

/// How long the kernel may keep what cannot change: a year, which is to say for ever.
const IMMUTABLE_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long it may keep names in the root and the root's own attributes. A model tree that goes away without
/// `Mount::forget_entry` is gone for new lookups after this.
const ROOT_TTL: Duration = Duration::from_secs(1);

/// The generation of every inode: numbers are never reused.
pub(crate) const GENERATION: Generation = Generation(0);

pub(crate) fn entry_ttl(parent: Ino) -> Duration {
    if parent == ROOT { ROOT_TTL } else { IMMUTABLE_TTL }
}

pub(crate) fn attr_ttl(ino: Ino) -> Duration {
    if ino == ROOT { ROOT_TTL } else { IMMUTABLE_TTL }
}

pub(crate) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

pub(crate) fn file_attr(attr: Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: if attr.kind == Kind::Directory || attr.executable { 0o755 } else { 0o644 },
        nlink: attr.links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_canonical() {
        let attr = |kind, size, executable| file_attr(Attr { ino: 5, kind, size, executable, links: 2 });
        for (kind, size, executable, perm, blocks) in [
            (Kind::Directory, 0, false, 0o755, 0),
            (Kind::File, 0, false, 0o644, 0),
            (Kind::File, 1, false, 0o644, 1),
            (Kind::File, 512, true, 0o755, 1),
            (Kind::File, 513, true, 0o755, 2),
        ] {
            let attr = attr(kind, size, executable);
            assert_eq!((attr.perm, attr.blocks, attr.uid, attr.gid), (perm, blocks, 0, 0));
            assert_eq!(
                (attr.mtime, attr.ctime, attr.atime, attr.nlink),
                (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, 2)
            );
        }
    }
}
