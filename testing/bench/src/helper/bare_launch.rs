//! The machine of the helper's launches, by the bare jailer.

use anyhow::Result;
use banger_privileged_tests::{Directories, OWNER};
use serde_json::json;

use crate::jailer::{self, Bare, Parts};

/// Launches one and waits for the API's first byte.
pub(super) fn launch(directories: &Directories, id: &str) -> Result<Bare> {
    let machine = json!({
        "boot-source": {"kernel_image_path": "/vmlinux", "boot_args": "console=ttyS0"},
        "drives": [{
            "drive_id": "data",
            "path_on_host": "/disk-data",
            "is_root_device": false,
            "is_read_only": false,
        }],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "network-interfaces": [],
    });
    let state = &directories.state;
    let file = |from: &str, to: &str| (state.join(from), to.to_owned());
    let parts = Parts {
        base: directories.root().join("bare"),
        owner: OWNER,
        files: vec![file("kernel", "vmlinux"), file("disk", "disk-data")],
        machine: machine.to_string().into_bytes(),
        log: state.join(format!("{id}.log")),
    };
    let bare = jailer::launch(&parts, id)?;
    bare.wait_for_api()?;
    Ok(bare)
}
