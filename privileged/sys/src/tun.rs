//! Taps: network interfaces whose frames a process reads and writes (Documentation/networking/tuntap).

use std::fs::File;
use std::io;
use std::path::Path;

use crate::ioctl::{Buffer, with_buffer, with_number};

// <linux/if_tun.h>
const TUNSETIFF: u64 = 0x4004_54CA;
const TUNSETPERSIST: u64 = 0x4004_54CB;
const TUNSETOWNER: u64 = 0x4004_54CC;
const TUNSETGROUP: u64 = 0x4004_54CE;
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: whole frames, each with a `virtio_net_hdr` before it.
const KIND: u16 = 0x0002 | 0x1000 | 0x4000;
/// Fails with EBUSY where there is an interface of that name.
const IFF_TUN_EXCL: u16 = 0x8000;
/// `struct ifreq`: a name of 16 bytes, then a union of 24.
const IFREQ: usize = 40;
const LONGEST_NAME: usize = 15;

/// An open tap. One that is not persistent goes with its last descriptor.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes a tap, which must not be there.
    ///
    /// # Errors
    /// The kernel's; EBUSY (as `ResourceBusy`) if an interface has that name.
    pub fn create(name: &str) -> io::Result<Self> {
        Self::attach(name, KIND | IFF_TUN_EXCL)
    }

    /// Opens a tap that is there; makes it if it is not.
    ///
    /// # Errors
    /// The kernel's; `ResourceBusy` if another process has it open, `InvalidInput` if the interface
    /// is no tap of this kind.
    pub fn open(name: &str) -> io::Result<Self> {
        Self::attach(name, KIND)
    }

    fn attach(name: &str, flags: u16) -> io::Result<Self> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let device = File::options().read(true).write(true).open(Path::new("/dev/net/tun"))?;
        let mut request = Buffer::zeroed(IFREQ);
        request.put(0, name.as_bytes());
        request.put(16, &flags.to_ne_bytes());
        with_buffer(&device, TUNSETIFF, IFREQ, &mut request)?;
        Ok(Self(device))
    }

    /// Lets a user and a group open it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        with_number(&self.0, TUNSETOWNER, uid.into())?;
        with_number(&self.0, TUNSETGROUP, gid.into()).map(drop)
    }

    /// Makes it outlive its descriptors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn persist(&self) -> io::Result<()> {
        with_number(&self.0, TUNSETPERSIST, 1).map(drop)
    }

    /// The descriptor.
    #[must_use]
    pub fn into_file(self) -> File {
        self.0
    }
}
