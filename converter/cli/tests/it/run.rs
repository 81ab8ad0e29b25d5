//! Running the binary with nothing of this machine's configuration, and looking at what it left.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Length of a piece: what is shorter goes into the base layer.
pub(crate) const PIECE: usize = 2 << 20;

/// A directory for one test, which is also the home and the working directory of the binary.
pub(crate) struct Place {
    dir: TempDir,
    variables: Vec<(&'static str, String)>,
}

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The JSON object on stdout of a run that must have succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }

    /// Asserts a failure with this exit code whose error has all of `texts`, and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert_eq!(self.stdout, "");
        let at = self.stderr.find("error: ").expect(&self.stderr);
        for text in texts {
            assert!(self.stderr[at..].contains(text), "{:?} lacks {text:?}", &self.stderr[at..]);
        }
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary directory"), variables: Vec::new() }
    }

    /// A place whose Hugging Face is at `url`.
    pub(crate) fn with_hub(url: &str) -> Self {
        let mut place = Self::new();
        place.variables.push(("HF_ENDPOINT", url.to_owned()));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("below the directory")).expect("directory");
        std::fs::write(path, bytes).expect("file");
    }

    /// Writes a model of two weight files and three small ones into `name`.
    pub(crate) fn write_model(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let model = model();
        for (path, bytes) in &model {
            self.write(&format!("{name}/{path}"), bytes);
        }
        model
    }

    pub(crate) fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_towline"));
        command.args(args).current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Run {
        self.command(args).output().await.expect("the binary runs").into()
    }
}

/// Paths and bytes of a small model.
pub(crate) fn model() -> BTreeMap<String, Vec<u8>> {
    let weights =
        |seed: usize, len: usize| (0..len).map(|n| ((n * 7 + seed) % 251) as u8).collect::<Vec<u8>>();
    BTreeMap::from([
        ("config.json".to_owned(), b"{\"model_type\":\"tiny\"}".to_vec()),
        ("README.md".to_owned(), Vec::new()),
        ("tokenizer/vocab.txt".to_owned(), b"a\nb\n".to_vec()),
        ("model-00001-of-00002.safetensors".to_owned(), weights(1, PIECE)),
        ("model-00002-of-00002.safetensors".to_owned(), weights(2, 2 * PIECE + 1)),
    ])
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("file")).expect("JSON")
}

/// A blob of a layout, its digest checked.
pub(crate) fn blob(layout: &Path, digest: &str) -> Vec<u8> {
    use sha2::Digest;
    let name = digest.strip_prefix("sha256:").expect("SHA-256");
    let bytes = std::fs::read(layout.join("blobs/sha256").join(name)).expect(digest);
    assert_eq!(hex::encode(sha2::Sha256::digest(&bytes)), name);
    bytes
}

/// The tags of a layout, with their digests. None where there is no layout.
pub(crate) fn tags(layout: &Path) -> BTreeMap<String, String> {
    if !layout.join("index.json").try_exists().expect("stat") {
        return BTreeMap::new();
    }
    let index = read_json(&layout.join("index.json"));
    let manifests = index["manifests"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    manifests
        .map(|entry| {
            (text(&entry["annotations"]["org.opencontainers.image.ref.name"]), text(&entry["digest"]))
        })
        .collect()
}

/// The image of `digest` unpacked as any container tool would: layers in order, for the given architecture.
pub(crate) fn unpack(layout: &Path, digest: &str, architecture: &str) -> BTreeMap<String, Vec<u8>> {
    let parse = |digest: &str| serde_json::from_slice::<Value>(&blob(layout, digest)).expect("JSON");
    let index = parse(digest);
    let manifest = index["manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|entry| entry["platform"]["architecture"] == architecture)
        .expect("a manifest for the platform");
    let manifest = parse(manifest["digest"].as_str().expect("text"));
    let mut tree = BTreeMap::new();
    for layer in manifest["layers"].as_array().expect("a list") {
        let bytes = blob(layout, layer["digest"].as_str().expect("text"));
        for entry in tar::Archive::new(&bytes[..]).entries().expect("tar") {
            let mut entry = entry.expect("an entry");
            if entry.header().entry_type().is_file() {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).expect("data");
                let path = entry.path().expect("path").to_str().expect("UTF-8").to_owned();
                tree.insert(path, data);
            }
        }
    }
    tree
}

/// Asserts that nothing is published in `layout`: no tag, and no bytes of an unfinished blob.
#[track_caller]
pub(crate) fn assert_unpublished(layout: &Path) {
    assert_eq!(tags(layout), BTreeMap::new());
    assert_eq!(unfinished(layout), 0, "unfinished blobs are left");
}

/// How many blobs of a layout are being written: files with random names of 32 hex digits, beside a lock.
pub(crate) fn unfinished(layout: &Path) -> usize {
    let Ok(dir) = std::fs::read_dir(layout.join(".towline-ingest")) else { return 0 };
    let names = dir.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.filter(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())).count()
}
