//! `Content-Range` as the two clients read it: neither takes a range for another, and they agree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_hub::fuzzing::{is_part, total_of};
use towline_registry::fuzzing::{content_range, retry_after};

fuzz_target!(|text: &str| {
    let _ = retry_after(text.as_bytes());
    let read = content_range(text);
    if is_part(206, text, None, &(10..20), 20) {
        assert_eq!(read, Some((10..20, Some(20))));
    }
    let Some((range, complete)) = read else { return };
    assert!(range.start < range.end && complete.is_none_or(|complete| range.end <= complete));
    let written = |complete: &str| format!("bytes {}-{}/{complete}", range.start, range.end - 1);
    let complete_text = complete.map_or_else(|| "*".to_owned(), |complete| complete.to_string());
    assert_eq!(content_range(&written(&complete_text)), Some((range.clone(), complete)));
    let Some(complete) = complete else { return };
    let text = written(&complete_text);
    assert_eq!(total_of(&text), Some(complete));
    let len = range.end - range.start;
    assert!(is_part(200, &text, Some(len), &range, complete));
    assert!(!is_part(206, &text, Some(len - 1), &range, complete));
    let longer = range.end.saturating_add(1);
    for other in [range.start + 1..longer, range.start..longer, 0..range.end] {
        assert!(other == range || other.is_empty() || !is_part(206, &text, None, &other, complete));
    }
    assert!(complete == u64::MAX || !is_part(206, &text, None, &range, complete + 1));
});
