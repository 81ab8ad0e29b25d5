//! `tl-janitor DIR`: waits until standard input ends, then removes everything of the run in DIR.
//!
//! With `TOWLINE_KEEP` set, the directory stays and only processes and mounts go.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use towline_tests::sweep::{Directory, sweep};

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: tl-janitor DIR");
        return ExitCode::from(2);
    };
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let keep = std::env::var_os("TOWLINE_KEEP").is_some();
    let left = sweep(&dir, if keep { Directory::Kept } else { Directory::Removed });
    for sentence in &left {
        eprintln!("tl-janitor: {sentence}");
    }
    if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
