//! JSON answers of both hubs: listings, model cards, commits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_hub::{RemoteFile, fuzzing};

fn check(result: Result<Vec<RemoteFile>, String>) {
    match result {
        Err(error) => check_shown(&error),
        Ok(files) => {
            assert!(files.is_sorted_by(|a, b| a.path < b.path));
            for file in files {
                assert!(file.path.split('/').all(|part| !matches!(part, "" | "." | "..")));
                assert!(!file.path.contains(['\0', '\\']));
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(fuzzing::huggingface_page(bytes));
    for status in [200, 403, 404, 500] {
        check(fuzzing::modelscope_page(status, bytes));
    }
    if let Some(licence) = fuzzing::huggingface_licence(bytes) {
        assert!(licence.chars().count() <= 128);
        check_shown(&licence);
    }
    assert!(fuzzing::modelscope_date(bytes).is_none_or(|date| date.len() == 20));
});
