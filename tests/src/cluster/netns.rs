//! A network namespace without a name.
//!
//! It lives as long as somebody refers to it: this value, or a process in it. So it needs no cleaning up: when the
//! harness is killed the janitor ends the processes, and the kernel removes the namespace with its links.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with its loopback up and IPv6 off.
#[derive(Debug)]
pub struct NetNs {
    link: File,
}

impl NetNs {
    /// Makes one.
    ///
    /// # Errors
    /// Where the kernel refuses; it needs root.
    pub fn new() -> Result<Self> {
        // Safe Rust cannot unshare one thread, so a helper does, and waits until its namespace is opened here.
        let mut helper = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready && read -r line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut line = String::new();
        BufReader::new(helper.stdout.take().context("no output of unshare")?).read_line(&mut line)?;
        let link = File::open(format!("/proc/{}/ns/net", helper.id()));
        drop(helper.stdin.take());
        helper.wait()?;
        ensure!(line == "ready\n", "unshare --net did not make a namespace");
        let ns = Self { link: link.context("open a network namespace")? };
        ns.ip("link set dev lo up")?;
        ns.enter(|| -> Result<()> {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").context("switch IPv6 off")?;
            // The runs use reno everywhere, whatever the machine's default is; where it is not allowed, the default.
            let _ = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
            Ok(())
        })??;
        Ok(ns)
    }

    /// A path that `ip link … netns` takes, valid while this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.link.as_raw_fd()).into()
    }

    /// Runs `job` on a thread inside. Sockets it makes and processes it starts belong to the namespace for good; files of
    /// `/proc/thread-self/net` that it opens go on showing it.
    ///
    /// # Errors
    /// Where the thread cannot enter.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.link.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("enter a network namespace")?;
                Ok(job())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip`, `tc` or `nft` inside with the words of `line`.
    fn tool(&self, program: &str, line: &str) -> Result<()> {
        let mut command = Command::new(program);
        command.args(line.split_whitespace());
        let output = self.enter(|| command.output())?.with_context(|| format!("run {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {line}: {}", said.trim());
        Ok(())
    }

    /// `ip LINE`.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, line: &str) -> Result<()> {
        self.tool("ip", line)
    }

    /// `tc LINE`.
    ///
    /// # Errors
    /// With what `tc` said.
    pub fn tc(&self, line: &str) -> Result<()> {
        self.tool("tc", line)
    }

    /// Gives `script` to `nft`, which applies all of it or nothing.
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn nft(&self, script: &str) -> Result<()> {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut nft = self.enter(|| command.spawn())?.context("run nft")?;
        nft.stdin.take().context("no input of nft")?.write_all(script.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::NetNs;

    #[test]
    fn a_socket_stays_in_the_namespace_it_was_made_in() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        let ns = NetNs::new().unwrap();
        let inside = ns.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let addr = inside.local_addr().unwrap();
        assert!(ns.enter(|| std::net::TcpStream::connect(addr)).unwrap().is_ok());
        // The same port is free outside.
        assert!(TcpListener::bind(addr).is_ok());
    }
}
