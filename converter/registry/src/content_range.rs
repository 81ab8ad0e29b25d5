//! `Content-Range` of a single range (RFC 9110 §14.4).

use std::ops::Range;

/// `bytes first-last/complete`, as a half-open range; `complete` is `None` for `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) range: Range<u64>,
    pub(crate) complete: Option<u64>,
}

impl ContentRange {
    /// Strict: anything that is not exactly one satisfied byte range is `None`.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (unit, rest) = header.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, complete) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let complete = if complete == "*" { None } else { Some(number(complete)?) };
        let end = last.checked_add(1)?;
        if last < first || complete.is_some_and(|complete| end > complete) {
            return None;
        }
        Some(Self { range: first..end, complete })
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_one_satisfied_range_is_read() {
        let read = |header| ContentRange::parse(header).map(|r| (r.range, r.complete));
        assert_eq!(read("bytes 0-0/1"), Some((0..1, Some(1))));
        assert_eq!(read("bytes 5-9/*"), Some((5..10, None)));
        assert_eq!(read("BYTES 5-9/10"), Some((5..10, Some(10))));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 0-9",
            "bytes 9-0/10",
            "bytes 0-10/10",
            "bytes +0-9/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
            "lines 0-9/10",
            "bytes 0-1,3-4/10",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn written_ranges_are_read_back(first in 0..u64::MAX / 2, len in 1..u64::MAX / 4, more in 0..u64::MAX / 4) {
            let end = first + len;
            let header = format!("bytes {first}-{}/{}", end - 1, end + more);
            let expected = ContentRange { range: first..end, complete: Some(end + more) };
            prop_assert_eq!(ContentRange::parse(&header), Some(expected));
        }

        #[test]
        fn any_header_is_survived(header in "\\PC{0,60}|bytes [0-9*/ -]{0,30}") {
            ContentRange::parse(&header);
        }
    }
}
