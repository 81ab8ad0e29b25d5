//! The kernel side of a model mount: FUSE, errno, passthrough.
