//! Headers of the hubs' answers: where the next page and a redirect lead, dates, and how long to wait.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use towline_hub::fuzzing::{self, Url};

static HUB: LazyLock<Url> = LazyLock::new(|| Url::parse("https://hub.example").expect("an address"));
static CDN: LazyLock<Url> = LazyLock::new(|| Url::parse("https://cdn.example/a/b?c").expect("an address"));

fuzz_target!(|text: &str| {
    for from in [&*HUB, &*CDN] {
        let Some((to, with_token)) = fuzzing::next_hop(&HUB, from, text) else { continue };
        assert_eq!(to.scheme(), "https");
        assert!(to.username().is_empty() && to.password().is_none());
        assert!(!with_token || (to.host_str() == Some("hub.example") && to.port().is_none()), "{to}");
    }
    if let Some(target) = fuzzing::link_next(text) {
        assert!(text.contains(&format!("<{target}>")));
    }
    if let Some(date) = fuzzing::seconds(text) {
        assert_eq!(fuzzing::seconds(&date), Some(date));
    }
    let _ = fuzzing::asked_wait(Some(text), Some(text));
});
