use super::*;
use crate::testing::{add, complete, of_commit, prefetched, restart, restart_with, two_weights};
use tokio_stream::StreamExt;
use towline_artifact::Model;
use towline_proto::control::v1::control_server::Control;

const V1: &str = "r.example.com/m:v1";
const V2: &str = "r.example.com/m:v2";

fn count(node: &Node) -> (usize, usize) {
    (node.catalog.models().len(), node.engine.store().contents().len())
}

fn service(node: &Arc<Node>) -> Service {
    Service::new(Arc::clone(node), Arc::new(HostMounts::new(Arc::clone(node))), Instant::now())
}

#[tokio::test]
async fn what_is_kept_survives_restarts_and_goes_when_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    keep(&node, &pin, V1).unwrap();
    keep(&node, &pin, V2).unwrap();
    complete(&node, &pin);
    node.complete(&pin).unwrap();
    drop((node, pin));

    let node = restart(dir.path());
    assert_eq!(count(&node), (1, 2), "kept without a snapshot");
    let service = service(&node);
    let release = async |reference: &str| {
        service.release(Request::new(api::ReleaseRequest { reference: reference.into() })).await.map(drop)
    };
    assert_eq!(release("r.example.com/m:v3").await.unwrap_err().code(), Code::NotFound);
    release(V1).await.unwrap();
    assert_eq!(count(&node), (1, 2), "the other reference keeps it");
    release("r.example.com/m:v2").await.unwrap();
    assert_eq!(count(&node), (0, 0));
    assert_eq!(node.engine.store().trees().unwrap(), [""; 0]);
    assert_eq!(std::fs::read_dir(dir.path().join("root/models")).unwrap().count(), 0);
    assert_eq!(release(V2).await.unwrap_err().code(), Code::NotFound);
    drop((node, service));
    assert_eq!(count(&restart(dir.path())), (0, 0));
}

#[tokio::test]
async fn a_model_that_a_snapshot_needs_outlives_its_release_and_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    let base = pin.model.base;
    keep(&node, &pin, V1).unwrap();
    drop(pin);
    node.catalog.pull(base).unwrap();
    release(&node, V1).unwrap();
    node.remove_dead();
    assert_eq!(count(&node).0, 1, "pulled");
    keep(&node, &node.catalog.pin(base).unwrap(), V1).unwrap();
    node.forget(base);
    node.remove_dead();
    assert_eq!(count(&node).0, 1, "kept");
    release(&node, V1).unwrap();
    node.remove_dead();
    assert_eq!(count(&node).0, 0);
}

#[tokio::test]
async fn a_reference_that_moved_keeps_what_it_names_now() {
    let dir = tempfile::tempdir().unwrap();
    let (node, old) = prefetched(dir.path(), &two_weights(), "v1");
    keep(&node, &old, V1).unwrap();
    let new = add(&node, &of_commit("d"), "v1");
    keep(&node, &new, V1).unwrap();
    let (old_base, new_base) = (old.model.base, new.model.base);
    drop((old, new));
    node.remove_dead();
    assert!(node.catalog.by_chain(old_base).is_none() && node.catalog.by_chain(new_base).is_some());
    assert!(node.catalog.pin_held(V1).is_some_and(|pin| pin.model.base == new_base));
}

#[tokio::test]
async fn a_kept_model_that_cannot_be_read_keeps_its_bytes_until_it_is_released_or_mended() {
    let dir = tempfile::tempdir().unwrap();
    let made = two_weights();
    let (node, pin) = prefetched(dir.path(), &made, "v1");
    keep(&node, &pin, V1).unwrap();
    complete(&node, &pin);
    let base = pin.model.base;
    drop((node, pin));
    let path = dir.path().join("root/models").join(hex::encode(base.0));
    let damage = || std::fs::write(&path, b"damaged").unwrap();

    damage();
    let node = restart(dir.path());
    assert_eq!(count(&node), (0, 2), "its contents stay");
    drop(add(&node, &made, "v1"));
    node.remove_dead();
    assert_eq!(count(&node), (1, 2), "mended, and kept as before");
    drop(node);

    damage();
    let node = restart(dir.path());
    release(&node, V1).unwrap();
    assert!(release(&node, V1).is_err());
    drop(node);
    assert_eq!(count(&restart(dir.path())), (0, 0));
}

#[tokio::test]
async fn references_of_a_model_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    for n in 0..MAX_KEPT {
        keep(&node, &pin, &format!("r.example.com/m:{n}")).unwrap();
    }
    assert_eq!(keep(&node, &pin, V1).unwrap_err().code, Code::ResourceExhausted);
    keep(&node, &pin, "r.example.com/m:0").unwrap();
    assert_eq!(pin.needs.holds().kept.len(), MAX_KEPT);
}

/// What a waiting prefetch answers: a first answer, then `change`, then the rest.
async fn told(node: &Arc<Node>, pin: Pin, change: impl FnOnce(&KnownModel)) -> Vec<Result<i32, Code>> {
    let (sender, answers) = mpsc::channel(1);
    let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
    let known = Arc::clone(pin.model());
    drop(pin);
    tokio::spawn(tell(Arc::clone(node), Arc::clone(&known), true, sender, place));
    let answers = ReceiverStream::new(answers).map(|answer| match answer {
        Ok(progress) => Ok(progress.model.unwrap().state),
        Err(status) => Err(status.code()),
    });
    tokio::pin!(answers);
    let mut told = vec![answers.next().await.unwrap()];
    change(&known);
    told.extend(answers.collect::<Vec<_>>().await);
    told.dedup();
    told
}

#[tokio::test]
async fn a_wait_ends_with_the_last_byte_a_release_or_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    let base = pin.model.base;
    keep(&node, &pin, V1).unwrap();
    let idle = Ok(api::State::Idle as i32);
    assert_eq!(
        told(&node, pin, |known| complete(&node, known)).await,
        [idle, Ok(api::State::Complete as i32)]
    );
    let other = add(&node, &of_commit("d"), "v1");
    keep(&node, &other, V2).unwrap();
    let released = told(&node, other, |_| {
        release(&node, V2).unwrap();
        node.remove_dead();
    });
    assert_eq!(released.await, [idle, Err(Code::Aborted)]);
    assert_eq!(count(&node), (1, 2), "what the other model has stays");
    let third = add(&node, &of_commit("e"), "v1");
    assert_eq!(told(&node, third, |_| node.stop.cancel()).await, [idle, Err(Code::Unavailable)]);
    assert!(node.catalog.by_chain(base).is_some());
}

#[tokio::test]
async fn a_kept_model_is_fetched_although_fills_are_off() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    let mut config = node.config.clone();
    config.fetch.fill = false;
    drop((node, pin));
    let node = restart_with(config);
    let pin = add(&node, &two_weights(), "v1");
    node.start_fill(pin.model());
    assert!(!pin.fill_begun.load(std::sync::atomic::Ordering::Acquire), "nobody asked for it");
    keep(&node, &pin, V1).unwrap();
    node.start_fill(pin.model());
    assert!(pin.fill_begun.load(std::sync::atomic::Ordering::Acquire));
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    drop(pin);
    node.remove_dead();
    let service = service(&node);
    let prefetch = async |reference: &str| {
        let request = api::PrefetchRequest { reference: reference.into(), wait: false };
        service.prefetch(Request::new(request)).await.map(drop).unwrap_err()
    };
    let status = prefetch("no reference").await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("\nhint: name the image as"), "{status}");
    assert_eq!(prefetch("127.0.0.1:1/m:v1").await.code(), Code::Unavailable);
    assert_eq!(count(&node), (0, 0));
}

#[tokio::test]
async fn a_digest_that_is_held_needs_no_registry_and_a_tag_does() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pin) = prefetched(dir.path(), &two_weights(), "v1");
    let digest = format!("127.0.0.1:1/m@{}", Model::read(&two_weights().artifact.base.bytes).unwrap().base);
    keep(&node, &pin, &digest).unwrap();
    keep(&node, &pin, "127.0.0.1:1/m:v1").unwrap();
    let resolve =
        async |text: &str| text.parse::<ImageName>().unwrap().resolve(&node).await.map(|pin| pin.slot);
    assert_eq!(resolve(&digest).await.unwrap(), pin.slot);
    assert_eq!(resolve("127.0.0.1:1/m:v1").await.unwrap_err().code, Code::Unavailable);
}
