//! End-to-end tests, the demo and benchmarks, on real parts.
//!
//! A run is a [`stage::Stage`]: a directory that cleans up after itself ([`scratch`]), a registry, and images. On it
//! stand nodes ([`node`]: containerd, with overlayfs or with `towlined`), on these pods ([`pod`], or [`kubelet`] for
//! the real one), and in these a reader whose report ([`reading`]) says what the pod saw and when. [`measure`] puts
//! the parts together into a cold start.
//!
//! `tests/setup.sh` provides what is not built by cargo.

pub mod cache;
pub mod clock;
pub mod cluster;
pub mod convert;
pub mod cri;
pub mod exclusive;
pub mod hub;
pub mod image;
pub mod kubelet;
pub mod machine;
pub mod measure;
pub mod model;
pub mod node;
pub mod origin;
pub mod pod;
pub mod process;
pub mod python;
pub mod reading;
pub mod registry;
pub mod scratch;
pub mod stage;
pub mod sweep;
pub mod timeline;
pub mod towlined;
