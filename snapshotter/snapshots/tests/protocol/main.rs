//! The snapshots service over a Unix socket, through a gRPC client, with real mounts where root allows.

mod node;
mod overlay;
mod remote;
