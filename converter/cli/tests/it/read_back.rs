//! `towline inspect` and `towline verify`.

use crate::hub::{COMMIT, Hub, Repository};
use crate::run::{Place, model};

#[tokio::test]
async fn inspect_shows_source_layers_and_files() {
    let place = Place::new();
    place.write_model("model");
    let digest =
        place.run(&["convert", "--output", "json", "dir:model", "oci:out:v1"]).await.json()["digest"].clone();
    let pinned = format!("oci:out@{}", digest.as_str().unwrap());
    for image in ["oci:out:v1", &pinned] {
        let run = place.run(&["inspect", image]).await;
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(
            run.stdout.starts_with(&format!("digest   {}\nsource   directory\n", digest.as_str().unwrap()))
        );
        assert!(run.stdout.contains("tokenizer/vocab.txt"), "{}", run.stdout);
        assert!(!run.stdout.contains(".towline"), "{}", run.stdout);
    }
}

#[tokio::test]
async fn images_that_are_not_ours_are_named_as_such() {
    let place = Place::new();
    let manifest = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}]}"#;
    let digest = {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(manifest))
    };
    place.write("out/oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    place.write(&format!("out/blobs/sha256/{digest}"), manifest);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{digest}"),
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }]});
    place.write("out/index.json", index.to_string().as_bytes());
    place
        .run(&["inspect", "oci:out:v1"])
        .await
        .fails(1, &["inspect oci:out:v1: not an image that towline made", "hint: "]);
    place.run(&["inspect", "oci:out:v2"]).await.fails(1, &["v2"]);
    place.run(&["inspect", "oci:nowhere:v1"]).await.fails(1, &["nowhere"]);
    // Such an image under the destination's tag is replaced, and nothing of it is used.
    place.write_model("model");
    let run = place.run(&["convert", "dir:model", "oci:out:v1"]).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("nothing of the present oci:out:v1 is reused"), "{}", run.stderr);
}

#[tokio::test]
async fn a_damaged_base_layer_is_refused() {
    let place = Place::new();
    place.write_model("model");
    let report = place.run(&["convert", "--output", "json", "dir:model", "oci:out:v1"]).await.json();
    let base = report["layers"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let path = format!("out/blobs/sha256/{base}");
    let mut bytes = std::fs::read(place.path(&path)).unwrap();
    bytes[700] ^= 1;
    place.write(&path, &bytes);
    place.run(&["inspect", "oci:out:v1"]).await.fails(1, &[&base]);
}

#[tokio::test]
async fn verify_lists_the_hub_again_and_reads_no_weights() {
    let hub = Hub::start(Repository { files: model(), ..Repository::default() }).await;
    let place = Place::with_hub(&hub.url);
    let args = ["convert", "--exclude", "README.md", "--prefix", "m", "hf://acme/tiny", "oci:out:v1"];
    assert_eq!(place.run(&args).await.code, Some(0));
    let served = hub.served();
    let outcome = place.run(&["verify", "--output", "json", "--prefix", "m", "oci:out:v1"]).await.json();
    assert_eq!(outcome["verified"], 4);
    assert_eq!(outcome["left_out"], 1);
    assert_eq!(outcome["commit"], COMMIT);
    assert_eq!(hub.served(), served);

    // The same commit with other files: what a hub shows whose history was rewritten.
    let mut changed = model();
    changed.insert("config.json".into(), b"{\"model_type\":\"evil\"}".to_vec());
    changed.remove("model-00001-of-00002.safetensors");
    let liar = Hub::start(Repository { files: changed, ..Repository::default() }).await;
    let run = place
        .command(&["verify", "--prefix", "m", "oci:out:v1"])
        .env("HF_ENDPOINT", &liar.url)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.status.code(), Some(1));
    assert!(
        text.contains("differs: \"m/config.json\"") && text.contains("is not in the repository"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&run.stderr).contains("error: 2 files differ from hf://acme/tiny@"));
}

#[tokio::test]
async fn verify_of_a_directory_needs_the_directory() {
    let place = Place::new();
    place.write_model("model");
    assert_eq!(place.run(&["convert", "dir:model", "oci:out:v1"]).await.code, Some(0));
    place.run(&["verify", "oci:out:v1"]).await.fails(2, &["made from a directory", "hint: ", "--source"]);
    assert_eq!(place.run(&["verify", "--source", "dir:model", "oci:out:v1"]).await.code, Some(0));
    place.write("model/config.json", b"changed");
    place
        .run(&["verify", "--source", "dir:model", "oci:out:v1"])
        .await
        .fails(1, &["image has commit sha256:"]);
}
