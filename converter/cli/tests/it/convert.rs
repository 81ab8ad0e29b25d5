//! `towline convert` where it succeeds.

use serde_json::json;

use crate::hub::{COMMIT, Hub, Repository};
use crate::run::{Place, model, tags, unpack};

/// Layers as the JSON report tells them: number of files and whether reused.
fn layers(report: &serde_json::Value) -> Vec<(u64, bool)> {
    let layers = report["layers"].as_array().expect("a list").iter();
    layers.map(|layer| (layer["files"].as_u64().unwrap(), layer["reused"].as_bool().unwrap())).collect()
}

#[tokio::test]
async fn the_same_directory_twice_is_the_same_image_and_moves_nothing() {
    let place = Place::new();
    let files = place.write_model("model");
    let bytes: usize = files.values().map(Vec::len).sum();
    let first = place.run(&["convert", "--output", "json", "dir:model", "oci:out:v1"]).await.json();
    assert_eq!(first["files"], 5);
    assert_eq!(first["bytes"], bytes);
    assert_eq!(first["transferred"]["hub_bytes"], bytes);
    assert_eq!(layers(&first), [(3, false), (1, false), (1, false)]);
    assert_eq!(first["reference"], format!("oci:out@{}", first["digest"].as_str().unwrap()));
    assert_eq!(first["source"]["hub"], "directory");
    assert_eq!(first["source"]["repo"], "model");
    assert!(first["elapsed_ms"].is_u64());

    let second = place.run(&["convert", "--output", "json", "dir:./model", "oci:out:v1"]).await.json();
    assert_eq!(second["digest"], first["digest"]);
    assert_eq!(layers(&second), [(3, true), (1, true), (1, true)]);
    assert_eq!(second["transferred"]["hub_bytes"], 0);
    assert!(second["transferred"]["registry_bytes"].as_u64().unwrap() < 20_000, "manifests only");

    for fresh in [
        &["convert", "--no-reuse", "dir:model", "oci:out:v2"][..],
        &["convert", "--jobs", "1", "dir:model", "oci:new"],
    ] {
        let run = place.run(fresh).await;
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let pinned = run.stdout.lines().last().unwrap();
        assert!(pinned.ends_with(&format!("@{}", first["digest"].as_str().unwrap())), "{pinned}");
    }
    assert_eq!(tags(&place.path("out"))["v1"], first["digest"].as_str().unwrap());
    assert_eq!(tags(&place.path("out"))["v2"], first["digest"].as_str().unwrap());
    assert_eq!(tags(&place.path("new"))["latest"], first["digest"].as_str().unwrap());
}

#[tokio::test]
async fn the_image_unpacks_to_the_source() {
    let place = Place::new();
    let mut files = place.write_model("model");
    for (option, prefix) in [(&[][..], ""), (&["--prefix", "models/x"][..], "models/x/")] {
        let args =
            [&["convert", "--output", "json", "--quiet"], option, &["dir:model", "oci:out:v1"]].concat();
        let run = place.run(&args).await;
        assert_eq!(run.stderr, "");
        let digest = run.json()["digest"].as_str().unwrap().to_owned();
        for architecture in ["amd64", "arm64"] {
            let mut tree = unpack(&place.path("out"), &digest, architecture);
            tree.retain(|path, _| !path.starts_with(".towline/"));
            let expected = files.iter().map(|(path, bytes)| (format!("{prefix}{path}"), bytes.clone()));
            assert!(tree.into_iter().eq(expected), "{architecture} {prefix}");
        }
    }
    // A changed file costs its own layer and the base layer.
    files.insert("model-00002-of-00002.safetensors".into(), vec![9; 5 << 20]);
    place.write("model/model-00002-of-00002.safetensors", &[9; 5 << 20]);
    let report = place
        .run(&["convert", "--output", "json", "--prefix", "models/x/", "dir:model", "oci:out:v1"])
        .await
        .json();
    assert_eq!(layers(&report), [(3, false), (1, true), (1, false)]);
    assert_eq!(report["transferred"]["hub_bytes"], 5 << 20);
}

#[tokio::test]
async fn patterns_select_and_a_dry_run_writes_nothing() {
    let place = Place::new();
    place.write_model("model");
    let args = ["convert", "--dry-run", "--exclude", "*-00002-of-*", "dir:model", "oci:out:v1"];
    let run = place.run(&args).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.starts_with("LAYER  FILES     SIZE  ACTION  CONTENTS\n    0      3"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("    1      1  2.0 MiB  move    model-00001-of-00002.safetensors\n"),
        "{}",
        run.stdout
    );
    assert!(!run.stdout.contains("model-00002"), "{}", run.stdout);
    assert!(!place.path("out").try_exists().unwrap());
    let json = place.run(&[&["convert", "--output", "json"], &args[1..]].concat()).await.json();
    assert_eq!((json["dry_run"].clone(), json["files"].clone()), (json!(true), json!(4)));
}

#[tokio::test]
async fn a_hub_is_read_at_one_commit_and_verified_afterwards() {
    let hub = Hub::start(Repository { files: model(), ..Repository::default() }).await;
    let place = Place::with_hub(&hub.url);
    let report =
        place.run(&["convert", "--output", "json", "hf://acme/tiny@main", "oci:out:v1"]).await.json();
    let source = json!({"hub": "huggingface", "repo": "acme/tiny", "revision": "main", "commit": COMMIT});
    assert_eq!(report["source"], source);
    let bytes: usize = model().values().map(Vec::len).sum();
    assert_eq!(
        (report["transferred"]["hub_bytes"].as_u64(), hub.served()),
        (Some(bytes as u64), bytes as u64)
    );

    let inspected = place.run(&["inspect", "--output", "json", "oci:out:v1"]).await.json();
    assert_eq!(inspected["digest"], report["digest"]);
    assert_eq!(inspected["source"]["commit"], COMMIT);
    assert_eq!(inspected["source"]["created"], "2024-09-25T12:32:50Z");
    assert_eq!(inspected["source"]["licence"], "apache-2.0");
    let page = inspected["source"]["url"].as_str().unwrap();
    assert!(page.contains(COMMIT) && !page.contains("main"), "{page}");
    assert_eq!(inspected["files"].as_array().unwrap().len(), 5);

    let again = place.run(&["convert", "--output", "json", "hf://acme/tiny", "oci:out:v1"]).await.json();
    assert_eq!(again["digest"], report["digest"]);
    assert_eq!(hub.served(), bytes as u64, "the second run reads no file");
}

#[tokio::test]
async fn many_small_files_are_packed_and_come_back() {
    let mut files = std::collections::BTreeMap::new();
    for n in 0..330u32 {
        let bytes: Vec<u8> = n.to_le_bytes().iter().copied().cycle().take(200_000 + n as usize).collect();
        files.insert(format!("images/{n:04}.png"), bytes);
    }
    let hub = Hub::start(Repository { files: files.clone(), ..Repository::default() }).await;
    let place = Place::with_hub(&hub.url);
    let report = place.run(&["convert", "--output", "json", "hf://acme/tiny", "oci:out:v1"]).await.json();
    assert_eq!(layers(&report).len(), 100);
    assert!(layers(&report)[1..].iter().any(|(files, _)| *files > 1));
    let mut tree = unpack(&place.path("out"), report["digest"].as_str().unwrap(), "amd64");
    tree.retain(|path, _| !path.starts_with(".towline/"));
    assert!(tree == files);
    // The listing has only git hashes for them, so they are hashed from the image, base layer and packed layers alike.
    let outcome = place.run(&["verify", "--output", "json", "oci:out:v1"]).await.json();
    assert_eq!((outcome["verified"].clone(), outcome["left_out"].clone()), (json!(330), json!(0)));
}
