//! The tar bytes of a layer: a canonical writer, and a reader that accepts nothing else.
//!
//! POSIX.1-2017 `pax` interchange format: ustar headers, and an extended header with the records `linkpath`, `path`
//! and `size` only where ustar cannot say it. Every other field is fixed, so equal trees give equal bytes.

use crate::path::{MAX_PATH_LEN, check_path};
use crate::piece::MAX_FILE_LEN;

/// Length of a tar block in bytes.
pub const BLOCK: u64 = 512;
/// The end of an archive: two zero blocks, and nothing after them.
pub const END: [u8; 1024] = [0; 1024];

/// Largest size that fits ustar's eleven octal digits, in bytes.
const USTAR_MAX_SIZE: u64 = 0o77_777_777_777;
/// Bytes of ustar's `name` and `linkname` fields.
const USTAR_NAME_LEN: usize = 100;
/// Bytes of ustar's `prefix` field.
const USTAR_PREFIX_LEN: usize = 155;
/// Name of every extended header, as readers of the format expect it.
const PAX_NAME: &[u8] = b"././@PaxHeader";
/// Longest extended header a reader takes: two paths and a size, with room to spare.
const MAX_PAX_LEN: u64 = 2 * MAX_PATH_LEN as u64 + 1024;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of so many bytes, executable or not.
    File {
        /// Bytes of data.
        len: u64,
        /// Mode 0755 instead of 0644.
        executable: bool,
    },
    /// A directory, mode 0755.
    Directory,
    /// Another name for a file earlier in the same layer.
    HardLink {
        /// Path of that file.
        target: String,
        /// Mode of that file: extractors set the mode of a hard link, too.
        executable: bool,
    },
}

/// One entry of a layer. `path` has no leading and no trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path within the tree.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    fn data_len(&self) -> u64 {
        match self.kind {
            Kind::File { len, .. } => len,
            Kind::Directory | Kind::HardLink { .. } => 0,
        }
    }
}

/// Zero bytes between the data of an entry and the next block.
#[must_use]
pub fn padding(len: u64) -> usize {
    usize::try_from(len.next_multiple_of(BLOCK) - len).expect("below one block")
}

/// The header blocks of `entry`, extended header included.
#[must_use]
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut name = entry.path.clone().into_bytes();
    if entry.kind == Kind::Directory {
        name.push(b'/');
    }
    let (typeflag, mode, link) = match &entry.kind {
        Kind::File { executable: false, .. } => (b'0', 0o644, ""),
        Kind::File { executable: true, .. } => (b'0', 0o755, ""),
        Kind::Directory => (b'5', 0o755, ""),
        Kind::HardLink { target, executable: false } => (b'1', 0o644, target.as_str()),
        Kind::HardLink { target, executable: true } => (b'1', 0o755, target.as_str()),
    };
    let len = entry.data_len();
    let split = split_name(&name);
    let mut records = Vec::new();
    if !fits_ustar(link.as_bytes()) {
        push_record(&mut records, "linkpath", link.as_bytes());
    }
    if split.is_none() {
        push_record(&mut records, "path", &name);
    }
    if len > USTAR_MAX_SIZE {
        push_record(&mut records, "size", len.to_string().as_bytes());
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let pax_len = records.len() as u64;
        out.extend(block(Fields {
            prefix: b"",
            name: PAX_NAME,
            mode: 0o644,
            len: pax_len,
            typeflag: b'x',
            link: b"",
        }));
        out.extend(&records);
        out.resize(out.len() + padding(pax_len), 0);
    }
    let (short_name, short_link) = (shorten(&name), shorten(link.as_bytes()));
    let (prefix, name) = split.unwrap_or((b"", &short_name));
    let len = if len > USTAR_MAX_SIZE { 0 } else { len };
    out.extend(block(Fields { prefix, name, mode, len, typeflag, link: &short_link }));
    out
}

fn fits_ustar(name: &[u8]) -> bool {
    name.len() <= USTAR_NAME_LEN && name.is_ascii()
}

/// What an unextended header shows of a name that does not fit: its first 100 bytes, `_` for what is not ASCII.
fn shorten(name: &[u8]) -> Vec<u8> {
    name.iter().take(USTAR_NAME_LEN).map(|&b| if b.is_ascii() { b } else { b'_' }).collect()
}

/// Splits a name into ustar's prefix and name at the first slash that leaves a name of at most 100 bytes.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= USTAR_NAME_LEN {
        return Some((b"", name));
    }
    let earliest = name.len() - USTAR_NAME_LEN - 1;
    let slash = earliest + name[earliest..name.len() - 1].iter().position(|&b| b == b'/')?;
    (slash > 0 && slash <= USTAR_PREFIX_LEN).then(|| (&name[..slash], &name[slash + 1..]))
}

/// Appends `LEN KEY=VALUE\n`, where `LEN` counts itself.
fn push_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut digits = 1;
    while (body + digits).to_string().len() > digits {
        digits += 1;
    }
    out.extend(format!("{} {key}=", body + digits).bytes());
    out.extend(value);
    out.push(b'\n');
}

struct Fields<'a> {
    prefix: &'a [u8],
    name: &'a [u8],
    mode: u32,
    len: u64,
    typeflag: u8,
    link: &'a [u8],
}

fn block(fields: Fields<'_>) -> [u8; BLOCK as usize] {
    let mut b = [0; BLOCK as usize];
    b[..fields.name.len()].copy_from_slice(fields.name);
    b[100..107].copy_from_slice(format!("{:07o}", fields.mode).as_bytes());
    b[108..115].copy_from_slice(b"0000000"); // uid
    b[116..123].copy_from_slice(b"0000000"); // gid
    b[124..135].copy_from_slice(format!("{:011o}", fields.len).as_bytes());
    b[136..147].copy_from_slice(b"00000000000"); // mtime
    b[148..156].fill(b' ');
    b[156] = fields.typeflag;
    b[157..157 + fields.link.len()].copy_from_slice(fields.link);
    b[257..265].copy_from_slice(b"ustar\x0000");
    b[329..336].copy_from_slice(b"0000000"); // devmajor
    b[337..344].copy_from_slice(b"0000000"); // devminor
    b[345..345 + fields.prefix.len()].copy_from_slice(fields.prefix);
    let sum: u32 = b.iter().map(|&byte| u32::from(byte)).sum();
    b[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    b
}

/// Bytes that are not a layer as [`header`] writes it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarError {
    /// The archive ends inside an entry or without its two zero blocks.
    #[error("layer ends early, at byte {at}")]
    Truncated {
        /// Offset in bytes.
        at: u64,
    },
    /// Bytes that the canonical writer does not write.
    #[error("layer is not in canonical form at byte {at}")]
    NotCanonical {
        /// Offset in bytes of the header.
        at: u64,
    },
    /// More entries than the caller allows.
    #[error("layer has more than {limit} entries")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// An entry as found in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// Offset in bytes of the entry's data in the layer.
    pub data_offset: u64,
}

/// Reads a whole layer and accepts only what [`header`] would have written.
///
/// # Errors
/// [`TarError`] at the first byte that differs, or above `max_entries`.
pub fn read(bytes: &[u8], max_entries: usize) -> Result<Vec<Found>, TarError> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        if rest == END {
            return Ok(found);
        }
        if found.len() == max_entries {
            return Err(TarError::TooMany { limit: max_entries });
        }
        let canonical = || TarError::NotCanonical { at: at as u64 };
        let truncated = || TarError::Truncated { at: at as u64 };
        let (entry, header_len) = read_header(rest)
            .ok_or_else(|| if rest.len() < 2 * BLOCK as usize { truncated() } else { canonical() })?;
        if header(&entry) != rest[..header_len] {
            return Err(canonical());
        }
        let data_len = usize::try_from(entry.data_len()).map_err(|_| truncated())?;
        let data_at = at + header_len;
        let pad = padding(data_len as u64);
        let end = data_at.checked_add(data_len).and_then(|n| n.checked_add(pad)).ok_or_else(truncated)?;
        let pad_bytes = bytes.get(end - pad..end).ok_or_else(truncated)?;
        if pad_bytes.iter().any(|&b| b != 0) {
            return Err(canonical());
        }
        found.push(Found { entry, data_offset: data_at as u64 });
        at = end;
    }
}

/// Parses one entry's header blocks; the caller checks that they are canonical.
fn read_header(bytes: &[u8]) -> Option<(Entry, usize)> {
    let first = bytes.get(..BLOCK as usize)?;
    let (records, main, header_len) = if first[156] == b'x' {
        let len = octal(&first[124..135])?;
        if len > MAX_PAX_LEN {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        let main_at = BLOCK as usize + len + padding(len as u64);
        let records = bytes.get(BLOCK as usize..BLOCK as usize + len)?;
        (records, bytes.get(main_at..main_at + BLOCK as usize)?, main_at + BLOCK as usize)
    } else {
        (&[][..], first, BLOCK as usize)
    };
    let pax = Pax::parse(records)?;
    let mut name = match pax.path {
        Some(path) => path.to_owned(),
        None => {
            let (prefix, name) = (text(&main[345..500])?, text(&main[..100])?);
            if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
        }
    };
    let len = match pax.size {
        Some(size) => size,
        None => octal(&main[124..135])?,
    };
    let executable = octal(&main[100..107])? == 0o755;
    let kind = match main[156] {
        b'0' => Kind::File { len, executable },
        b'5' => {
            name.pop().filter(|&c| c == '/')?;
            Kind::Directory
        }
        b'1' => {
            let target = pax.linkpath.map_or_else(|| text(&main[157..257]), Some)?.to_owned();
            Kind::HardLink { target, executable }
        }
        _ => return None,
    };
    if len > MAX_FILE_LEN || name.len() > MAX_PATH_LEN {
        return None;
    }
    Some((Entry { path: name, kind }, header_len))
}

#[derive(Default)]
struct Pax<'a> {
    linkpath: Option<&'a str>,
    path: Option<&'a str>,
    size: Option<u64>,
}

impl<'a> Pax<'a> {
    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|&b| b == b' ')?;
            let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
            let (key, value) = std::str::from_utf8(record).ok()?.split_once('=')?;
            match key {
                "linkpath" => pax.linkpath = Some(value),
                "path" => pax.path = Some(value),
                "size" => pax.size = Some(value.parse().ok()?),
                _ => return None,
            }
            bytes = &bytes[len..];
        }
        Some(pax)
    }
}

/// An octal field without its final NUL.
fn octal(field: &[u8]) -> Option<u64> {
    field.iter().try_fold(0u64, |n, &b| matches!(b, b'0'..=b'7').then(|| n * 8 + u64::from(b - b'0')))
}

/// A field that ends at its first NUL or at its full length.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok()
}

/// Whether every path and link target in `found` is allowed in a tree, the reserved directory aside.
#[must_use]
pub fn paths_are_plain(found: &[Found]) -> bool {
    let plain =
        |path: &str| check_path(path.strip_prefix(".towline/").unwrap_or(path)).is_ok() || path == ".towline";
    found.iter().all(|f| {
        plain(&f.entry.path) && !matches!(&f.entry.kind, Kind::HardLink { target, .. } if !plain(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn file(path: &str, len: u64) -> Entry {
        Entry { path: path.into(), kind: Kind::File { len, executable: false } }
    }

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in entries {
            out.extend(header(entry));
            let len = entry.data_len() as usize;
            out.extend((0..len).map(|i| i as u8));
            out.resize(out.len() + padding(len as u64), 0);
        }
        out.extend(END);
        out
    }

    /// Reads `entries` back with the `tar` crate and with our own reader.
    #[track_caller]
    fn check(entries: &[Entry]) {
        let bytes = archive(entries);
        let found = read(&bytes, 100).unwrap();
        assert_eq!(found.iter().map(|f| f.entry.clone()).collect::<Vec<_>>(), entries);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut count = 0;
        for (entry, (expected, found)) in archive.entries().unwrap().zip(entries.iter().zip(&found)) {
            let mut entry = entry.unwrap();
            count += 1;
            assert_eq!(
                entry.path_bytes().strip_suffix(b"/").unwrap_or(&entry.path_bytes()),
                expected.path.as_bytes()
            );
            assert_eq!(entry.size(), expected.data_len());
            if let Kind::HardLink { target, .. } = &expected.kind {
                assert_eq!(entry.link_name_bytes().unwrap().as_ref(), target.as_bytes());
            } else {
                assert_eq!(entry.raw_file_position(), found.data_offset);
            }
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
        }
        assert_eq!(count, entries.len());
    }

    #[test]
    fn names_at_every_boundary() {
        let long = |n: usize| "x".repeat(n);
        for name in [1, 99, 100, 101, 254, 255] {
            check(&[file(&long(name), 3)]);
        }
        for (dir, name) in
            [(1, 99), (1, 100), (1, 101), (154, 100), (155, 100), (156, 100), (155, 101), (200, 200)]
        {
            check(&[file(&format!("{}/{}", long(dir), long(name)), 0)]);
        }
        let dir = Entry { path: format!("{}/{}", long(120), long(99)), kind: Kind::Directory };
        let target = format!("{}/t", long(120));
        let link =
            Entry { path: "link".into(), kind: Kind::HardLink { target: target.clone(), executable: false } };
        check(&[dir, file(&target, 512), link, file("zurück/größe", 513), file("z", 0)]);
    }

    #[test]
    fn sizes_above_ustar_use_a_record() {
        for (len, pax) in [(USTAR_MAX_SIZE, false), (USTAR_MAX_SIZE + 1, true), (MAX_FILE_LEN, true)] {
            let entry = file("big", len);
            let bytes = header(&entry);
            assert_eq!(bytes.len() as u64 / BLOCK, if pax { 3 } else { 1 });
            assert_eq!(read_header(&bytes), Some((entry, bytes.len())));
        }
    }

    #[test]
    fn record_lengths_count_themselves() {
        for len in [1, 80, 86, 87, 88, 89, 90, 91, 980, 985, 986, 987, 988, 990] {
            let mut out = Vec::new();
            push_record(&mut out, "path", &vec![b'p'; len]);
            let text = String::from_utf8(out.clone()).unwrap();
            let claimed: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(claimed, out.len());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let good = archive(&[file("a", 5), file("b", 600)]);
        assert!(read(&good, 2).is_ok());
        assert_eq!(read(&good, 1), Err(TarError::TooMany { limit: 1 }));
        assert!(matches!(
            read(&good[..good.len() - 1], 9),
            Err(TarError::Truncated { .. } | TarError::NotCanonical { .. })
        ));
        assert!(read(&[good.clone(), vec![0; 512]].concat(), 9).is_err(), "trailing zero block");
        assert!(read(&[], 9).is_err());
        for at in [0, 100, 108, 136, 156, 257, 300, 400, 512 + 6] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&bad, 9).is_err() || bad[512..517] != good[512..517], "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn reader_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096), flip in any::<bool>()) {
            if flip {
                let mut good = archive(&[file("a", 5), Entry { path: "d".repeat(120), kind: Kind::Directory }]);
                for (n, b) in bytes.chunks(2).enumerate() {
                    let at = usize::from(b[0]) * 8 + n % 8;
                    if n < 4 && at < good.len() { good[at] = *b.last().unwrap(); }
                }
                bytes = good;
            }
            if let Ok(found) = read(&bytes, 64) {
                let mut again = Vec::new();
                for f in &found {
                    again.extend(header(&f.entry));
                    let start = f.data_offset as usize;
                    let len = f.entry.data_len() as usize;
                    again.extend(&bytes[start..start + len]);
                    again.resize(again.len() + padding(len as u64), 0);
                }
                again.extend(END);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
