//! The format as a whole: the worked example of `docs/format.md`, round trips, and hostile base layers.

use bytes::Bytes;
use proptest::prelude::*;
use towline_artifact::memory::{Package, package};
use towline_artifact::{Model, ModelError, PIECE_LEN, PieceIndex, Provenance, Sha256, chain_id};

fn source() -> Provenance {
    Provenance {
        hub: "huggingface".into(),
        kind: "model".into(),
        repo: "acme/tiny".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        created: Some("2024-09-25T12:32:50Z".into()),
        licence: Some("apache-2.0".into()),
        url: Some("https://huggingface.co/acme/tiny/tree/0123456789abcdef0123456789abcdef01234567".into()),
    }
}

/// The worked example: three files, the last of two pieces.
fn example() -> Package {
    let weights: Vec<u8> = (0..=PIECE_LEN).map(|i| (i % 251) as u8).collect();
    let files: [(&str, &[u8]); 3] = [
        ("README.md", b"# tiny\n"),
        ("config.json", b"{\"model_type\":\"tiny\"}\n"),
        ("model.safetensors", &weights),
    ];
    package(&files, source()).unwrap()
}

/// Every digest that the worked example in `docs/format.md` shows.
fn worked_example() -> Vec<(&'static str, String)> {
    let made = example();
    let model = Model::read(&made.artifact.base.bytes).unwrap();
    let weights = model.files.iter().find(|file| file.path == "model.safetensors").unwrap();
    let a = &made.artifact;
    vec![
        ("sha256 of model.safetensors", weights.sha256.to_string()),
        ("content id of model.safetensors", weights.table.content().to_string()),
        ("piece 0", weights.table.digests()[0].to_string()),
        ("piece 1", weights.table.digests()[1].to_string()),
        ("layer 0", a.base.digest.to_string()),
        ("layer 1", made.weight_layers[0].0.to_string()),
        ("chain id 1", model.chain_ids()[1].to_string()),
        ("config linux/amd64", a.configs[0].digest.to_string()),
        ("config linux/arm64", a.configs[1].digest.to_string()),
        ("config ModelPack", a.configs[2].digest.to_string()),
        ("manifest linux/amd64", a.manifests[0].digest.to_string()),
        ("manifest linux/arm64", a.manifests[1].digest.to_string()),
        ("manifest ModelPack", a.manifests[2].digest.to_string()),
        ("image index", a.index.digest.to_string()),
    ]
}

#[test]
fn the_worked_example_holds() {
    let spec = include_str!("../../../docs/format.md");
    let rows = worked_example().into_iter().map(|(name, digest)| format!("| {name} | `{digest}` |"));
    let missing: Vec<String> = rows.filter(|row| !spec.contains(row)).collect();
    assert!(missing.is_empty(), "docs/format.md lacks the rows\n{}", missing.join("\n"));
    let made = example();
    let index = made.artifact.base.bytes.windows(9).position(|w| w == b"{\"files\":").unwrap();
    let text: Vec<u8> = made.artifact.base.bytes[index..].iter().copied().take_while(|&b| b != 0).collect();
    let text = String::from_utf8(text).unwrap();
    assert!(spec.contains(&text), "docs/format.md lacks the index\n{text}");
}

#[test]
fn a_model_reads_back_as_it_was_packaged() {
    let made = example();
    let model = Model::read(&made.artifact.base.bytes).unwrap();
    let paths: Vec<&str> = model.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        [".towline/index.json", ".towline/pieces", "README.md", "config.json", "model.safetensors"]
    );
    assert_eq!(model.source, source());
    let weights = &model.files[4];
    let (digest, layer) = &made.weight_layers[0];
    assert_eq!(model.layer_digest(1), Some(*digest));
    let data = &layer[weights.layer_range().start as usize..weights.layer_range().end as usize];
    let first = &data[..PIECE_LEN as usize];
    assert!(weights.table.verify(PieceIndex(0), Bytes::copy_from_slice(first)).is_ok());
    assert!(weights.table.verify(PieceIndex(1), Bytes::copy_from_slice(first)).is_err());
    let chain = model.chain_ids();
    assert_eq!(chain, [model.base, chain_id(Some(model.base), *digest)]);
    let text = format!("{} {}", model.base, digest);
    assert_eq!(chain[1], Sha256::of(text.as_bytes()));
}

#[test]
fn many_small_files_become_packed_layers() {
    let bytes = vec![7; 300_000];
    let names: Vec<String> = (0..250).map(|n| format!("images/{n:04}.png")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &bytes[..])).collect();
    let made = package(&files, source()).unwrap();
    assert_eq!(made.weight_layers.len(), 99);
    let model = Model::read(&made.artifact.base.bytes).unwrap();
    assert_eq!(model.total_len(), 250 * 300_000);
}

#[test]
fn a_manifest_is_not_a_model() {
    assert!(matches!(Model::read(&example().artifact.manifests[0].bytes), Err(ModelError::Tar(_))));
    assert!(matches!(Model::read(&[0; 1024]), Err(ModelError::NoIndex)));
    assert!(Model::read(&[]).is_err());
}

/// Replaces text in the index by text of the same length, as a liar would who recomputes every digest above.
#[track_caller]
fn check_lie(from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = example().artifact.base.bytes;
    let at = bytes.windows(from.len()).rposition(|w| w == from.as_bytes()).expect(from);
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    let result = Model::read(&bytes);
    assert!(result.is_err(), "{to} was believed");
}

#[test]
fn an_index_that_lies_is_refused() {
    check_lie("\"format\":2", "\"format\":1");
    check_lie("\"layer\":1", "\"layer\":2");
    check_lie("\"layer\":1", "\"layer\":0");
    check_lie("\"path\":\"model.safetensors\"", "\"path\":\"../el.safetensors\"");
    check_lie("\"path\":\"config.json\"", "\"path\":\"confif.json\"");
    check_lie("\"size\":2097153", "\"size\":2097152");
    check_lie("\"size\":2097153", "\"size\":9097153");
    check_lie("\"mode\":\"0644\"", "\"mode\":\"0777\"");
    check_lie("\"offset\":512,\"path\":\"model", "\"offset\":9e9,\"path\":\"model");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_base_layers_never_panic_and_never_pass(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let good = package(&[("a/b", b"some bytes"), ("c", b"")], source()).unwrap().artifact.base.bytes;
        let mut bad = good.clone();
        let at = at.index(bad.len());
        bad[at] ^= 1 << bit;
        if let Ok(model) = Model::read(&bad) {
            // Only free text of the provenance may change: that is what the digest of the layer is for.
            prop_assert_ne!(&model.source, &source());
            prop_assert_ne!(model.base, Sha256::of(&good));
            prop_assert_eq!(model.total_len(), 10);
        }
    }

    #[test]
    fn packaging_is_a_pure_function(lens in prop::collection::vec(0..70_000usize, 1..12), seed in any::<u8>()) {
        let files: Vec<(String, Vec<u8>)> =
            lens.iter().enumerate().map(|(n, &len)| (format!("d{}/f{n}", n % 3), vec![seed ^ n as u8; len])).collect();
        let forward: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
        let backward: Vec<(&str, &[u8])> = forward.iter().rev().copied().collect();
        let (a, b) = (package(&forward, source()).unwrap(), package(&backward, source()).unwrap());
        prop_assert_eq!(&a.artifact, &b.artifact);
        prop_assert!(Model::read(&a.artifact.base.bytes).is_ok());
    }
}
