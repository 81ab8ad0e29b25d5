//! containerd's snapshots service: an overlay snapshotter for ordinary images, and the seam for model images.
//!
//! This crate knows containerd and nothing of FUSE, registries or the image format. What a model is, and where its
//! files show, it learns through [`Models`], which the daemon implements.
//!
//! - `service` speaks the protocol, `status` turns errors into its codes, `request` bounds what strangers send.
//! - `snapshotter` decides: which Prepare is offered to the models, which mounts answer it.
//! - `index` holds the rules of the metadata (pure), `metadata` makes every change durable before it is answered.
//! - `disk` owns `snapshots/<id>/{fs,work}`, `usage` measures them, `mounts` describes how to mount them (pure).
//! - `filter` is containerd's filter language, `idmap` its user namespace labels, `kernel` what the host can do.
//!
//! # What survives a crash
//!
//! Metadata lives in `metadata.redb` and is on disk before a call answers. A snapshot's directories are made under a
//! temporary name, synced and renamed before its metadata is written, so metadata never names a missing directory.
//! Directories that no metadata names are left over from a crash or a removal and go away in Cleanup. The *contents*
//! of an ordinary layer are as durable as with containerd's own overlay snapshotter: the file system writes them when
//! it likes.
//!
//! # Model snapshots
//!
//! A layer that [`Models::claim`] accepts is committed on the spot and the Prepare answers `ALREADY_EXISTS`, which
//! tells containerd not to download it. Model snapshots have no directory of their own: the mount of a child asks
//! [`Models::directory`] each time, so it stays right across restarts of the daemon.

mod disk;
mod error;
mod filter;
#[cfg(fuzzing)]
pub mod fuzzing;
mod idmap;
mod index;
mod kernel;
mod metadata;
mod models;
mod mounts;
mod record;
mod request;
mod service;
mod snapshotter;
mod status;
mod usage;

pub use error::{OpenError, StorageError};
pub use models::{Claim, LayerClaim, Models, Refusal, RefusalKind};
pub use snapshotter::{Options, Snapshotter};
