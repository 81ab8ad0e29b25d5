//! A run that was killed leaves nothing.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::Result;
use towline_tests::scratch::MARK;
use towline_tests::stage::can_run;
use towline_tests::sweep::mounts_below;

#[test]
fn the_janitor_ends_marked_processes_and_mounts_and_no_others() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("towline-janitor-").tempdir_in("/var/tmp")?.keep();
    let mount = dir.join("a mount");
    std::fs::create_dir(&mount)?;
    assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).status()?.success());
    assert_eq!(mounts_below(&dir), [mount]);
    let mut marked = Command::new("sleep").arg("600").env(MARK, &dir).spawn()?;
    // Same variable, a directory that only starts alike.
    let mut other = Command::new("sleep").arg("600").env(MARK, format!("{}-other", dir.display())).spawn()?;

    // What happens when the harness dies: the other end of the pipe is gone.
    let status = Command::new(env!("CARGO_BIN_EXE_tl-janitor")).arg(&dir).stdin(Stdio::null()).status();
    let others_end = other.try_wait();
    other.kill()?;
    other.wait()?;
    assert!(status?.success());
    assert_eq!(others_end?, None, "a process of another run was ended");
    assert_eq!(marked.wait()?.signal(), Some(libc::SIGKILL));
    assert_eq!(mounts_below(&dir).len(), 0);
    assert!(!dir.try_exists()?);
    Ok(())
}
