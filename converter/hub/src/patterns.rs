//! Which files of a listing are wanted: the hubs' own include and exclude patterns.
//!
//! The rules are those of Python's `fnmatch.fnmatchcase`, which both hubs' clients apply to the whole path: `*` crosses
//! `/`, `?` is any one character, `[...]` is a set (`!` first negates it), nothing escapes, an unclosed `[` is itself.
//! On top of that a pattern that ends in `/` means everything below (huggingface_hub, `filter_repo_objects`).

/// The most patterns of one kind; more than anybody writes by hand.
const MAX_PATTERNS: usize = 1024;

/// The most bytes of one pattern: as long as the longest path.
const MAX_PATTERN_LEN: usize = 4096;

/// A pattern that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It would select nothing.
    #[error("empty pattern")]
    Empty,
    /// Longer than the longest path.
    #[error("pattern of {len} bytes is longer than {MAX_PATTERN_LEN}")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// Too many patterns of one kind.
    #[error("more than {MAX_PATTERNS} patterns")]
    TooMany,
}

/// Include and exclude patterns of one conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
}

impl Patterns {
    /// Reads the patterns. No `include` pattern at all includes every path.
    ///
    /// # Errors
    /// [`PatternError`] for empty, overlong or too many patterns.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self, PatternError> {
        Ok(Self { include: read(include)?, exclude: read(exclude)? })
    }

    /// Whether the file at `path` (relative, `/` between components) is wanted: some include pattern matches it, or there
    /// is none, and no exclude pattern does.
    #[must_use]
    pub fn selects(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        let included = self.include.is_empty() || self.include.iter().any(|glob| glob.matches(&path));
        included && !self.exclude.iter().any(|glob| glob.matches(&path))
    }
}

fn read<S: AsRef<str>>(patterns: &[S]) -> Result<Vec<Glob>, PatternError> {
    if patterns.len() > MAX_PATTERNS {
        return Err(PatternError::TooMany);
    }
    patterns.iter().map(|pattern| Glob::new(pattern.as_ref())).collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Star,
    AnyChar,
    Char(char),
    /// Inclusive ranges; a range that runs backwards holds nothing, as in Python.
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Token {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Star | Self::AnyChar => true,
            Self::Char(own) => *own == c,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

impl Glob {
    fn new(pattern: &str) -> Result<Self, PatternError> {
        if pattern.is_empty() {
            return Err(PatternError::Empty);
        }
        if pattern.len() > MAX_PATTERN_LEN {
            return Err(PatternError::TooLong { len: pattern.len() });
        }
        let mut chars: Vec<char> = pattern.chars().collect();
        if pattern.ends_with('/') {
            chars.push('*');
        }
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let (token, next) = match chars[at] {
                '*' => (Token::Star, at + 1),
                '?' => (Token::AnyChar, at + 1),
                '[' => match set_end(&chars, at) {
                    Some(end) => (read_set(&chars[at + 1..end]), end + 1),
                    None => (Token::Char('['), at + 1),
                },
                other => (Token::Char(other), at + 1),
            };
            if token != Token::Star || tokens.last() != Some(&Token::Star) {
                tokens.push(token);
            }
            at = next;
        }
        Ok(Self(tokens))
    }

    /// Matches in O(pattern × path) at worst: after a mismatch only the latest star needs to give way.
    fn matches(&self, path: &[char]) -> bool {
        let (mut token, mut at) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while at < path.len() {
            match self.0.get(token) {
                Some(Token::Star) => {
                    star = Some((token, at));
                    token += 1;
                }
                Some(one) if one.matches(path[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => {
                    let Some((star_token, star_at)) = star else { return false };
                    star = Some((star_token, star_at + 1));
                    token = star_token + 1;
                    at = star_at + 1;
                }
            }
        }
        self.0[token..].iter().all(|token| *token == Token::Star)
    }
}

/// Index of the `]` that closes the set opened at `open`; a `]` in first place is a member.
fn set_end(chars: &[char], open: usize) -> Option<usize> {
    let mut first = open + 1;
    if chars.get(first) == Some(&'!') {
        first += 1;
    }
    if chars.get(first) == Some(&']') {
        first += 1;
    }
    chars.iter().skip(first).position(|c| *c == ']').map(|offset| first + offset)
}

fn read_set(body: &[char]) -> Token {
    let (negated, members) = match body {
        ['!', members @ ..] => (true, members),
        members => (false, members),
    };
    let mut ranges = Vec::new();
    let mut rest = members;
    while let Some((&low, after)) = rest.split_first() {
        if let ['-', high, tail @ ..] = after {
            ranges.push((low, *high));
            rest = tail;
        } else {
            ranges.push((low, low));
            rest = after;
        }
    }
    Token::Set { negated, ranges }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        let patterns = Patterns::new(&[pattern], &[]).expect(pattern);
        assert_eq!(patterns.selects(path), expected, "{pattern:?} on {path:?}");
        let none: [&str; 0] = [];
        let excluding = Patterns::new(&none, &[pattern]).expect(pattern);
        assert_eq!(excluding.selects(path), !expected, "excluding {pattern:?} on {path:?}");
    }

    /// Every expectation here was confirmed with CPython 3.11's `fnmatch.fnmatchcase`.
    #[test]
    fn patterns_match_as_python_does() {
        check("*.safetensors", "a/b/model.safetensors", true);
        check("*.SAFETENSORS", "model.safetensors", false);
        check("onnx/", "onnx/a/b", true);
        check("onnx/", "onnx", false);
        check("onnx", "onnx/a", false);
        check("a?c", "a/c", true);
        check("a?c", "aéc", true);
        check("*", "", true);
        check("[a-c]x", "bx", true);
        check("[!a-c]x", "bx", false);
        check("[]]x", "]x", true);
        check("[!]]x", "]x", false);
        check("[a", "[a", true);
        check("[!", "[!", true);
        check("[c-a]", "b", false);
        check("[!c-a]", "b", true);
        check("[a-]", "-", true);
        check("[--0]", ".", true);
        check("[a-c-e]", "-", true);
        check("[a-c-e]", "d", false);
        check("[^a]", "^", true);
        check("[\\]", "\\", true);
        check("a\\*", "a\\b", true);
        check("a**b", "a/x/b", true);
        check("*a*b*c", "xaybzc", true);
        check("*a*b*c", "xaybzcd", false);
    }

    #[test]
    fn include_and_exclude_combine() {
        let patterns = Patterns::new(&["*.json", "*.safetensors"], &["onnx/"]).expect("patterns");
        assert!(patterns.selects("config.json"));
        assert!(!patterns.selects("onnx/config.json"));
        assert!(!patterns.selects("README.md"));
        assert!(Patterns::default().selects("anything"));
    }

    #[test]
    fn patterns_nobody_means_are_refused() {
        assert_eq!(Patterns::new(&[""], &[]), Err(PatternError::Empty));
        assert_eq!(Patterns::new(&["a".repeat(4097)], &[]), Err(PatternError::TooLong { len: 4097 }));
        assert_eq!(Patterns::new(&vec!["a"; 1025], &[]), Err(PatternError::TooMany));
    }

    /// The definition, by recursion over all ways a star could match.
    fn model(pattern: &[char], path: &[char]) -> bool {
        let Some((first, after)) = pattern.split_first() else { return path.is_empty() };
        match first {
            '*' => (0..=path.len()).any(|skip| model(after, &path[skip..])),
            '?' => !path.is_empty() && model(after, &path[1..]),
            '[' => {
                let inverted = after.first() == Some(&'!');
                let from = usize::from(inverted);
                let close = (from + 1..after.len()).find(|&i| after[i] == ']');
                let Some(close) = close else {
                    return path.first() == Some(&'[') && model(after, &path[1..]);
                };
                let Some(c) = path.first() else { return false };
                let mut members = Vec::new();
                let mut i = from;
                while i < close {
                    if i + 2 < close && after[i + 1] == '-' {
                        members.extend(after[i]..=after[i + 2]);
                        i += 3;
                    } else {
                        members.push(after[i]);
                        i += 1;
                    }
                }
                members.contains(c) != inverted && model(&after[close + 1..], &path[1..])
            }
            other => path.first() == Some(other) && model(after, &path[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab/*?!\\[\\]\\-^]{1,10}", path in "[ab/!\\-^\\[\\]]{0,10}") {
            let mut spelled: Vec<char> = pattern.chars().collect();
            if pattern.ends_with('/') {
                spelled.push('*');
            }
            let expected = model(&spelled, &path.chars().collect::<Vec<_>>());
            let patterns = Patterns::new(&[&pattern], &[]).expect("short patterns are read");
            prop_assert_eq!(patterns.selects(&path), expected);
        }
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = "*a".repeat(1000);
        let patterns = Patterns::new(&[pattern.as_str()], &[]).expect("patterns");
        assert!(!patterns.selects(&"a".repeat(999)));
        assert!(patterns.selects(&"a".repeat(1000)));
    }
}
