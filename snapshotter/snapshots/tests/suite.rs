//! containerd's own snapshotter suite, in Go, against this crate through its proxy client.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends the server, by its standard input, when the test is over.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The suite logs every mount with all its options; what matters is which cases failed, and where they say so.
fn summary(text: &str) -> String {
    let matters =
        |line: &&str| line.contains("_test.go") || line.contains("testsuite.go") || line.contains("FAIL");
    text.lines().filter(matters).filter(|line| line.len() < 500).collect::<Vec<_>>().join("\n")
}

/// Says so past the test harness, which would keep it to itself.
fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

fn start(example: &Path, dir: &Path) -> Server {
    let socket = dir.join("s.sock");
    let models = dir.join("model");
    std::fs::create_dir(&models).expect("mkdir");
    std::fs::write(models.join("config.json"), "{}").expect("write");
    let child = Command::new(example)
        .args([&dir.join("root"), &socket, &models])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start the server");
    let server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the server does not listen");
        std::thread::yield_now();
    }
    server
}

#[test]
fn containerds_own_suite_passes() {
    if !rustix::process::geteuid().is_root() {
        skip("mounting needs root");
        return;
    }
    if Command::new("go").arg("version").output().is_err() {
        skip("there is no go");
        return;
    }
    // Cargo builds examples beside tests: target/release/deps/suite-... and target/release/examples/serve.
    let test = std::env::current_exe().expect("own path");
    let example = test.parent().and_then(Path::parent).expect("target directory").join("examples/serve");
    let dir = tempfile::Builder::new().prefix("tl").tempdir().expect("temp dir");
    let server = start(&example, dir.path());
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/snapshotter-suite");
    let output = Command::new("go")
        .args(["test", "-count=1", "-v", "-timeout=9m", "./..."])
        .current_dir(suite)
        .env("TOWLINE_SNAPSHOTTER_SERVER", &example)
        .env("TOWLINE_SNAPSHOTTER_SOCKET", dir.path().join("s.sock"))
        .env("TOWLINE_SNAPSHOTTER_MODEL", dir.path().join("model"))
        .output()
        .expect("run go");
    drop(server);
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = |case: &str| text.contains(&format!("--- PASS: {case}"));
    let all = ["TestDirect/128LayersMount", "TestThroughMetadata/128LayersMount", "TestModelLayers"];
    assert!(
        output.status.success() && all.into_iter().all(passed),
        "{}\n{}",
        summary(&text),
        String::from_utf8_lossy(&output.stderr)
    );
}
