//! The Towline daemon.
fn main() {}
