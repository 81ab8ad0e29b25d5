//! containerd's `hosts.toml`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use towline_hub::fuzzing::Url;
use towline_registry::{Repository, fuzzing};

fuzz_target!(|text: &str| {
    if let Ok(urls) = fuzzing::hosts(text) {
        assert!(urls.len() <= 17);
        for url in urls {
            let url = Url::parse(&url).expect("a server has an address");
            assert!(matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
            assert!(url.username().is_empty() && url.password().is_none() && url.query().is_none());
        }
    }
    // Only checked hosts get this far, and none of them leads out of the directory.
    if let Ok(repository) = Repository::new(text, "a") {
        for file in fuzzing::hosts_files(Path::new("/certs.d"), repository.host()) {
            assert_eq!(file.parent().and_then(Path::parent), Some(Path::new("/certs.d")), "{file:?}");
        }
    }
});
