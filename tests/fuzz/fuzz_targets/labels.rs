//! Keys and labels of the snapshots service: a key in the first line, `label=value` in the others.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use towline_snapshots::fuzzing;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let key = lines.next().unwrap_or_default();
    if let Some(purpose) = fuzzing::purpose(key) {
        assert_eq!(fuzzing::purpose(&format!("k8s.io/1/{key}")).is_some(), key.len() + 9 <= 8 << 10);
        assert!(purpose != "Extraction" || key.contains("extract-"));
        assert!(purpose != "ImageVolume" || key.contains("/image-volumes/"));
    }
    let labels: HashMap<String, String> =
        lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let given = labels.clone();
    let Some(read) = fuzzing::labels(labels) else { return };
    assert!(read.labels.iter().all(|(key, value)| !value.is_empty() && given.get(key) == Some(value)));
    assert!(read.of_model.keys().all(|key| key.starts_with("containerd.io/snapshot")));
    assert!(read.chain.is_none_or(|chain| chain.len() == 71));
    assert!(read.root.flatten().is_none_or(|(uid, gid)| uid != u32::MAX && gid != u32::MAX));
});
