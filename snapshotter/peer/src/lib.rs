//! Sockets of the peer network.

mod bootstrap;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kubernetes;
mod names;

pub use bootstrap::{Bootstrap, BootstrapError, Source, SourceError};
pub use kubernetes::{InCluster, KubernetesError, Object};
