//! Records in the database of snapshots: name and stored form in each line. Loading always ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_snapshots::fuzzing::chains;

fuzz_target!(|text: &str| {
    let rows: Vec<(&str, &[u8])> = text
        .split('\n')
        .filter_map(|line| line.split_once(' '))
        .map(|(n, row)| (n, row.as_bytes()))
        .collect();
    let lens = chains(&rows).unwrap_or_default();
    assert!(lens.len() <= rows.len() && lens.iter().all(|len| *len < rows.len().max(1)));
});
