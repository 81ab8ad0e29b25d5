//! References and destinations: no name that is accepted changes the shape of an address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_hub::fuzzing::Url;
use towline_registry::{Repository, fuzzing};

fn check(repository: &Repository, name: &str) {
    let path = format!("/v2/{}/manifests/{name}", repository.path());
    let url = format!("https://{}{path}", repository.host());
    let url = Url::parse(&url).expect("a checked host makes an address");
    assert_eq!(url.path(), path);
    assert!(url.username().is_empty() && url.password().is_none());
    assert!(url.query().is_none() && url.fragment().is_none());
    let host = url.host_str().expect("a web address has a host");
    assert!(host.starts_with('[') || repository.host().split(':').next() == Some(host), "{host}");
    assert_eq!(repository.to_string().parse::<Repository>().as_ref(), Ok(repository));
}

fuzz_target!(|text: &str| {
    if fuzzing::is_manifest_name(text) {
        check(&Repository::new("example.com", "a").expect("a plain repository"), text);
    }
    if let Ok(repository) = text.parse::<Repository>() {
        check(&repository, "latest");
    }
    let Some(name) = fuzzing::image_name(text) else { return };
    if let Some(repository) = &name.repository {
        check(repository, "latest");
    }
    if let Some(dir) = &name.dir {
        let tag = name.tag.as_ref().map_or_else(String::new, |tag| format!(":{tag}"));
        let digest = name.digest.as_ref().map_or_else(String::new, |digest| format!("@{digest}"));
        assert_eq!(format!("oci:{dir}{tag}{digest}"), text);
        assert!(name.tag.is_none_or(|tag| fuzzing::is_manifest_name(&tag)));
    }
});
