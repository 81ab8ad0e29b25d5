//! One end-to-end run at a time on a machine: they measure, and they are too big for two.

use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::cache;

/// The right to run. It ends with the value, also when the process is killed.
#[derive(Debug)]
pub struct Exclusive {
    _lock: File,
}

impl Exclusive {
    /// Waits until no other run holds the lock file in the cache directory.
    ///
    /// # Errors
    /// Where the lock file cannot be made.
    pub async fn wait() -> Result<Self> {
        let path = cache::dir().join("e2e.lock");
        tokio::task::spawn_blocking(move || {
            fs::create_dir_all(cache::dir()).with_context(|| format!("create {}", cache::dir().display()))?;
            let lock = File::options().create(true).append(true).open(&path);
            let lock = lock.with_context(|| format!("open {}", path.display()))?;
            flock(&lock, FlockOperation::LockExclusive)
                .with_context(|| format!("lock {}", path.display()))?;
            Ok(Self { _lock: lock })
        })
        .await?
    }
}
