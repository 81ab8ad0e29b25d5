//! The main job on this machine: hub → image → registry → pod, beside the same with plain containerd.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Parser;
use towline_tests::convert::{self, Converted, towline};
use towline_tests::hub::{Config, Hub};
use towline_tests::machine::Machine;
use towline_tests::measure::ColdStart;
use towline_tests::node::Snapshotter;
use towline_tests::pod::Pod;
use towline_tests::stage::Stage;
use towline_tests::{clock, model, python, timeline};

/// How long Python may take to load a model and answer.
const EMBED_LIMIT: Duration = Duration::from_secs(120);

/// Shows Towline's main job on this machine, from a hub to a pod, beside plain containerd.
#[derive(Parser)]
struct Arguments {
    /// A model on its real hub instead of the built-in ones; needs the internet
    #[arg(long, value_name = "hf://ORG/NAME@REVISION", env = "MODEL")]
    model: Option<String>,
}

/// Prints a step with the time since the start.
struct Teller(clock::Instant);

#[expect(clippy::print_stdout, reason = "telling is what a demo does")]
impl Teller {
    fn say(&self, text: impl std::fmt::Display) {
        println!("{:7.1} s  {text}", self.0.elapsed().as_secs_f64());
    }

    fn show(&self, text: impl std::fmt::Display) {
        for line in text.to_string().lines() {
            println!("           {line}");
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let teller = Teller(clock::Instant::now());
    tokio::select! {
        result = demo(&arguments, &teller) => result,
        // Everything that was started ends with the stage.
        interrupted = tokio::signal::ctrl_c() => { interrupted?; bail!("interrupted") }
    }
}

async fn demo(arguments: &Arguments, teller: &Teller) -> Result<()> {
    let stage = Stage::set().await?;
    teller.say(format_args!("machine: {}", Machine::look(stage.scratch.path())));
    teller.say(format_args!("a registry (docker-registry) on {}", stage.registry.addr()));
    let (hub, sources) = match &arguments.model {
        Some(source) => (None, vec![source.clone()]),
        None => {
            let models = [
                ("sentence/minilm".to_owned(), model::minilm()?),
                ("demo/two-gib".to_owned(), two_gib(teller)?),
            ];
            let hub = Hub::start(Config { models: models.into(), ..Config::default() }).await?;
            teller.say(format_args!("a stand-in for the Hugging Face hub on {}", hub.url()));
            (Some(hub), ["hf://sentence/minilm@main", "hf://demo/two-gib@main"].map(str::to_owned).into())
        }
    };
    let mut images = Vec::new();
    for (n, source) in sources.iter().enumerate() {
        images.push(package(&stage, hub.as_ref(), source, n, teller).await?);
    }
    let image = images.last().context("a model was converted")?;

    teller
        .say("plain containerd with overlayfs: pull, then a pod that hashes every byte of the image volume");
    let node = stage.node("overlayfs", Snapshotter::Overlayfs).await?;
    let plain = ColdStart::measure(&stage, &node, "plain", &image.reference).await?;
    node.stop().await?;
    teller.say("the same with towlined");
    let node = stage.node("towline", Snapshotter::Towline { extra: String::new() }).await?;
    let lazy = ColdStart::measure(&stage, &node, "lazy", &image.reference).await?;
    ensure!(plain.reading.contents() == lazy.reading.contents(), "the two pods did not read the same bytes");
    teller.say(format_args!("both pods read the same {} files, hash by hash", lazy.reading.contents().len()));

    if hub.is_some() {
        teller.say(
            "MiniLM, loaded by its Python library from an image volume that nothing of is on the node yet",
        );
        let reference = &images[0].reference;
        node.cri().pull(reference).await?;
        let pod = Pod::run(&node, &python::embedding_pod("minilm", &stage.pod_image, reference)?).await?;
        let in_pod = python::Embedding::parse(&pod.wait(EMBED_LIMIT).await?.success()?)?;
        let on_host = python::embed(&model::minilm()?).await?;
        ensure!(
            in_pod.embedding == on_host.embedding,
            "the embedding in the pod differs from the package's own"
        );
        teller.say(format_args!(
            "its embedding has {} dimensions and equals that of the package itself",
            in_pod.embedding.len()
        ));
        pod.remove().await?;
    }
    let status = towline(None)?.arg("status").arg("--control").arg(control_socket(&node)?).output().await?;
    teller.say("towline status");
    teller.show(String::from_utf8_lossy(&status.stdout));
    node.stop().await?;

    let (plain, lazy) = (plain.figures(), lazy.figures());
    teller.say(format_args!(
        "{} from pull to the last byte, beside plain containerd in the same run",
        image.source.repo
    ));
    teller.show(timeline::compare(&[("overlayfs", plain), ("towline", lazy)]));
    #[expect(clippy::cast_precision_loss, reason = "to look at")]
    let per_byte = |written: u64| written as f64 / plain.model_bytes as f64;
    teller.show(format_args!(
        "bytes written per model byte: {:.2} and {:.2}",
        per_byte(plain.written_bytes),
        per_byte(lazy.written_bytes)
    ));
    teller.say("done; everything that was started is ended");
    Ok(())
}

fn two_gib(teller: &Teller) -> Result<PathBuf> {
    teller.say("a model of 2 GiB in 3 shards (made once, then kept in the cache)");
    model::synthetic(&model::TWO_GIB)
}

fn control_socket(node: &towline_tests::node::Node) -> Result<PathBuf> {
    Ok(node.towlined().context("the node runs towlined")?.control_socket())
}

async fn package(
    stage: &Stage,
    hub: Option<&Hub>,
    source: &str,
    n: usize,
    teller: &Teller,
) -> Result<Converted> {
    let target = format!("{}/models/demo-{n}:v1", stage.registry.addr());
    teller.say(format_args!("towline convert {source} {target}"));
    let mut command = towline(hub)?;
    let converted = convert::run(command.args(["convert", source, &target]).stderr(Stdio::inherit())).await?;
    teller.show(format_args!(
        "commit {}, {} files, {} in {} layers; {} from the hub, {} to the registry, {:.1} s",
        converted.source.commit,
        converted.files,
        ByteSize(converted.bytes),
        converted.layers.len(),
        ByteSize(converted.transferred.hub_bytes),
        ByteSize(converted.transferred.registry_bytes),
        Duration::from_millis(converted.elapsed_ms).as_secs_f64(),
    ));
    teller.show(format_args!("{} (index {})", converted.reference, converted.digest));
    Ok(converted)
}
