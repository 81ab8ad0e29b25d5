use super::*;
use crate::testing::{place, two_weights};

#[test]
fn a_stranger_beside_the_models_does_not_keep_the_daemon_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("models/lost+found")).unwrap();
    std::fs::write(dir.path().join("models/left.tmp"), b"remains").unwrap();
    Catalog::open(dir.path()).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path().join("models")).unwrap().collect();
    assert_eq!(names.len(), 1, "the directory stays, the remains go");
}

#[test]
fn pulls_of_one_model_at_once_make_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let base = two_weights().artifact.base.bytes;
    let model = Model::read(&base).unwrap();
    let add = |n: usize| catalog.add(&base, model.clone(), place(&n.to_string())).unwrap();
    let slots: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || add(n).slot)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(slots, [slots[0]; 8]);
    drop(catalog);
    let models = Catalog::open(dir.path()).unwrap().models();
    assert_eq!((models.len(), models[0].places().len()), (1, MAX_PLACES));
}

/// A small file system of its own, which can be filled.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(len: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={len}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => {
                #[expect(clippy::print_stderr, reason = "says why nothing was tested")]
                {
                    eprintln!("skipped: a tmpfs cannot be mounted ({errno}); run as root");
                }
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_that_is_emptied_needs_no_restart() {
    const PAGE: u64 = 4096;
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let catalog = Catalog::open(disk.0.path()).unwrap();
    let base = two_weights().artifact.base.bytes;
    let model = Model::read(&base).unwrap();
    let (filler, mut failures) = (disk.0.path().join("filler"), 0);
    // With a little more space each time, the disk is full at another step.
    for free_pages in 0..24 {
        let free = rustix::fs::statvfs(disk.0.path()).unwrap().f_bavail;
        let file = File::create(&filler).unwrap();
        let len = (free - free_pages) * PAGE;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
        drop(file);
        if let Err(error) = catalog.add(&base, model.clone(), place("v1")) {
            assert!(is_full(&error), "with {free_pages} pages: {error:?}");
            assert!(catalog.models().is_empty());
            failures += 1;
        }
        std::fs::remove_file(&filler).unwrap();
        catalog.add(&base, model.clone(), place("v1")).unwrap();
        catalog.unpull(model.base);
        assert_eq!(catalog.take_unneeded().len(), 1);
        catalog.remove_forgotten(model.base).unwrap();
        assert_eq!(std::fs::read_dir(disk.0.path().join("models")).unwrap().count(), 0, "nothing is left");
    }
    assert!(failures > 0, "the disk was never full");
}

#[test]
fn only_records_with_holds_keep_older_daemons_out() {
    let dir = tempfile::tempdir().unwrap();
    let base = two_weights().artifact.base.bytes;
    let version = || {
        let db = Database::create(dir.path().join("models.redb")).unwrap();
        let read = db.begin_read().unwrap();
        read.open_table(NUMBERS).unwrap().get(VERSION_KEY).unwrap().unwrap().value()
    };
    let catalog = Catalog::open(dir.path()).unwrap();
    let known = catalog.add(&base, Model::read(&base).unwrap(), place("v1")).unwrap();
    drop(catalog);
    assert_eq!(version(), VERSION, "an older daemon reads it");
    let catalog = Catalog::open(dir.path()).unwrap();
    let kept = catalog.change_holds(|_, holds| {
        holds.kept.push("r.example.com/m:v1".to_owned());
        Ok::<_, anyhow::Error>(())
    });
    assert_eq!(kept.unwrap(), 1);
    drop(catalog);
    assert_eq!(version(), VERSION_WITH_HOLDS);
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.models()[0].needs.holds().kept, ["r.example.com/m:v1"]);
    // Another place does not forget what holds it.
    catalog.add_place(&catalog.models()[0], place("v2")).unwrap();
    drop(catalog);
    let catalog = Catalog::open(dir.path()).unwrap();
    assert!(catalog.models()[0].needs.is_kept());
    assert_eq!(known.model.base, catalog.models()[0].model.base);
}

#[test]
fn records_of_older_daemons_are_read() {
    let old = r#"{"slot":3,"places":[{"host":"h","repository":"m","reference":"h/m:v1","manifest":""}]}"#;
    let record: Record = serde_json::from_str(old).unwrap();
    assert!(record.slot == 3 && record.holds.is_empty());
    assert_eq!(serde_json::to_string(&record).unwrap(), old, "and written as they were");
}
