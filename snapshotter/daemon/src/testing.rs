//! What the tests of this crate share: a model, and a node that knows it.

use std::path::Path;
use std::sync::Arc;

use towline_artifact::memory::{Package, package};
use towline_artifact::{Model, PIECE_LEN, PieceIndex, Provenance};
use towline_modelfs::{Engine, EngineOptions};
use towline_registry::{Client, ClientOptions};
use towline_store::{Store, StoreOptions};

use crate::catalog::{Catalog, KnownModel, Place};
use crate::claims::Claims;
use crate::config::Config;
use crate::needs::Pin;
use crate::node::Node;
use crate::origin::Origins;

/// A model with a small file and two weight files of one piece.
pub(crate) fn two_weights() -> Package {
    of_commit("c")
}

/// The same weights, as of another commit.
pub(crate) fn of_commit(commit: &str) -> Package {
    let source = Provenance {
        hub: "directory".into(),
        kind: "model".into(),
        repo: String::new(),
        commit: commit.into(),
        created: None,
        licence: None,
        url: None,
    };
    let (a, b) = (vec![1; PIECE_LEN as usize], vec![2; PIECE_LEN as usize]);
    package(&[("config.json", b"{}"), ("a.bin", &a), ("b.bin", &b)], source).unwrap()
}

/// Claims over a node that knows `made` and can reach no registry.
pub(crate) fn claims(dir: &Path, made: &Package) -> (Claims, Model) {
    // What main does for the whole process; another test may have been first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let config = Config { root: dir.to_owned(), ..Config::default() };
    let origins = Arc::new(Origins::new(Client::new(ClientOptions::default()).unwrap()));
    let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
    let engine = Engine::new(store, origins.clone(), EngineOptions::default());
    let catalog = Catalog::open(dir).unwrap();
    let model = Model::read(&made.artifact.base.bytes).unwrap();
    catalog.add(&made.artifact.base.bytes, model.clone(), place("v1")).unwrap();
    let runtime = tokio::runtime::Handle::current();
    (Claims(Node::new(config, engine, origins, catalog, runtime, Default::default())), model)
}

/// An image on a registry that nobody runs.
pub(crate) fn place(tag: &str) -> Place {
    Place {
        host: "127.0.0.1:1".to_owned(),
        repository: format!("m-{tag}"),
        reference: format!("127.0.0.1:1/m:{tag}"),
        manifest: String::new(),
    }
}

/// Makes every piece of [`two_weights`] local and sealed.
pub(crate) fn complete(node: &Node, known: &KnownModel) {
    for n in known.weight_files().collect::<Vec<_>>() {
        let file = &known.model.files[n];
        let byte = if file.path == "a.bin" { 1 } else { 2 };
        let bytes = vec![byte; PIECE_LEN as usize].into();
        let piece = file.table.verify(PieceIndex(0), bytes).unwrap();
        let content = known.handle(n, &node.engine).unwrap().content();
        content.commit(&piece).unwrap();
        content.seal().unwrap();
    }
}

/// A node over what is on disk, as after a start without a snapshot.
pub(crate) fn restart(dir: &Path) -> Arc<Node> {
    let config = Config { root: dir.join("root"), run_dir: dir.join("run"), ..Config::default() };
    restart_with(config)
}

pub(crate) fn restart_with(config: Config) -> Arc<Node> {
    let origins = Arc::new(Origins::new(Client::new(ClientOptions::default()).unwrap()));
    let store = Store::open(&config.root.join("store"), StoreOptions::default()).unwrap();
    let engine = Engine::new(store, origins.clone(), EngineOptions::default());
    let catalog = Catalog::open(&config.root).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let node = Node::new(config, engine, origins, catalog, runtime, Default::default());
    node.forget_all_but(&[]);
    node.remove_dead();
    node
}

/// A fresh node below `dir` that knows `made` as a prefetch makes it known.
pub(crate) fn prefetched(dir: &Path, made: &Package, tag: &str) -> (Arc<Node>, Pin) {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    std::fs::create_dir_all(dir.join("root")).unwrap();
    let node = restart(dir);
    let pin = add(&node, made, tag);
    (node, pin)
}

pub(crate) fn add(node: &Node, made: &Package, tag: &str) -> Pin {
    let base = &made.artifact.base.bytes;
    node.catalog.add_pinned(base, Model::read(base).unwrap(), place(tag)).unwrap()
}
