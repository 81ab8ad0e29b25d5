//! What an answer to a request for part of a file holds. Pure: headers in, verdict out.

use std::ops::Range;

/// A `Content-Range` of the form `bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: u64,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if plain { digits.parse().ok() } else { None }
        };
        Some(Self { first: number(first)?, last: number(last)?, total: number(total)? })
    }
}

/// Total length in bytes that a `Content-Range` claims.
pub(crate) fn total_of(content_range: &str) -> Option<u64> {
    ContentRange::parse(content_range).map(|range| range.total)
}

/// What the body of an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The asked part and nothing else.
    Part,
    /// The whole file from its first byte.
    Whole,
}

/// Why an answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("its Content-Range is not the range asked for")]
    OtherRange,
    #[error("it is partial and has no Content-Range")]
    NoRange,
    #[error("its Content-Length does not fit its Content-Range")]
    PartLength,
    #[error("the file has {0} bytes now")]
    WholeLength(u64),
}

/// Judges a successful answer to a request for the bytes `asked` (half-open, not empty) of a file of `size` bytes.
///
/// The status is no proof: ModelScope was seen to answer `200` with a correct `Content-Range`, and caches answer `200`
/// with the whole file to a request for a part. So a part is good exactly if its `Content-Range` names the first byte, the
/// last byte and the total that were asked for, whatever the status; an answer without one is the whole file, unless it
/// claims to be partial.
pub(crate) fn judge(
    status: u16,
    content_range: Option<&str>,
    content_length: Option<u64>,
    asked: &Range<u64>,
    size: u64,
) -> Result<Body, Unusable> {
    let (body, len) = match content_range {
        Some(text) => {
            let wanted = ContentRange { first: asked.start, last: asked.end - 1, total: size };
            if ContentRange::parse(text) != Some(wanted) {
                return Err(Unusable::OtherRange);
            }
            (Body::Part, asked.end - asked.start)
        }
        None if status == 206 => return Err(Unusable::NoRange),
        None => (Body::Whole, size),
    };
    match content_length {
        Some(announced) if announced != len && body == Body::Whole => Err(Unusable::WholeLength(announced)),
        Some(announced) if announced != len => Err(Unusable::PartLength),
        _ => Ok(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(
        status: u16,
        content_range: Option<&str>,
        content_length: Option<u64>,
        expected: Result<Body, Unusable>,
    ) {
        assert_eq!(
            judge(status, content_range, content_length, &(10..20), 20),
            expected,
            "{content_range:?}"
        );
    }

    #[test]
    fn content_range_decides() {
        check(206, Some("bytes 10-19/20"), Some(10), Ok(Body::Part));
        check(200, Some("bytes 10-19/20"), Some(10), Ok(Body::Part));
        check(206, Some("bytes 10-19/20"), None, Ok(Body::Part));
        check(200, None, Some(20), Ok(Body::Whole));
        check(200, None, None, Ok(Body::Whole));
        check(206, None, Some(10), Err(Unusable::NoRange));
        check(200, None, Some(10), Err(Unusable::WholeLength(10)));
        check(206, Some("bytes 10-19/20"), Some(9), Err(Unusable::PartLength));
        for other in [
            "bytes 0-19/20",
            "bytes 10-18/20",
            "bytes 10-19/21",
            "bytes 10-19/*",
            "bytes */20",
            "bytes 10-/20",
            "bytes +10-19/20",
            "items 10-19/20",
            "bytes 10-19/99999999999999999999",
            "",
        ] {
            check(206, Some(other), None, Err(Unusable::OtherRange));
            check(200, Some(other), None, Err(Unusable::OtherRange));
        }
    }

    proptest! {
        #[test]
        fn only_the_exact_range_is_a_part(first in 0..40u64, last in 0..40u64, total in 0..40u64, status in 200..=206u16) {
            let text = format!("bytes {first}-{last}/{total}");
            let exact = (first, last, total) == (10, 19, 20);
            prop_assert_eq!(judge(status, Some(&text), None, &(10..20), 20) == Ok(Body::Part), exact);
        }

        #[test]
        fn no_header_panics(text in any::<String>()) {
            let _ = judge(206, Some(&text), Some(1), &(0..1), 1);
        }
    }
}
