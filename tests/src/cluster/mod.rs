//! A cluster on one machine: nodes in network namespaces with shaped links, an origin that counts, and faults.
//!
//! [`scenario`] says what is to happen, [`catalog`] lists what there is, [`run`] makes it happen and measures, [`outcome`]
//! says whether it was as it must be, [`report`] prints. The parts: [`network`] (namespaces, links, zones, partitions,
//! loss), [`origin`] (a registry that counts and misbehaves), [`model`] (bytes no store has seen), [`node`] (a
//! `towlined`), [`bound`] (the least time physics allows for the links of a scenario), [`cold`] (a reader meanwhile),
//! [`stranger`] (somebody without the key), [`capture`] (a recorded link), [`warm`] (memory for all of it).
//!
//! Three meters must agree: what the origin says it sent, what its link says, and the hash of every node's result.

pub mod bound;
pub mod busy;
pub mod capture;
pub mod catalog;
pub mod cold;
pub mod model;
pub mod netns;
pub mod network;
pub mod node;
pub mod origin;
pub mod outcome;
pub mod rate;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stranger;
pub mod warm;
