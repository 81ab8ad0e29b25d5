//! Generated gRPC types of the protocols Towline speaks, and nothing else.
//!
//! Wire types stop at the crate that speaks the protocol and become domain types there. Where the definitions come
//! from, and under which licence, is in `proto/README.md`.
#![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

/// containerd's protocols.
pub mod containerd {
    /// `containerd.types`.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    /// `containerd.services`.
    pub mod services {
        /// `containerd.services.snapshots`.
        pub mod snapshots {
            /// `containerd.services.snapshots.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

/// The Kubernetes container runtime interface, `runtime.v1`.
pub mod cri {
    /// `runtime.v1`.
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// Towline's own control API.
pub mod control {
    /// `towline.control.v1`.
    pub mod v1 {
        tonic::include_proto!("towline.control.v1");
    }
}

/// What nodes say to each other.
pub mod peer {
    /// `towline.peer.v1`.
    pub mod v1 {
        tonic::include_proto!("towline.peer.v1");
    }
}
