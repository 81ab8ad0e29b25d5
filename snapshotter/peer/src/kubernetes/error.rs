//! What may go wrong between a pod and the Kubernetes API, and what an operator can do about it.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use super::MAX_ANSWER_LEN;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The EndpointSlices of a service.
    EndpointSlices {
        /// Its namespace.
        namespace: String,
        /// Its name.
        service: String,
    },
    /// A node.
    Node {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndpointSlices { namespace, service } => {
                write!(f, "the EndpointSlices of service {namespace}/{service}")
            }
            Self::Node { name } => write!(f, "node {name}"),
        }
    }
}

/// Why the Kubernetes API told nothing.
///
/// No variant holds a text that the API sent: it might repeat the token.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The environment is not that of a pod.
    #[error("{variable} {problem}")]
    NotInCluster {
        /// Which variable.
        variable: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing in a cluster can have this name. Nobody was asked.
    #[error("{text:?} is no name of a {kind}")]
    Name {
        /// `namespace`, `service` or `node`.
        kind: &'static str,
        /// The name, at most 253 characters of it.
        text: String,
    },
    /// A file of the service account cannot be read.
    #[error("read {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the service account holds something else.
    #[error("{} {problem}", path.display())]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// TLS cannot be set up.
    #[error("set up TLS for the Kubernetes API")]
    Client {
        /// Why not.
        source: reqwest::Error,
    },
    /// No connection, one that broke, or one to somebody whom the cluster's CA does not know.
    #[error("ask the Kubernetes API at {api} for {object}")]
    Transport {
        /// What was asked for.
        object: Object,
        /// Where.
        api: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The answer did not come in time.
    #[error("the Kubernetes API did not send {object} within {} ms", limit.as_millis())]
    TimedOut {
        /// What was asked for.
        object: Object,
        /// How long was waited.
        limit: Duration,
    },
    /// 401: the token is not accepted.
    #[error("the Kubernetes API does not accept the service account's token (401, asked for {object})")]
    Unauthorized {
        /// What was asked for.
        object: Object,
    },
    /// 403: the service account may not read this.
    #[error("the service account may not read {object} (403)")]
    Forbidden {
        /// What was asked for.
        object: Object,
    },
    /// 404: there is no such object, or no such API.
    #[error("the Kubernetes API does not know {object} (404)")]
    NotFound {
        /// What was asked for.
        object: Object,
    },
    /// A redirect, which is not followed.
    #[error("the Kubernetes API redirects elsewhere for {object}")]
    Redirected {
        /// What was asked for.
        object: Object,
    },
    /// Any other answer that is not 200.
    #[error("the Kubernetes API answers {status} for {object}")]
    Status {
        /// What was asked for.
        object: Object,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that is longer than any sensible one. The rest of it was not read.
    #[error("the Kubernetes API's answer for {object} is longer than {MAX_ANSWER_LEN} bytes")]
    TooLong {
        /// What was asked for.
        object: Object,
    },
    /// An answer that is not what was asked for.
    #[error("the Kubernetes API's answer for {object} {problem}")]
    Malformed {
        /// What was asked for.
        object: Object,
        /// What is wrong with it, in our words.
        problem: String,
    },
}

impl KubernetesError {
    /// What an operator can do, where we know it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotInCluster { .. } => "the Kubernetes API is found from within a pod only",
            Self::File { .. } | Self::BadFile { .. } => {
                "the pod needs its service account's token: automountServiceAccountToken must not be false"
            }
            Self::Unauthorized { .. } => {
                "the service account was removed or the node's clock is wrong; the kubelet renews the token by itself"
            }
            Self::Forbidden { object: Object::EndpointSlices { .. } } => {
                "allow the service account list on endpointslices in that namespace, as deploy/rbac.yaml does"
            }
            Self::Forbidden { object: Object::Node { .. } } => {
                "allow the service account get on nodes, as deploy/rbac.yaml does"
            }
            Self::NotFound { object: Object::EndpointSlices { .. } } => {
                "discovery.k8s.io/v1 is in Kubernetes 1.21 and newer"
            }
            Self::NotFound { object: Object::Node { .. } } => {
                "NODE_NAME must be the Node's name, as the field spec.nodeName has it"
            }
            Self::Redirected { .. } => {
                "something stands between the pod and its API server; redirects are not followed"
            }
            Self::Name { .. }
            | Self::Client { .. }
            | Self::Transport { .. }
            | Self::TimedOut { .. }
            | Self::Status { .. }
            | Self::TooLong { .. }
            | Self::Malformed { .. } => return None,
        })
    }
}

/// As much of a name as an error shows.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(253).collect()
}
