//! `towline status` against a daemon that says what the test wants.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

use crate::daemon::Daemon;
use crate::run::Place;

#[tokio::test]
async fn the_daemon_is_asked_on_its_socket() {
    let place = Place::new();
    let socket = &Daemon::default().serve(&place);

    let run = place.run(&["status", "--control", socket]).await;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("towlined 9.9.9"), "{}", run.stdout);
    let row = run.stdout.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "registry.example.com/models/tiny:v1 waiting 512.0 MiB 1.0 GiB 50 - 1.0 MiB 2.0 MiB registry.example.com is unreachable";
    assert_eq!(row, expected);

    let run =
        place.command(&["status", "--output", "json"]).env("TOWLINE_CONTROL", socket).output().await.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["models"][0]["state"], "waiting");
    assert_eq!(json["models"][0]["bytes_local"], 1 << 29);
    assert_eq!(
        (json["models"][0]["kept"].as_bool(), json["models"][0]["mounts"][0].as_str()),
        (Some(true), Some("/mnt/tiny"))
    );
    assert_eq!(json["store"]["contents_sealed"], 2);
}

#[tokio::test]
async fn watching_as_json_gives_an_object_a_line() {
    let place = Place::new();
    let socket = Daemon::default().serve(&place);
    let args = ["status", "--watch", "--output", "json", "--control", &socket];
    let mut child = place.command(&args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.expect("a refresh");
        let json: serde_json::Value = serde_json::from_str(&line.unwrap().expect("a line")).unwrap();
        assert_eq!(json["version"], "9.9.9");
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_missing_daemon_is_said_with_a_hint() {
    let place = Place::new();
    let socket = place.path("control.sock");
    let socket = socket.to_str().unwrap();
    place
        .run(&["status", "--control", socket])
        .await
        .fails(1, &["ask the daemon at", socket, "hint: start towlined"]);
    // A socket that nobody listens on any more.
    drop(UnixListener::bind(socket).unwrap());
    place.run(&["status", "--control", socket]).await.fails(1, &["refused", "hint: start towlined"]);
}
