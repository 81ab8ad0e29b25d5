//! `WWW-Authenticate`: one header a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_hub::fuzzing::Url;
use towline_registry::fuzzing::{Bearer, challenge};

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn written(bearer: &Bearer) -> String {
    let parameter = |name: &str, value: &Option<String>| {
        value.as_ref().map_or_else(String::new, |value| format!(",{name}={}", quoted(value)))
    };
    let (service, scope) = (parameter("service", &bearer.service), parameter("scope", &bearer.scope));
    format!("Bearer realm={}{service}{scope}", quoted(&bearer.realm))
}

fuzz_target!(|text: &str| {
    let headers: Vec<&str> = text.split('\n').collect();
    let Some(Some(bearer)) = challenge(&headers) else { return };
    assert!(bearer.scopes.is_sorted() && bearer.scopes.contains(&"repository:c:pull".to_owned()));
    if bearer.is_asked {
        let realm = Url::parse(&bearer.realm).expect("only addresses are asked");
        assert!(realm.scheme() == "https" && realm.username().is_empty() && realm.password().is_none());
    }
    let header = written(&bearer);
    if header.len() <= 8 << 10 {
        assert_eq!(challenge(&[&header]), Some(Some(bearer)));
    }
});
