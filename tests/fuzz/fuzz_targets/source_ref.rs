//! How users name a repository: what is read is shown in a form that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_fuzz::check_shown;
use towline_hub::{HubKind, SourceRef};

fuzz_target!(|text: &str| {
    match text.parse::<SourceRef>() {
        Err(error) => check_shown(&error.to_string()),
        Ok(source) => {
            let shown = source.to_string();
            assert_eq!(shown.parse::<SourceRef>(), Ok(source.clone()));
            if source.hub() != HubKind::Directory {
                assert_eq!(source.repo().matches('/').count(), 1);
                assert!(
                    !shown.contains("..") && !shown.contains([' ', '?', '\\', '%', '#'])
                        || source.revision().is_some()
                );
            }
        }
    }
});
