//! The directories and files of a model, or of its lower layers.

use std::collections::BTreeMap;

use towline_artifact::Model;

/// Position of a node in its [`Tree`]; the root is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// The root of every tree.
pub(crate) const ROOT: NodeId = NodeId(0);

/// A directory or a file.
#[derive(Clone, Debug)]
pub struct Node {
    /// The directory it is in; for the root, the root. A file with several names has the first one's directory.
    pub parent: NodeId,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A directory and what is in it, by name in bytewise order.
    Directory(BTreeMap<String, NodeId>),
    /// A file.
    File(FileNode),
}

/// A file of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// Position in [`Model::files`].
    pub file: usize,
    /// Length in bytes.
    pub len: u64,
    /// Mode 0755 instead of 0644.
    pub executable: bool,
    /// Names the file has.
    pub links: u32,
}

/// The tree of a model up to a layer. Immutable; node ids are a function of the model and the layer, so a restarted
/// daemon hands out the same ones.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The tree that layers 0 to `top_layer` of `model` make, as an extractor would.
    #[must_use]
    pub fn new(model: &Model, top_layer: usize) -> Self {
        let mut tree =
            Self { nodes: vec![Node { parent: ROOT, kind: NodeKind::Directory(BTreeMap::new()) }] };
        // The base layer holds every directory, also those whose files come with later layers.
        for file in &model.files {
            for name in std::iter::once(&file.path).chain(&file.links) {
                tree.directory_of(name);
            }
        }
        for (n, file) in model.files.iter().enumerate().filter(|(_, file)| file.layer <= top_layer) {
            let (parent, name) = tree.directory_of(&file.path);
            let kind = NodeKind::File(FileNode {
                file: n,
                len: file.table.file_len(),
                executable: file.executable,
                links: 1 + u32::try_from(file.links.len()).expect("bounded by the index"),
            });
            let id = tree.push(Node { parent, kind });
            tree.enter(parent, name, id);
            for link in &file.links {
                let (parent, name) = tree.directory_of(link);
                tree.enter(parent, name, id);
            }
        }
        tree
    }

    /// The node, if there is one of that id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// The entry `name` of the directory `parent`.
    #[must_use]
    pub fn child(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        match &self.node(parent)?.kind {
            NodeKind::Directory(entries) => entries.get(name).copied(),
            NodeKind::File(_) => None,
        }
    }

    /// The node at `path`.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        path.split('/').try_fold(ROOT, |parent, name| self.child(parent, name))
    }

    /// Number of directories and files.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("bounded by the index"));
        self.nodes.push(node);
        id
    }

    fn enter(&mut self, parent: NodeId, name: &str, id: NodeId) {
        match &mut self.nodes[parent.0 as usize].kind {
            NodeKind::Directory(entries) => entries.insert(name.to_owned(), id),
            NodeKind::File(_) => unreachable!("a sound model has no path that is both file and directory"),
        };
    }

    /// Makes the directories above `path` and returns the last with the file's own name.
    fn directory_of<'a>(&mut self, path: &'a str) -> (NodeId, &'a str) {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent = ROOT;
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            parent = match self.child(parent, dir) {
                Some(id) => id,
                None => {
                    let id = self.push(Node { parent, kind: NodeKind::Directory(BTreeMap::new()) });
                    self.enter(parent, dir, id);
                    id
                }
            };
        }
        (parent, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_artifact::memory::package;
    use towline_artifact::{PIECE_LEN, Provenance};

    fn model() -> Model {
        let source = Provenance {
            hub: "directory".into(),
            kind: "model".into(),
            repo: String::new(),
            commit: "c".into(),
            created: None,
            licence: None,
            url: None,
        };
        let big = vec![1; PIECE_LEN as usize];
        let files: [(&str, &[u8]); 4] =
            [("a/deep/w1.bin", &big), ("a/small", b"s"), ("z", b""), ("w2.bin", &big[1..])];
        let made = package(&files, source).unwrap();
        Model::read(&made.artifact.base.bytes).unwrap()
    }

    #[test]
    fn a_tree_shows_what_its_layers_hold() {
        let model = model();
        let base = Tree::new(&model, 0);
        assert!(
            base.find("a/small").is_some()
                && base.find("w2.bin").is_some()
                && base.find(".towline/pieces").is_some()
        );
        assert!(base.find("a/deep").is_some(), "directories come with the base layer");
        assert!(base.find("a/deep/w1.bin").is_none());
        let whole = Tree::new(&model, 1);
        let id = whole.find("a/deep/w1.bin").unwrap();
        let NodeKind::File(file) = &whole.node(id).unwrap().kind else { panic!("a file") };
        assert_eq!(
            (file.len, file.links, model.files[file.file].path.as_str()),
            (PIECE_LEN, 1, "a/deep/w1.bin")
        );
        assert_eq!(whole.find("a/nothing"), None);
        assert_eq!(whole.find("a/small/x"), None);
        assert_eq!(whole.node(NodeId(9999)).map(|_| ()), None);
    }
}
