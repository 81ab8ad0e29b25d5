//! Bodies that registries, token services and layouts hold: manifests, errors, tokens, indexes.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use towline_artifact::Sha256;
use towline_fuzz::check_shown;
use towline_registry::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    let manifest = fuzzing::manifest(bytes, "application/json; charset=utf-8");
    assert_eq!(manifest.digest.to_string(), Sha256::of(bytes).to_string());
    let reason = fuzzing::reason(bytes);
    check_shown(&reason.to_string());
    assert!(reason.code.chars().count() <= 1024 && reason.message.chars().count() <= 1024);
    let life = fuzzing::token_life(bytes);
    assert!(life.is_none_or(|life| !life.is_zero() && life <= Duration::from_secs(86_400)));
    let _ = fuzzing::layout_index(bytes);
});
