//! `towline convert` where it must not succeed: one clear sentence, the right exit code, nothing published.

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::hub::{Hub, Repository, Served};
use crate::run::{Place, Run, assert_unpublished, model, unfinished};

const WEIGHTS: &str = "model-00002-of-00002.safetensors";

#[track_caller]
fn assert_refused(run: &Run, place: &Place, texts: &[&str]) {
    run.fails(1, texts);
    assert_unpublished(&place.path("out"));
}

async fn convert_lie(file: &str, lie: Served, texts: &[&str]) {
    let lies = [(file.to_owned(), lie)].into();
    let hub = Hub::start(Repository { files: model(), lies }).await;
    let place = Place::with_hub(&hub.url);
    let run = place.run(&["convert", "hf://acme/tiny", "oci:out:v1"]).await;
    assert_refused(&run, &place, texts);
}

#[tokio::test]
async fn weights_that_are_not_the_listed_ones_are_not_published() {
    convert_lie(WEIGHTS, Served::Flipped, &[WEIGHTS, "hint: "]).await;
    convert_lie(WEIGHTS, Served::Longer, &[WEIGHTS]).await;
}

#[tokio::test]
async fn small_files_that_are_not_the_listed_ones_are_not_published() {
    convert_lie("config.json", Served::Flipped, &["config.json"]).await;
    convert_lie("config.json", Served::Longer, &["config.json"]).await;
}

#[tokio::test]
async fn a_failed_run_leaves_the_old_image_in_place() {
    let place = Place::new();
    place.write_model("model");
    let digest =
        place.run(&["convert", "--output", "json", "dir:model", "oci:out:v1"]).await.json()["digest"].clone();
    let lies = [(WEIGHTS.to_owned(), Served::Flipped)].into();
    let mut files = model();
    files.get_mut(WEIGHTS).unwrap()[0] ^= 1;
    let hub = Hub::start(Repository { files, lies }).await;
    let run = place
        .command(&["convert", "hf://acme/tiny", "oci:out:v1"])
        .env("HF_ENDPOINT", &hub.url)
        .output()
        .await;
    Run::from(run.unwrap()).fails(1, &[WEIGHTS]);
    assert_eq!(crate::run::tags(&place.path("out"))["v1"], digest.as_str().unwrap());
}

#[tokio::test]
async fn path_tricks_are_refused_by_name() {
    for path in ["../escape", "/etc/passwd", "a/../../b", "a//b", "x\\y", ".towline/index.json"] {
        let files = [(path.to_owned(), b"x".to_vec()), ("ok".to_owned(), b"y".to_vec())].into();
        let hub = Hub::start(Repository { files, ..Repository::default() }).await;
        let place = Place::with_hub(&hub.url);
        let run = place.run(&["convert", "hf://acme/tiny", "oci:out:v1"]).await;
        assert_refused(&run, &place, &[&format!("{path:?}")]);
    }
    let place = Place::new();
    place.write_model("model");
    std::os::unix::fs::symlink("/etc/hostname", place.path("model/link")).unwrap();
    assert_refused(&place.run(&["convert", "dir:model", "oci:out:v1"]).await, &place, &["link"]);
}

#[tokio::test]
async fn unsafe_formats_are_refused_until_allowed_by_name() {
    let place = Place::new();
    place.write_model("model");
    place.write("model/pytorch_model.bin", b"\x80\x04.");
    let run = place.run(&["convert", "dir:model", "oci:out:v1"]).await;
    assert_refused(&run, &place, &["\"pytorch_model.bin\"", "hint: ", "--exclude '*.bin'", "--allow-unsafe"]);
    for option in [["--exclude", "*.bin"], ["--allow-unsafe", "pytorch_model.bin"]] {
        let run = place.run(&["convert", option[0], option[1], "dir:model", "oci:out:v1"]).await;
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_bad_usage() {
    let place = Place::new();
    place.write_model("model");
    let digest = format!("oci:out@sha256:{}", "0".repeat(64));
    for (args, text) in [
        (&["convert", "acme/tiny", "oci:out:v1"][..], "has no known scheme"),
        (&["convert", "dir:model", &digest], "by tag, not by digest"),
        (&["convert", "--prefix", "../x", "dir:model", "oci:out:v1"], "--prefix"),
        (&["convert", "--include", "", "dir:model", "oci:out:v1"], "empty pattern"),
        (&["convert", "--jobs", "0", "dir:model", "oci:out:v1"], "--jobs"),
        (&["convert", "dir:model"], "REF"),
        (&["containerd-config", "--root", "var"], "not an absolute path"),
    ] {
        place.run(args).await.fails(2, &[text]);
    }
    let run = place
        .command(&["convert", "hf://acme/tiny", "oci:out:v1"])
        .env("HF_ENDPOINT", "ftp://x")
        .output()
        .await;
    Run::from(run.unwrap()).fails(2, &["HF_ENDPOINT"]);
    assert_unpublished(&place.path("out"));
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let hub = Hub::start(Repository { files: model(), ..Repository::default() }).await;
    let place = Place::with_hub(&hub.url);
    place
        .run(&["convert", "hf://acme/other", "oci:out:v1"])
        .await
        .fails(1, &["list hf://acme/other", "acme/other"]);
    place.run(&["convert", "hf://acme/tiny@gone", "oci:out:v1"]).await.fails(1, &["hf://acme/tiny@gone"]);
    place.run(&["convert", "dir:nowhere", "oci:out:v1"]).await.fails(1, &["nowhere"]);
    assert_unpublished(&place.path("out"));
}

#[tokio::test]
async fn a_registry_that_refuses_is_quoted() {
    let refuse = || async {
        let body = r#"{"errors":[{"code":"DENIED","message":"the quota is used up"}]}"#;
        (StatusCode::FORBIDDEN, body).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(refuse)).await });
    let place = Place::new();
    place.write_model("model");
    let image = format!("{host}/models/tiny:v1");
    let run = place.run(&["convert", "dir:model", &image]).await;
    run.fails(1, &["DENIED: the quota is used up", &format!("{host}/models/tiny"), "hint: "]);
}

#[tokio::test]
async fn a_signal_gives_everything_up() {
    for signal in ["-INT", "-TERM"] {
        let lies = [(WEIGHTS.to_owned(), Served::Stalled)].into();
        let hub = Hub::start(Repository { files: model(), lies }).await;
        let place = Place::with_hub(&hub.url);
        let child = place.command(&["convert", "hf://acme/tiny", "oci:out:v1"]).spawn().unwrap();
        let pid = child.id().unwrap().to_string();
        let deadline = Instant::now() + Duration::from_secs(20);
        while unfinished(&place.path("out")) == 0 || hub.served() < 1 << 20 {
            assert!(Instant::now() < deadline, "the stalled layer was never begun");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let killed = tokio::process::Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(killed.success());
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
        let run: Run = ended.expect("it ends soon").unwrap().into();
        run.fails(130, &["error: interrupted, nothing was published"]);
        assert_unpublished(&place.path("out"));
    }
}
