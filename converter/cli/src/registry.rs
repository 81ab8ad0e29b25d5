//! The registry client as this command sets it up.

use std::sync::Arc;

use towline_registry::{Client, ClientOptions, DockerConfig, PlainHttp, RegistryError};

use crate::args::RegistryArgs;

/// A client with the credentials that `docker login` keeps.
///
/// # Errors
/// When TLS cannot be set up.
pub(crate) fn client(args: &RegistryArgs) -> Result<Client, RegistryError> {
    let credentials = DockerConfig::from_env(std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME"));
    let plain_http = if args.plain_http.is_empty() {
        PlainHttp::Loopback
    } else {
        PlainHttp::Hosts(args.plain_http.clone())
    };
    Client::new(ClientOptions { credentials: Arc::new(credentials), plain_http, ..ClientOptions::default() })
}
