//! The protocol: `containerd.services.snapshots.v1` in, domain types out.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::{Code, Request, Response, Status};
use towline_proto::containerd::services::snapshots::v1 as wire;
use towline_proto::containerd::types;
use wire::snapshots_server::{Snapshots, SnapshotsServer};

use crate::error::{Shown, SnapshotError};
use crate::filter::{Fields, Filters};
use crate::mounts::Mount;
use crate::record::{Kind, Record, Timestamp};
use crate::request::{check_key, check_labels, check_mask, check_parent};
use crate::snapshotter::{Created, Creation, Snapshotter, claimed_message};

/// Snapshots in one message of List, as containerd itself sends them.
const LIST_BLOCK: usize = 100;
/// Bytes of names and labels in one message of List: containerd takes messages of 16 MiB, and one snapshot may have
/// half a MiB of labels.
const LIST_BLOCK_LEN: usize = 4 << 20;

impl Snapshotter {
    /// The gRPC service, to be added to a server.
    #[must_use]
    pub fn into_service(self) -> SnapshotsServer<Self> {
        SnapshotsServer::new(self)
    }

    async fn create_on_wire(
        &self,
        op: &'static str,
        kind: Kind,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
    ) -> Result<Vec<types::Mount>, Status> {
        let key_for_log = key.clone();
        let created = async {
            check_key("key", &key)?;
            let parent = check_parent(parent)?;
            let labels = check_labels(labels)?;
            self.create(Creation { kind, key, parent, labels }).await
        };
        match logged(op, &key_for_log, created.await)? {
            Created::Mounts(mounts) => Ok(mounts.into_iter().map(mount_to_wire).collect()),
            Created::Claimed { chain } => {
                tracing::debug!(op, snapshot = key_for_log, chain, "model layer claimed");
                Err(Status::already_exists(claimed_message(&chain)))
            }
        }
    }
}

#[tonic::async_trait]
impl Snapshots for Snapshotter {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        let wire::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.create_on_wire("prepare", Kind::Active, key, parent, labels).await?;
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let wire::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.create_on_wire("view", Kind::View, key, parent, labels).await?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<wire::MountsRequest>,
    ) -> Result<Response<wire::MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = logged("mounts", &key, Snapshotter::mounts(self, &key).await)?;
        let mounts = mounts.into_iter().map(mount_to_wire).collect();
        Ok(Response::new(wire::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let wire::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let key_for_log = key.clone();
        let committed = async {
            check_key("name", &name)?;
            check_key("key", &key)?;
            let parent = check_parent(parent)?;
            Snapshotter::commit(self, name, key, check_labels(labels)?, parent).await
        };
        logged("commit", &key_for_log, committed.await).map(Response::new)
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        logged("remove", &key, Snapshotter::remove(self, key.clone()).await).map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let record = logged("stat", &key, Snapshotter::stat(self, &key))?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(info_to_wire(&record)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let wire::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or(SnapshotError::Missing("info"))?;
        let name = info.name.clone();
        let updated = async {
            let mask = update_mask.map(|mask| mask.paths).unwrap_or_default();
            check_key("name", &info.name)?;
            check_mask(&mask)?;
            Snapshotter::update(self, info.name, check_labels(info.labels)?, mask).await
        };
        let record = logged("update", &name, updated.await)?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(info_to_wire(&record)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<wire::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(SnapshotError::Filter);
        let filters = logged("list", "", filters)?;
        let mut records = Snapshotter::list(self);
        records.retain(|record| filters.matches(&**record));
        Ok(Response::new(Box::pin(stream::iter(Blocks { records: records.into_iter() }))))
    }

    async fn usage(
        &self,
        request: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = logged("usage", &key, Snapshotter::usage(self, &key).await)?;
        Ok(Response::new(wire::UsageResponse { size: usage.bytes, inodes: usage.inodes }))
    }

    async fn cleanup(&self, _: Request<wire::CleanupRequest>) -> Result<Response<()>, Status> {
        logged("cleanup", "", Snapshotter::cleanup(self).await).map(Response::new)
    }
}

/// Cuts the answer to List into messages, each made when it is sent.
struct Blocks {
    records: std::vec::IntoIter<Arc<Record>>,
}

impl Iterator for Blocks {
    type Item = Result<wire::ListSnapshotsResponse, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut info = Vec::new();
        let mut len = 0;
        while info.len() < LIST_BLOCK && len < LIST_BLOCK_LEN {
            let Some(record) = self.records.next() else { break };
            let labels: usize = record.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
            len += labels + record.name.len() + record.parent.as_ref().map_or(0, String::len);
            info.push(info_to_wire(&record));
        }
        if info.is_empty() { None } else { Some(Ok(wire::ListSnapshotsResponse { info })) }
    }
}

impl Fields for Record {
    fn field(&self, path: &[Vec<u8>]) -> Option<&[u8]> {
        let (first, rest) = path.split_first()?;
        match first.as_slice() {
            b"name" => Some(self.name.as_bytes()),
            b"parent" => Some(self.parent.as_deref().unwrap_or_default().as_bytes()),
            b"kind" => Some(match self.kind {
                Kind::View => b"view",
                Kind::Active => b"active",
                Kind::Committed => b"committed",
            }),
            b"labels" => {
                let key = String::from_utf8(rest.join(&b'.')).ok()?;
                self.labels.get(&key).map(String::as_bytes)
            }
            _ => None,
        }
    }
}

/// Logs a failure once, as loud as it deserves, and gives it its code.
fn logged<T>(op: &'static str, key: &str, result: Result<T, SnapshotError>) -> Result<T, Status> {
    result.map_err(|error| {
        let snapshot = Shown::new(key);
        let status = Status::from(error);
        let (code, error) = (status.code(), status.message());
        match code {
            Code::Internal | Code::DataLoss | Code::Unavailable | Code::ResourceExhausted => {
                tracing::warn!(op, %snapshot, ?code, error, "call failed");
            }
            _ => tracing::debug!(op, %snapshot, ?code, error, "call refused"),
        }
        status
    })
}

fn mount_to_wire(mount: Mount) -> types::Mount {
    let Mount { kind, source, options } = mount;
    types::Mount { r#type: kind.to_owned(), source, target: String::new(), options }
}

fn info_to_wire(record: &Record) -> wire::Info {
    let kind = match record.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: record.name.clone(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(time_to_wire(record.created)),
        updated_at: Some(time_to_wire(record.updated)),
        labels: record.labels.clone().into_iter().collect(),
    }
}

fn time_to_wire(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos }
}
