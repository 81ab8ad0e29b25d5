//! A machine without containerd: models by `towline prefetch` and `towline mount`, from a real registry.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use serde_json::Value;
use towline_tests::convert::{Converted, convert, directory, towline};
use towline_tests::exclusive::Exclusive;
use towline_tests::image;
use towline_tests::model::{TWENTY_MIB, synthetic};
use towline_tests::origin::{Faults, Origin};
use towline_tests::process::until;
use towline_tests::reading::Reading;
use towline_tests::registry::Registry;
use towline_tests::scratch::Scratch;
use towline_tests::stage::can_run;
use towline_tests::towlined::Towlined;

const LIMIT: Duration = Duration::from_secs(120);

/// A machine with `towlined`, a registry behind a proxy, and an image in it. Fields end in this order.
struct Machine {
    towlined: Towlined,
    origin: Origin,
    registry: Registry,
    image: Converted,
    /// Reference by tag, through the proxy.
    reference: String,
    source: Reading,
    scratch: Scratch,
    _turn: Exclusive,
}

impl Machine {
    async fn set(extra: &str) -> Result<Self> {
        let model = synthetic(&TWENTY_MIB)?;
        let turn = Exclusive::wait().await?;
        let scratch = Scratch::new()?;
        let registry = Registry::start(&scratch, "registry").await?;
        let target = format!("{}/tiny:v1", registry.addr());
        let image = convert(None, &directory(&model), &target, &[]).await?;
        let origin = Origin::start(registry.addr()).await?;
        let dir = scratch.subdir("machine")?;
        let towlined = Towlined::start(&scratch, "towlined", &dir, extra).await?;
        let reference = format!("{}/tiny:v1", origin.addr());
        let source = read(&model)?;
        Ok(Self { towlined, origin, registry, image, reference, source, scratch, _turn: turn })
    }

    /// Runs `towline` against the daemon.
    async fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = towline(None)?;
        command.args(args).env("TOWLINE_CONTROL", self.towlined.control_socket());
        Ok(tokio::time::timeout(LIMIT, command.output()).await.context("towline does not end")??)
    }

    /// As [`Self::run`], for its JSON.
    async fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.run(&[args, &["--output", "json"]].concat()).await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The error of a run that must fail with exit code `code`.
    async fn fails(&self, code: i32, args: &[&str]) -> Result<String> {
        let output = self.run(args).await?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(code), "{args:?}: {}: {error}", output.status);
        Ok(error)
    }

    /// A new, empty directory.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        self.scratch.subdir(name)
    }

    fn assert_holds_the_model(&self, dir: &Path) -> Result<()> {
        let reading = read(dir)?;
        let files: Vec<_> =
            reading.contents().into_iter().filter(|(path, ..)| !path.starts_with(".towline/")).collect();
        assert_eq!(files, self.source.contents(), "path, size and SHA-256 of every file");
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.towlined.stop(Duration::from_secs(30)).await
    }
}

/// Reads a directory with the program that pods run.
fn read(dir: &Path) -> Result<Reading> {
    let output = Command::new(env!("CARGO_BIN_EXE_tl-reader")).arg(dir).output()?;
    Reading::parse(&String::from_utf8(output.stdout)?)
}

/// File system type of what is mounted at `dir`.
fn mounted(dir: &Path) -> Result<Option<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let at = dir.to_str().context("UTF-8")?;
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(at));
    Ok(line.and_then(|line| line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)))
}

fn text(dir: &Path) -> &str {
    dir.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_kept_mounted_and_given_up() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    // Prefetch fetches all the same.
    let mut machine = Machine::set("[fetch]\nfill = false\n").await?;
    let by_digest = format!("{}/tiny@{}", machine.origin.addr(), machine.image.digest);
    let fetched = machine.json(&["prefetch", "--wait", &by_digest]).await?;
    assert_eq!((fetched["state"].as_str(), fetched["kept"].as_bool()), (Some("complete"), Some(true)));
    assert_eq!(
        (fetched["bytes"].clone(), fetched["files"].as_u64()),
        (fetched["bytes_local"].clone(), Some(machine.image.files))
    );
    let moved = machine.origin.passed().blob_bytes;
    assert!(moved < machine.source.bytes() + (128 << 10), "{moved} bytes for {}", machine.source.bytes());
    assert_eq!(machine.json(&["prefetch", "--wait", &machine.reference]).await?["state"], "complete");
    assert_eq!(machine.origin.passed().blob_bytes, moved, "the same model by another name");

    let dir = machine.dir("m")?;
    let answer = machine.json(&["mount", &by_digest, text(&dir)]).await?;
    assert_eq!(answer["mounts"][0].as_str(), Some(text(&dir)));
    assert!(mounted(&dir)?.is_some_and(|fs| fs != "fuse.towline"), "a plain directory");
    machine.assert_holds_the_model(&dir)?;
    let refused = std::fs::write(dir.join("config.json"), b"").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    // From here on there is no registry, and for a moment no daemon either.
    machine.origin.set(Faults { refuse: Some(StatusCode::SERVICE_UNAVAILABLE), ..Faults::default() });
    machine.towlined.kill_and_restart(&machine.scratch, "towlined-again").await?;
    machine.assert_holds_the_model(&dir)?;
    let second = machine.dir("second")?;
    machine.json(&["mount", &by_digest, text(&second)]).await?;
    machine.assert_holds_the_model(&second)?;

    let file = std::fs::File::open(dir.join("config.json"))?;
    let error = machine.fails(1, &["unmount", text(&dir)]).await?;
    assert!(error.contains("is in use") && error.contains("hint: "), "{error}");
    drop(file);
    machine.json(&["release", &by_digest]).await?;
    machine.json(&["release", &machine.reference]).await?;
    machine.assert_holds_the_model(&dir)?;
    machine.json(&["unmount", text(&dir)]).await?;
    assert_eq!(mounted(&dir)?, None);
    machine.assert_holds_the_model(&second)?;
    machine.json(&["unmount", text(&second)]).await?;
    let gone = async || {
        let status = machine.json(&["status"]).await?;
        let store = &status["store"];
        let is_empty =
            store["bytes"] == 0 && store["contents"] == 0 && status["models"] == serde_json::json!([]);
        Ok(is_empty.then_some(()))
    };
    until("the bytes to go", LIMIT, gone).await?;
    assert!(files_left(&machine.towlined.root())? < 16 << 20, "of {} bytes", machine.source.bytes());
    let error = machine.fails(1, &["release", &by_digest]).await?;
    assert!(error.contains("is not kept on this node"), "{error}");
    machine.end().await
}

/// Bytes of the files below `dir` that could be weights: all but databases.
fn files_left(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in towline_tests::model::files_below(dir)? {
        if path.extension().is_none_or(|extension| extension != "redb") {
            bytes += std::fs::metadata(dir.join(&path))?.len();
        }
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_shows_a_model_that_still_arrives_and_is_made_again_after_a_kill() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut machine = Machine::set("[fetch]\nread_timeout = '100s'\nfill_delay = '200ms'\n").await?;
    let weights = machine.image.layers[1..].iter().map(|layer| layer.digest.clone()).collect();
    machine.origin.set(Faults { forbid: weights, ..Faults::default() });
    let dir = machine.dir("m")?;
    let answer = machine.json(&["mount", &machine.reference, text(&dir)]).await?;
    assert_eq!((answer["kept"].as_bool(), answer["directory"].as_str()), (Some(false), Some(text(&dir))));
    assert_eq!(mounted(&dir)?.as_deref(), Some("fuse.towline"), "nothing but the base layer can have come");
    let config = std::fs::read(dir.join("config.json"))?;
    assert_eq!(config, std::fs::read(synthetic(&TWENTY_MIB)?.join("config.json"))?);
    let refused = std::fs::write(dir.join("config.json"), b"").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    machine.towlined.kill_and_restart(&machine.scratch, "towlined-again").await?;
    assert_eq!(std::fs::read(dir.join("config.json"))?, config, "mounted again before the daemon answers");
    assert_eq!(mounted(&dir)?.as_deref(), Some("fuse.towline"));
    // Reads wait for what arrives now.
    machine.origin.set(Faults { delay: Duration::from_millis(100), ..Faults::default() });
    machine.assert_holds_the_model(&dir)?;
    let complete = async || {
        let status = machine.json(&["status"]).await?;
        Ok((status["models"][0]["state"] == "complete").then_some(()))
    };
    until("the model to be complete", LIMIT, complete).await?;
    machine.json(&["unmount", text(&dir)]).await?;
    let status = machine.json(&["status"]).await?;
    assert_eq!(status["models"], serde_json::json!([]), "nothing else needed it");
    machine.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_in_one_sentence_with_a_next_step() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let machine = Machine::set("").await?;
    let (origin, dir) = (machine.origin.addr(), machine.dir("m")?);
    let foreign = image::busybox(&machine.dir("busybox")?, "v1", &["/bin/sh"])?;
    machine.registry.push(&foreign, "busybox:v1").await?;
    let full = machine.dir("full")?;
    std::fs::write(full.join("file"), b"")?;
    let check = async |code: i32, args: &[&str], parts: &[&str]| -> Result<()> {
        let error = machine.fails(code, args).await?;
        for part in parts {
            ensure!(error.contains(part), "{args:?}: {error:?} lacks {part:?}");
        }
        ensure!(error.lines().count() <= 2, "{error}");
        Ok(())
    };
    check(
        1,
        &["prefetch", &format!("{origin}/busybox:v1")],
        &["not an image that towline made", "hint: package"],
    )
    .await?;
    check(1, &["mount", &format!("{origin}/tiny:v2"), text(&dir)], &["404", "hint: check the name"]).await?;
    check(1, &["prefetch", "127.0.0.1:1/tiny:v1"], &["127.0.0.1:1/tiny", "hint: check that"]).await?;
    check(2, &["prefetch", "oci:./tiny"], &["is no image reference", "hint: push"]).await?;
    machine.origin.set(Faults { refuse: Some(StatusCode::UNAUTHORIZED), ..Faults::default() });
    check(1, &["prefetch", &machine.reference], &["401", "hint: `docker login"]).await?;
    machine.origin.set(Faults::default());
    check(2, &["mount", &machine.reference, text(&full)], &["it is not empty"]).await?;
    check(2, &["mount", &machine.reference, text(&machine.towlined.root())], &["the daemon needs"]).await?;
    check(1, &["unmount", text(&dir)], &["nothing that towline mounted", "hint: "]).await?;
    let peers = machine.json(&["peers"]).await?;
    assert_eq!((peers["enabled"].as_bool(), peers["peers"].as_array().map(Vec::len)), (Some(false), Some(0)));
    // Whatever failed left nothing behind.
    let empty =
        async || Ok((machine.json(&["status"]).await?["models"] == serde_json::json!([])).then_some(()));
    until("models that nothing needs to go", LIMIT, empty).await?;
    machine.end().await
}
