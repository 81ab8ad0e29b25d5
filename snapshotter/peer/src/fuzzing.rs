//! Doors for the fuzz targets in `tests/fuzz` to parsers that nobody outside needs. Built under `--cfg fuzzing` only.

use std::net::IpAddr;

use crate::kubernetes::{self, SlicePage};

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
