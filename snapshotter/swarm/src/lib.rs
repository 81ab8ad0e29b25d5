//! Decisions of the peer network: who has what, who owns what, whom to ask next.
//!
//! [`Swarm`] is a state machine: [`Event`]s in, [`Effect`]s out, time as a value. It opens no socket, reads no clock,
//! starts no thread, and does the same for the same seed and events. `towline-peer` runs it under a network,
//! [`sim`] under a simulated one. All it believes of others are hints: wrong ones cost time, never bytes, and nothing
//! counts as here before [`Event::Verified`]. `docs/swarm.md` tells how it decides and how well that does.
//!
//! Per content the parts are: `owners` (who brings a piece into a zone), `source` (when this node does), `request`
//! (what to ask of which peer), `blocks` (what a reader gets before its piece), `links` (who tells whom), `serve` and `uploads` (who is served next); per node,
//! `peers` (standing), `origin` (pauses) and `trouble` (what follows failures). Every queue has a bound in [`Limits`]. Nothing survives a restart but
//! what the caller passes to [`Event::Add`].

mod bitmap;
mod blocks;
mod content;
mod limits;
mod links;
mod message;
mod origin;
mod owner_only;
mod owners;
mod peers;
mod request;
mod rng;
mod serve;
pub mod sim;
mod source;
mod swarm;
mod trouble;
mod types;
mod uploads;

pub use bitmap::Bitmap;
pub use limits::{Limits, Strategy};
pub use message::{Ask, BlockEnd, Effect, Event, Failure, Have, HavePieces, OriginFailure, Refusal};
pub use swarm::{Counts, Swarm};
pub use types::{BlockId, Peer, PeerId, RequestId, Time, UploadId, Zone};
