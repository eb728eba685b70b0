//! Guests of a few real-mode instructions in the shape of a bzImage (Linux
//! `Documentation/arch/x86/boot.rst`), which a VMM boots like a kernel.

use std::path::{Path, PathBuf};

use banger_engine::contract::{TinyGuest, TinyGuests};
use banger_engine::seams::{DiskImage, DiskLimits, LaunchPlan, Nic, PlannedDisk};
use banger_types::VmId;

/// Where the boot protocol's header begins; the first instruction is two bytes before.
const HEADER: usize = 0x202;
/// Where our instructions begin, behind the header.
const CODE: usize = 0x268;
const MESSAGE: usize = 0x300;

/// The guests' kernels, written to files.
pub struct Kernels {
    directory: PathBuf,
    /// Attached to every guest, in this order.
    pub disks: Vec<DiskImage>,
}

impl Kernels {
    pub fn new(directory: &Path) -> Self {
        for guest in [TinyGuest::Hello, TinyGuest::Flood, TinyGuest::Restart] {
            std::fs::write(directory.join(format!("{guest:?}")), bzimage(guest)).unwrap();
        }
        std::fs::write(directory.join("initrd"), [0; 512]).unwrap();
        Self { directory: directory.to_owned(), disks: Vec::new() }
    }
}

impl TinyGuests for Kernels {
    fn plan(&self, guest: TinyGuest, runtime_dir: &Path, console_log: &Path) -> LaunchPlan {
        let disk = |(number, image): (usize, &DiskImage)| PlannedDisk {
            role: format!("disk{number}"),
            image: image.clone(),
            read_only: false,
            limits: DiskLimits::default(),
        };
        LaunchPlan {
            id: VmId::random(),
            op_id: banger_types::OperationId::random(),
            name: "tiny".parse().unwrap(),
            vcpus: 1.try_into().unwrap(),
            memory: 128.try_into().unwrap(),
            bzimage: self.directory.join(format!("{guest:?}")),
            vmlinux: self.directory.join("no-vmlinux"),
            initrd: self.directory.join("initrd"),
            kernel_args: "banger.test=1".to_owned(),
            disks: self.disks.iter().enumerate().map(disk).collect(),
            nic: Some(Nic::User { outbound: false }),
            runtime_dir: runtime_dir.to_owned(),
            console_log: console_log.to_owned(),
        }
    }
}

fn bzimage(guest: TinyGuest) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1; // setup sectors behind the boot sector
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]); // jmp CODE
    image[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x0206_u16.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes()); // highest initrd address
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes()); // longest command line

    let [low, high] = u16::try_from(MESSAGE).unwrap().to_le_bytes();
    let mut code = vec![
        0x8c, 0xc8, // mov ax, cs
        0x2d, 0x20, 0x00, // sub ax, 0x20
        0x8e, 0xd8, // mov ds, ax
        0xfa, 0xfc, // cli; cld
        0xbe, low, high, // again: mov si, MESSAGE
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x06, // jz done
        0xba, 0xf8, 0x03, // mov dx, 0x3f8 (the serial port)
        0xee, // out dx, al
        0xeb, 0xf5, // jmp next
    ];
    let message: &[u8] = match guest {
        TinyGuest::Hello => {
            code.extend([0xf4, 0xeb, 0xfd]); // done: hlt; jmp done
            b"hello from the guest\r\n"
        }
        TinyGuest::Flood => {
            code.extend([0xeb, 0xf0]); // done: jmp again
            b"flood \x1b[31m flood flood flood flood flood flood flood\r\n"
        }
        // An interrupt without an interrupt table is a triple fault, which resets the machine.
        TinyGuest::Restart | TinyGuest::Missing => {
            code.extend([0x0f, 0x01, 0x1e, 0x00, 0x02 + 0x0c, 0xcc]); // lidt [zeros]; int3
            b"restarting\r\n"
        }
    };
    image[CODE..CODE + code.len()].copy_from_slice(&code);
    image[MESSAGE..MESSAGE + message.len()].copy_from_slice(message);
    image
}
