//! OCI distribution client, OCI layouts on disk, and the credentials for them.
