//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use std::net::IpAddr;

use crate::auth::RequestKey;
use crate::kubernetes::{self, SlicePage};
use crate::{http, wire};

/// The addresses in a page of EndpointSlices, and what asks for the next page.
///
/// # Errors
/// What a user would read.
pub fn endpoint_slices(body: &[u8]) -> Result<(Vec<IpAddr>, Option<String>), String> {
    let page = SlicePage::parse(body)?;
    Ok((page.endpoints.into_iter().map(|(_, ip)| ip).collect(), page.next))
}

/// The zone of a node.
///
/// # Errors
/// What a user would read.
pub fn node_zone(body: &[u8]) -> Result<Option<String>, String> {
    kubernetes::node_zone(body)
}

/// Reads a frame of a control stream. What is read must be written as bytes that are read as the same.
///
/// # Errors
/// What a log would show.
pub fn control_frame(frame: &[u8]) -> Result<(), String> {
    let message = wire::decode(frame).map_err(|error| error.to_string())?;
    let again = wire::encode(&message);
    assert_eq!(wire::decode(&again[4..]).as_ref(), Ok(&message));
    Ok(())
}

/// Reads a request for a piece, and the same bytes as an answer to one.
///
/// # Errors
/// What a log would show, for both.
pub fn piece_heads(head: &[u8]) -> (Result<bool, String>, Result<bool, String>) {
    let key = RequestKey::from_bytes([7; 32]);
    let request = http::read_request(head).map(|asked| {
        asked.is_some_and(|asked| {
            // Whatever is accepted is the range of a piece, and is written as it was read but for the proof.
            assert!(
                asked.range.end - asked.range.start <= towline_artifact::PIECE_LEN && !asked.range.is_empty()
            );
            let written = http::write_request(&asked.request, &asked.range, &key);
            let read = http::read_request(written.as_bytes()).expect("our own head").expect("whole");
            assert_eq!((&read.request, &read.range), (&asked.request, &asked.range));
            true
        })
    });
    let range = http::piece_range(1, 5 << 20);
    let answer = http::read_answer(head, 3, &range, &key).map(|answer| answer.is_some());
    (request.map_err(|bad| bad.to_string()), answer.map_err(|bad| bad.to_string()))
}
