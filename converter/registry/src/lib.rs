//! OCI distribution client, OCI layouts on disk, and the credentials for them.
//!
//! [`Client`] speaks the distribution API: it finds the servers of a registry (`hosts.toml`), authorizes, follows
//! redirects, repeats what may be repeated, and bounds every wait and every size. It knows nothing of models. What it
//! hands out is either verified ([`Client::manifest`], [`Client::blob_verified`]) or says that it is not
//! ([`BlobBody`], [`RangeBody`]). Nothing here outlives the process: tokens and redirects are held in memory.

mod answer;
mod body;
mod challenge;
mod client;
mod content_range;
mod credentials;
mod destination;
mod docker_config;
mod endpoint;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hosts;
mod layout;
mod layout_write;
mod locations;
mod pull;
mod push;
mod repository;
mod retry;
mod source;
mod token;

pub use body::{BlobBody, RangeBody};
pub use client::{Client, ClientOptions};
pub use credentials::{
    Anonymous, Credential, CredentialError, Credentials, MAX_MEMORY_CREDENTIALS, MemoryCredentials, Secret,
};
pub use destination::{BlobWriter, Destination};
pub use docker_config::DockerConfig;
pub use endpoint::PlainHttp;
pub use error::{Object, Place, Reason, RegistryError, TokenError};
pub use layout::Layout;
pub use layout_write::LayoutBlob;
pub use oci_spec::distribution::Reference;
pub use oci_spec::image::Digest;
pub use pull::{MAX_MANIFEST_LEN, Manifest};
pub use push::Upload;
pub use repository::{InvalidName, Repository};
pub use retry::RetryPolicy;
pub use source::ImageSource;
