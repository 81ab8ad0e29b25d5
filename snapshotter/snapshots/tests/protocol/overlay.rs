//! Ordinary snapshots over a socket: what containerd's own suite does not ask.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use crate::node::{Mounted, Node, may_mount};
use tonic::Code;
use towline_proto::containerd::services::snapshots::v1 as wire;

#[tokio::test]
async fn misuse_has_the_codes_that_containerd_maps() {
    let node = Node::start().await;
    node.prepare("a", "", &[]).await.expect("prepare");
    node.view("v", "", &[]).await.expect("view");
    let check = |result: Result<(), tonic::Status>, code: Code| {
        assert_eq!(result.expect_err("refused").code(), code);
    };
    check(node.prepare("a", "", &[]).await.map(drop), Code::AlreadyExists);
    check(node.prepare("b", "none", &[]).await.map(drop), Code::NotFound);
    check(node.prepare("b", "a", &[]).await.map(drop), Code::InvalidArgument);
    check(node.prepare("", "", &[]).await.map(drop), Code::InvalidArgument);
    check(node.prepare(&"k".repeat(9000), "", &[]).await.map(drop), Code::InvalidArgument);
    check(node.prepare("b", "", &[("k", &"v".repeat(4096))]).await.map(drop), Code::InvalidArgument);
    check(node.commit("c", "v", &[]).await, Code::FailedPrecondition);
    check(node.commit("c", "none", &[]).await, Code::NotFound);
    node.commit("c", "a", &[]).await.expect("commit");
    check(node.mounts("c").await.map(drop), Code::FailedPrecondition);
    check(node.mounts("a").await.map(drop), Code::NotFound);
    check(node.stat("a").await.map(drop), Code::NotFound);
    check(node.usage("a").await.map(drop), Code::NotFound);
    check(node.remove("a").await, Code::NotFound);
    check(node.list(&["name="]).await.map(drop), Code::InvalidArgument);
    let update = node.client.clone().update(wire::UpdateSnapshotRequest::default()).await;
    check(update.map(drop), Code::InvalidArgument);
    node.prepare("b", "c", &[]).await.expect("prepare");
    let status = node.remove("c").await.expect_err("it has a child");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("remove"), "{status}");
    check(node.commit("c", "b", &[]).await, Code::AlreadyExists);
    check(
        node.prepare("d", "", &[("containerd.io/snapshot/uidmapping", "x")]).await.map(drop),
        Code::InvalidArgument,
    );
}

#[tokio::test]
async fn a_commit_may_give_a_parent_to_a_snapshot_without() {
    let node = Node::start().await;
    node.prepare("base-a", "", &[]).await.expect("prepare");
    node.commit("base", "base-a", &[]).await.expect("commit");
    node.prepare("top-a", "", &[]).await.expect("prepare");
    let commit = |name: &str, key: &str, parent: &str| {
        let request = wire::CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        let mut client = node.client.clone();
        async move { client.commit(request).await.map_err(|status| status.code()).map(drop) }
    };
    assert_eq!(commit("top", "top-a", "none").await, Err(Code::NotFound));
    assert_eq!(commit("top", "top-a", "top-a").await, Err(Code::FailedPrecondition));
    assert_eq!(commit("top", "top-a", "base").await, Ok(()));
    assert_eq!(node.stat("top").await.expect("stat").parent, "base");
    node.prepare("other-a", "top", &[]).await.expect("prepare");
    assert_eq!(commit("other", "other-a", "base").await, Err(Code::InvalidArgument));
    assert_eq!(commit("other", "other-a", "top").await, Ok(()));
}

#[tokio::test]
async fn long_lists_come_in_blocks_and_block_nothing() {
    let node = Node::start().await;
    for n in 0..205 {
        node.view(&format!("v{n}"), "", &[]).await.expect("view");
    }
    let mut stream =
        node.client.clone().list(wire::ListSnapshotsRequest::default()).await.expect("list").into_inner();
    let mut sizes = Vec::new();
    while let Some(block) = stream.message().await.expect("message") {
        sizes.push(block.info.len());
        let first = &block.info[0];
        assert_eq!(&node.stat(&first.name).await.expect("stat within a walk"), first);
        node.remove(&first.name).await.expect("remove within a walk");
    }
    assert_eq!(sizes, [100, 100, 5]);
}

#[tokio::test]
async fn heavy_labels_make_smaller_blocks() {
    let node = Node::start().await;
    let value = "v".repeat(4000);
    let keys: Vec<_> = (0..120).map(|n| format!("k{n:03}")).collect();
    let labels: Vec<_> = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
    for n in 0..20 {
        node.view(&format!("v{n}"), "", &labels).await.expect("view");
    }
    let mut client = node.client.clone().max_decoding_message_size(16 << 20);
    let mut stream = client.list(wire::ListSnapshotsRequest::default()).await.expect("list").into_inner();
    let mut sizes = Vec::new();
    while let Some(block) = stream.message().await.expect("a message that containerd can take") {
        sizes.push(block.info.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 20);
    assert!(sizes.len() > 1, "{sizes:?}");
}

#[tokio::test]
async fn usage_is_the_snapshots_own() {
    let node = Node::start().await;
    let mount = node.prepare("a", "", &[]).await.expect("prepare");
    fs::write(format!("{}/file", mount.source), vec![7; 1 << 20]).expect("write");
    let (size, inodes) = node.usage("a").await.expect("usage");
    assert!((1 << 20..2 << 20).contains(&size), "{size}");
    assert_eq!(inodes, 2);
    node.commit("base", "a", &[]).await.expect("commit");
    assert_eq!(node.usage("base").await.expect("usage"), (size, inodes));
    node.prepare("b", "base", &[]).await.expect("prepare");
    let (size, inodes) = node.usage("b").await.expect("usage");
    assert!(size < 1 << 20, "{size}");
    assert_eq!(inodes, 1);
    node.view("v", "base", &[]).await.expect("view");
    assert_eq!(node.usage("v").await.expect("usage"), (0, 0));
}

#[tokio::test]
async fn removal_is_quick_and_cleanup_deletes() {
    let node = Node::start().await;
    let first = node.prepare("a", "", &[]).await.expect("prepare");
    node.remove("a").await.expect("remove");
    assert!(fs::metadata(&first.source).is_ok(), "Remove deletes nothing");
    let second = node.prepare("a", "", &[]).await.expect("the key is free at once");
    assert_ne!(first.source, second.source);
    node.cleanup().await;
    assert!(fs::metadata(&first.source).is_err());
    assert!(fs::metadata(&second.source).is_ok());
}

#[tokio::test]
async fn what_a_crash_leaves_is_cleaned_up_and_never_reused() {
    let node = Node::start().await;
    node.prepare("a", "", &[]).await.expect("prepare");
    let snapshots = node.dir.path().join("root/snapshots");
    for leftover in ["40", "new-41"] {
        fs::create_dir_all(snapshots.join(leftover).join("fs")).expect("mkdir");
    }
    let node = node.restart().await;
    let mount = node.prepare("b", "", &[]).await.expect("prepare");
    assert_eq!(mount.source, snapshots.join("42/fs").to_str().expect("utf-8"));
    node.cleanup().await;
    let mut left: Vec<_> = fs::read_dir(&snapshots)
        .expect("read")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
        .collect();
    left.sort();
    assert_eq!(left, ["1", "42"]);
    node.mounts("a").await.expect("mounts");
}

#[tokio::test]
async fn the_upper_directory_belongs_to_root_of_the_pod() {
    if !may_mount() {
        return;
    }
    let node = Node::start().await;
    let owner = |path: &str| {
        let stat = fs::metadata(path).expect("stat");
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    let base = node.prepare("a", "", &[]).await.expect("prepare");
    assert_eq!(owner(&base.source), (0, 0, 0o755));
    chown(&base.source, Some(11), Some(12)).expect("chown");
    node.commit("base", "a", &[]).await.expect("commit");
    let upper = |mount: &towline_proto::containerd::types::Mount| {
        let find = |option: &String| option.strip_prefix("upperdir=").map(str::to_owned);
        mount.options.iter().find_map(find).expect("an upper directory")
    };
    let child = node.prepare("b", "base", &[]).await.expect("prepare");
    assert_eq!(owner(&upper(&child)), (11, 12, 0o755), "as the parent's");
    let mappings = [
        ("containerd.io/snapshot/uidmapping", "0:70000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:80000:65536"),
    ];
    let mapped = node.prepare("c", "base", &mappings).await.expect("prepare");
    assert_eq!(owner(&upper(&mapped)), (70000, 80000, 0o755));
    assert!(!mapped.options.iter().any(|option| option.starts_with("uidmap=")), "not asked for");
    let _mounted = Mounted::new(&mapped, &node.dir.path().join("mnt"));
}

#[tokio::test]
async fn id_mapping_is_asked_for_where_it_is_on() {
    let node = Node::start_with(|options| options.remap_ids = true).await;
    let labels = HashMap::from([("containerd.io/snapshot/uidmapping", "0:0:65536")]);
    let labels: Vec<_> = labels.into_iter().collect();
    let mount = node.prepare("a", "", &labels).await.expect("prepare");
    assert_eq!(mount.options, ["uidmap=0:0:65536", "rw", "rbind"]);
}
