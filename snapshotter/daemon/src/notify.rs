//! systemd's readiness protocol: datagrams to the socket named by `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Pods can be started.
pub(crate) fn ready() {
    send("READY=1");
}

/// The daemon is ending.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

fn send(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = try_send(&path, text) {
        tracing::warn!(%error, "systemd cannot be told {text}");
    }
}

fn try_send(path: &std::ffi::OsStr, text: &str) -> std::io::Result<()> {
    let name = path.as_encoded_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}
