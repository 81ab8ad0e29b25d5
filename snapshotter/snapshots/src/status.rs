//! The one place where errors become gRPC codes. containerd maps each code to one of its error kinds.

use std::error::Error;
use std::io;

use tonic::{Code, Status};

use crate::error::SnapshotError;
use crate::models::RefusalKind;

/// Bytes of a status message: it travels in an HTTP/2 header, percent-encoded, and grpc-go takes 16 KiB of those.
const MAX_MESSAGE_LEN: usize = 1024;

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        Status::new(code(&error), message(&error))
    }
}

pub(crate) fn code(error: &SnapshotError) -> Code {
    use SnapshotError as E;
    match error {
        E::NotFound(_) | E::ParentNotFound(_) => Code::NotFound,
        E::AlreadyExists(_) => Code::AlreadyExists,
        E::ParentNotCommitted(_) | E::ParentFixed(_) | E::FieldFixed(_) => Code::InvalidArgument,
        E::TooLarge { .. } | E::Missing(_) | E::Filter(_) | E::IdMap(_) => Code::InvalidArgument,
        E::NewParentNotCommitted(_) | E::NotActive(_) | E::NoMounts(_) => Code::FailedPrecondition,
        E::HasChildren(_) => Code::FailedPrecondition,
        E::Exhausted { .. } => Code::ResourceExhausted,
        E::Refused(refusal) => refusal_code(refusal.kind),
        E::Disk { source, .. } if is_full(source) => Code::ResourceExhausted,
        // The write may work once the disk does: the database is opened again for the next one.
        E::Storage(_) => Code::Unavailable,
        E::Disk { .. } | E::BrokeOff(_) => Code::Internal,
    }
}

fn refusal_code(kind: RefusalKind) -> Code {
    match kind {
        RefusalKind::InvalidArgument => Code::InvalidArgument,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::FailedPrecondition => Code::FailedPrecondition,
        RefusalKind::PermissionDenied => Code::PermissionDenied,
        RefusalKind::ResourceExhausted => Code::ResourceExhausted,
        RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::DataLoss => Code::DataLoss,
        RefusalKind::Internal => Code::Internal,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The error and its causes, cut at a character boundary.
fn message(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    if message.len() > MAX_MESSAGE_LEN {
        let cut = (0..=MAX_MESSAGE_LEN).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Shown;
    use crate::models::Refusal;
    use std::path::Path;

    #[test]
    fn errors_have_the_codes_containerd_expects() {
        let check = |error: SnapshotError, code, text: &str| {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        };
        let key = || Shown::new("k");
        check(SnapshotError::NotFound(key()), Code::NotFound, r#"snapshot "k" does not exist"#);
        let text = r#"cannot remove snapshot "k": it has children"#;
        check(SnapshotError::HasChildren(key()), Code::FailedPrecondition, text);
        let full = SnapshotError::disk("make directory", Path::new("/x"))(io::ErrorKind::StorageFull);
        check(full, Code::ResourceExhausted, "make directory /x: no storage space");
        let refusal = Refusal::new(RefusalKind::DataLoss, "piece 3 is corrupt");
        check(refusal.into(), Code::DataLoss, "piece 3 is corrupt");
    }

    #[test]
    fn messages_fit_a_header() {
        let refusal = Refusal::new(RefusalKind::Internal, "ü".repeat(MAX_MESSAGE_LEN));
        let status = Status::from(SnapshotError::from(refusal));
        assert!(status.message().len() <= MAX_MESSAGE_LEN + '…'.len_utf8());
    }
}
