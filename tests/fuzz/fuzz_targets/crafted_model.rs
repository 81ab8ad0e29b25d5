//! `Model::read` on base layers that are built from an index: honest ones pass, lies are found out.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use towline_artifact::index::{
    FORMAT_VERSION, FileRecord, INDEX_PATH, Index, LayerRecord, Mode, PIECES_PATH, pieces_bytes,
};
use towline_artifact::memory::digest_file;
use towline_artifact::model::Model;
use towline_artifact::path::{check_files, directories};
use towline_artifact::tar::{self, Entry, Kind};
use towline_artifact::{ContentId, PIECE_LEN, PieceDigest, PieceTable, Sha256};
use towline_fuzz::{archive, digest, provenance, table};

/// Words for paths: alike, nested, reserved, too long for ustar, and not allowed.
const WORDS: [&str; 12] = [
    "a",
    "b",
    "A",
    "\u{e9}",
    "e\u{301}",
    ".towline",
    "index.json",
    "..",
    "",
    "d.safetensors",
    "\u{df}",
    "ss",
];

#[derive(Arbitrary, Debug)]
struct File {
    path: Vec<u8>,
    links: Vec<Vec<u8>>,
    executable: bool,
    place: Place,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Base(Vec<u8>),
    /// Whole pieces, bytes beyond them, and where the file begins in a layer of its own.
    Weights(u8, u16, u16),
}

#[derive(Arbitrary, Debug)]
enum Lie {
    Content(u8, u8),
    Sha256(u8, u8),
    Size(u8, u64),
    Offset(u8, u64),
    Layer(u8, usize),
    Mode(u8),
    Path(u8, Vec<u8>),
    Swap(u8, u8),
    LayerSize(u8, u64),
    MoreLayers(u8),
    Format(u32),
    Text(String),
    Pieces(Vec<u8>),
    DropPieces(u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    files: Vec<File>,
    lies: Vec<Lie>,
    /// Whether the entries of the layer follow the index with its lies, or the truth.
    consistent: bool,
}

fn path(words: &[u8]) -> String {
    let word = |n: &u8| match WORDS.get(usize::from(*n) % (WORDS.len() + 1)) {
        Some(word) => (*word).to_owned(),
        None => "x".repeat(usize::from(*n)),
    };
    words.iter().map(word).collect::<Vec<_>>().join("/")
}

/// The index, the piece digests, and the data of files in the base, parallel to its files.
fn honest(files: &[File]) -> (Index, Vec<PieceTable>, Vec<Vec<u8>>) {
    let mut all = Vec::new();
    let mut layers = Vec::new();
    for file in files {
        let (data, table, layer, offset, sha256) = match &file.place {
            Place::Base(data) => {
                let digests = digest_file(data);
                (data.clone(), digests.table, 0, 0, digests.sha256)
            }
            Place::Weights(pieces, more, offset) => {
                let len = u64::from(*pieces) * PIECE_LEN + u64::from(*more);
                let count = towline_artifact::digest_count(len);
                let digests: Vec<PieceDigest> = (0..count).map(|n| digest(n as u8)).collect();
                // A file of one piece and an empty one have no digests to choose.
                let len = if count == 0 { 0 } else { len };
                let table = table(len, &digests).expect("digests with the id that belongs to them");
                let offset = u64::from(*offset) * tar::BLOCK;
                layers.push(LayerRecord {
                    digest: Sha256([layers.len() as u8; 32]),
                    size: offset + len + 1024,
                });
                (Vec::new(), table, layers.len(), offset, Sha256([3; 32]))
            }
        };
        let mut links: Vec<String> = file.links.iter().map(|words| path(words)).collect();
        links.sort();
        let mode = if file.executable { Mode::Executable } else { Mode::Plain };
        let record = FileRecord {
            content: table.content(),
            layer,
            links,
            mode,
            offset,
            path: path(&file.path),
            sha256,
            size: table.file_len(),
        };
        all.push((record, table, data));
    }
    all.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    let (mut files, mut tables, mut datas) = (Vec::new(), Vec::new(), Vec::new());
    for (record, table, data) in all {
        files.push(record);
        tables.push(table);
        datas.push(data);
    }
    let mut index = Index { format: FORMAT_VERSION, files, layers, source: provenance() };
    let mut at = 0;
    for (entry, file) in entries(&index) {
        at += tar::header(&entry).len() as u64;
        if let Some(n) = file {
            index.files[n].offset = at;
            at += index.files[n].size.next_multiple_of(tar::BLOCK);
        }
    }
    (index, tables, datas)
}

/// What docs/format.md says is in the base layer before the index, and the file whose data follows.
fn entries(index: &Index) -> Vec<(Entry, Option<usize>)> {
    let names = index.files.iter().flat_map(|file| std::iter::once(&file.path).chain(&file.links));
    let mut dirs = directories(names.map(String::as_str));
    dirs.insert(".towline");
    let dir = |path: &str| (Entry { path: path.to_owned(), kind: Kind::Directory }, None);
    let mut entries: Vec<_> = dirs.into_iter().map(dir).collect();
    for (n, file) in index.files.iter().enumerate().filter(|(_, file)| file.layer == 0) {
        let executable = file.mode == Mode::Executable;
        let kind = Kind::File { len: file.size, executable };
        entries.push((Entry { path: file.path.clone(), kind }, Some(n)));
        for link in &file.links {
            let kind = Kind::HardLink { target: file.path.clone(), executable };
            entries.push((Entry { path: link.clone(), kind }, None));
        }
    }
    entries
}

fn lie(lie: &Lie, index: &mut Index, pieces: &mut Vec<u8>) {
    let (files, layers) = (index.files.len(), index.layers.len());
    let file = |n: &u8| usize::from(*n) % files;
    match lie {
        Lie::Format(format) => index.format = *format,
        Lie::Text(text) => index.source.licence = Some(text.clone()),
        Lie::Pieces(more) => pieces.extend(more),
        Lie::DropPieces(count) => pieces.truncate(pieces.len().saturating_sub(usize::from(*count))),
        Lie::MoreLayers(count) => {
            let layer = LayerRecord { digest: Sha256([9; 32]), size: 512 };
            index.layers.extend(std::iter::repeat_n(layer, usize::from(*count)));
        }
        Lie::LayerSize(n, size) if layers > 0 => index.layers[usize::from(*n) % layers].size = *size,
        _ if files == 0 => {}
        Lie::Content(n, byte) => index.files[file(n)].content = ContentId([*byte; 32]),
        Lie::Sha256(n, byte) => index.files[file(n)].sha256 = Sha256([*byte; 32]),
        Lie::Size(n, size) => index.files[file(n)].size = *size,
        Lie::Offset(n, offset) => index.files[file(n)].offset = *offset,
        Lie::Layer(n, layer) => index.files[file(n)].layer = *layer,
        Lie::Mode(n) => index.files[file(n)].mode = Mode::Executable,
        Lie::Path(n, words) => index.files[file(n)].path = path(words),
        Lie::Swap(a, b) => index.files.swap(file(a), file(b)),
        Lie::LayerSize(..) => {}
    }
}

fuzz_target!(|input: Input| {
    if input.files.len() > 64 {
        return;
    }
    let (truth, tables, datas) = honest(&input.files);
    let (mut index, mut pieces) = (truth.clone(), pieces_bytes(tables.iter().map(PieceTable::digests)));
    input.lies.iter().for_each(|one| lie(one, &mut index, &mut pieces));
    let index_bytes = index.to_bytes();
    let file = |path: &str, len: usize| Entry {
        path: path.to_owned(),
        kind: Kind::File { len: len as u64, executable: false },
    };
    let own = [
        (file(INDEX_PATH, index_bytes.len()), &index_bytes[..]),
        (file(PIECES_PATH, pieces.len()), &pieces[..]),
    ];
    let shown = if input.consistent { &index } else { &truth };
    let mut entries = entries(shown);
    // A consistent lie about a size must still give a tar.
    for (entry, n) in &mut entries {
        if let (Kind::File { len, .. }, Some(n)) = (&mut entry.kind, n) {
            *len = datas[*n].len() as u64;
        }
    }
    let data = |n: &Option<usize>| n.map_or(&[][..], |n| &datas[n]);
    let parts = entries.iter().map(|(entry, n)| (entry, data(n)));
    let bytes = archive(parts.chain(own.iter().map(|(entry, bytes)| (entry, *bytes))));
    let names: Vec<&str> = truth
        .files
        .iter()
        .flat_map(|f| std::iter::once(&f.path).chain(&f.links))
        .map(String::as_str)
        .collect();
    let is_tree =
        check_files(names.into_iter()).is_ok() && !truth.files.is_empty() && truth.layers.len() < 100;
    match Model::read(&bytes) {
        Err(error) => assert!(!input.lies.is_empty() || !is_tree, "an honest model is refused: {error}"),
        Ok(model) => {
            assert!(!input.lies.is_empty() || is_tree);
            assert_eq!(model.layers, index.layers);
            assert_eq!(model.files.len(), index.files.len() + 2);
            // What passed is exactly what a writer makes for this index: nothing can hide beside it.
            let again: Vec<Entry> = self::entries(&index).into_iter().map(|(entry, _)| entry).collect();
            let found = tar::read(&bytes, usize::MAX).expect("a base layer is a tar");
            assert!(
                found.iter().map(|f| &f.entry).eq(again.iter().chain(own.iter().map(|(entry, _)| entry)))
            );
            assert!((1..=model.layers.len()).all(|n| model.files.iter().any(|file| file.layer == n)));
            for file in &model.files {
                let layer_len = file.layer.checked_sub(1).map_or(model.base_len, |n| model.layers[n].size);
                assert!(file.layer_range().end <= layer_len);
            }
            let digests = model.files.iter().filter(|file| !file.path.starts_with(".towline/"));
            assert_eq!(pieces, pieces_bytes(digests.map(|file| file.table.digests())));
        }
    }
});
