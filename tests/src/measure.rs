//! A cold start, measured: from the pull of a model to its last byte read in a pod.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock::Instant;
use crate::node::Node;
use crate::pod::Pod;
use crate::process::Usage;
use crate::reading::Reading;
use crate::registry::Served;
use crate::stage::Stage;

/// How long a pod may read.
const READ_LIMIT: Duration = Duration::from_secs(300);

/// What a cold start took and cost. Instants count from the pull's begin.
#[derive(Clone, Debug)]
pub struct ColdStart {
    /// The pull was answered.
    pub pulled: Duration,
    /// The container's program ran, by its own account: CRI's answer comes a little later.
    pub running: Duration,
    /// The reader had the first byte of the largest file.
    pub first_byte: Duration,
    /// The reader had hashed every byte.
    pub complete: Duration,
    /// What the reader saw.
    pub reading: Reading,
    /// What the node's daemons used meanwhile. The peak of memory is the sum of each one's peak since its start.
    pub used: Usage,
    /// Bytes written to the disk of the run's directory by anybody, a final sync included.
    pub device_write_bytes: u64,
    /// What the registry served meanwhile.
    pub served: Served,
}

/// The figures of a cold start as they are printed and kept.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Seconds until the pull was answered.
    pub pulled_s: f64,
    /// Seconds until the container ran.
    pub running_s: f64,
    /// Seconds until the first byte.
    pub first_byte_s: f64,
    /// Seconds until every byte was hashed.
    pub complete_s: f64,
    /// Bytes of the model.
    pub model_bytes: u64,
    /// Bytes that the node's daemons wrote.
    pub written_bytes: u64,
    /// Bytes that the device took.
    pub device_bytes: u64,
    /// Bytes of blobs that the registry served.
    pub served_bytes: u64,
    /// In how many requests.
    pub served_gets: u64,
    /// Processor seconds of the node's daemons.
    pub cpu_s: f64,
    /// Peak of the daemons' memory in bytes.
    pub peak_rss_bytes: u64,
}

impl ColdStart {
    /// Pulls `reference` on `node` and reads all of it in a pod named `name`, which is then removed.
    ///
    /// The caller sees to it that the node has nothing of the model; pod and pause images should be there.
    ///
    /// # Errors
    /// Where pull, pod or reader fail.
    pub async fn measure(stage: &Stage, node: &Node, name: &str, reference: &str) -> Result<Self> {
        let spec = stage.reader(name, reference, &[])?;
        // What others left in memory must not be written on this run's account.
        rustix::fs::sync();
        let mark = stage.registry.mark()?;
        let device = device_write_bytes(stage.scratch.path())?;
        let before = used(node)?;
        let begin = Instant::now();
        node.cri().pull(reference).await?;
        let pulled = begin.elapsed();
        let pod = Pod::run(node, &spec).await?;
        let reading = Reading::parse(&pod.wait(READ_LIMIT).await?.success()?)?;
        rustix::fs::sync();
        let after = used(node)?;
        let measured = Self {
            pulled,
            running: reading.start - begin,
            first_byte: reading.first_byte.context("the model has no file")? - begin,
            complete: reading.done - begin,
            reading,
            used: Usage {
                peak_rss_bytes: after.peak_rss_bytes,
                cpu: after.cpu - before.cpu,
                write_bytes: after.write_bytes - before.write_bytes,
                read_bytes: after.read_bytes - before.read_bytes,
            },
            device_write_bytes: device_write_bytes(stage.scratch.path())? - device,
            served: stage.registry.served_since(mark)?,
        };
        pod.remove().await?;
        Ok(measured)
    }

    /// The figures alone.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            pulled_s: self.pulled.as_secs_f64(),
            running_s: self.running.as_secs_f64(),
            first_byte_s: self.first_byte.as_secs_f64(),
            complete_s: self.complete.as_secs_f64(),
            model_bytes: self.reading.bytes(),
            written_bytes: self.used.write_bytes,
            device_bytes: self.device_write_bytes,
            served_bytes: self.served.blob_bytes,
            served_gets: self.served.blob_gets,
            cpu_s: self.used.cpu.as_secs_f64(),
            peak_rss_bytes: self.used.peak_rss_bytes,
        }
    }
}

fn used(node: &Node) -> Result<Usage> {
    let mut sum = Usage::default();
    for daemon in node.image_daemons() {
        let one = daemon.usage()?;
        sum.peak_rss_bytes += one.peak_rss_bytes;
        sum.cpu += one.cpu;
        sum.write_bytes += one.write_bytes;
        sum.read_bytes += one.read_bytes;
    }
    Ok(sum)
}

/// Bytes written so far to the block device that holds `path`: sectors of 512 bytes, the seventh field of its `stat`
/// (kernel documentation, block/stat).
///
/// # Errors
/// Where the file system is on no block device.
pub fn device_write_bytes(path: &Path) -> Result<u64> {
    let device = fs::metadata(path)?.dev();
    let stat = format!("/sys/dev/block/{}:{}/stat", rustix::fs::major(device), rustix::fs::minor(device));
    let text = fs::read_to_string(&stat).with_context(|| format!("read {stat}"))?;
    let sectors: u64 =
        text.split_whitespace().nth(6).context("a block device without write counters")?.parse()?;
    Ok(sectors * 512)
}
