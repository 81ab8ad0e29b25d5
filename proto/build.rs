//! Compiles the vendored protocol definitions; see `proto/README.md` for their origin.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let roots = [
        (
            "proto/containerd",
            vec![
                "proto/containerd/services/snapshots/v1/snapshots.proto",
                "proto/containerd/types/mount.proto",
            ],
        ),
        ("proto/cri/v1", vec!["proto/cri/v1/api.proto"]),
        ("proto/towline/control/v1", vec!["proto/towline/control/v1/control.proto"]),
        ("proto/towline/peer/v1", vec!["proto/towline/peer/v1/peer.proto"]),
    ];
    for (include, files) in roots {
        let set = protox::compile(files, [include])?;
        tonic_prost_build::configure().compile_fds(set)?;
    }
    Ok(())
}
