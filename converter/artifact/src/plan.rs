//! Which file goes into which layer, decided from paths and sizes alone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::path::{self, PathError};
use crate::piece::{MAX_FILE_LEN, PIECE_LEN};
use crate::tar::{self, Entry, Kind};

/// The most bytes of files in the base layer: 32 MiB. It is fetched whole before a pod starts.
pub const BASE_FILES_LEN: u64 = 32 << 20;
/// The most weight layers; with the base layer 100, which every overlay snapshotter can stack.
pub const MAX_WEIGHT_LAYERS: usize = 99;

/// A file to be packaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Path in the tree.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// Mode 0755 instead of 0644.
    pub executable: bool,
    /// Further names of the same file, hard links in the same layer.
    pub links: Vec<String>,
}

impl FileSpec {
    /// A file that is not executable and has one name.
    #[must_use]
    pub fn new(path: impl Into<String>, len: u64) -> Self {
        Self { path: path.into(), len, executable: false, links: Vec::new() }
    }
}

/// A set of files that cannot be packaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// No files at all: a model without files is a mistake upstream.
    #[error("there are no files to package")]
    Empty,
    /// A path, or the set of paths, is not allowed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file is longer than the format allows.
    #[error("file {path:?} of {len} bytes is longer than {MAX_FILE_LEN}")]
    TooLong {
        /// Its path.
        path: String,
        /// Its length in bytes.
        len: u64,
    },
}

/// A part of a weight layer's bytes, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Bytes(Vec<u8>),
    /// All bytes of the file at this position in [`Plan::files`].
    File(usize),
}

/// One weight layer: an uncompressed tar whose files stream by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Positions in [`Plan::files`], ascending.
    pub files: Vec<usize>,
    /// The layer's bytes.
    pub segments: Vec<Segment>,
    /// Length of the layer in bytes.
    pub len: u64,
}

/// Where a file's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 0 for the base layer, k for the k-th weight layer.
    pub layer: usize,
    /// Offset in bytes of the file's data in that layer.
    pub offset: u64,
}

/// The layout of an artifact: every file in bytewise path order, and the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The files, sorted bytewise by path.
    pub files: Vec<FileSpec>,
    /// Where each file's data lies, parallel to `files`.
    pub places: Vec<Place>,
    /// Layers 1 to n.
    pub weight_layers: Vec<LayerPlan>,
}

impl Plan {
    /// Decides the layout of `files`, which may come in any order.
    ///
    /// # Errors
    /// [`PlanError`] when the files cannot form a model.
    pub fn new(mut files: Vec<FileSpec>) -> Result<Self, PlanError> {
        if files.is_empty() {
            return Err(PlanError::Empty);
        }
        files.iter_mut().for_each(|file| file.links.sort_unstable());
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let names: Vec<&str> = names(&files).collect();
        path::check_files(names.into_iter())?;
        if let Some(file) = files.iter().find(|file| file.len > MAX_FILE_LEN) {
            return Err(PlanError::TooLong { path: file.path.clone(), len: file.len });
        }
        let in_base = choose_base(&files);
        let weights: Vec<usize> = (0..files.len()).filter(|&n| !in_base[n]).collect();
        let groups = pack(&weights.iter().map(|&n| files[n].len).collect::<Vec<_>>(), MAX_WEIGHT_LAYERS);
        let mut weight_layers = Vec::with_capacity(groups.len());
        let mut next = 0;
        for count in groups {
            weight_layers.push(weights[next..next + count].to_vec());
            next += count;
        }
        Ok(Self::from_layers(files, weight_layers))
    }

    /// The layout in which the given files (positions, ascending) make up each weight layer and the rest the base.
    fn from_layers(files: Vec<FileSpec>, weight_layers: Vec<Vec<usize>>) -> Self {
        let mut places = vec![Place { layer: 0, offset: 0 }; files.len()];
        let mut layers = Vec::with_capacity(weight_layers.len());
        for (n, members) in weight_layers.into_iter().enumerate() {
            layers.push(layer(&files, members, n + 1, &mut places));
        }
        let mut plan = Self { files, places, weight_layers: layers };
        let mut at = 0;
        for entry in plan.base_entries() {
            at += tar::header(&entry.entry).len() as u64;
            if let Some(file) = entry.file {
                plan.places[file].offset = at;
            }
            if let Kind::File { len, .. } = entry.entry.kind {
                at += len.next_multiple_of(tar::BLOCK);
            }
        }
        plan
    }

    /// The base layer's entries up to the index: every directory, then the files placed there with their links.
    pub(crate) fn base_entries(&self) -> Vec<BaseEntry> {
        base_entries(&self.files, |n| self.places[n].layer == 0)
    }

    /// Positions in [`Self::files`] of the files in the base layer, ascending.
    pub fn base_files(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.files.len()).filter(|&n| self.places[n].layer == 0)
    }

    /// Sum of the lengths of all files in bytes.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }
}

/// An entry of the base layer, and the position of the file whose data follows it.
pub(crate) struct BaseEntry {
    pub(crate) entry: Entry,
    pub(crate) file: Option<usize>,
}

pub(crate) fn base_entries(files: &[FileSpec], in_base: impl Fn(usize) -> bool) -> Vec<BaseEntry> {
    let mut dirs = path::directories(names(files));
    dirs.insert(path::RESERVED);
    let dir =
        |path: &str| BaseEntry { entry: Entry { path: path.to_owned(), kind: Kind::Directory }, file: None };
    let mut entries: Vec<BaseEntry> = dirs.into_iter().map(dir).collect();
    for (n, spec) in files.iter().enumerate().filter(|&(n, _)| in_base(n)) {
        let mut file = Some(n);
        entries.extend(entries_of(spec).map(|entry| BaseEntry { entry, file: file.take() }));
    }
    entries
}

/// Every name in the tree: paths and links.
pub(crate) fn names(files: &[FileSpec]) -> impl Iterator<Item = &str> {
    files.iter().flat_map(|file| std::iter::once(&file.path).chain(&file.links)).map(String::as_str)
}

/// The entry of a file and those of its links.
fn entries_of(spec: &FileSpec) -> impl Iterator<Item = Entry> + '_ {
    let executable = spec.executable;
    let file = Entry { path: spec.path.clone(), kind: Kind::File { len: spec.len, executable } };
    let links = spec.links.iter().map(move |path| Entry {
        path: path.clone(),
        kind: Kind::HardLink { target: spec.path.clone(), executable },
    });
    std::iter::once(file).chain(links)
}

/// Small files, smallest first and by path among equals, up to [`BASE_FILES_LEN`] in all.
fn choose_base(files: &[FileSpec]) -> Vec<bool> {
    let mut small: Vec<usize> = (0..files.len()).filter(|&n| files[n].len < PIECE_LEN).collect();
    small.sort_by_key(|&n| files[n].len);
    let mut in_base = vec![false; files.len()];
    let mut total = 0;
    for n in small {
        total += files[n].len;
        if total > BASE_FILES_LEN {
            break;
        }
        in_base[n] = true;
    }
    in_base
}

/// Sizes of at most `limit` groups of neighbours: while there are more, the two neighbouring groups with the smallest
/// sum of lengths become one; among equals the first pair in order. Large files so keep a layer of their own.
fn pack(lens: &[u64], limit: usize) -> Vec<usize> {
    struct Group {
        len: u64,
        files: usize,
        next: usize,
        previous: usize,
        version: u32,
    }
    const NONE: usize = usize::MAX;
    let count = lens.len();
    let mut groups: Vec<Group> = (0..count)
        .map(|n| Group {
            len: lens[n],
            files: 1,
            next: if n + 1 < count { n + 1 } else { NONE },
            previous: n.checked_sub(1).unwrap_or(NONE),
            version: 0,
        })
        .collect();
    let pair = |groups: &[Group], left: usize| {
        let right = groups[left].next;
        Reverse((groups[left].len + groups[right].len, left, groups[left].version, groups[right].version))
    };
    let mut heap: BinaryHeap<_> = (1..count).map(|n| pair(&groups, n - 1)).collect();
    let mut left_over = count;
    while left_over > limit {
        let Reverse((_, left, left_version, right_version)) = heap.pop().expect("two groups make a pair");
        let right = groups[left].next;
        // A pair whose groups have changed since it was pushed is out of date; its successor is in the heap.
        if groups[left].files == 0 || groups[left].version != left_version || right == NONE {
            continue;
        }
        if groups[right].version != right_version {
            continue;
        }
        groups[left].len += groups[right].len;
        groups[left].files += groups[right].files;
        groups[left].next = groups[right].next;
        groups[left].version += 1;
        groups[right].files = 0;
        groups[right].version += 1;
        left_over -= 1;
        if groups[left].next != NONE {
            let next = groups[left].next;
            groups[next].previous = left;
            heap.push(pair(&groups, left));
        }
        if groups[left].previous != NONE {
            let previous = groups[left].previous;
            heap.push(pair(&groups, previous));
        }
    }
    groups.iter().map(|group| group.files).filter(|&files| files > 0).collect()
}

fn layer(files: &[FileSpec], members: Vec<usize>, number: usize, places: &mut [Place]) -> LayerPlan {
    let mut segments = Vec::new();
    let mut pending = Vec::new();
    let mut at = 0;
    for &n in &members {
        for entry in entries_of(&files[n]) {
            pending.extend(tar::header(&entry));
            if let Kind::File { len, .. } = entry.kind {
                at += pending.len() as u64;
                places[n] = Place { layer: number, offset: at };
                segments.push(Segment::Bytes(std::mem::take(&mut pending)));
                segments.push(Segment::File(n));
                pending.resize(tar::padding(len), 0);
                at += len;
            }
        }
    }
    pending.extend(tar::END);
    at += pending.len() as u64;
    segments.push(Segment::Bytes(pending));
    LayerPlan { files: members, segments, len: at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Names of the files in each layer, base first.
    #[track_caller]
    fn check(files: &[(&str, u64)], layers: &[&[&str]]) {
        let plan = Plan::new(files.iter().map(|&(path, len)| FileSpec::new(path, len)).collect()).unwrap();
        let name = |n: &usize| plan.files[*n].path.clone();
        let mut found: Vec<Vec<String>> = vec![plan.base_files().map(|n| name(&n)).collect()];
        found.extend(plan.weight_layers.iter().map(|layer| layer.files.iter().map(name).collect()));
        assert_eq!(found, layers);
    }

    #[test]
    fn small_files_are_the_base_and_each_large_one_a_layer() {
        check(&[("config.json", 700), ("a.safetensors", 5 * GIB)], &[&["config.json"], &["a.safetensors"]]);
        check(
            &[("a", PIECE_LEN - 1), ("b", PIECE_LEN), ("c", PIECE_LEN + 1), ("d", 0)],
            &[&["a", "d"], &["b"], &["c"]],
        );
        check(&[("only", 9 * GIB)], &[&[], &["only"]]);
        check(&[("z", 1), ("a", 1)], &[&["a", "z"]]);
    }

    #[test]
    fn the_base_takes_the_smallest_first() {
        let files: Vec<(String, u64)> = (0..22).map(|n| (format!("{n:02}"), 3 * MIB / 2 + n)).collect();
        let files: Vec<(&str, u64)> = files.iter().rev().map(|(path, len)| (path.as_str(), *len)).collect();
        // 21 of 1.5 MiB and a bit fit in 32 MiB, the largest does not.
        let base: Vec<String> = (0..21).map(|n| format!("{n:02}")).collect();
        let base: Vec<&str> = base.iter().map(String::as_str).collect();
        check(&files, &[&base, &["21"]]);
    }

    #[test]
    fn what_cannot_be_a_model() {
        assert_eq!(Plan::new(vec![]), Err(PlanError::Empty));
        let too_long = Plan::new(vec![FileSpec::new("a", MAX_FILE_LEN + 1)]);
        assert!(matches!(too_long, Err(PlanError::TooLong { .. })));
        let clash = FileSpec { links: vec!["b".into()], ..FileSpec::new("a", 1) };
        assert!(matches!(
            Plan::new(vec![clash, FileSpec::new("b", 1)]),
            Err(PlanError::Path(PathError::Clash { .. }))
        ));
    }

    #[test]
    fn many_files_are_packed_and_giants_stay_alone() {
        let mut lens = vec![1; 500];
        lens[250] = GIB;
        let groups = pack(&lens, 99);
        assert_eq!(groups.len(), 99);
        assert_eq!(groups.iter().sum::<usize>(), 500);
        let mut at = 0;
        let of_giant = groups.iter().find(|&&files| {
            at += files;
            at > 250
        });
        assert_eq!(of_giant, Some(&1));
    }

    /// The packing rule, slowly: look at every pair each time.
    fn pack_slowly(lens: &[u64], limit: usize) -> Vec<usize> {
        let mut groups: Vec<(u64, usize)> = lens.iter().map(|&len| (len, 1)).collect();
        while groups.len() > limit {
            let at = (1..groups.len()).min_by_key(|&n| groups[n - 1].0 + groups[n].0).unwrap();
            let right = groups.remove(at);
            groups[at - 1].0 += right.0;
            groups[at - 1].1 += right.1;
        }
        groups.into_iter().map(|group| group.1).collect()
    }

    proptest! {
        #[test]
        fn packing_equals_the_slow_rule(lens in proptest::collection::vec(0..20u64, 0..60), limit in 1..12usize) {
            prop_assert_eq!(pack(&lens, limit), pack_slowly(&lens, limit));
        }

        #[test]
        fn layers_hold_every_file_at_its_place(lens in proptest::collection::vec(0..3 * PIECE_LEN, 1..40)) {
            let files = lens.iter().enumerate().map(|(n, &len)| FileSpec::new(format!("d{}/f{n}", n % 3), len)).collect();
            let plan = Plan::new(files).unwrap();
            for (k, layer) in plan.weight_layers.iter().enumerate() {
                let mut at = 0;
                for segment in &layer.segments {
                    match segment {
                        Segment::Bytes(bytes) => at += bytes.len() as u64,
                        Segment::File(n) => {
                            prop_assert_eq!(plan.places[*n], Place { layer: k + 1, offset: at });
                            at += plan.files[*n].len;
                        }
                    }
                }
                prop_assert_eq!(at, layer.len);
                prop_assert_eq!(at % tar::BLOCK, 0);
            }
        }
    }
}
