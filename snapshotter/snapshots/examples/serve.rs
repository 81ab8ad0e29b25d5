//! Serves the snapshotter alone on a Unix socket, for test suites: `serve ROOT SOCKET [MODELS]`.
//!
//! Without MODELS no layer is a model's. With it, layers that carry the label
//! `containerd.io/snapshot/io.towline.test` are, and MODELS is the directory that shows their files. Stops when its
//! standard input ends.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use towline_snapshots::{Claim, LayerClaim, Models, Options, Refusal, Snapshotter};

const MODEL_LABEL: &str = "containerd.io/snapshot/io.towline.test";

struct Directory(Option<PathBuf>);

#[tonic::async_trait]
impl Models for Directory {
    async fn claim(&self, claim: &LayerClaim) -> Result<Claim, Refusal> {
        let is_model =
            self.0.is_some() && claim.labels.contains_key(MODEL_LABEL) && !claim.parent_is_ordinary;
        Ok(if is_model { Claim::Accepted } else { Claim::NotOurs })
    }

    async fn directory(&self, _: &str) -> Result<PathBuf, Refusal> {
        Ok(self.0.clone().expect("only claimed layers are mounted"))
    }

    fn forget(&self, _: &str) {}

    async fn cleanup(&self) {}

    fn usage(&self, _: &str) -> (i64, i64) {
        (4096, 1)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(root), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve ROOT SOCKET [MODELS]".into());
    };
    let snapshotter = Snapshotter::open(Options::new(root), Arc::new(Directory(arguments.next())))?;
    let listener = UnixListenerStream::new(UnixListener::bind(socket)?);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = stop.send(());
    });
    let end_of_input = async {
        let _ = stopped.await;
    };
    tonic::transport::Server::builder()
        .add_service(snapshotter.clone().into_service())
        .serve_with_incoming_shutdown(listener, end_of_input)
        .await?;
    snapshotter.drain().await;
    Ok(())
}
