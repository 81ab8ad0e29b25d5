//! `Index::from_bytes`: what is accepted is written and read again as the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_artifact::index::Index;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::from_bytes(bytes) else { return };
    let written = index.to_bytes();
    let again = Index::from_bytes(&written).expect("what we write ourselves");
    assert_eq!(again, index);
    assert_eq!(again.to_bytes(), written);
});
