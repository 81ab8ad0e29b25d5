//! containerd's filter language: one filter a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_snapshots::fuzzing::selects;

const LABELS: [(&str, &str); 2] = [("containerd.io/snapshot.ref", "sha256:00"), ("a", "b")];

fn quoted(text: &str) -> String {
    let byte = |b: u8| format!("\\x{b:02x}");
    format!("\"{}\"", text.bytes().map(byte).collect::<String>())
}

fuzz_target!(|text: &str| {
    let filters: Vec<&str> = text.split('\n').collect();
    let together = selects(&filters, "name", &LABELS);
    let apart: Option<Vec<bool>> = filters.iter().map(|f| selects(&[f], "name", &LABELS)).collect();
    if let (Some(together), Some(apart)) = (together, apart) {
        assert_eq!(together, apart.contains(&true));
    }
    // A name or a label is found by its quoted text, whatever it is.
    if text.len() < 4096 {
        let value = quoted(text);
        let label = [("k", text)];
        for (filter, wanted) in [
            (format!("name=={value}"), true),
            (format!("name!={value}"), false),
            (format!("labels.k=={value}"), true),
            (format!("labels.\"k\"!={value},name"), false),
        ] {
            assert_eq!(selects(&[&filter], text, &label), Some(wanted), "{filter}");
        }
        let label = [(text, "v")];
        let filter = format!("labels.{value}==v");
        assert_eq!(selects(&[&filter], "name", &label), Some(true), "{filter}");
    }
});
