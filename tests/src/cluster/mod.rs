//! A cluster on one machine: nodes in network namespaces with shaped links, an origin that counts, and faults.
//!
//! [`scenario`] says what is to happen, [`run`] makes it happen and measures, [`report`] prints. The parts: [`network`]
//! (namespaces, links, zones, partitions, loss), [`origin`] (a registry that counts and misbehaves), [`model`] (bytes no
//! store has seen), [`node`] (a `towlined`), [`bound`] (the least time physics allows for the links of a scenario).
//!
//! Three meters must agree: what the origin says it sent, what its link says, and the hash of every node's result.

pub mod bound;
pub mod model;
pub mod netns;
pub mod network;
pub mod origin;
pub mod rate;
