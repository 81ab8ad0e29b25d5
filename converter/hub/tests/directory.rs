//! A local directory as a source.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::*;
use towline_hub::{HashCheck, HubError, Listing, PathProblem, Source};

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let full = root.join(path);
    fs::create_dir_all(full.parent().expect("parent")).expect("directory");
    fs::write(full, bytes).expect("file");
}

fn open(root: &Path) -> Source {
    source(&format!("dir:{}", root.display()), "http://127.0.0.1:1", false)
}

async fn list(root: &Path) -> Result<Listing, HubError> {
    open(root).resolve().await
}

#[tokio::test]
async fn a_directory_is_listed_hashed_and_read() {
    let root = tempfile::tempdir().expect("directory");
    let big = noise((2 << 20) + 5);
    write(root.path(), "sub/model.bin", &big);
    write(root.path(), "a.txt", b"");
    write(root.path(), "run.sh", b"#!/bin/sh\n");
    write(root.path(), ".git/HEAD", b"ref");
    write(root.path(), ".cache/huggingface/x", b"");
    fs::set_permissions(root.path().join("run.sh"), fs::Permissions::from_mode(0o755)).expect("mode");
    symlink("sub/model.bin", root.path().join("link.bin")).expect("link");
    let source = open(root.path());
    let listing = source.resolve().await.expect("listing");
    let found: Vec<_> = listing.files.iter().map(|f| (f.path.as_str(), f.size, f.executable)).collect();
    let len = big.len() as u64;
    assert_eq!(
        found,
        [("a.txt", 0, false), ("link.bin", len, false), ("run.sh", 10, true), ("sub/model.bin", len, false)]
    );
    let text = format!(
        "towline directory 1\n{} 0 - a.txt\n{big_sha} {len} - link.bin\n{} 10 x run.sh\n{big_sha} {len} - sub/model.bin\n",
        sha256(b""),
        sha256(b"#!/bin/sh\n"),
        big_sha = sha256(&big),
    );
    assert_eq!(listing.commit, format!("sha256:{}", sha256(text.as_bytes())));
    assert_eq!((listing.created, listing.url.as_str()), (None, ""));

    let listing = source.resolve().await.expect("listing");
    assert_eq!(download(&source, &listing, &listing.files[3]).await.expect("file"), big);
    for from in [0, 1, 1 << 20, len - 1, len] {
        let bytes = collect(source.open(&listing, &listing.files[3], from).await.expect("open"))
            .await
            .expect("bytes");
        assert!(bytes == big[from as usize..], "from {from}");
    }
}

#[tokio::test]
async fn a_snapshot_in_a_hugging_face_cache_is_read_through_its_links() {
    let repo = tempfile::tempdir().expect("directory");
    write(repo.path(), "blobs/abc", b"weights");
    let snapshot = repo.path().join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("directory");
    symlink("../../blobs/abc", snapshot.join("model.bin")).expect("link");
    let listing = list(&snapshot).await.expect("listing");
    assert_eq!((listing.files[0].path.as_str(), listing.files[0].size), ("model.bin", 7));
    symlink("../../refs", snapshot.join("escape")).expect("link");
    assert!(list(&snapshot).await.is_err());
}

#[tokio::test]
async fn what_leads_elsewhere_is_refused_by_path() {
    for (target, problem) in [
        ("/etc/passwd", PathProblem::Link),
        ("../outside", PathProblem::Link),
        ("sub", PathProblem::Link),
        ("nowhere", PathProblem::Link),
        ("link", PathProblem::Link),
    ] {
        let parent = tempfile::tempdir().expect("directory");
        write(parent.path(), "outside", b"secret");
        let root = parent.path().join("root");
        write(&root, "sub/file", b"x");
        symlink(target, root.join("link")).expect("link");
        let error = list(&root).await.expect_err(target);
        let HubError::Path(found) = &error else { panic!("{target}: {error}") };
        assert_eq!((found.path.as_str(), &found.problem), ("link", &problem));
        assert!(error.hint().is_some());
    }
}

#[tokio::test]
async fn odd_entries_are_refused_by_path() {
    let check = async |prepare: &dyn Fn(&Path), problem: PathProblem| {
        let root = tempfile::tempdir().expect("directory");
        prepare(root.path());
        match list(root.path()).await {
            Err(HubError::Path(error)) => assert_eq!(error.problem, problem),
            other => panic!("{problem}: {other:?}"),
        }
    };
    let raw = |root: &Path| fs::write(root.join(std::ffi::OsStr::from_bytes(b"a\xff")), "").expect("file");
    check(&raw, PathProblem::NotUtf8).await;
    let clash = |root: &Path| ["README", "readme"].iter().for_each(|name| write(root, name, b""));
    check(&clash, PathProblem::Clash("README".into())).await;
    check(&|root| write(root, "a\nb", b""), PathProblem::Control).await;
    check(&|root| write(root, ".towline/index.json", b""), PathProblem::Reserved).await;
    let socket = |root: &Path| drop(std::os::unix::net::UnixListener::bind(root.join("s")).expect("socket"));
    check(&socket, PathProblem::Special).await;
}

#[tokio::test]
async fn changes_after_the_listing_are_found() {
    let root = tempfile::tempdir().expect("directory");
    write(root.path(), "model.bin", b"before");
    let source = open(root.path());
    let listing = source.resolve().await.expect("listing");
    let file = &listing.files[0];

    write(root.path(), "model.bin", b"after!");
    let bytes = collect(source.open(&listing, file, 0).await.expect("same length")).await.expect("bytes");
    let mut check = HashCheck::new(file);
    check.update(&bytes);
    assert!(matches!(check.finish(), Err(HubError::WrongHash { .. })));

    write(root.path(), "model.bin", b"longer than before");
    assert!(matches!(
        source.open(&listing, file, 0).await.err(),
        Some(HubError::WrongLength { found: 18, .. })
    ));

    write(root.path(), "model.bin", b"before");
    fs::rename(root.path().join("model.bin"), root.path().join("other")).expect("rename");
    symlink("/etc/passwd", root.path().join("model.bin")).expect("link");
    assert!(matches!(source.open(&listing, file, 0).await.err(), Some(HubError::Path(_))));
}

#[tokio::test]
async fn nothing_is_an_error() {
    let root = tempfile::tempdir().expect("directory");
    assert!(matches!(list(root.path()).await, Err(HubError::Empty { .. })));
    assert!(matches!(list(&root.path().join("missing")).await, Err(HubError::Io { .. })));
}
