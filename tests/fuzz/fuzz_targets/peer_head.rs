//! Heads of requests for pieces and of answers to them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_peer::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    let (request, answer) = fuzzing::piece_heads(bytes);
    for error in [request.err(), answer.err()].into_iter().flatten() {
        check_shown(&error);
    }
});
