//! The `towline` command.
//!
//! stdout is data, stderr is for people. Each command is a module with a `run`; what they have in common is here.

mod args;
mod containerd_config;
mod convert;
mod daemon;
mod error;
mod image;
mod inspect;
mod mount;
mod output;
mod peers;
mod prefetch;
mod progress;
mod registry;
mod source;
mod status;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    start_log();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::from(error::Exit::Failed as u8);
        }
    };
    let result = runtime.block_on(run(args.command));
    // A worker that still hashes has nobody left to tell.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error::describe(&error));
            ExitCode::from(error::exit(&error) as u8)
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Convert(args) => convert::run(args, stop_on_signal()?).await,
        Command::Inspect(args) => inspect::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Prefetch(args) => prefetch::prefetch(args, stop_on_signal()?).await,
        Command::Release(args) => prefetch::release(args).await,
        Command::Mount(args) => mount::mount(args).await,
        Command::Unmount(args) => mount::unmount(args).await,
        Command::Peers(args) => peers::run(args).await,
        Command::ContainerdConfig(args) => containerd_config::run(&args),
    }
}

/// Cancelled by the first SIGINT or SIGTERM, so that work can be given up in order. The second one ends the process.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        for is_second in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if is_second {
                std::process::exit(error::Exit::Interrupted as i32);
            }
            cancel.cancel();
        }
    });
    Ok(stop)
}

/// Logs go to stderr; `TOWLINE_LOG` chooses them, such as `TOWLINE_LOG=towline_registry=debug`.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("TOWLINE_LOG")
        .with_default_directive(tracing::level_filters::LevelFilter::ERROR.into())
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// A digest of ours in the registry's words.
fn oci_digest(digest: towline_artifact::Sha256) -> towline_registry::Digest {
    digest.to_string().parse().expect("ours are written as OCI writes them")
}
