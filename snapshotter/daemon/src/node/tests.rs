use super::*;
use crate::claims::Claims;
use crate::testing::{claims, place, two_weights};
use std::collections::BTreeMap;
use towline_artifact::PieceHasher;
use towline_artifact::image::VERSION_LABEL;
use towline_snapshots::{Claim, LayerClaim, Models};

fn base_claim(base: Sha256) -> LayerClaim {
    LayerClaim {
        chain_id: base.to_string(),
        parent_chain: None,
        parent_is_ordinary: false,
        labels: BTreeMap::from([(VERSION_LABEL.to_owned(), "1".to_owned())]),
    }
}

fn stored(node: &Node) -> Vec<ContentId> {
    node.engine.store().contents().into_iter().map(|info| info.id).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_the_disk_refused_begins_when_the_disk_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let (claims, model) = claims(dir.path(), &two_weights());
    let node = Arc::clone(&claims.0);
    let (known, _) = node.catalog.by_chain(model.base).unwrap();
    let content = contents(&known).next().unwrap().to_string();
    let shard = dir.path().join("store/content").join(&content[..2]);
    std::fs::remove_dir(&shard).unwrap();
    let watching = tokio::spawn(Arc::clone(&node).watch());
    until("the fill fails", || known.fill_failed.load(Ordering::Acquire)).await;
    std::fs::create_dir(&shard).unwrap();
    until("the fill begins", || lock(&known.fill).is_some()).await;
    node.stop.cancel();
    watching.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_during_the_cleanup_keeps_the_model_or_does_not_find_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = two_weights();
    let (claims, model) = claims(dir.path(), &made);
    let base = model.base;
    for _ in 0..40 {
        if claims.0.catalog.by_chain(base).is_none() {
            claims.0.catalog.add(&made.artifact.base.bytes, model.clone(), place("v1")).unwrap();
        }
        claims.forget(&base.to_string());
        let (claims_of_cleanup, claims_of_pull) =
            (Claims(Arc::clone(&claims.0)), Claims(Arc::clone(&claims.0)));
        let cleaning = tokio::spawn(async move { claims_of_cleanup.cleanup().await });
        let pulling = tokio::spawn(async move { claims_of_pull.claim(&base_claim(base)).await });
        let answer = pulling.await.unwrap().unwrap();
        cleaning.await.unwrap();
        // There is no registry here: a base layer that is not known cannot be fetched.
        let known = claims.0.catalog.by_chain(base).is_some();
        assert_eq!(answer == Claim::Accepted, known, "{answer:?}");
        let on_disk = dir.path().join("models").join(hex::encode(base.0)).exists();
        assert_eq!(on_disk, known);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_removed_is_not_filled() {
    let dir = tempfile::tempdir().unwrap();
    let (claims, model) = claims(dir.path(), &two_weights());
    let node = &claims.0;
    let (known, _) = node.catalog.by_chain(model.base).unwrap();
    claims.forget(&model.base.to_string());
    claims.cleanup().await;
    node.start_fill(&known);
    assert!(!known.fill_begun.load(Ordering::Acquire));
    // One that had begun when the model went.
    node.fill(&known).unwrap();
    assert!(lock(&known.fill).is_none());
    assert_eq!(stored(node), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_when_its_model_went_is_removed_without_another_cleanup() {
    let dir = tempfile::tempdir().unwrap();
    let (claims, model) = claims(dir.path(), &two_weights());
    let node = Arc::clone(&claims.0);
    let watching = tokio::spawn(Arc::clone(&node).watch());
    let table = model.files.iter().find(|file| file.layer > 0).map(|file| Arc::clone(&file.table)).unwrap();
    let reading = node.engine.open(&table).unwrap();
    claims.forget(&model.base.to_string());
    claims.cleanup().await;
    assert!(stored(&node).contains(&table.content()), "somebody reads it");
    drop(reading);
    until("the content is removed", || stored(&node).is_empty()).await;
    node.stop.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn what_a_crash_left_goes_but_nothing_of_a_model_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let made = two_weights();
    let (first, model) = claims(dir.path(), &made);
    let base = model.base.to_string();
    let mut stray = PieceHasher::new();
    stray.update(b"a content that no model has");
    first.0.engine.open(&Arc::new(stray.finish())).unwrap();
    let (known, _) = first.0.catalog.by_chain(model.base).unwrap();
    first.0.open_contents();
    let readme =
        TreeFile { path: "README.md".into(), executable: false, content: TreeContent::Inline(vec![1]) };
    let trees = [tree_name(&known), hex::encode([7; 32])];
    for tree in &trees {
        first.0.engine.store().sealed_tree(tree, std::slice::from_ref(&readme), &[]).unwrap();
    }
    drop((first, known));

    // A disk that cannot be read, for once.
    let path = dir.path().join("models").join(hex::encode(model.base.0));
    std::fs::write(&path, b"damaged").unwrap();
    let restart = || {
        let config = Config { root: dir.path().to_owned(), ..Config::default() };
        let origins = Arc::new(Origins::new(towline_registry::Client::new(Default::default()).unwrap()));
        let store = towline_store::Store::open(&dir.path().join("store"), Default::default()).unwrap();
        let engine = Engine::new(store, origins.clone(), Default::default());
        let catalog = Catalog::open(dir.path()).unwrap();
        Node::new(config, engine, origins, catalog, Handle::current(), CancellationToken::new())
    };
    let node = restart();
    assert!(node.catalog.models().is_empty());
    node.forget_all_but(std::slice::from_ref(&base));
    node.remove_dead();
    assert_eq!((stored(&node).len(), node.engine.store().trees().unwrap().len()), (3, 2), "all is kept");
    drop(node);

    // It can be read again: what belongs to no model goes.
    std::fs::write(&path, &made.artifact.base.bytes).unwrap();
    let node = restart();
    node.forget_all_but(std::slice::from_ref(&base));
    node.remove_dead();
    assert_eq!((stored(&node).len(), node.engine.store().trees().unwrap()), (2, trees[..1].to_vec()));
    drop(node);

    // It cannot, and its image is gone: nothing refers to it any more.
    std::fs::write(&path, b"damaged").unwrap();
    let node = restart();
    node.forget_all_but(&[]);
    node.remove_dead();
    assert_eq!((stored(&node).len(), node.engine.store().trees().unwrap().len()), (0, 0));
    assert!(!path.exists());
}
