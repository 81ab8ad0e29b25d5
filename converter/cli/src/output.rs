//! stdout: tables, JSON, and the reader who has seen enough.

use std::io::{self, Write};

use crate::args::Output;

/// Writes to stdout. A reader that closed the pipe, such as `head`, is no error.
///
/// # Errors
/// Any other fault of stdout.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes `value` as one JSON object on a line.
///
/// # Errors
/// As [`write`].
fn write_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(value).map_err(io::Error::other)?;
    text.push('\n');
    write(&text)
}

/// Writes a result in the form that was asked for.
///
/// # Errors
/// As [`write`].
pub(crate) fn emit(
    form: Output,
    value: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> io::Result<()> {
    match form {
        Output::Text => write(&text()),
        Output::Json => write_json(value),
    }
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Sets rows in columns, two spaces apart. Every row has as many cells as there are columns.
pub(crate) fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |n: usize| {
        let cells = rows.iter().map(|row| row[n].chars().count());
        cells.chain([columns[n].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(columns).zip(&widths).map(|((cell, (_, align)), width)| match align {
            Align::Left => format!("{cell:width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    std::iter::once(&head).chain(rows).map(|row| line(row)).collect()
}

/// Bytes for people, in powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `1 file`, `2 files`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A stranger's text for a terminal: without control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["größer".to_owned(), "5".to_owned()]];
        let text = table(&[("NAME", Align::Left), ("N", Align::Right)], &rows);
        assert_eq!(text, "NAME     N\na       10\ngrößer   5\n");
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!((size(0), size(4 << 20)), ("0 B".to_owned(), "4.0 MiB".to_owned()));
        assert_eq!((count(1, "file"), count(2, "file")), ("1 file".to_owned(), "2 files".to_owned()));
        assert_eq!(clean("a\u{1b}[31mb"), "a [31mb");
    }
}
