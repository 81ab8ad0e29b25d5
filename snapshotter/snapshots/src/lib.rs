//! containerd's snapshots service: an overlay snapshotter for ordinary images, and the seam for model images.
