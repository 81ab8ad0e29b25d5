//! The peer network as a whole, on loopback.

mod cluster;
mod nodes;
