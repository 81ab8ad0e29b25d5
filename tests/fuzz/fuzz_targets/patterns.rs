//! Include and exclude patterns: a pattern in the first line, a path in the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_hub::Patterns;

fn selects(pattern: &str, path: &str) -> Option<bool> {
    Some(Patterns::new(&[pattern], &[]).ok()?.selects(path))
}

fuzz_target!(|text: &str| {
    let Some((pattern, path)) = text.split_once('\n') else { return };
    let Some(selected) = selects(pattern, path) else {
        assert!(pattern.is_empty() || pattern.len() > 4096);
        return;
    };
    let both = Patterns::new(&[pattern], &[pattern]).expect("it was read before");
    assert!(!both.selects(path));
    let none: [&str; 0] = [];
    assert_eq!(Patterns::new(&none, &[pattern]).expect("it was read before").selects(path), !selected);
    if selected && pattern.len() < 4000 {
        assert_eq!(selects(&format!("*{pattern}"), &format!("x/{path}")), Some(true));
        assert_eq!(selects(&format!("{pattern}*"), &format!("{path}/x")), Some(true));
    }
    // Every character in a set of its own stands for itself alone.
    let literal: String = path.chars().map(|c| format!("[{c}]")).collect();
    if !path.is_empty() && literal.len() < 4096 && !path.contains('!') {
        assert_eq!(selects(&literal, path), Some(true), "{literal:?}");
        assert_eq!(selects(&literal, &format!("{path}x")), Some(false));
    }
});
