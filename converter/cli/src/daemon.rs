//! Talking to the daemon of this node through its control socket, and what it says of a model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use towline_proto::control::v1::control_client::ControlClient;
use towline_proto::control::v1::{Model as WireModel, State};
use towline_registry::{Reference, Repository};

use crate::error::Problem;
use crate::output::clean;

/// Limit for what the daemon answers from memory.
pub(crate) const QUICK: Duration = Duration::from_secs(10);
/// Limit for what the daemon may have to ask a registry for: it gives up after 300 s, and waits its turn for 60 s.
pub(crate) const PATIENT: Duration = Duration::from_secs(450);
/// What begins the second line of an error, if it has one.
const HINT: &str = "\nhint: ";

/// A client of the daemon at `socket` whose calls are answered within `limit`; a stream may go on for longer.
///
/// # Errors
/// When nothing listens there.
pub(crate) async fn client(socket: &Path, limit: Duration) -> anyhow::Result<ControlClient<Channel>> {
    let connected = connect(socket.to_owned(), limit).await;
    let channel = connected.map_err(|error| unreachable(&error, socket)).with_context(|| asking(socket))?;
    Ok(ControlClient::new(channel))
}

async fn connect(socket: PathBuf, limit: Duration) -> Result<Channel, std::io::Error> {
    // Connecting first gives the system's own error; the channel would wrap it beyond recognition.
    let first = UnixStream::connect(&socket).await?;
    let mut first = Some(first);
    let connector = tower::service_fn(move |_| {
        let (first, socket) = (first.take(), socket.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(socket).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The address is never resolved; it only becomes the request's authority.
    let endpoint = Endpoint::from_static("http://localhost").timeout(limit).connect_timeout(QUICK);
    endpoint.connect_with_connector(connector).await.map_err(std::io::Error::other)
}

fn unreachable(error: &std::io::Error, socket: &Path) -> Problem {
    let problem = Problem::failed(error.to_string());
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => problem.hint(format!(
            "start towlined, or name its control socket with --control (nothing listens on {})",
            socket.display()
        )),
        std::io::ErrorKind::PermissionDenied => problem.hint("only root may open the control socket"),
        _ => problem,
    }
}

/// What the error of a question to the daemon begins with.
pub(crate) fn asking(socket: &Path) -> String {
    format!("ask the daemon at {}", socket.display())
}

/// What the daemon answered instead of what was asked: its sentence, and its hint where it gave one.
pub(crate) fn refusal(status: &Status) -> Problem {
    let (text, hint) = match status.message().split_once(HINT) {
        Some((text, hint)) => (text, Some(hint)),
        None => (status.message(), None),
    };
    // A code with a sentence of the daemon's own adds nothing to it; others come from the transport.
    let text = match status.code() {
        Code::Unknown | Code::Cancelled | Code::Unimplemented => {
            format!("{}: {}", status.code(), clean(text))
        }
        code if text.is_empty() => code.to_string(),
        _ => clean(text),
    };
    let problem = match status.code() {
        Code::InvalidArgument => Problem::usage(text),
        _ => Problem::failed(text),
    };
    match (hint, status.code()) {
        (Some(hint), _) => problem.hint(clean(hint)),
        (None, Code::Unimplemented) => problem.hint("the daemon is older than this command: update it"),
        (None, _) => problem,
    }
}

/// Checks the name of an image before the daemon is asked.
///
/// # Errors
/// For what is no reference to an image in a registry.
pub(crate) fn check_reference(text: &str) -> Result<(), Problem> {
    let problem = |why: &dyn std::fmt::Display| {
        Problem::usage(format!("{:?} is no image reference: {why}", clean(text)))
    };
    if text.starts_with("oci:") {
        return Err(problem(&"a layout on disk is not known to the daemon")
            .hint("push the image to a registry, or convert into one"));
    }
    let hint = "name the image as HOST/REPOSITORY[:TAG][@DIGEST]";
    let reference: Reference = text.parse().map_err(|error| problem(&error).hint(hint))?;
    Repository::try_from(&reference).map_err(|error| problem(&error).hint(hint))?;
    Ok(())
}

/// A model of the node as JSON (docs/cli.md).
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Model {
    pub(crate) reference: String,
    pub(crate) manifest: String,
    pub(crate) source: String,
    pub(crate) commit: String,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_local: u64,
    pub(crate) bytes_from_origin: u64,
    pub(crate) bytes_from_peers: u64,
    pub(crate) state: &'static str,
    pub(crate) last_error: String,
    pub(crate) kept: bool,
    pub(crate) mounts: Vec<String>,
}

impl From<WireModel> for Model {
    fn from(wire: WireModel) -> Self {
        Self {
            state: match wire.state() {
                State::Unspecified => "unknown",
                State::Idle => "idle",
                State::Fetching => "fetching",
                State::Waiting => "waiting",
                State::Complete => "complete",
            },
            reference: wire.reference,
            manifest: wire.manifest,
            source: wire.source,
            commit: wire.commit,
            files: wire.files,
            bytes: wire.bytes,
            bytes_local: wire.bytes_local,
            bytes_from_origin: wire.bytes_from_origin,
            bytes_from_peers: wire.bytes_from_peers,
            last_error: wire.last_error,
            kept: wire.kept,
            mounts: wire.mounts,
        }
    }
}

impl Model {
    /// What to call it: the first of reference, source and digest that is known.
    pub(crate) fn name(&self) -> String {
        let names = [&self.reference, &self.source, &self.manifest];
        clean(names.into_iter().find(|name| !name.is_empty()).map_or("", String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Exit, describe, exit};

    #[track_caller]
    fn check(status: &Status, line: &str, code: Exit) {
        let error = anyhow::Error::new(refusal(status));
        assert_eq!((describe(&error).as_str(), exit(&error)), (line, code));
    }

    #[test]
    fn the_daemons_sentence_and_hint_are_told() {
        let with_hint = "a model\nhint: do this\u{1b}";
        check(&Status::not_found(with_hint), "error: a model\nhint: do this ", Exit::Failed);
        check(&Status::invalid_argument("no reference"), "error: no reference", Exit::Usage);
        check(&Status::unavailable(""), "error: The service is currently unavailable", Exit::Failed);
    }

    #[test]
    fn references_are_checked_before_the_daemon_is_asked() {
        for good in ["r.example.com/a/b:v1", "127.0.0.1:5000/m", "ubuntu"] {
            check_reference(good).unwrap();
        }
        for bad in
            ["", "oci:./out", "https://r.example.com/a", "r.example.com/A:v1", "r.example.com/a@sha256:0"]
        {
            check_reference(bad).expect_err(bad);
        }
    }
}
