//! `Model::read` on raw bytes, and on a valid base layer that was edited.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::memory::package;
use towline_artifact::model::Model;
use towline_artifact::{PieceIndex, Sha256, path, tar};
use towline_fuzz::{Edit, data, edited, provenance};

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<u8>),
    Edited(Vec<Edit>),
}

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let files: [(&str, &[u8]); 4] =
        [("a/b", b"some bytes"), ("c", b""), (&long, b"x"), ("zur\u{fc}ck", &[7; 600])];
    package(&files, provenance()).expect("a small model").artifact.base.bytes
});

fuzz_target!(|input: Input| {
    let bytes = match &input {
        Input::Raw(bytes) => bytes.clone(),
        Input::Edited(edits) => edited(VALID.clone(), edits),
    };
    let Ok(model) = Model::read(&bytes) else { return };
    assert_eq!(model.base, Sha256::of(&bytes));
    assert_eq!(model.chain_ids().len(), model.layers.len() + 1);
    assert!(model.files.is_sorted_by(|a, b| a.path < b.path));
    let found = tar::read(&bytes, usize::MAX).expect("a base layer is a tar");
    assert!(tar::paths_are_plain(&found));
    for file in &model.files {
        let own = file.path.starts_with(".towline/");
        assert!(own || path::check_path(&file.path).is_ok(), "{:?}", file.path);
        if file.layer == 0 {
            let entry = found.iter().find(|found| found.entry.path == file.path).expect("an entry");
            assert_eq!(entry.data_offset, file.offset);
            let data = data(&bytes, entry);
            assert_eq!(Sha256::of(data), file.sha256);
            assert!(data.is_empty() || file.table.matches(PieceIndex(0), data));
        } else {
            assert!(file.layer_range().end <= model.layers[file.layer - 1].size);
        }
    }
});
