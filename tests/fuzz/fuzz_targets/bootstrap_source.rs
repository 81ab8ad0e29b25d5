//! How an operator names where first peers are: what is read is shown in a form that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_peer::Source;

/// Labels of names, which become part of a request's path.
fn check_label(label: &str) {
    assert!(
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "{label:?}"
    );
}

fuzz_target!(|text: &str| {
    let source = match text.parse::<Source>() {
        Ok(source) => source,
        Err(error) => {
            check_shown(&error.to_string());
            check_shown(error.hint());
            return;
        }
    };
    assert_eq!(source.to_string().parse::<Source>(), Ok(source.clone()));
    let port = match &source {
        Source::Static(address) => {
            assert!(!address.ip().is_unspecified() && !address.ip().is_multicast());
            address.port()
        }
        Source::Dns { name, port } => {
            let bare = name.strip_suffix('.').unwrap_or(name);
            bare.split('.').for_each(check_label);
            assert!(bare.len() <= 253 && name.parse::<std::net::IpAddr>().is_err());
            *port
        }
        Source::Kubernetes { namespace, service, port } => {
            [namespace, service].into_iter().for_each(|name| check_label(name));
            assert_eq!(text, format!("kubernetes:{namespace}/{service}:{port}"));
            *port
        }
    };
    assert_ne!(port, 0);
});
