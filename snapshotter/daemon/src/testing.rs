//! What the tests of this crate share: a model, and a node that knows it.

use std::path::Path;
use std::sync::Arc;

use towline_artifact::memory::{Package, package};
use towline_artifact::{Model, PIECE_LEN, Provenance};
use towline_modelfs::{Engine, EngineOptions};
use towline_registry::{Client, ClientOptions};
use towline_store::{Store, StoreOptions};

use crate::catalog::{Catalog, Place};
use crate::claims::Claims;
use crate::config::Config;
use crate::node::Node;
use crate::origin::Origins;

/// A model with a small file and two weight files of one piece.
pub(crate) fn two_weights() -> Package {
    let source = Provenance {
        hub: "directory".into(),
        kind: "model".into(),
        repo: String::new(),
        commit: "c".into(),
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
