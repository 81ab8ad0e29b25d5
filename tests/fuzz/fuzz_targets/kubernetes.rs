//! Answers of the Kubernetes API: EndpointSlices and Nodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_peer::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    match fuzzing::endpoint_slices(bytes) {
        // `[["::"]]` is the shortest that holds an address: JSON arrays are taken for objects, too.
        Ok((ips, next)) => {
            assert!(ips.len() <= bytes.len() / 8);
            assert!(next.is_none_or(|next| (1..=4096).contains(&next.len())));
        }
        Err(error) => check_own(&error),
    }
    match fuzzing::node_zone(bytes) {
        Ok(zone) => {
            assert!(zone.as_ref().is_none_or(|zone| (1..=63).contains(&zone.len())));
            check_shown(&zone.unwrap_or_default());
        }
        Err(error) => check_own(&error),
    }
});

/// An error is told in our words: short, whatever was read.
#[track_caller]
fn check_own(error: &str) {
    check_shown(error);
    assert!(error.len() < 128 && error.is_ascii(), "{error:?}");
}
