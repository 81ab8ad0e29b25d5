//! Path rules: one line a path. Compares `check_files` with looking at every pair.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_artifact::path::{check_files, check_path};

fuzz_target!(|text: &str| {
    let paths: Vec<&str> = text.split('\n').take(64).collect();
    for path in &paths {
        if check_path(path).is_ok() {
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255));
            assert!(!path.contains(['\0', '\\']) && path.split('/').next() != Some(".towline"));
        }
    }
    if check_files(paths.iter().copied()).is_err() {
        return;
    }
    assert!(paths.iter().all(|path| check_path(path).is_ok()));
    for (n, one) in paths.iter().enumerate() {
        for other in &paths[..n] {
            let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
            assert!(one.to_lowercase() != other.to_lowercase(), "{one:?} {other:?}");
            assert!(!below(one, other) && !below(other, one), "{one:?} {other:?}");
        }
    }
    // What may be in an image may be in a plain directory, up to what the store's own path leaves of `PATH_MAX`.
    let fits = paths.iter().all(|path| path.len() <= 3072);
    assert!(!fits || towline_store::fuzzing::directories(&paths).is_some());
});
