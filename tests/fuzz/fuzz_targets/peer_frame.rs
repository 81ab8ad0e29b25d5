//! What peers say on a control stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_peer::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = fuzzing::control_frame(bytes) {
        check_shown(&error);
    }
});
