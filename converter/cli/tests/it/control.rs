//! The commands that tell the daemon to do something, against a daemon that says what the test wants.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::Status;
use towline_proto::control::v1::{Model, State};

use crate::daemon::{Daemon, model};
use crate::run::{Place, Run};

const IMAGE: &str = "registry.example.com/models/tiny:v1";

#[tokio::test]
async fn a_prefetch_that_waits_ends_with_the_last_byte() {
    let place = Place::new();
    let failing = Model { last_error: "connection refused".into(), ..model(State::Waiting, 1 << 29) };
    let progress = vec![model(State::Fetching, 0), failing, model(State::Complete, 1 << 30)];
    let daemon = Daemon { progress: progress.into_iter().map(Some).collect(), ..Daemon::default() };
    let socket = daemon.serve(&place);
    let run = place.run(&["prefetch", "--wait", "--control", &socket, IMAGE]).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stdout, format!("{IMAGE} complete: 1.0 GiB of 1.0 GiB\n"));
    assert_eq!(run.stderr.lines().count(), 2, "one line at the start, one for the error: {}", run.stderr);
    assert!(run.stderr.contains("waiting, tried again: connection refused"), "{}", run.stderr);

    let json =
        place.run(&["prefetch", "--wait", "-q", "--output", "json", "--control", &socket, IMAGE]).await;
    assert_eq!(json.stderr, "");
    let json = json.json();
    assert_eq!((json["state"].as_str(), json["bytes_local"].as_u64()), (Some("complete"), Some(1 << 30)));
    assert_eq!(
        (json["bytes_from_origin"].as_u64(), json["bytes_from_peers"].as_u64()),
        (Some(1 << 20), Some(1 << 21))
    );
    assert!(json["elapsed_ms"].is_u64());
    assert_eq!(daemon.asked(), [format!("prefetch {IMAGE} true"), format!("prefetch {IMAGE} true")]);
}

#[tokio::test]
async fn a_prefetch_that_does_not_wait_tells_how_far_it_is() {
    let place = Place::new();
    let daemon = Daemon { progress: vec![Some(model(State::Fetching, 1 << 20))], ..Daemon::default() };
    let run = place.run(&["prefetch", "--control", &daemon.serve(&place), IMAGE]).await;
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(run.stdout, format!("{IMAGE} being fetched: 1.0 MiB of 1.0 GiB\n"));
    assert_eq!(daemon.asked(), [format!("prefetch {IMAGE} false")]);
}

#[tokio::test]
async fn a_wait_that_breaks_off_is_a_failure() {
    // With the daemon's own word for it, and without.
    for (last, text) in [(vec![None], "the daemon is stopping"), (vec![], "stopped telling")] {
        let place = Place::new();
        let progress = std::iter::once(Some(model(State::Fetching, 0))).chain(last).collect();
        let daemon = Daemon { progress, ..Daemon::default() };
        let run = place.run(&["prefetch", "--wait", "--control", &daemon.serve(&place), IMAGE]).await;
        run.fails(1, &[&format!("prefetch {IMAGE}"), text]);
    }
}

#[tokio::test]
async fn an_interrupted_wait_says_that_the_fetch_goes_on() {
    let place = Place::new();
    let progress = vec![Some(model(State::Fetching, 0))];
    let daemon = Daemon { progress, stalls: true, ..Daemon::default() };
    let mut child =
        place.command(&["prefetch", "--wait", "--control", &daemon.serve(&place), IMAGE]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut line = async || {
        let line =
            tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.expect("a line soon");
        line.unwrap().expect("a line")
    };
    assert!(line().await.starts_with("fetching "));
    let pid = child.id().unwrap().to_string();
    assert!(tokio::process::Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    assert_eq!(line().await, "error: interrupted, the daemon goes on with what it has begun");
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn mounts_are_asked_for_by_absolute_paths() {
    let place = Place::new();
    let daemon = Daemon::default();
    let socket = daemon.serve(&place);
    std::fs::create_dir(place.path("m")).unwrap();
    let dir = place.path("m").canonicalize().unwrap().to_str().unwrap().to_owned();
    let run = place.run(&["mount", IMAGE, "m", "--control", &socket]).await;
    assert_eq!(run.stdout, format!("{IMAGE} is mounted at {dir}, 0 B of 1.0 GiB here\n"), "{}", run.stderr);
    let json = place.run(&["mount", IMAGE, "m", "--output", "json", "--control", &socket]).await.json();
    assert_eq!((json["directory"].as_str(), json["mounts"][0].as_str()), (Some(&*dir), Some(&*dir)));
    let run = place.run(&["unmount", "m/", "--control", &socket]).await;
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""));
    let json = place.run(&["unmount", "m", "--output", "json", "--control", &socket]).await.json();
    assert_eq!(json["unmounted"], dir);
    let json = place.run(&["release", IMAGE, "--output", "json", "--control", &socket]).await.json();
    assert_eq!(json["released"], IMAGE);
    let (mount, unmount) = (format!("mount {IMAGE} {dir}"), format!("unmount {dir}"));
    let asked = [mount.clone(), mount, unmount.clone(), unmount, format!("release {IMAGE}")];
    assert_eq!(daemon.asked(), asked);
}

#[tokio::test]
async fn what_cannot_be_meant_is_not_asked() {
    let place = Place::new();
    place.write("file", b"");
    std::fs::create_dir(place.path("m")).unwrap();
    let daemon = Daemon::default();
    let socket = daemon.serve(&place);
    let run = async |args: &[&str]| -> Run { place.run(&[args, &["--control", &socket]].concat()).await };
    for image in ["oci:./out:v1", "https://registry.example.com/m", "registry.example.com/M"] {
        for args in [&["prefetch", image][..], &["release", image], &["mount", image, "m"]] {
            run(args).await.fails(2, &["is no image reference: ", "hint: "]);
        }
    }
    run(&["mount", IMAGE, "gone"]).await.fails(2, &["directory gone: No such file", "hint: make it first"]);
    run(&["mount", IMAGE, "file"]).await.fails(2, &["directory file: not a directory"]);
    assert_eq!(daemon.asked(), [""; 0]);
}

#[tokio::test]
async fn the_daemons_words_are_passed_on() {
    let refusals = [
        (Status::not_found("no manifest\nhint: check the name"), 1, "no manifest\nhint: check the name"),
        (Status::invalid_argument("it is not empty"), 2, "it is not empty"),
        (Status::unimplemented(""), 1, "hint: the daemon is older than this command"),
    ];
    for (refusal, code, text) in refusals {
        let place = Place::new();
        std::fs::create_dir(place.path("m")).unwrap();
        let daemon = Daemon { refusal: Some(refusal), ..Daemon::default() };
        let socket = daemon.serve(&place);
        for args in [&["prefetch", IMAGE][..], &["release", IMAGE], &["mount", IMAGE, "m"], &["unmount", "m"]]
        {
            place.run(&[args, &["--control", &socket]].concat()).await.fails(code, &[args[0], text]);
        }
    }
}

#[tokio::test]
async fn peers_are_a_table_or_an_object() {
    let place = Place::new();
    let socket = Daemon::default().serve(&place);
    let run = place.run(&["peers", "--control", &socket]).await;
    let lines: Vec<_> =
        run.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "NAME ZONE ADDRESS CONTENTS FROM TO CONNECTED STATE",
            "here - 10.0.0.7:7118 0 0 B 0 B 0s this node",
            "near - 10.0.0.7:7118 0 4.0 MiB 0 B 0s connected",
        ]
    );
    let json = place.run(&["peers", "--output", "json", "--control", &socket]).await.json();
    assert_eq!((json["enabled"].as_bool(), json["self"]["name"].as_str()), (Some(true), Some("here")));
    assert_eq!(
        (json["peers"][0]["bytes_from"].as_u64(), json["peers"][0]["banned_seconds"].as_u64()),
        (Some(4 << 20), Some(0))
    );
}
