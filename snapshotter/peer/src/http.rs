//! Heads of requests and answers between nodes: HTTP/1.1, one piece at a time.
//!
//! ```text
//! GET /v1/contents/<content id> HTTP/1.1
//! Host: towline
//! Range: bytes=<first>-<last>
//! Authorization: Towline from=<id>,number=<n>,ask=<holder|owner|forwarded>,urgent=<0|1>,mac=<hex>
//!
//! HTTP/1.1 206 Partial Content
//! Content-Length: <bytes>
//! Content-Range: bytes <first>-<last>/<file length>
//! Towline-Proof: <hex>
//! ```
//!
//! A node that does not serve answers 503 (busy), 404 (not here) or 421 (another one owns it), without a body, and says
//! which in `Towline-Refusal`. 401 means that the request proved nothing. Heads are parsed by `httparse`.

use std::fmt::Write as _;
use std::ops::Range;

use towline_artifact::{ContentId, PIECE_LEN};
use towline_swarm::{Ask, PeerId, Refusal};

use crate::auth::{PieceRequest, RequestKey, parse_refusal, refusal_detail};

/// The longest head in bytes; ours have about 400.
pub(crate) const MAX_HEAD_LEN: usize = 4096;
/// The most headers of a head.
const MAX_HEADERS: usize = 16;
const PATH: &str = "/v1/contents/";
const SCHEME: &str = "Towline ";

/// A head that is not ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct BadHead(pub(crate) &'static str);

/// What a request says, before anything of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) request: PieceRequest,
    /// Bytes of the file.
    pub(crate) range: Range<u64>,
    pub(crate) mac: blake3::Hash,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The piece follows: so many bytes.
    Piece(u64),
    /// It does not.
    Refused(Refusal),
    /// Another status.
    Other(u16),
}

/// The bytes of `piece` in a file of `file_len` bytes.
pub(crate) fn piece_range(piece: u32, file_len: u64) -> Range<u64> {
    let start = u64::from(piece) * PIECE_LEN;
    start..(start + PIECE_LEN).min(file_len)
}

pub(crate) fn write_request(request: &PieceRequest, range: &Range<u64>, key: &RequestKey) -> String {
    let PieceRequest { from, number, content, ask, urgent, .. } = request;
    let ask = match ask {
        Ask::Holder => "holder",
        Ask::Owner { forwarded: false } => "owner",
        Ask::Owner { forwarded: true } => "forwarded",
    };
    let (first, last, urgent, mac) =
        (range.start, range.end - 1, u8::from(*urgent), key.sign_request(request));
    format!(
        "GET {PATH}{content} HTTP/1.1\r\nHost: towline\r\nRange: bytes={first}-{last}\r\nAuthorization: \
         {SCHEME}from={from},number={number},ask={ask},urgent={urgent},mac={mac}\r\n\r\n"
    )
}

/// Reads a request from the front of `head`. `None`: more bytes are needed. Nothing may follow it: the next request comes
/// after the answer.
pub(crate) fn read_request(head: &[u8]) -> Result<Option<Asked>, BadHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if head.len() < MAX_HEAD_LEN => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(BadHead("head is too long")),
        Err(_) => return Err(BadHead("head is not HTTP/1")),
    };
    if len != head.len() {
        return Err(BadHead("something follows the head"));
    }
    if (parsed.method, parsed.version) != (Some("GET"), Some(1)) {
        return Err(BadHead("not GET in HTTP/1.1"));
    }
    let path = parsed.path.unwrap_or_default();
    let content = path.strip_prefix(PATH).and_then(|id| id.parse::<ContentId>().ok());
    let content = content.ok_or(BadHead("no content of that path"))?;
    let range = header(parsed.headers, "range").and_then(read_range).ok_or(BadHead("no range of a piece"))?;
    let piece = u32::try_from(range.start / PIECE_LEN).map_err(|_| BadHead("range beyond any file"))?;
    let proof = header(parsed.headers, "authorization").and_then(|value| value.strip_prefix(SCHEME));
    let asked = proof.and_then(|proof| read_proof(proof, content, piece));
    let (request, mac) = asked.ok_or(BadHead("no proof"))?;
    Ok(Some(Asked { request, range, mac }))
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let mut found = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let value = found.next()?.value;
    // Twice the same header: whom to believe?
    if found.next().is_some() { None } else { std::str::from_utf8(value).ok() }
}

/// A whole piece: from a border, at most its length.
fn read_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = number(first)?..number(last)?.checked_add(1)?;
    let fits = range.start.is_multiple_of(PIECE_LEN)
        && range.start < range.end
        && range.end - range.start <= PIECE_LEN;
    fits.then_some(range)
}

/// Digits and nothing else (`parse` would take a sign).
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn read_proof(text: &str, content: ContentId, piece: u32) -> Option<(PieceRequest, blake3::Hash)> {
    let mut fields = text.split(',');
    let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
    let from = field("from").filter(|id| id.len() == 16)?;
    let request = PieceRequest {
        from: PeerId(u64::from_str_radix(from, 16).ok()?),
        number: number(field("number")?)?,
        content,
        piece,
        ask: match field("ask")? {
            "holder" => Ask::Holder,
            "owner" => Ask::Owner { forwarded: false },
            "forwarded" => Ask::Owner { forwarded: true },
            _ => return None,
        },
        urgent: match field("urgent")? {
            "0" => false,
            "1" => true,
            _ => return None,
        },
    };
    let mac = blake3::Hash::from_hex(field("mac")?).ok()?;
    fields.next().is_none().then_some((request, mac))
}

/// The head before a piece.
pub(crate) fn write_piece(number: u64, range: &Range<u64>, file_len: u64, key: &RequestKey) -> String {
    let content_range = format!("bytes {}-{}/{file_len}", range.start, range.end - 1);
    let proof = key.sign_answer(number, 206, &content_range);
    let len = range.end - range.start;
    format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\nContent-Range: {content_range}\r\nTowline-Proof: \
         {proof}\r\n\r\n"
    )
}

pub(crate) fn write_refusal(number: u64, why: Refusal, key: &RequestKey) -> String {
    let (status, reason) = match why {
        Refusal::Busy => (503, "Service Unavailable"),
        Refusal::NotHere => (404, "Not Found"),
        Refusal::NotOwner { .. } | Refusal::Lent => (421, "Misdirected Request"),
    };
    let detail = refusal_detail(why);
    let proof = key.sign_answer(number, status, &detail);
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\nTowline-Refusal: {detail}\r\nTowline-Proof: {proof}\r\n\r\n"
    )
}

/// An answer to who proved nothing. It ends the connection.
pub(crate) fn write_error(status: u16) -> String {
    let mut text = String::new();
    let reason = if status == 401 { "Unauthorized" } else { "Bad Request" };
    write!(text, "HTTP/1.1 {status} {reason}\r\n").expect("a string grows");
    text.push_str(if status == 401 { "WWW-Authenticate: Towline\r\n" } else { "" });
    text + "Content-Length: 0\r\nConnection: close\r\n\r\n"
}

/// Reads the answer to request `number` for `range` from the front of `head`, and how long the head is. `None`: more bytes are
/// needed.
pub(crate) fn read_answer(
    head: &[u8],
    number: u64,
    range: &Range<u64>,
    key: &RequestKey,
) -> Result<Option<(Answer, usize)>, BadHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let len = match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if head.len() < MAX_HEAD_LEN => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(BadHead("head is too long")),
        Err(_) => return Err(BadHead("head is not HTTP/1")),
    };
    let status = parsed.code.ok_or(BadHead("no status"))?;
    let value = |name: &str| header(parsed.headers, name);
    let proof = value("towline-proof").and_then(|hex| blake3::Hash::from_hex(hex).ok());
    let is_proven = |detail: &str| proof == Some(key.sign_answer(number, status, detail));
    let body_len = value("content-length").and_then(self::number).ok_or(BadHead("no length"))?;
    let answer = match status {
        206 => {
            let content_range = value("content-range").unwrap_or_default();
            let ours = format!("bytes {}-{}/", range.start, range.end - 1);
            if !is_proven(content_range) {
                return Err(BadHead("answer proves nothing"));
            }
            if !content_range.starts_with(&ours) || body_len != range.end - range.start {
                return Err(BadHead("answer is for another range"));
            }
            Answer::Piece(body_len)
        }
        404 | 421 | 503 => {
            let detail = value("towline-refusal").unwrap_or_default();
            if !is_proven(detail) {
                return Err(BadHead("answer proves nothing"));
            }
            Answer::Refused(parse_refusal(detail).ok_or(BadHead("unknown refusal"))?)
        }
        other => Answer::Other(other),
    };
    if body_len > 0 && !matches!(answer, Answer::Piece(_)) {
        return Err(BadHead("refusal with a body"));
    }
    Ok(Some((answer, len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(number: u64, piece: u32, ask: u8, urgent: bool) -> PieceRequest {
        let ask = match ask {
            0 => Ask::Holder,
            n => Ask::Owner { forwarded: n == 2 },
        };
        PieceRequest { from: PeerId(0xabc), number, content: ContentId([7; 32]), piece, ask, urgent }
    }

    proptest! {
        #[test]
        fn requests_and_answers_are_read_as_written(
            number in any::<u64>(), piece in 0..1u32 << 22, ask in 0..3u8, urgent in any::<bool>(), short in 0..PIECE_LEN,
        ) {
            let key = RequestKey::random();
            let request = request(number, piece, ask, urgent);
            let range = piece_range(piece, (u64::from(piece) + 1) * PIECE_LEN - short);
            let head = write_request(&request, &range, &key);
            let asked = read_request(head.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(key.sign_request(&asked.request), asked.mac);
            prop_assert_eq!((asked.request, asked.range), (request, range.clone()));
            for cut in [0, 1, head.len() / 2, head.len() - 1] {
                prop_assert_eq!(read_request(&head.as_bytes()[..cut]), Ok(None));
            }
            let head = write_piece(number, &range, range.end, &key);
            let read = read_answer(head.as_bytes(), number, &range, &key).unwrap();
            prop_assert_eq!(read, Some((Answer::Piece(range.end - range.start), head.len())));
            prop_assert!(read_answer(head.as_bytes(), number ^ 1, &range, &key).is_err(), "an answer to another request");
            prop_assert!(read_answer(head.as_bytes(), number, &range, &RequestKey::random()).is_err());
        }

        #[test]
        fn any_head_is_read_or_refused(head in "[ -~\r\n]{0,300}") {
            let _ = read_request(head.as_bytes());
            let _ = read_answer(head.as_bytes(), 1, &(0..5), &RequestKey::from_bytes([0; 32]));
        }
    }

    #[test]
    fn refusals_are_proven_too() {
        let key = RequestKey::random();
        for why in
            [Refusal::Busy, Refusal::NotHere, Refusal::Lent, Refusal::NotOwner { better: Some(PeerId(9)) }]
        {
            let head = write_refusal(5, why, &key);
            let answer = read_answer(head.as_bytes(), 5, &(0..9), &key).unwrap();
            assert_eq!(answer, Some((Answer::Refused(why), head.len())));
            let forged =
                head.replace("busy", "not-here").replace("not-owner", "lent").replace(": lent", ": busy");
            assert!(why == Refusal::NotHere || read_answer(forged.as_bytes(), 5, &(0..9), &key).is_err());
        }
        let head = write_error(401);
        assert_eq!(read_answer(head.as_bytes(), 5, &(0..9), &key).unwrap().unwrap().0, Answer::Other(401));
    }

    #[test]
    fn only_whole_pieces_can_be_asked_for() {
        for (text, fits) in [
            ("bytes=0-2097151", true),
            ("bytes=2097152-2097152", true),
            ("bytes=1-2097151", false),
            ("bytes=0-2097152", false),
            ("bytes=2097152-0", false),
            ("bytes=+0-1", false),
            ("bytes=0-18446744073709551615", false),
            ("bytes=-5", false),
            ("0-1", false),
        ] {
            assert_eq!(read_range(text).is_some(), fits, "{text}");
        }
    }
}
