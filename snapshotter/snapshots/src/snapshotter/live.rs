//! Signs of life from a model's directory.
//!
//! A mount over a dead FUSE file system succeeds and shows nothing; the pod would start with an empty model. So nothing
//! is handed out before the directory has answered. The question goes past the kernel's cache of attributes, or a dead
//! file system would look alive for as long as they are valid.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};
use tokio::sync::Semaphore;

use crate::disk::Owner;
use crate::models::{Refusal, RefusalKind};

/// Questions under way at once. One that hangs keeps its thread until the file system answers or dies.
const MAX_PROBES: usize = 16;

#[derive(Debug)]
pub(super) struct Prober {
    timeout: Duration,
    permits: Arc<Semaphore>,
}

impl Prober {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, permits: Arc::new(Semaphore::new(MAX_PROBES)) }
    }

    /// The owner of `directory`, asked from its file system.
    pub(super) async fn probe(&self, directory: PathBuf) -> Result<Owner, Refusal> {
        let unavailable = |what: &dyn std::fmt::Display| {
            let message = format!("model directory {}: {what}", directory.display());
            Refusal::new(RefusalKind::Unavailable, message)
        };
        let asked = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.expect("never closed");
            let path = directory.clone();
            // Not tracked: a hung file system must not keep the daemon from stopping.
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)
            });
            task.await.unwrap_or(Err(rustix::io::Errno::IO))
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Err(_) => Err(unavailable(&format!("no answer within {} s", self.timeout.as_secs_f64()))),
            Ok(Err(errno)) => Err(unavailable(&io::Error::from(errno))),
            Ok(Ok(stat)) if !is_directory(&stat) => Err(unavailable(&"not a directory")),
            Ok(Ok(stat)) => Ok((stat.stx_uid, stat.stx_gid)),
        }
    }
}

fn is_directory(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn only_a_directory_is_alive() {
        let prober = Prober::new(Duration::from_secs(10));
        let dir = tempfile::tempdir().expect("temp dir");
        let stat = std::fs::metadata(dir.path()).expect("stat");
        assert_eq!(prober.probe(dir.path().to_owned()).await, Ok((stat.uid(), stat.gid())));
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("write");
        for (path, reason) in [(file, "not a directory"), (dir.path().join("none"), "No such file")] {
            let refusal = prober.probe(path).await.expect_err("refused");
            assert_eq!(refusal.kind, RefusalKind::Unavailable);
            assert!(refusal.message.contains(reason), "{refusal}");
        }
    }

    #[tokio::test]
    async fn a_hung_file_system_costs_one_timeout() {
        let prober = Prober::new(Duration::from_millis(20));
        let _all = Arc::clone(&prober.permits).acquire_many_owned(MAX_PROBES as u32).await.expect("open");
        let refusal = prober.probe("/".into()).await.expect_err("refused");
        assert_eq!(refusal.message, "model directory /: no answer within 0.02 s");
    }
}
