//! The main job: hub → image → registry → pod, through the converter and the daemon, on real parts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towline_tests::convert::{Converted, convert, directory, towline};
use towline_tests::hub::{Config, Hub};
use towline_tests::kubelet::Kubelet;
use towline_tests::measure::ColdStart;
use towline_tests::model::{TWENTY_MIB, minilm, synthetic};
use towline_tests::node::{Node, Snapshotter};
use towline_tests::origin::{Faults, Origin};
use towline_tests::pod::{Pod, Spec};
use towline_tests::process::until;
use towline_tests::python::{Embedding, embed, embedding_pod};
use towline_tests::reading::Reading;
use towline_tests::stage::{Stage, can_run};

const POD_LIMIT: Duration = Duration::from_secs(120);
const MODEL: &str = "demo/tiny";

/// Reads a directory of this machine with the same program that the pods run.
fn read_here(dir: &Path) -> Result<Reading> {
    let output = Command::new(env!("CARGO_BIN_EXE_tl-reader")).arg(dir).output()?;
    Reading::parse(&String::from_utf8(output.stdout)?)
}

async fn hub(dir: &Path) -> Result<Hub> {
    Hub::start(Config { models: [(MODEL.to_owned(), dir.to_path_buf())].into(), ..Config::default() }).await
}

fn towline_node() -> Snapshotter {
    Snapshotter::Towline { extra: "[fetch]\nread_timeout = '10s'\nfill_delay = '200ms'\n".to_owned() }
}

async fn metric(node: &Node, name: &str) -> Result<f64> {
    node.towlined().context("towlined runs")?.metric(name).await
}

async fn until_complete(node: &Node, models: f64) -> Result<()> {
    let complete = async || {
        let known = metric(node, "towline_models_complete").await;
        Ok(known.is_ok_and(|count| count >= models).then_some(()))
    };
    until("the models to be complete", POD_LIMIT, complete).await
}

/// Waits until containerd talks to a restarted daemon again: its gRPC client rests up to 3 s after a refused connection.
async fn until_reached(node: &Node) -> Result<()> {
    let list = async || Ok(node.ctr(&["snapshots", "--snapshotter", "towline", "list"]).await.ok());
    until("containerd to reach the restarted daemon", POD_LIMIT, list).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_hubs_give_the_image_that_a_pod_reads_lazily() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let source = read_here(&model)?;
    let stage = Stage::set().await?;
    let hub = hub(&model).await?;
    let registry = stage.registry.addr();
    let from_hf =
        convert(Some(&hub), &format!("hf://{MODEL}@main"), &format!("{registry}/hf:v1"), &[]).await?;
    assert_eq!(from_hf.source.commit, hub.head(MODEL).await?);
    assert_eq!((from_hf.files, from_hf.bytes), (source.files.len() as u64, source.bytes()));
    assert_eq!(from_hf.reference, format!("{registry}/hf@{}", from_hf.digest));
    assert_eq!(hub.log().leaked_credentials(), 0);
    let target = format!("{registry}/ms:v1");
    let from_ms = convert(Some(&hub), &format!("modelscope://{MODEL}@master"), &target, &[]).await?;
    assert_eq!(weight_layers(&from_hf), weight_layers(&from_ms), "the same weights are the same layers");

    let node = stage.node("node", towline_node()).await?;
    let start = ColdStart::measure(&stage, &node, "cold", &from_hf.reference).await?;
    assert_eq!(start.reading.model_files(), source.contents());
    let (bytes, served) = (source.bytes(), start.served.blob_bytes);
    assert!(served < bytes + (128 << 10), "{served} bytes served for a model of {bytes}");
    assert!(start.pulled < start.running && start.running < start.first_byte);

    // Once complete, the next pod reads a plain directory; and the other hub's image needs nothing more.
    until_complete(&node, 1.0).await?;
    let mark = stage.registry.mark()?;
    assert_eq!(stage.read_in_pod(&node, "warm", &from_hf.reference).await?.model_files(), source.contents());
    node.cri().pull(&from_ms.reference).await?;
    assert_eq!(stage.read_in_pod(&node, "same", &from_ms.reference).await?.model_files(), source.contents());
    until_complete(&node, 2.0).await?;
    let base = from_ms.layers[0].size;
    let served = stage.registry.served_since(mark)?.blob_bytes;
    assert!(served < base + (64 << 10), "{served} bytes served for weights that are here");
    assert_eq!(metric(&node, "towline_corrupt_pieces_total").await?, 0.0);

    // What was pulled can be removed, and its bytes go.
    let root = node.towlined().context("towlined runs")?.root();
    for reference in [&from_hf.reference, &from_ms.reference] {
        node.cri().remove_image(reference).await?;
    }
    until("the contents of removed images to go", POD_LIMIT, async || {
        // containerd removes snapshots when it collects garbage, soon after an image has gone.
        node.ctr(&["content", "prune", "references"]).await?;
        Ok((files_in(&root.join("store/content"))? == 0).then_some(()))
    })
    .await?;
    node.stop().await
}

fn files_in(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files_in(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn weight_layers(converted: &Converted) -> Vec<&str> {
    converted.layers[1..].iter().map(|layer| layer.digest.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn converting_again_gives_the_same_image_and_moves_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let stage = Stage::set().await?;
    let hub = hub(&model).await?;
    let source = format!("hf://{MODEL}");
    let target = format!("{}/models/a:v1", stage.registry.addr());
    let first = convert(Some(&hub), &source, &target, &[]).await?;
    let elsewhere = format!("{}/other/b:v9", stage.registry.addr());
    let clean = convert(Some(&hub), &source, &elsewhere, &["--no-reuse"]).await?;
    assert_eq!(clean.digest, first.digest, "from a clean state");
    let served = hub.log().bytes_served();
    let again = convert(Some(&hub), &source, &target, &[]).await?;
    assert_eq!(again.digest, first.digest);
    assert!(again.layers[1..].iter().all(|layer| layer.reused));
    let moved = hub.log().bytes_served() - served;
    assert!(moved < 1 << 20, "{moved} bytes of a model that is there");

    // A new revision moves only what changed.
    let edited = tempfile::tempdir()?;
    for entry in std::fs::read_dir(&model)? {
        let entry = entry?;
        std::fs::copy(entry.path(), edited.path().join(entry.file_name()))?;
    }
    std::fs::write(edited.path().join("README.md"), "changed\n")?;
    hub.push(MODEL, edited.path())?;
    let next = convert(Some(&hub), &source, &target, &[]).await?;
    assert_ne!(next.digest, first.digest);
    assert_eq!(weight_layers(&next), weight_layers(&first));
    assert!(next.layers[1..].iter().all(|layer| layer.reused));
    let by_tag = convert(Some(&hub), &format!("{source}@v1.0"), &elsewhere, &[]).await?;
    assert_eq!(by_tag.digest, first.digest, "the old revision by its tag");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_is_a_plain_image_for_everybody_else() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let source = read_here(&model)?;
    let stage = Stage::set().await?;
    let reference = format!("{}/models/plain:v1", stage.registry.addr());
    let made = convert(None, &directory(&model), &reference, &[]).await?;

    // Plain containerd with overlayfs.
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    node.cri().pull(&made.reference).await?;
    assert_eq!(stage.read_in_pod(&node, "plain", &made.reference).await?.model_files(), source.contents());
    node.stop().await?;

    // skopeo copies it, umoci unpacks it.
    let work = stage.scratch.subdir("others")?;
    let layout = work.join("layout");
    let copy = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("oci:{}:v1", layout.display()))
        .output()?;
    ensure!(copy.status.success(), "skopeo: {}", String::from_utf8_lossy(&copy.stderr));
    let bundle = work.join("bundle");
    let unpack = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:v1", layout.display()))
        .arg(&bundle)
        .output()?;
    ensure!(unpack.status.success(), "umoci: {}", String::from_utf8_lossy(&unpack.stderr));
    assert_eq!(read_here(&bundle.join("rootfs"))?.model_files(), source.contents());

    // Python's tarfile reads the layers, and finds names, modes and times as docs/format.md says.
    let blobs: Vec<PathBuf> = made
        .layers
        .iter()
        .map(|layer| layout.join("blobs/sha256").join(&layer.digest["sha256:".len()..]))
        .collect();
    let script = "import sys,tarfile\n\
        for p in sys.argv[1:]:\n\
        \u{20}for m in tarfile.open(p, 'r:'):\n\
        \u{20} assert (m.mtime, m.uid, m.gid) == (0, 0, 0) and m.mode in (0o644, 0o755), m.name\n\
        \u{20} print(m.name) if m.isfile() else None\n";
    let listed = Command::new("python3").args(["-c", script]).args(&blobs).output()?;
    ensure!(listed.status.success(), "tarfile: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout)?;
    let mut names: Vec<&str> = listed.lines().filter(|name| !name.starts_with(".towline/")).collect();
    names.sort_unstable();
    assert_eq!(names, source.contents().iter().map(|(path, ..)| *path).collect::<Vec<_>>());
    Ok(())
}

/// A model in a registry behind a proxy that can do harm, and a node that knows only the proxy.
struct Harmed {
    stage: Stage,
    origin: Origin,
    image: Converted,
    reference: String,
    source: Reading,
    node: Node,
}

async fn harmed(node: Snapshotter) -> Result<Harmed> {
    let model = synthetic(&TWENTY_MIB)?;
    let source = read_here(&model)?;
    let stage = Stage::set().await?;
    let origin = Origin::start(stage.registry.addr()).await?;
    let image = convert(None, &directory(&model), &format!("{}/m:v1", stage.registry.addr()), &[]).await?;
    let reference = format!("{}/m@{}", origin.addr(), image.digest);
    let node = stage.node("node", node).await?;
    Ok(Harmed { stage, origin, image, reference, source, node })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_never_seen() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let bench = harmed(Snapshotter::Towline {
        // Longer than a content rests after a failed fetch, so that the healed reads below are in time.
        extra: "[fetch]\nread_timeout = '8s'\nfill_delay = '0s'\n".to_owned(),
    })
    .await?;
    // One byte in each weight layer: early, in the middle, in the last piece.
    let layers = &bench.image.layers[1..];
    let places = [600, layers[1].size / 2, layers[2].size - 2000];
    let flip = layers.iter().zip(places).map(|(layer, at)| (layer.digest.clone(), at)).collect();
    bench.origin.set(Faults { flip, ..Faults::default() });
    bench.node.cri().pull(&bench.reference).await?;
    let pod = Pod::run(&bench.node, &bench.stage.reader("harmed", &bench.reference, &[])?).await?;
    let exit = pod.wait(POD_LIMIT).await?;
    ensure!(exit.code != 0, "a pod read bytes that do not exist:\n{}", exit.output);
    assert!(exit.output.contains("\"errno\":5"), "EIO: {}", exit.output);
    pod.remove().await?;
    assert!(metric(&bench.node, "towline_corrupt_pieces_total").await? >= 3.0);
    let log = std::fs::read_to_string(bench.node.towlined().context("runs")?.daemon().log())?;
    assert!(log.contains("do not match their digest"), "said in the log");

    // Healed, the same node serves the right bytes without a restart.
    bench.origin.set(Faults::default());
    let reading = bench.stage.read_in_pod(&bench.node, "healed", &bench.reference).await?;
    assert_eq!(reading.model_files(), bench.source.contents());
    bench.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_model_needs_neither_registry_nor_an_unbroken_daemon() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut bench = harmed(towline_node()).await?;
    bench.node.cri().pull(&bench.reference).await?;
    until_complete(&bench.node, 1.0).await?;
    bench
        .origin
        .set(Faults { refuse: Some(axum::http::StatusCode::SERVICE_UNAVAILABLE), ..Faults::default() });
    let reading = bench.stage.read_in_pod(&bench.node, "offline", &bench.reference).await?;
    assert_eq!(reading.model_files(), bench.source.contents());
    let towlined = bench.node.towlined_mut().context("towlined runs")?;
    towlined.kill_and_restart(&bench.stage.scratch, "again").await?;
    until_reached(&bench.node).await?;
    until_complete(&bench.node, 1.0).await?;
    let reading = bench.stage.read_in_pod(&bench.node, "restarted", &bench.reference).await?;
    assert_eq!(reading.model_files(), bench.source.contents());
    bench.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_goes_on_where_the_killed_one_was() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut bench = harmed(towline_node()).await?;
    // Slow enough that the kill comes in the middle.
    bench.origin.set(Faults { delay: Duration::from_millis(300), ..Faults::default() });
    bench.node.cri().pull(&bench.reference).await?;
    let begun = async || Ok((metric(&bench.node, "towline_origin_bytes_total").await? > 0.0).then_some(()));
    until("the first bytes", POD_LIMIT, begun).await?;
    let towlined = bench.node.towlined_mut().context("towlined runs")?;
    towlined.kill_and_restart(&bench.stage.scratch, "again").await?;
    until_reached(&bench.node).await?;
    bench.origin.set(Faults::default());
    let reading = bench.stage.read_in_pod(&bench.node, "resumed", &bench.reference).await?;
    assert_eq!(reading.model_files(), bench.source.contents());
    bench.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_is_said_aloud_and_strict_fails_the_pull() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let strict = Snapshotter::Towline { extra: "[snapshotter]\nstrict = true\n".to_owned() };
    let bench = harmed(strict).await?;
    let forbid = [bench.image.layers[0].digest.clone()].into();
    bench.origin.set(Faults { forbid, ..Faults::default() });
    let error = format!("{:#}", bench.node.cri().pull(&bench.reference).await.expect_err("strict"));
    assert!(error.contains("strict") && error.contains("cannot be served lazily"), "{error}");
    assert!(metric(&bench.node, "towline_layers_declined_total").await.is_ok());
    // The same image is fine once the registry is.
    bench.origin.set(Faults::default());
    bench.node.cri().pull(&bench.reference).await?;
    let reading = bench.stage.read_in_pod(&bench.node, "after", &bench.reference).await?;
    assert_eq!(reading.model_files(), bench.source.contents());
    bench.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_layer_with_wrong_bytes_fails_the_pull() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let bench = harmed(towline_node()).await?;
    let flip = [(bench.image.layers[0].digest.clone(), 700)].into();
    bench.origin.set(Faults { flip, ..Faults::default() });
    let error = format!("{:#}", bench.node.cri().pull(&bench.reference).await.expect_err("wrong bytes"));
    assert!(error.contains(&bench.image.layers[0].digest), "names the layer: {error}");
    bench.origin.set(Faults::default());
    bench.node.cri().pull(&bench.reference).await?;
    bench.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_runs_a_pod_with_a_model_in_an_image_volume() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let source = read_here(&model)?;
    let stage = Stage::set().await?;
    let target = format!("{}/models/kube:v1", stage.registry.addr());
    let made = convert(None, &directory(&model), &target, &[]).await?;
    let node = stage.node("node", towline_node()).await?;
    let kubelet = Kubelet::start(&stage.scratch, "kubelet", &node, None).await?;
    kubelet.run(&stage.reader("reads", &made.reference, &[])?)?;
    let exit = kubelet.wait("reads", POD_LIMIT).await?;
    assert_eq!(Reading::parse(&exit.success()?)?.model_files(), source.contents());
    assert!(metric(&node, "towline_layers_claimed_total").await? >= 4.0, "served lazily");
    kubelet.stop(Duration::from_secs(20)).await?;
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn minilm_loads_with_its_library_from_a_volume_that_is_still_arriving() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = minilm()?;
    let stage = Stage::set().await?;
    let hub = hub(&model).await?;
    let target = format!("{}/models/minilm:v1", stage.registry.addr());
    let made = convert(Some(&hub), &format!("hf://{MODEL}"), &target, &[]).await?;
    let here = embed(&model).await?;
    let node = stage.node("node", towline_node()).await?;
    node.cri().pull(&made.reference).await?;
    let pod = Pod::run(&node, &embedding_pod("embeds", &stage.pod_image, &made.reference)?).await?;
    let there = Embedding::parse(&pod.wait(POD_LIMIT).await?.success()?)?;
    assert_eq!(there.embedding, here.embedding);
    pod.remove().await?;
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_image_works_and_a_container_may_change_its_files() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = Stage::set().await?;
    let node = stage.node("node", towline_node()).await?;
    let script = "set -e; echo new > /new; cp /bin/busybox /copy; rm /bin/sleep; mkdir -p /a/b; mv /a /c; \
                  test -d /c/b; test ! -e /bin/sleep; cat /new; sha256sum /copy /bin/busybox";
    let spec = Spec {
        name: "writes".into(),
        image: stage.pod_image.clone(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: vec![],
        mounts: vec![],
    };
    let pod = Pod::run(&node, &spec).await?;
    let output = pod.wait(POD_LIMIT).await?.success()?;
    assert!(output.starts_with("new\n"), "{output}");
    let sums: Vec<&str> = output.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{output}");
    pod.remove().await?;
    // A second pod of the same image sees none of it.
    let spec = Spec {
        name: "fresh".into(),
        command: vec!["/bin/sh".into(), "-c".into(), "test -e /bin/sleep -a ! -e /new".into()],
        ..spec
    };
    Pod::run(&node, &spec).await?.wait(POD_LIMIT).await?.success()?;
    assert_eq!(metric(&node, "towline_layers_claimed_total").await?, 0.0);
    node.stop().await
}

/// Runs `towline convert` and expects it to fail: exit code, and what it says.
async fn refused(hub: &Hub, args: &[&str], code: i32, says: &[&str]) -> Result<()> {
    let output = towline(Some(hub))?.arg("convert").args(args).output().await?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{args:?} ended with {}: {text}", output.status);
    for part in says {
        ensure!(text.contains(part), "{args:?} does not say {part:?}: {text}");
    }
    ensure!(output.stdout.is_empty(), "{args:?} printed a result");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_one_clear_sentence_and_publishes_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let model = synthetic(&TWENTY_MIB)?;
    let stage = Stage::set().await?;
    let hub = Hub::start(Config {
        models: [MODEL, "acme/gated", "acme/private"].map(|id| (id.to_owned(), model.clone())).into(),
        token: Some("tl-secret-token".to_owned()),
        gated: ["acme/gated".to_owned()].into(),
        private: ["acme/private".to_owned()].into(),
        ..Config::default()
    })
    .await?;
    let target = format!("{}/bad:v1", stage.registry.addr());
    let (good, target) = (format!("hf://{MODEL}"), target.as_str());
    refused(&hub, &["hf://acme/nothing", target], 1, &["acme/nothing", "hint: "]).await?;
    refused(&hub, &[&format!("{good}@nosuch"), target], 1, &["nosuch"]).await?;
    refused(&hub, &["hf://acme/gated", target], 1, &["acme/gated", "HF_TOKEN"]).await?;
    refused(&hub, &["hf://acme/private", target], 1, &["acme/private", "HF_TOKEN"]).await?;
    refused(&hub, &["modelscope://acme/nothing", target], 1, &["acme/nothing"]).await?;
    refused(&hub, &["ftp://acme/nothing", target], 2, &["hf://"]).await?;
    refused(&hub, &[&good, "UPPER/case:v1"], 2, &["UPPER"]).await?;
    refused(&hub, &[&good, "127.0.0.1:1/nobody/home:v1"], 1, &["127.0.0.1:1"]).await?;
    for path in ["../escape", "/absolute", "a//b", ".towline/index.json", "a/../b"] {
        hub.faults().extra_paths = vec![path.to_owned()];
        refused(&hub, &[&good, target], 1, &[path]).await?;
    }
    hub.faults().extra_paths.clear();
    let shard = "model-00002-of-00003.safetensors".to_owned();
    hub.faults().flip.insert(shard.clone(), 4096);
    refused(&hub, &[&good, target], 1, &[&shard]).await?;
    hub.faults().flip.clear();
    hub.faults().wrong_size.insert(shard.clone(), 12_345);
    refused(&hub, &[&good, target], 1, &[&shard]).await?;
    hub.faults().wrong_size.clear();

    let tags = Command::new("skopeo")
        .args(["list-tags", "--tls-verify=false", &format!("docker://{}/bad", stage.registry.addr())])
        .output()?;
    ensure!(!tags.status.success(), "something was published: {}", String::from_utf8_lossy(&tags.stdout));
    // With the token all is well, and the token is nowhere but at the hub.
    let made = towline(Some(&hub))?
        .env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        .env("HF_TOKEN", "tl-secret-token")
        .args(["convert", "hf://acme/gated", target])
        .output()
        .await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = [made.stdout, made.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains("tl-secret-token"));
    assert_eq!(hub.log().leaked_credentials(), 0, "no token at the hub's storage");

    // An image that is not ours.
    let inspect = towline(None)?.args(["inspect", &stage.pod_image]).output().await?;
    assert_eq!(inspect.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&inspect.stderr).contains(&stage.pod_image));
    Ok(())
}
