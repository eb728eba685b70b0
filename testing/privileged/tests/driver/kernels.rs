//! Guests of a few 64-bit instructions in the shape of a vmlinux.

use std::path::{Path, PathBuf};

use banger_engine::contract::{TinyGuest, TinyGuests};
use banger_engine::seams::{DiskFormat, DiskImage, DiskLimits, LaunchPlan, PlannedDisk};
use banger_privileged_tests::vmm::{elf, endless_kernel, tiny_kernel};
use banger_types::{OperationId, VmId};

/// The guests' kernels, written to files below the state directory.
pub struct Kernels {
    directory: PathBuf,
}

impl Kernels {
    pub fn new(state: &Path) -> Self {
        let directory = state.join("kernels");
        std::fs::create_dir(&directory).unwrap();
        for guest in [TinyGuest::Hello, TinyGuest::Flood, TinyGuest::Restart] {
            std::fs::write(directory.join(format!("{guest:?}")), kernel(guest)).unwrap();
        }
        std::fs::write(directory.join("initrd"), [0; 512]).unwrap();
        std::fs::write(directory.join("disk"), [0; 4096]).unwrap();
        Self { directory }
    }
}

impl TinyGuests for Kernels {
    fn plan(&self, guest: TinyGuest, runtime_dir: &Path, console_log: &Path) -> LaunchPlan {
        let image = DiskImage {
            path: self.directory.join("disk"),
            format: DiskFormat::Raw,
            kind: "raw".to_owned(),
            base: None,
        };
        LaunchPlan {
            id: VmId::random(),
            op_id: OperationId::random(),
            name: "tiny".parse().unwrap(),
            vcpus: 1.try_into().unwrap(),
            memory: 128.try_into().unwrap(),
            bzimage: self.directory.join("no-bzimage"),
            vmlinux: self.directory.join(format!("{guest:?}")),
            initrd: self.directory.join("initrd"),
            kernel_args: "banger.test=1".to_owned(),
            disks: vec![PlannedDisk {
                role: "root".to_owned(),
                image,
                read_only: true,
                limits: DiskLimits::default(),
            }],
            nic: None,
            runtime_dir: runtime_dir.to_owned(),
            console_log: console_log.to_owned(),
        }
    }
}

fn kernel(guest: TinyGuest) -> Vec<u8> {
    match guest {
        TinyGuest::Flood => endless_kernel(b"flood\n"),
        // Not before its launch is over: mov ecx, 30000; wait: out 0x80, al; dec ecx; jnz wait. Then
        // mov al, 0xfe; out 0x64, al (the keyboard controller's reset); hlt; jmp to the hlt
        TinyGuest::Restart => elf(&[
            0xb9, 0x30, 0x75, 0, 0, 0xe6, 0x80, 0xff, 0xc9, 0x75, 0xfa, 0xb0, 0xfe, 0xe6, 0x64,
            0xf4, 0xeb, 0xfd,
        ]),
        TinyGuest::Hello | TinyGuest::Missing => tiny_kernel(b"hello from the guest\n"),
    }
}
