//! `tar::read`: what is accepted is, byte for byte, what the writer makes of it.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::path::check_path;
use towline_artifact::tar::{self, Entry, Kind};
use towline_fuzz::{Edit, archive, data, edited};

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<u8>),
    Edited(Vec<Item>, Vec<Edit>),
}

#[derive(Arbitrary, Debug)]
struct Item {
    path: String,
    /// How often the path is repeated, to reach the limits of ustar.
    times: u8,
    kind: ItemKind,
}

#[derive(Arbitrary, Debug)]
enum ItemKind {
    File(Vec<u8>, bool),
    Directory,
    HardLink(String, bool),
}

fn entry(item: &Item) -> (Entry, &[u8]) {
    let (kind, data) = match &item.kind {
        ItemKind::File(data, executable) => {
            (Kind::File { len: data.len() as u64, executable: *executable }, &data[..])
        }
        ItemKind::Directory => (Kind::Directory, &[][..]),
        ItemKind::HardLink(target, executable) => {
            (Kind::HardLink { target: target.clone(), executable: *executable }, &[][..])
        }
    };
    (Entry { path: item.path.repeat(usize::from(item.times)), kind }, data)
}

fuzz_target!(|input: Input| {
    let bytes = match &input {
        Input::Raw(bytes) => bytes.clone(),
        Input::Edited(items, edits) => {
            let entries: Vec<(Entry, &[u8])> = items.iter().map(entry).collect();
            let honest = archive(entries.iter().map(|(entry, data)| (entry, *data)));
            let plain = |entry: &Entry| {
                let target = match &entry.kind {
                    Kind::HardLink { target, .. } => target,
                    Kind::File { .. } | Kind::Directory => &entry.path,
                };
                // A directory's name has one byte more.
                check_path(&entry.path).is_ok() && check_path(target).is_ok() && entry.path.len() < 4095
            };
            if entries.iter().all(|(entry, _)| plain(entry)) {
                let found = tar::read(&honest, usize::MAX).expect("our own archive");
                assert!(found.iter().map(|found| &found.entry).eq(entries.iter().map(|(entry, _)| entry)));
            }
            edited(honest, edits)
        }
    };
    let Ok(found) = tar::read(&bytes, 4096) else { return };
    let again = archive(found.iter().map(|found| (&found.entry, data(&bytes, found))));
    assert_eq!(again, bytes);
});
