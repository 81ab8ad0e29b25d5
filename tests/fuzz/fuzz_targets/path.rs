//! Path rules: one line a path. Compares `check_files` with looking at every pair.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_artifact::path::{check_files, check_path};

/// A path and the directories it is in, itself first.
fn names(path: &str) -> Vec<&str> {
    std::iter::once(path).chain(path.match_indices('/').map(|(at, _)| &path[..at])).collect()
}

fuzz_target!(|text: &str| {
    let paths: Vec<&str> = text.split('\n').take(64).collect();
    for path in &paths {
        if check_path(path).is_ok() {
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255));
            let first = path.split('/').next().unwrap_or_default();
            assert!(!path.contains(['\0', '\\']) && first.to_lowercase() != ".towline");
        }
    }
    if check_files(paths.iter().copied()).is_err() {
        return;
    }
    assert!(paths.iter().all(|path| check_path(path).is_ok()));
    let names: Vec<Vec<&str>> = paths.iter().map(|path| names(path)).collect();
    for (n, one) in names.iter().enumerate() {
        for other in &names[..n] {
            assert!(!one.contains(&other[0]) && !other.contains(&one[0]), "{one:?} {other:?}");
            for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                assert!(a == b || a.to_lowercase() != b.to_lowercase(), "{a:?} {b:?}");
            }
        }
    }
    // What may be in an image may be in a plain directory, up to what the store's own path leaves of `PATH_MAX`.
    let fits = paths.iter().all(|path| path.len() <= 3072);
    assert!(!fits || towline_store::fuzzing::directories(&paths).is_some());
});
