//! The file tree of a model, and how a read becomes pieces.
//!
//! [`tree`] turns a model into directories and files. [`schedule`] decides, purely, which pieces to ask for next:
//! what a reader waits for first, then what readers will want soon, then the rest in the order in which model servers
//! load. [`engine`] acts on those decisions: it asks a [`PieceSource`], verifies every piece before anybody sees it,
//! hands it to the readers from memory and to the store behind them. Nothing here knows the kernel or opens a socket.
//!
//! After a crash only the store remains; the engine starts from the pieces that the store has.

mod cache;
mod engine;
mod fill;
mod network;
mod read;
mod schedule;
mod source;
mod tree;

pub use engine::{ContentHandle, Engine, EngineOptions, EngineStats, ProvenBlock};
pub use fill::{FillId, fill_order};
pub use network::{Network, PieceBytes, Supplier};
pub use read::{ReadBytes, ReadError};
pub use schedule::{Cause, Limits, Run, Schedule, Slot};
pub use source::{Fault, FetchError, PieceSource, PieceStream};
pub use tree::{FileNode, Node, NodeId, NodeKind, Tree};
