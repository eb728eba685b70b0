//! The kernel's device-mapper, by its own ioctls (`<linux/dm-ioctl.h>`, Linux
//! `Documentation/admin-guide/device-mapper/`).
//!
//! A device lives in four steps: [`DeviceMapper::create`] gives it a name and a UUID, which is a word
//! of its maker's and finds it from then on, [`DeviceMapper::load`] a table,
//! [`DeviceMapper::resume`] makes the table live, [`DeviceMapper::remove`] ends it. Its node is
//! `/dev/dm-MINOR`, which the kernel makes by itself; nothing here waits for udev.

use std::fs::File;
use std::io::{self, ErrorKind};

use crate::ioctl::{Buffer, if_there, text_at, u32_at, u64_at, with_buffer};

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`.
const HEADER: usize = 312;
/// `struct dm_target_spec`.
const TARGET: usize = 40;
/// The version of the interface that is spoken: 4.0.0 has everything used here.
const VERSION: [u32; 3] = [4, 0, 0];
/// Room for answers; a table's status is a line.
const ANSWER: usize = 64 << 10;
const LONGEST_NAME: usize = 127;
const LONGEST_TYPE: usize = 15;
const LONGEST_PARAMETERS: usize = 16 << 10;

const OFFSET_DATA_SIZE: usize = 12;
const OFFSET_DATA_START: usize = 16;
const OFFSET_TARGET_COUNT: usize = 20;
const OFFSET_OPEN_COUNT: usize = 24;
const OFFSET_FLAGS: usize = 28;
const OFFSET_DEVICE: usize = 40;
const OFFSET_NAME: usize = 48;
const OFFSET_UUID: usize = 176;

const PERSISTENT_DEVICE: u32 = 1 << 3;
const STATUS_TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;

/// The commands used here: `_IOWR(0xfd, number, struct dm_ioctl)`.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Load = 9,
    TableStatus = 12,
}

impl Command {
    fn request(self) -> u64 {
        (3 << 30) | ((HEADER as u64) << 16) | (0xfd << 8) | self as u64
    }
}

/// Whether a name is one: the kernel and a path can carry it.
fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it begins, in sectors of 512 bytes.
    pub start: u64,
    /// How long it is, in sectors of 512 bytes.
    pub length: u64,
    /// What maps it, such as `snapshot`.
    pub kind: String,
    /// The words for that.
    pub parameters: String,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number, as `stat(2)` has it; its node is `/dev/dm-MINOR`.
    pub number: u64,
    /// How many have it open, itself not counted.
    pub users: u32,
    /// The targets of its live table, with what they say of themselves.
    pub targets: Vec<Target>,
}

/// The device-mapper of this host.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens the control device; none where the kernel has no device-mapper, and so none of its
    /// devices.
    ///
    /// # Errors
    /// No right to.
    pub fn open() -> io::Result<Option<Self>> {
        let control = if_there(File::options().read(true).write(true).open(CONTROL))?;
        Ok(control.map(|control| Self { control }))
    }

    fn run(&self, command: Command, uuid: &str, mut buffer: Buffer) -> io::Result<Vec<u8>> {
        if !is_name(uuid) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "no name of a device"));
        }
        let size = buffer.len();
        for (index, number) in VERSION.into_iter().enumerate() {
            buffer.put_u32(index * 4, number);
        }
        buffer.put_u32(OFFSET_DATA_SIZE, u32::try_from(size).unwrap_or(u32::MAX));
        buffer.put_u32(OFFSET_DATA_START, u32::try_from(HEADER).unwrap_or(u32::MAX));
        buffer.put(OFFSET_UUID, uuid.as_bytes());
        // The kernel copies `data_size` bytes in and at most as many out.
        with_buffer(&self.control, command.request(), size, &mut buffer)?;
        let bytes = buffer.bytes();
        if u32_at(&bytes, OFFSET_FLAGS) & BUFFER_FULL != 0 {
            return Err(io::Error::new(ErrorKind::InvalidData, "the answer is too long"));
        }
        Ok(bytes)
    }

    /// Makes a device without a table.
    ///
    /// # Errors
    /// A name or UUID that is taken (`ResourceBusy`), a minor number that is (ENXIO); one that is none.
    pub fn create(&self, name: &str, uuid: &str, minor: u32) -> io::Result<u64> {
        if !is_name(name) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "no name of a device"));
        }
        let mut buffer = Buffer::zeroed(HEADER);
        buffer.put(OFFSET_NAME, name.as_bytes());
        buffer.put_u32(OFFSET_FLAGS, PERSISTENT_DEVICE);
        // The kernel's `huge_encode_dev`, which is the C library's, too.
        buffer.put(OFFSET_DEVICE, &libc::makedev(0, minor).to_ne_bytes());
        let answer = self.run(Command::Create, uuid, buffer)?;
        Ok(u64_at(&answer, OFFSET_DEVICE))
    }

    /// Gives a device a table of one row, which lives from the next [`DeviceMapper::resume`] on.
    ///
    /// # Errors
    /// A table that the kernel does not take; its log says why.
    pub fn load(&self, uuid: &str, target: &Target) -> io::Result<()> {
        let row = row(target).ok_or(ErrorKind::InvalidInput)?;
        let mut buffer = Buffer::zeroed(HEADER + row.len());
        buffer.put(HEADER, &row);
        buffer.put_u32(OFFSET_TARGET_COUNT, 1);
        self.run(Command::Load, uuid, buffer).map(drop)
    }

    /// Makes the loaded table live.
    ///
    /// # Errors
    /// No such device.
    pub fn resume(&self, uuid: &str) -> io::Result<()> {
        self.run(Command::Suspend, uuid, Buffer::zeroed(HEADER)).map(drop)
    }

    /// A device as it is, its targets with their parameters if `as_loaded`; none if there is none of
    /// that UUID.
    ///
    /// # Errors
    /// More targets than fit the answer.
    pub fn find(&self, uuid: &str, as_loaded: bool) -> io::Result<Option<Device>> {
        let mut buffer = Buffer::zeroed(ANSWER);
        buffer.put_u32(OFFSET_FLAGS, if as_loaded { STATUS_TABLE } else { 0 });
        let answer = if_there(self.run(Command::TableStatus, uuid, buffer))?;
        Ok(answer.map(|answer| Device {
            number: u64_at(&answer, OFFSET_DEVICE),
            users: u32_at(&answer, OFFSET_OPEN_COUNT),
            targets: rows(&answer),
        }))
    }

    /// Ends a device; false if there was none.
    ///
    /// # Errors
    /// A device that is in use (`ResourceBusy`).
    pub fn remove(&self, uuid: &str) -> io::Result<bool> {
        let removed = self.run(Command::Remove, uuid, Buffer::zeroed(HEADER));
        if_there(removed).map(|removed| removed.is_some())
    }
}

/// A target as the kernel reads it: the structure, its parameters with a NUL, padded to 8 bytes;
/// none of words that do not fit the kernel's structures.
fn row(target: &Target) -> Option<Vec<u8>> {
    let has_nul = [&target.kind, &target.parameters].iter().any(|text| text.contains('\0'));
    if has_nul || target.kind.len() > LONGEST_TYPE || target.parameters.len() > LONGEST_PARAMETERS {
        return None;
    }
    let length = (TARGET + target.parameters.len() + 1).next_multiple_of(8);
    let mut bytes = vec![0; length];
    bytes[..8].copy_from_slice(&target.start.to_ne_bytes());
    bytes[8..16].copy_from_slice(&target.length.to_ne_bytes());
    bytes[20..24].copy_from_slice(&u32::try_from(length).ok()?.to_ne_bytes());
    bytes[24..24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
    bytes[TARGET..TARGET + target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
    Some(bytes)
}

/// Reads the targets of an answer. Their `next` counts from the first of them.
fn rows(answer: &[u8]) -> Vec<Target> {
    let start = u32_at(answer, OFFSET_DATA_START) as usize;
    let count = u32_at(answer, OFFSET_TARGET_COUNT);
    let mut found = Vec::new();
    let mut at = start;
    for _ in 0..count {
        if at < start || at + TARGET > answer.len() {
            break;
        }
        found.push(Target {
            start: u64_at(answer, at),
            length: u64_at(answer, at + 8),
            kind: text_at(answer, at + 24, LONGEST_TYPE + 1),
            parameters: text_at(answer, at + TARGET, LONGEST_PARAMETERS),
        });
        let next = start + u32_at(answer, at + 20) as usize;
        if next <= at {
            break;
        }
        at = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for bad in ["", ".", "..", ".x", "a/b", "a b", "a\0", "ä", &long] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(is_name("bgr-a_1.x"));
    }

    fn target(kind: &str, parameters: &str) -> Target {
        Target { start: 8, length: 16, kind: kind.to_owned(), parameters: parameters.to_owned() }
    }

    #[test]
    fn targets_that_do_not_fit_are_refused() {
        for bad in [
            target("a kind that is too long", ""),
            target("x\0", ""),
            target("x", "a\0b"),
            target("x", &"y".repeat(LONGEST_PARAMETERS + 1)),
        ] {
            assert!(row(&bad).is_none());
        }
    }

    #[test]
    fn a_table_reads_as_it_was_written() {
        let table = [target("snapshot", "/dev/loop0 /dev/loop1 P 8"), target("zero", "")];
        let mut answer = vec![0; HEADER];
        let mut end = 0;
        for one in &table {
            let mut bytes = row(one).unwrap();
            // In answers `next` counts from the first target.
            end += bytes.len();
            bytes[20..24].copy_from_slice(&u32::try_from(end).unwrap().to_ne_bytes());
            answer.extend(bytes);
        }
        answer[OFFSET_DATA_START..][..4].copy_from_slice(&312_u32.to_ne_bytes());
        answer[OFFSET_TARGET_COUNT..][..4].copy_from_slice(&2_u32.to_ne_bytes());
        assert_eq!(rows(&answer), table);
        // A `next` that leads nowhere ends the reading.
        answer[HEADER + 20..][..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(rows(&answer).len(), 1);
        answer[OFFSET_DATA_START..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(rows(&answer), []);
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(libc::makedev(253, 0x102), 0x0010_fd02);
        for minor in [0, 0xff, 0x100, 0xfffff] {
            let huge = u64::from(minor & 0xff) | (u64::from(minor & !0xff) << 12);
            assert_eq!(libc::makedev(0, minor), huge);
        }
        assert_eq!(Command::Create.request(), 0xc138_fd03);
    }
}
