//! The models of the node as the tree of one FUSE mount: one directory per chain id, named by its 64 hex digits.
//!
//! An inode number holds the model's slot, the layer and the node in the tree, so it means the same after a restart.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use towline_artifact::{PIECE_LEN, Sha256};
use towline_fuse::{Attr, DirEntry, Errno, Ino, Kind, Opened, ROOT, ReadReply, StatFs, Tree};
use towline_modelfs::{FileNode, NodeId, NodeKind, ReadError};

use crate::catalog::KnownModel;
use crate::error::chain;
use crate::node::Node;

/// [`Tree`] over the node.
pub(crate) struct Volumes(pub(crate) Arc<Node>);

const SLOT_SHIFT: u32 = 40;
const LAYER_SHIFT: u32 = 32;

fn ino(slot: u32, layer: usize, node: NodeId) -> Ino {
    u64::from(slot) << SLOT_SHIFT | (layer as u64) << LAYER_SHIFT | u64::from(node.0)
}

/// A place in the tree of one model.
struct Spot {
    known: Arc<KnownModel>,
    layer: usize,
    node: NodeId,
}

impl Spot {
    fn kind(&self) -> Result<&NodeKind, Errno> {
        self.known.tree(self.layer).node(self.node).map(|node| &node.kind).ok_or(Errno::ESTALE)
    }

    fn file(&self) -> Result<FileNode, Errno> {
        match self.kind()? {
            NodeKind::File(file) => Ok(*file),
            NodeKind::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn attr(&self) -> Result<Attr, Errno> {
        let ino = ino(self.known.slot, self.layer, self.node);
        Ok(match self.kind()? {
            NodeKind::Directory(_) => {
                Attr { ino, kind: Kind::Directory, size: 4096, executable: false, links: 2 }
            }
            NodeKind::File(file) => {
                Attr { ino, kind: Kind::File, size: file.len, executable: file.executable, links: file.links }
            }
        })
    }

    fn is_in_base(&self, file: FileNode) -> bool {
        self.known.model.files[file.file].layer == 0
    }
}

/// What to mount for a model up to `layer`: the plain directory of a whole model, else a directory in the FUSE mount.
/// `None` while that is not being served.
pub(crate) fn directory(node: &Node, known: &KnownModel, layer: usize) -> Option<PathBuf> {
    if layer + 1 == known.chains.len()
        && !node.relabels
        && let Some(path) = known.sealed_tree.get()
    {
        return Some(path.clone());
    }
    let mount = node.mount.get().filter(|mount| mount.is_serving())?;
    Some(mount.dir().join(hex::encode(known.chains[layer].0)))
}

impl Volumes {
    fn spot(&self, ino: Ino) -> Result<Spot, Errno> {
        let slot = u32::try_from(ino >> SLOT_SHIFT).map_err(|_| Errno::ESTALE)?;
        let known = self.0.catalog.by_slot(slot).ok_or(Errno::ESTALE)?;
        let layer = (ino >> LAYER_SHIFT & 0xff) as usize;
        if layer >= known.chains.len() {
            return Err(Errno::ESTALE);
        }
        Ok(Spot { known, layer, node: NodeId((ino & 0xffff_ffff) as u32) })
    }

    fn model_root(&self, name: &OsStr) -> Result<Spot, Errno> {
        let chain: Option<Sha256> = name.to_str().and_then(|name| format!("sha256:{name}").parse().ok());
        let (known, layer) = chain.and_then(|chain| self.0.catalog.by_chain(chain)).ok_or(Errno::ENOENT)?;
        Ok(Spot { known, layer, node: NodeId(0) })
    }

    fn read_weights(&self, spot: &Spot, file: FileNode, offset: u64, len: u32, reply: ReadReply) {
        let engine = &self.0.engine;
        let handle = match spot.known.handle(file.file, engine) {
            Ok(handle) => handle,
            Err(error) => {
                tracing::error!(error = chain(&error), "content cannot be opened");
                return reply.error(Errno::EIO);
            }
        };
        let end = offset + u64::from(len);
        match engine.try_read(handle, offset, len) {
            Some(Ok(bytes)) => {
                // Once per piece is enough to keep what follows coming.
                if end.is_multiple_of(PIECE_LEN) || offset.is_multiple_of(PIECE_LEN) {
                    engine.reader_at(handle, end - 1);
                }
                reply.data(bytes.as_ref());
            }
            Some(Err(error)) => fail(&spot.known, file, offset, &error, reply),
            None => {
                let (engine, handle, known) =
                    (Arc::clone(engine), Arc::clone(handle), Arc::clone(&spot.known));
                self.0.runtime.spawn(async move {
                    match engine.read(&handle, offset, len).await {
                        Ok(bytes) => reply.data(bytes.as_ref()),
                        Err(error) => fail(&known, file, offset, &error, reply),
                    }
                });
            }
        }
    }
}

/// The one place where a failed read becomes an errno.
fn fail(known: &KnownModel, file: FileNode, offset: u64, error: &ReadError, reply: ReadReply) {
    let path = &known.model.files[file.file].path;
    tracing::error!(repository = known.model.source.repo, path, offset, error = chain(error), "read failed");
    reply.error(Errno::EIO);
}

impl Tree for Volumes {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, Errno> {
        if parent == ROOT {
            return self.model_root(name)?.attr();
        }
        let spot = self.spot(parent)?;
        if matches!(spot.kind()?, NodeKind::File(_)) {
            return Err(Errno::ENOTDIR);
        }
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let node = spot.known.tree(spot.layer).child(spot.node, name).ok_or(Errno::ENOENT)?;
        Spot { node, ..spot }.attr()
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        match ino {
            ROOT => Ok(Attr { ino, kind: Kind::Directory, size: 4096, executable: false, links: 2 }),
            _ => self.spot(ino)?.attr(),
        }
    }

    fn entries(&self, ino_: Ino) -> Result<Arc<[DirEntry]>, Errno> {
        if ino_ == ROOT {
            // Whole models only; lower layers have directories, too, but nobody looks for them by listing.
            let mut entries: Vec<DirEntry> =
                self.0.catalog.models().iter().map(|known| top_entry(known)).collect();
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(entries.into());
        }
        let spot = self.spot(ino_)?;
        let NodeKind::Directory(children) = spot.kind()? else { return Err(Errno::ENOTDIR) };
        let entry = |(name, &node): (&String, &NodeId)| {
            let child = Spot { known: Arc::clone(&spot.known), layer: spot.layer, node };
            child.attr().map(|attr| DirEntry { ino: attr.ino, kind: attr.kind, name: name.clone() })
        };
        children.iter().map(entry).collect()
    }

    fn open(&self, ino: Ino) -> Result<Opened, Errno> {
        let spot = self.spot(ino)?;
        let file = spot.file()?;
        if spot.is_in_base(file) {
            return Ok(Opened::default());
        }
        self.0.start_fill(&spot.known);
        match spot.known.handle(file.file, &self.0.engine) {
            Ok(handle) => Ok(Opened { sealed: handle.content().sealed_file() }),
            Err(error) => {
                tracing::error!(error = chain(&error), "content cannot be opened");
                Err(Errno::EIO)
            }
        }
    }

    fn released(&self, _ino: Ino) {}

    fn read(&self, ino: Ino, offset: u64, len: u32, reply: ReadReply) {
        let found = self.spot(ino).and_then(|spot| spot.file().map(|file| (spot, file)));
        let (spot, file) = match found {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        if !spot.is_in_base(file) {
            return self.read_weights(&spot, file, offset, len, reply);
        }
        match spot.known.read_base(file.file, offset, len) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => {
                tracing::error!(%error, model = %spot.known.model.base, "base layer cannot be read");
                reply.error(Errno::EIO);
            }
        }
    }

    fn statfs(&self) -> StatFs {
        let space = File::open(&self.0.config.root).and_then(|root| Ok(rustix::fs::fstatvfs(root)?));
        let files = self.0.catalog.models().iter().map(|known| known.model.files.len() as u64).sum();
        space.map_or(StatFs { files, ..StatFs::default() }, |space| StatFs {
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            files,
        })
    }
}

fn top_entry(known: &KnownModel) -> DirEntry {
    let layer = known.chains.len() - 1;
    DirEntry {
        ino: ino(known.slot, layer, NodeId(0)),
        kind: Kind::Directory,
        name: hex::encode(known.chains[layer].0),
    }
}
