//! The machine a measurement was taken on, to be printed beside it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytesize::ByteSize;
use serde::Serialize;

/// What decides how fast a machine is. What cannot be found out is empty or 0.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processors this process may use.
    pub cores: usize,
    /// The processor's name.
    pub cpu: String,
    /// Whether it hashes SHA-256 in hardware.
    pub sha_extensions: bool,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// File system and device that hold the measured directory.
    pub disk: String,
}

impl Machine {
    /// Looks at this machine; `dir` is where the measured data is.
    #[must_use]
    pub fn look(dir: &Path) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: value(&cpuinfo, "model name").to_owned(),
            sha_extensions: value(&cpuinfo, "flags").split(' ').any(|flag| flag == "sha_ni")
                || value(&cpuinfo, "Features").split(' ').any(|flag| flag == "sha2"),
            memory_bytes: value(&read("/proc/meminfo"), "MemTotal")
                .split(' ')
                .next()
                .and_then(|text| text.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            disk: disk(dir),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sha = if self.sha_extensions { ", SHA extensions" } else { "" };
        let memory = ByteSize(self.memory_bytes);
        write!(f, "{} × {}{sha}, {memory}, Linux {}, {}", self.cores, self.cpu, self.kernel, self.disk)
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line `label : value`.
fn value<'a>(text: &'a str, label: &str) -> &'a str {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.into_iter().find(|(key, _)| key.trim() == label).map_or("", |(_, value)| value.trim())
}

fn disk(dir: &Path) -> String {
    let Ok(metadata) = fs::metadata(dir) else { return String::new() };
    let device = format!("{}:{}", rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let mountinfo = read("/proc/self/mountinfo");
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(device.as_str()));
    // After the lone hyphen come the file system's type and its source.
    line.and_then(|line| line.split_once(" - "))
        .map(|(_, rest)| rest.split(' ').take(2).collect::<Vec<_>>().join(" on "))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Machine, value};

    #[test]
    fn value_takes_the_first_line_of_that_name() {
        assert_eq!(value("a\t: 1\nmodel name\t: X Y\nmodel name\t: Z\n", "model name"), "X Y");
        assert_eq!(value("a: 1", "b"), "");
    }

    #[test]
    fn this_machine_has_memory_and_a_kernel() {
        let machine = Machine::look(std::path::Path::new("/"));
        assert!(machine.memory_bytes > 1 << 20);
        assert!(!machine.kernel.is_empty());
    }
}
