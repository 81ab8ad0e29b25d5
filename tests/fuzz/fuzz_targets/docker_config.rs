//! The Docker client's configuration and the answers of credential helpers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_registry::{Credential, fuzzing};

fn check(credential: &Credential) {
    let secret = match credential {
        Credential::Basic { password: secret, .. }
        | Credential::IdentityToken(secret)
        | Credential::RegistryToken(secret) => secret.expose(),
    };
    assert_eq!(
        format!("{:?}", towline_registry::Secret::new(secret)),
        format!("{:?}", towline_registry::Secret::new(""))
    );
}

fuzz_target!(|bytes: &[u8]| {
    for (host, repository) in [("docker.io", "library/a"), ("example.com:5000", "a/b/c"), ("h", "")] {
        if let Ok(Some(credential)) = fuzzing::docker_config(bytes, host, repository) {
            check(&credential);
        }
    }
    if let Some(Some(credential)) = fuzzing::helper_answer(bytes) {
        check(&credential);
    }
});
