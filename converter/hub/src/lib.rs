//! Sources of models: Hugging Face, ModelScope and local directories.
//!
//! This crate knows how the hubs are asked and what may go wrong there; it knows nothing of OCI. Its story is short:
//!
//! 1. A [`SourceRef`] names a repository, a [`Source`] talks to its hub.
//! 2. [`Source::resolve`] turns the revision into a commit once and lists every file at that commit. A [`Listing`] holds
//!    only paths that passed the path rules, whatever the hub answered.
//! 3. [`Source::open`] streams one file of that listing, resuming by itself after a broken connection.
//! 4. A [`HashCheck`] proves that the bytes are the ones that were listed.
//!
//! Nothing here is kept across runs, nothing is written to disk, and no connection is made without a deadline. Tokens
//! go to the hub's own origin and nowhere else.

mod directory;
mod download;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
mod huggingface;
mod listing;
mod modelscope;
mod paths;
mod patterns;
mod range;
mod retry;
mod settings;
mod source;
mod source_ref;

pub use error::{Denial, HubError, SafeUrl};
pub use listing::{FileHash, HashCheck, Listing, RemoteFile};
pub use paths::{MAX_FILES, PathError, PathProblem};
pub use patterns::{PatternError, Patterns};
pub use settings::{HubSettings, SettingsError, Token};
pub use source::{ByteStream, Source};
pub use source_ref::{HubKind, ParseSourceError, RepoKind, SourceRef};
