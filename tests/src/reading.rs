//! What `tl-reader` prints: one JSON object a line, written by the reader and read by the harness.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::clock::Instant;

/// A line of the reader's output. Instants are nanoseconds of the machine's monotonic clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The program runs.
    Start {
        /// When.
        at_ns: u64,
    },
    /// The first byte of a weight file, the largest one, has been read. It comes before anything else is read.
    FirstByte {
        /// When.
        at_ns: u64,
        /// Of which file.
        path: String,
    },
    /// A file has been read to its end.
    File(FileRead),
    /// Reading a file failed.
    Failed {
        /// When.
        at_ns: u64,
        /// Which file, relative to the directory.
        path: String,
        /// The system's error number, 0 where there is none.
        errno: i32,
        /// The system's words.
        error: String,
    },
    /// Everything has been tried.
    Done {
        /// When.
        at_ns: u64,
        /// Files read to their ends.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// A file as the reader saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRead {
    /// When it had been read.
    pub at_ns: u64,
    /// Relative to the directory.
    pub path: String,
    /// Bytes read.
    pub size: u64,
    /// SHA-256 of the content, lowercase hex.
    pub sha256: String,
    /// From open to the last byte hashed.
    pub seconds: f64,
    /// 10^6 bytes per second.
    pub mb_per_s: f64,
}

/// A reader's whole report.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When the program started.
    pub start: Instant,
    /// When it had the first byte of the largest file; `None` where there was nothing to read.
    pub first_byte: Option<Instant>,
    /// When every file had been read.
    pub done: Instant,
    /// The files, in path order.
    pub files: Vec<FileRead>,
}

impl Reading {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// (path, size, SHA-256) of all files in path order: what two readings of the same tree have in common.
    #[must_use]
    pub fn contents(&self) -> Vec<(&str, u64, &str)> {
        self.files.iter().map(|file| (file.path.as_str(), file.size, file.sha256.as_str())).collect()
    }

    /// [`Self::contents`] of the model; the index that the image adds is left out.
    #[must_use]
    pub fn model_files(&self) -> Vec<(&str, u64, &str)> {
        self.contents().into_iter().filter(|(path, ..)| !path.starts_with(".towline/")).collect()
    }

    /// From the start of the program to the last byte.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.done - self.start
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// Where a file failed, the report has no end, or a line is not one of the reader's.
    pub fn parse(output: &str) -> Result<Self> {
        let (mut start, mut first_byte, mut done, mut files) = (None, None, None, Vec::new());
        for line in output.lines() {
            match serde_json::from_str(line).with_context(|| format!("not a line of tl-reader: {line}"))? {
                Event::Start { at_ns } => start = Some(Instant(at_ns)),
                Event::FirstByte { at_ns, .. } => first_byte = Some(Instant(at_ns)),
                Event::File(file) => files.push(file),
                Event::Failed { path, error, .. } => bail!("read {path}: {error}"),
                Event::Done { at_ns, .. } => done = Some(Instant(at_ns)),
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let done = done.context("tl-reader did not finish")?;
        Ok(Self { start: start.context("tl-reader did not start")?, first_byte, done, files })
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, FileRead, Reading};

    fn lines(events: &[Event]) -> String {
        events.iter().map(|event| serde_json::to_string(event).expect("events are JSON") + "\n").collect()
    }

    #[test]
    fn a_report_survives_its_text() {
        let file = FileRead {
            at_ns: 7,
            path: "a".into(),
            size: 3,
            sha256: "00".into(),
            seconds: 0.5,
            mb_per_s: 1.0,
        };
        let start = Event::Start { at_ns: 5 };
        let done = Event::Done { at_ns: 9, files: 1, bytes: 3 };
        let text = lines(&[start.clone(), Event::File(file.clone()), done.clone()]);
        let reading = Reading::parse(&text).expect("a complete report");
        assert_eq!(reading.files, [file]);
        assert_eq!(reading.elapsed().as_nanos(), 4);
        assert!(Reading::parse(&lines(std::slice::from_ref(&start))).is_err(), "a report without an end");
        let failed = Event::Failed { at_ns: 6, path: "a".into(), errno: 5, error: "io".into() };
        let error = Reading::parse(&lines(&[start, failed, done])).expect_err("a file failed");
        assert_eq!(error.to_string(), "read a: io");
    }
}
