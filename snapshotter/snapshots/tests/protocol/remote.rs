//! The remote snapshotter protocol, over a socket: layers of models, and what must not be taken for one.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::node::{MODEL, MemoryModels, Mounted, Node, REF, chain, eventually, may_mount, sorted};
use tonic::Code;
use towline_snapshots::{LayerClaim, OpenError, Options, Refusal, RefusalKind, Snapshotter};

const VOLUME: &str = "k8s.io/9//run/containerd/io.containerd.grpc.v1.cri/image-volumes/sandbox/image";

#[tokio::test]
async fn a_claimed_layer_is_found_as_containerd_looks_for_it() {
    let node = Node::start().await;
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    assert_eq!(sorted(&base), [(REF, chain(1).as_str()), (MODEL, "yes")].into(), "no private label is kept");
    assert_eq!(base.created_at, base.updated_at);
    let top = node.pull("k8s.io", &chain(2), &base.name).await.expect("pull");
    assert_eq!(node.stat(&top.name).await.expect("stat"), top);
    assert_eq!(node.usage(&top.name).await.expect("usage"), (4096, 3));
    let claims = node.models.state().claims.clone();
    let first = LayerClaim {
        chain_id: chain(1),
        parent_chain: None,
        parent_is_ordinary: false,
        labels: [(REF, chain(1).as_str()), (MODEL, "yes"), ("containerd.io/gc.ref", "private")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    assert_eq!(claims[0], first);
    assert_eq!((&claims[1].parent_chain, claims[1].parent_is_ordinary), (&Some(chain(1)), false));
    assert_eq!(node.snapshotter.chains(), [chain(1), chain(2)]);
}

#[tokio::test]
async fn one_snapshot_serves_all_namespaces_repeats_and_rivals() {
    let node = Arc::new(Node::start().await);
    node.models.show(&chain(1));
    let rivals: Vec<_> = (0..16)
        .map(|n| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.pull(&format!("ns{}", n % 3), &chain(1), "").await })
        })
        .collect();
    let mut names = std::collections::BTreeSet::new();
    for rival in rivals {
        names.insert(rival.await.expect("task").expect("pull").name);
    }
    assert_eq!(node.names(&[]).await, names);
    assert_eq!(names.len(), 1);
}

#[tokio::test]
async fn snapshots_and_volumes_outlive_a_restart() {
    let node = Node::start().await;
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    let top = node.pull("k8s.io", &chain(2), &base.name).await.expect("pull");
    let mount = node.prepare(VOLUME, &top.name, &[]).await.expect("prepare");
    assert_eq!(
        (mount.r#type.as_str(), mount.options.as_slice()),
        ("bind", ["rbind", "ro"].map(String::from).as_slice())
    );
    assert_eq!(mount.source, node.models.show(&chain(2)).to_str().expect("utf-8"));
    let before = node.list(&[]).await.expect("list");

    let node = node.restart().await;
    assert_eq!(node.list(&[]).await.expect("list"), before);
    assert_eq!(node.mounts(VOLUME).await.expect("mounts"), mount);
    assert_eq!(node.pull("k8s.io", &chain(2), &base.name).await.expect("pull again"), top);
    assert_eq!(node.snapshotter.chains(), [chain(1), chain(2)]);
    let again = node.prepare(VOLUME, &top.name, &[]).await.expect_err("the key is taken");
    assert_eq!(again.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn labels_alone_claim_nothing() {
    let node = Node::start().await;
    let labels = [(REF, &*chain(1)), (MODEL, "yes")];
    // Pod annotations reach the Prepare of the pause container's root file system as labels.
    let pause = node.prepare("k8s.io/3/0123456789abcdef", "", &labels).await.expect("prepare");
    assert_eq!(pause.options, ["rw", "rbind"]);
    node.prepare("k8s.io/4/x/extract-1", "", &labels).await.expect("prepare");
    node.prepare(VOLUME, "", &labels).await.expect("prepare");
    node.view("k8s.io/5/extract-1", "", &labels).await.expect("view");
    for bad in ["", "x", "sha256:12", &chain(1).to_uppercase()] {
        let key = format!("k8s.io/6/extract-{bad}");
        node.prepare(&key, "", &[(REF, bad), (MODEL, "yes")]).await.expect("prepare");
    }
    assert!(node.models.state().claims.is_empty());
}

#[tokio::test]
async fn layers_that_nobody_claims_are_unpacked_by_containerd() {
    let node = Node::start().await;
    let (key, labels) = ("k8s.io/3/extract-1 x", [(REF, &*chain(1))]);
    let mount = node.prepare(key, "", &labels).await.expect("prepare");
    assert_eq!((mount.r#type.as_str(), mount.options), ("bind", vec!["rw".to_owned(), "rbind".to_owned()]));
    node.commit("k8s.io/4/base", key, &labels).await.expect("commit");
    let key = "k8s.io/5/extract-2 x";
    let mount =
        node.prepare(key, "k8s.io/4/base", &[(REF, &*chain(2)), (MODEL, "yes")]).await.expect("prepare");
    assert_eq!(mount.r#type, "overlay");
    assert!(!mount.options.iter().any(|option| option == "ro"), "{:?}", mount.options);
    let claims = node.models.state().claims.clone();
    assert_eq!((&claims[1].parent_chain, claims[1].parent_is_ordinary), (&None, true));
    assert!(node.models.state().forgotten.is_empty(), "what was declined is not remembered");
}

#[tokio::test]
async fn a_layer_unpacked_once_does_not_hide_the_models() {
    let node = Node::start().await;
    let labels = [(REF, &*chain(1))];
    node.prepare("aaa/3/extract-1 x", "", &labels).await.expect("prepare");
    node.commit("aaa/4/base", "aaa/3/extract-1 x", &labels).await.expect("commit");
    node.models.show(&chain(1));
    let key = "k8s.io/5/extract-1 x";
    let status = node.prepare(key, "", &[(REF, &*chain(1)), (MODEL, "yes")]).await.expect_err("claimed");
    assert_eq!(status.code(), Code::AlreadyExists);
    let filter = format!("labels.\"{REF}\"=={},parent==\"\"", chain(1));
    let found: Vec<_> = node.list(&[&filter]).await.expect("list").into_iter().flatten().collect();
    assert_eq!(found.len(), 2);
    assert_eq!(node.usage(&found[0].name).await.expect("usage"), (4096, 3), "the model's comes first");
}

#[tokio::test]
async fn refusals_keep_their_kind_and_leave_nothing() {
    let node = Node::start().await;
    let kinds = [
        (RefusalKind::InvalidArgument, Code::InvalidArgument),
        (RefusalKind::NotFound, Code::NotFound),
        (RefusalKind::FailedPrecondition, Code::FailedPrecondition),
        (RefusalKind::PermissionDenied, Code::PermissionDenied),
        (RefusalKind::ResourceExhausted, Code::ResourceExhausted),
        (RefusalKind::Unavailable, Code::Unavailable),
        (RefusalKind::DataLoss, Code::DataLoss),
        (RefusalKind::Internal, Code::Internal),
    ];
    for (kind, code) in kinds {
        node.models.state().refusal = Some(Refusal::new(kind, "because of a test"));
        let status = node.pull("k8s.io", &chain(1), "").await.expect_err("refused");
        assert_eq!((status.code(), status.message()), (code, "because of a test"));
    }
    assert!(node.names(&[]).await.is_empty());
}

#[tokio::test]
async fn a_model_that_is_gone_is_not_mounted() {
    let node = Node::start().await;
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    node.prepare(VOLUME, &base.name, &[]).await.expect("prepare");
    let dir = node.models.show(&chain(1));
    fs::remove_dir_all(&dir).expect("remove");
    for status in [
        node.mounts(VOLUME).await.expect_err("refused"),
        node.prepare("k8s.io/8/container", &base.name, &[]).await.expect_err("refused"),
        node.view("k8s.io/8/view", &base.name, &[]).await.expect_err("refused"),
    ] {
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no such model"));
    }
    node.models.state().directories.insert(chain(1), dir.join("none"));
    assert_eq!(node.mounts(VOLUME).await.expect_err("refused").code(), Code::Unavailable);
    assert_eq!(
        node.names(&["kind==active"]).await,
        [VOLUME.to_owned()].into(),
        "a refusal leaves no snapshot"
    );
    node.models.state().directories.clear();
    node.models.show(&chain(1));
    node.mounts(VOLUME).await.expect("the model is back");
}

#[tokio::test]
async fn dead_and_hung_file_systems_are_unavailable() {
    if !may_mount() {
        return;
    }
    let node = Node::start_with(|options| options.probe_timeout = Duration::from_millis(200)).await;
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    let target = node.dir.path().join("fuse");
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let mounted = Mounted::fuse(&device, &target);
    node.models.state().directories.insert(chain(1), target);
    let hung = node.prepare(VOLUME, &base.name, &[]).await.expect_err("refused");
    assert_eq!(hung.code(), Code::Unavailable);
    assert!(hung.message().contains("no answer within 0.2 s"), "{hung}");
    drop(device);
    let dead = node.prepare(VOLUME, &base.name, &[]).await.expect_err("refused");
    assert_eq!(dead.code(), Code::Unavailable);
    assert!(dead.message().contains("not connected"), "{dead}");
    assert!(node.names(&["kind==active"]).await.is_empty());
    drop(mounted);
}

#[tokio::test]
async fn containers_and_ordinary_layers_stand_on_a_model() {
    if !may_mount() {
        return;
    }
    let node = Node::start().await;
    let target = node.dir.path().join("mnt");
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    let top = node.pull("k8s.io", &chain(2), &base.name).await.expect("pull");
    let shown = node.models.show(&chain(2));

    let layer = "k8s.io/3/extract-1 x";
    let mount = node.prepare(layer, &top.name, &[(REF, &*chain(3))]).await.expect("prepare");
    let lower = format!("lowerdir={}", shown.display());
    assert!(mount.options.contains(&lower), "one directory for both layers: {:?}", mount.options);
    assert!(!mount.options.iter().any(|option| option == "ro"));
    {
        let _mounted = Mounted::new(&mount, &target);
        fs::write(target.join("added"), "by a layer").expect("write");
    }
    node.commit("k8s.io/4/mixed", layer, &[(REF, &*chain(3))]).await.expect("commit");

    let mount = node.prepare("k8s.io/5/container", "k8s.io/4/mixed", &[]).await.expect("prepare");
    {
        let _mounted = Mounted::new(&mount, &target);
        assert_eq!(fs::read_to_string(target.join("chain")).expect("read"), chain(2));
        assert_eq!(fs::read_to_string(target.join("added")).expect("read"), "by a layer");
        fs::write(target.join("chain"), "changed").expect("a container may write");
    }
    assert_eq!(fs::read_to_string(shown.join("chain")).expect("read"), chain(2), "the model is untouched");

    let volume = node.prepare(VOLUME, "k8s.io/4/mixed", &[]).await.expect("prepare");
    assert_eq!(volume.r#type, "overlay", "a volume that is not only a model");
    let view = node.view("k8s.io/6/view", &top.name, &[]).await.expect("view");
    assert_eq!((view.r#type.as_str(), view.options), ("bind", vec!["ro".to_owned(), "rbind".to_owned()]));
    let view = node.view("k8s.io/7/view", "k8s.io/4/mixed", &[]).await.expect("view");
    let _mounted = Mounted::new(&view, &target);
    assert_eq!(fs::read_to_string(target.join("added")).expect("read"), "by a layer");
    let refused = fs::write(target.join("new"), "").expect_err("a view is read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[tokio::test]
async fn a_model_is_forgotten_with_its_last_snapshot() {
    let node = Node::start().await;
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    let top = node.pull("k8s.io", &chain(2), &base.name).await.expect("pull");
    let status = node.remove(&base.name).await.expect_err("it has a child");
    assert_eq!(status.code(), Code::FailedPrecondition);
    node.remove(&top.name).await.expect("remove");
    assert_eq!(node.models.state().forgotten, [chain(2)]);
    node.remove(&base.name).await.expect("remove");
    assert_eq!(node.models.state().forgotten, [chain(2), chain(1)]);
    node.cleanup().await;
    assert_eq!(node.models.state().cleanups, 1);
}

#[tokio::test]
async fn a_claim_under_way_keeps_its_model() {
    let node = Arc::new(Node::start().await);
    let base = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    node.models.gate.forget_permits(usize::MAX);
    let pull = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.pull("other", &chain(1), "").await }
    });
    eventually("the second claim", || node.models.state().claims.len() == 2).await;
    node.remove(&base.name).await.expect("remove");
    assert!(node.models.state().forgotten.is_empty());
    node.models.gate.add_permits(1);
    let again = pull.await.expect("task").expect("pull");
    assert!(node.models.state().forgotten.is_empty());
    node.remove(&again.name).await.expect("remove");
    assert_eq!(node.models.state().forgotten, [chain(1)]);
}

#[tokio::test]
async fn a_claim_that_is_given_up_is_forgotten() {
    let node = Arc::new(Node::start_with(|options| options.claim_timeout = Duration::from_millis(100)).await);
    node.models.gate.forget_permits(usize::MAX);
    let status = node.pull("k8s.io", &chain(1), "").await.expect_err("no answer");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(node.models.state().forgotten, [chain(1)]);
    assert!(node.names(&[]).await.is_empty());
}

#[tokio::test]
async fn a_pull_that_hangs_up_is_forgotten() {
    let node = Arc::new(Node::start().await);
    node.models.gate.forget_permits(usize::MAX);
    let pull = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.pull("k8s.io", &chain(1), "").await }
    });
    eventually("the claim", || node.models.state().claims.len() == 1).await;
    pull.abort();
    eventually("the end of the claim", || node.models.state().forgotten == [chain(1)]).await;
}

#[tokio::test]
async fn a_model_snapshot_stays_findable_whatever_its_labels() {
    use towline_proto::containerd::services::snapshots::v1::UpdateSnapshotRequest;
    let node = Node::start().await;
    let mut info = node.pull("k8s.io", &chain(1), "").await.expect("pull");
    info.labels.clear();
    let request = UpdateSnapshotRequest { info: Some(info), ..Default::default() };
    node.client.clone().update(request).await.expect("update");
    node.pull("other", &chain(1), "").await.expect("pull");
}

#[test]
fn a_root_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = || Snapshotter::open(Options::new(dir.path()), MemoryModels::new(dir.path()));
    let _first = open().expect("open");
    assert!(matches!(open(), Err(OpenError::Metadata { .. })));
}
