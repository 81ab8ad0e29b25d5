//! Serves local directories as both hubs do, until it is stopped.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use towline_tests::hub::{Config, Hub};

/// Serves local directories over the APIs of Hugging Face and ModelScope.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A model and the directory that holds it; may be repeated
    #[arg(long, value_name = "ORG/NAME=DIR", value_parser = repository)]
    model: Vec<(String, PathBuf)>,
    /// A data set and the directory that holds it; may be repeated
    #[arg(long, value_name = "ORG/NAME=DIR", value_parser = repository)]
    dataset: Vec<(String, PathBuf)>,
    /// The one valid token (this is a test tool: real ones do not belong on a command line)
    #[arg(long)]
    token: Option<String>,
    /// A repository whose files need the token; may be repeated
    #[arg(long, value_name = "ORG/NAME")]
    gated: Vec<String>,
    /// A repository that does not exist without the token; may be repeated
    #[arg(long, value_name = "ORG/NAME")]
    private: Vec<String>,
}

fn repository(text: &str) -> Result<(String, PathBuf)> {
    let (id, directory) = text.split_once('=').context("write ORG/NAME=DIR")?;
    let directory = PathBuf::from(directory);
    anyhow::ensure!(id.split('/').count() == 2, "write ORG/NAME=DIR");
    anyhow::ensure!(directory.is_dir(), "{} is no directory", directory.display());
    Ok((id.to_owned(), directory))
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let hub = Hub::start(Config {
        listen: args.listen,
        models: args.model.into_iter().collect(),
        datasets: args.dataset.into_iter().collect(),
        token: args.token,
        gated: args.gated.into_iter().collect(),
        private: args.private.into_iter().collect(),
        ..Config::default()
    })
    .await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", hub.url())?;
    stdout.flush()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
