//! The hub stand-in, held against the hubs' own clients, and our client held against the stand-in.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::process::Command;
use towline_hub::{FileHash, HashCheck, HubError, HubSettings, Listing, RemoteFile, Source};
use towline_tests::hub::{Config, Hub};

const TOKEN: &str = "hf_stand-in";
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hub-clients");

/// The longest the clients may take for a few MiB on the loopback.
const CLIENTS_TIMEOUT: Duration = Duration::from_secs(300);

/// A small repository with all that matters: weights in LFS, small files in git, directories, odd names, an empty file.
fn repository() -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    let mut random = StdRng::seed_from_u64(7);
    let mut noise = |len: usize| {
        let mut bytes = vec![0; len];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let card = b"---\nlicense: apache-2.0\n---\n# A model\n".to_vec();
    for (path, bytes) in [
        ("README.md", card),
        ("config.json", b"{\"model_type\": \"none\"}\n".to_vec()),
        ("empty.txt", Vec::new()),
        ("model-00001-of-00002.safetensors", noise(5 << 20)),
        ("model-00002-of-00002.safetensors", noise((3 << 20) + 1)),
        ("onnx/model.onnx", noise(100_000)),
        ("onnx/sub dir/vocab+1%.json", noise(5000)),
        ("tokenizer.json", noise((10 << 20) + 3)),
        ("模型/说明.txt", b"hello".to_vec()),
    ] {
        let full = root.path().join(path);
        fs::create_dir_all(full.parent().context("a file has a parent")?)?;
        fs::write(full, bytes)?;
    }
    Ok(root)
}

async fn start(root: &Path) -> Result<Hub> {
    let models = ["org/name", "org/gated", "org/private"].map(|id| (id.to_owned(), root.to_owned()));
    Hub::start(Config {
        models: models.into(),
        datasets: [("org/data".to_owned(), root.to_owned())].into(),
        token: Some(TOKEN.to_owned()),
        gated: ["org/gated".to_owned()].into(),
        private: ["org/private".to_owned()].into(),
        // Small enough that these few files take several pages.
        page_len: 4,
        ..Config::default()
    })
    .await
}

/// Python with the clients in it, in the cache; `None`, with the reason printed, if no package index can be reached.
async fn python() -> Result<Option<PathBuf>> {
    let requirements = Path::new(CLIENTS).join("requirements.txt");
    let venv = towline_tests::cache::dir().join("hub-clients");
    let (python, stamp) = (venv.join("bin/python3"), venv.join("installed.txt"));
    let wanted = fs::read_to_string(&requirements)?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) && python.exists() {
        return Ok(Some(python));
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).output().await;
    let made = made.context("run python3")?;
    ensure!(made.status.success(), "python3 -m venv: {}", String::from_utf8_lossy(&made.stderr));
    let pip = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(&requirements)
        .output()
        .await?;
    if !pip.status.success() {
        let said = String::from_utf8_lossy(&pip.stderr);
        let offline =
            ["No matching distribution", "Connection", "NewConnectionError", "timed out", "resolve"];
        ensure!(offline.iter().any(|sign| said.contains(sign)), "pip install: {said}");
        let reason = said.lines().last().unwrap_or_default();
        writeln!(
            std::io::stderr(),
            "SKIPPED: pip reaches no package index with the hubs' clients ({reason})"
        )?;
        return Ok(None);
    }
    fs::write(&stamp, wanted)?;
    Ok(Some(python))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_own_clients_take_the_stand_in_for_the_real_thing() -> Result<()> {
    let Some(python) = python().await? else { return Ok(()) };
    let root = repository()?;
    let hub = start(root.path()).await?;
    let work = tempfile::tempdir()?;
    let mut command = Command::new(python);
    command
        .arg(Path::new(CLIENTS).join("check.py"))
        .args([hub.url(), "org/name"])
        .arg(root.path())
        .arg(work.path());
    command.args(["org/gated", TOKEN]).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output =
        tokio::time::timeout(CLIENTS_TIMEOUT, command.output()).await.context("the clients hang")??;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "check.py failed\n{said}\n{errors}\n{:#?}", hub.log().requests());
    ensure!(
        said.lines().filter(|line| line.starts_with("ok: ")).count() == 13,
        "checks are missing:\n{said}"
    );
    assert_eq!(hub.log().leaked_credentials(), 0);
    assert!(hub.log().tokens().contains(TOKEN));
    Ok(())
}

fn connect(hub: &Hub, source: &str, token: Option<&str>) -> Result<Source> {
    let settings = HubSettings::from_env(|name| match name {
        "HF_ENDPOINT" | "MODELSCOPE_ENDPOINT" => Some(hub.url().to_owned()),
        "HF_TOKEN" | "MODELSCOPE_API_TOKEN" => token.map(str::to_owned),
        _ => None,
    })?;
    Ok(Source::connect(&source.parse()?, &settings)?)
}

async fn download(source: &Source, listing: &Listing, file: &RemoteFile) -> Result<Vec<u8>, HubError> {
    let mut stream = source.open(listing, file, 0).await?;
    let (mut check, mut bytes) = (HashCheck::new(file), Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        check.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    check.finish()?;
    Ok(bytes)
}

/// Downloads everything and compares it with the directory.
async fn check(hub: &Hub, root: &Path, source: &str, token: Option<&str>) -> Result<Listing> {
    let client = connect(hub, source, token)?;
    let listing = client.resolve().await.with_context(|| source.to_owned())?;
    assert_eq!(listing.files.len(), 9, "{source}");
    for file in &listing.files {
        let bytes =
            download(&client, &listing, file).await.with_context(|| format!("{source} {}", file.path))?;
        ensure!(bytes == fs::read(root.join(&file.path))?, "{source} {} differs", file.path);
    }
    Ok(listing)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_reads_both_hubs_alike() -> Result<()> {
    let root = repository()?;
    let hub = start(root.path()).await?;
    let hf = check(&hub, root.path(), "hf://org/name", None).await?;
    let modelscope = check(&hub, root.path(), "modelscope://org/name", None).await?;
    assert_eq!(hf.commit, hub.head("org/name").await?);
    assert_eq!((&hf.commit, hf.created.as_deref()), (&modelscope.commit, Some("2025-01-01T00:00:00Z")));
    assert_eq!((hf.created, hf.licence.as_deref()), (modelscope.created, Some("apache-2.0")));
    for (one, other) in hf.files.iter().zip(&modelscope.files) {
        assert_eq!((&one.path, one.size), (&other.path, other.size));
        if matches!(one.hash, FileHash::Sha256(_)) {
            assert_eq!(one.hash, other.hash);
        }
    }
    for source in
        ["hf://org/gated", "hf://org/private", "modelscope://org/gated", "modelscope://org/private@v1.0"]
    {
        check(&hub, root.path(), source, Some(TOKEN)).await?;
        match check(&hub, root.path(), source, None).await {
            Err(error) => assert!(matches!(error.downcast_ref(), Some(HubError::Denied { .. })), "{error:#}"),
            Ok(_) => bail!("{source} was read without a token"),
        }
    }
    check(&hub, root.path(), "hf://datasets/org/data", None).await?;
    check(&hub, root.path(), "modelscope://datasets/org/data", None).await?;
    assert_eq!(hub.log().leaked_credentials(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_survives_and_reports_faults() -> Result<()> {
    let root = repository()?;
    let hub = start(root.path()).await?;
    let weights = "model-00001-of-00002.safetensors";
    for source in ["hf://org/name", "modelscope://org/name"] {
        {
            let mut faults = hub.faults();
            faults.cut_once.insert(weights.to_owned(), 1 << 20);
            faults.cut_once.insert("README.md".to_owned(), 10);
            faults.too_many.insert("/api/".to_owned(), 1);
            faults.parts_as_200 = true;
        }
        let before = hub.log().bytes_of(weights);
        let listing = check(&hub, root.path(), source, None).await?;
        assert!(hub.faults().cut_once.is_empty(), "the bodies were cut");
        let served = hub.log().bytes_of(weights) - before;
        assert!(served < (5 << 20) + (2 << 20), "a cut file is continued and not read again: {served} bytes");

        let client = connect(&hub, source, None)?;
        let file = listing.files.iter().find(|file| file.path == weights).context("weights")?;
        hub.faults().flip.insert(weights.to_owned(), 4_000_000);
        let error = download(&client, &listing, file).await.expect_err("a wrong byte");
        assert!(matches!(error, HubError::WrongHash { .. }), "{error}");

        *hub.faults() = towline_tests::hub::Faults::default();
        hub.faults().wrong_size.insert(weights.to_owned(), 17);
        let lied = client.resolve().await?;
        let file = lied.files.iter().find(|file| file.path == weights).context("weights")?;
        let error = download(&client, &lied, file).await.expect_err("a wrong size");
        assert!(matches!(error, HubError::WrongLength { .. }), "{error}");

        hub.faults().extra_paths = vec!["../../etc/passwd".to_owned()];
        assert!(matches!(client.resolve().await, Err(HubError::Path(_))));
        *hub.faults() = towline_tests::hub::Faults::default();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_commit_outlives_a_push() -> Result<()> {
    let (old, new) = (repository()?, repository()?);
    fs::write(new.path().join("config.json"), "{}")?;
    let hub = start(old.path()).await?;
    let first = check(&hub, old.path(), "hf://org/name", None).await?;
    hub.push("org/name", new.path())?;
    let second = check(&hub, new.path(), "hf://org/name", None).await?;
    assert_ne!(first.commit, second.commit);
    assert!(second.created > first.created);
    for scheme in ["hf", "modelscope"] {
        for revision in [first.commit.as_str(), "v1.0"] {
            let again = check(&hub, old.path(), &format!("{scheme}://org/name@{revision}"), None).await?;
            assert_eq!(
                (&again.commit, &again.created),
                (&first.commit, &first.created),
                "{scheme} {revision}"
            );
        }
    }
    Ok(())
}
