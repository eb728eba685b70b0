//! The kernel's device-mapper, by its own ioctls (`<linux/dm-ioctl.h>`, Linux
//! `Documentation/admin-guide/device-mapper/`).
//!
//! A device lives in four steps: [`DeviceMapper::create`] gives it a name, [`DeviceMapper::load`] a
//! table, [`DeviceMapper::resume`] makes the table live, [`DeviceMapper::remove`] ends it. Its node
//! is `/dev/dm-MINOR`, which the kernel makes by itself; nothing here waits for udev.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::ioctl::{Buffer, text_at, u32_at, u64_at, with_buffer};

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`.
const HEADER: usize = 312;
/// `struct dm_target_spec`.
const TARGET: usize = 40;
/// The version of the interface that is spoken: 4.0.0 has everything used here.
const VERSION: [u32; 3] = [4, 0, 0];
/// Room for answers; a table's status is a line, a list of devices has 40 bytes for each.
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

const READ_ONLY: u32 = 1 << 0;
const SUSPEND: u32 = 1 << 1;
const BUFFER_FULL: u32 = 1 << 8;

/// The commands used here: `_IOWR(0xfd, number, struct dm_ioctl)`.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Command {
    List = 2,
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

/// Why the device-mapper did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DeviceMapperError {
    /// There is no device-mapper, or no right to use it.
    #[error("open {CONTROL}")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{operation} device-mapper device {name}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// The device.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A name that the kernel or a path could not carry.
    #[error("a device-mapper name has 1 to 127 of A-Z a-z 0-9 . _ -, the first not a dot: {0:?}")]
    Name(String),
    /// A target whose words do not fit the kernel's structures.
    #[error("a device-mapper target that is too long, or holds a NUL byte")]
    Target,
}

/// The name of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DmName(String);

impl FromStr for DmName {
    type Err = DeviceMapperError;

    fn from_str(text: &str) -> Result<Self, DeviceMapperError> {
        let good = (1..=LONGEST_NAME).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if good { Ok(Self(text.to_owned())) } else { Err(DeviceMapperError::Name(text.to_owned())) }
    }
}

impl fmt::Display for DmName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
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

/// The number of a device; its node is [`DeviceNumber::path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's own.
    pub minor: u32,
}

impl DeviceNumber {
    /// The kernel's encoding in this interface (`huge_encode_dev`).
    fn decode(device: u64) -> Self {
        let major = (device >> 8) & 0xfff;
        let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self { major: number(major), minor: number(minor) }
    }

    /// The node that the kernel makes.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.minor))
    }
}

/// The device-mapper of this host.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens the control device.
    ///
    /// # Errors
    /// No module, or no right to.
    pub fn open() -> Result<Self, DeviceMapperError> {
        let control = File::options().read(true).write(true).open(CONTROL);
        Ok(Self { control: control.map_err(DeviceMapperError::Open)? })
    }

    fn run(&self, command: Command, mut buffer: Buffer) -> io::Result<Vec<u8>> {
        let size = buffer.len();
        for (index, number) in VERSION.into_iter().enumerate() {
            buffer.put_u32(index * 4, number);
        }
        buffer.put_u32(OFFSET_DATA_SIZE, u32::try_from(size).unwrap_or(u32::MAX));
        buffer.put_u32(OFFSET_DATA_START, u32::try_from(HEADER).unwrap_or(u32::MAX));
        // The kernel copies `data_size` bytes in and at most as many out.
        with_buffer(&self.control, command.request(), size, &mut buffer)?;
        let bytes = buffer.bytes();
        if u32_at(&bytes, OFFSET_FLAGS) & BUFFER_FULL != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        Ok(bytes)
    }

    fn on(
        &self,
        command: Command,
        operation: &'static str,
        name: &DmName,
        mut buffer: Buffer,
        flags: u32,
    ) -> Result<Vec<u8>, DeviceMapperError> {
        buffer.put(OFFSET_NAME, name.0.as_bytes());
        buffer.put_u32(OFFSET_FLAGS, flags);
        self.run(command, buffer).map_err(|source| DeviceMapperError::Refused {
            operation,
            name: name.to_string(),
            source,
        })
    }

    /// Makes a device without a table.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn create(&self, name: &DmName) -> Result<DeviceNumber, DeviceMapperError> {
        let answer = self.on(Command::Create, "create", name, Buffer::zeroed(HEADER), 0)?;
        Ok(DeviceNumber::decode(u64_at(&answer, OFFSET_DEVICE)))
    }

    /// Gives a device a table, which lives from the next [`DeviceMapper::resume`] on.
    ///
    /// # Errors
    /// A table that the kernel does not take; its log says why.
    pub fn load(
        &self,
        name: &DmName,
        table: &[Target],
        read_only: bool,
    ) -> Result<(), DeviceMapperError> {
        let mut rows = Vec::new();
        for target in table {
            rows.extend(row(target)?);
        }
        let mut buffer = Buffer::zeroed(HEADER + rows.len());
        buffer.put(HEADER, &rows);
        buffer.put_u32(OFFSET_TARGET_COUNT, u32::try_from(table.len()).unwrap_or(u32::MAX));
        let flags = if read_only { READ_ONLY } else { 0 };
        self.on(Command::Load, "load a table into", name, buffer, flags).map(drop)
    }

    /// Makes the loaded table live.
    ///
    /// # Errors
    /// No such device.
    pub fn resume(&self, name: &DmName) -> Result<(), DeviceMapperError> {
        self.on(Command::Suspend, "resume", name, Buffer::zeroed(HEADER), 0).map(drop)
    }

    /// Stops a device: what was written is on its way no longer but done, and what comes waits.
    ///
    /// # Errors
    /// No such device.
    pub fn suspend(&self, name: &DmName) -> Result<(), DeviceMapperError> {
        self.on(Command::Suspend, "suspend", name, Buffer::zeroed(HEADER), SUSPEND).map(drop)
    }

    /// What the targets of the live table say about themselves, in place of their parameters.
    ///
    /// # Errors
    /// No such device.
    pub fn status(&self, name: &DmName) -> Result<Vec<Target>, DeviceMapperError> {
        let buffer = Buffer::zeroed(ANSWER);
        let answer = self.on(Command::TableStatus, "ask", name, buffer, 0)?;
        Ok(rows(&answer))
    }

    /// Ends a device; false if there was none.
    ///
    /// # Errors
    /// A device that is in use.
    pub fn remove(&self, name: &DmName) -> Result<bool, DeviceMapperError> {
        match self.on(Command::Remove, "remove", name, Buffer::zeroed(HEADER), 0) {
            Ok(_) => Ok(true),
            Err(DeviceMapperError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::ENXIO) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// How many have the device open, itself not counted.
    ///
    /// # Errors
    /// No such device.
    pub fn users(&self, name: &DmName) -> Result<u32, DeviceMapperError> {
        let buffer = Buffer::zeroed(ANSWER);
        let answer = self.on(Command::TableStatus, "ask", name, buffer, 0)?;
        Ok(u32_at(&answer, OFFSET_OPEN_COUNT))
    }

    /// All devices of this host with their names.
    ///
    /// # Errors
    /// More devices than fit the answer.
    pub fn list(&self) -> Result<Vec<(String, DeviceNumber)>, DeviceMapperError> {
        let answer = self.run(Command::List, Buffer::zeroed(ANSWER)).map_err(|source| {
            DeviceMapperError::Refused { operation: "list every", name: String::new(), source }
        })?;
        Ok(names(&answer))
    }
}

/// A target as the kernel reads it: the structure, its parameters with a NUL, padded to 8 bytes.
fn row(target: &Target) -> Result<Vec<u8>, DeviceMapperError> {
    let has_nul = [&target.kind, &target.parameters].iter().any(|text| text.contains('\0'));
    if has_nul || target.kind.len() > LONGEST_TYPE || target.parameters.len() > LONGEST_PARAMETERS {
        return Err(DeviceMapperError::Target);
    }
    let length = (TARGET + target.parameters.len() + 1).next_multiple_of(8);
    let mut bytes = vec![0; length];
    bytes[..8].copy_from_slice(&target.start.to_ne_bytes());
    bytes[8..16].copy_from_slice(&target.length.to_ne_bytes());
    let next = u32::try_from(length).map_err(|_| DeviceMapperError::Target)?;
    bytes[20..24].copy_from_slice(&next.to_ne_bytes());
    bytes[24..24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
    bytes[TARGET..TARGET + target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
    Ok(bytes)
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

/// Reads the list of devices: number, offset of the next (0 at the last), name.
fn names(answer: &[u8]) -> Vec<(String, DeviceNumber)> {
    let mut at = u32_at(answer, OFFSET_DATA_START) as usize;
    let mut found = Vec::new();
    while at + 12 < answer.len() {
        let device = u64_at(answer, at);
        if device == 0 {
            break;
        }
        let name = text_at(answer, at + 12, LONGEST_NAME + 1);
        found.push((name, DeviceNumber::decode(device)));
        match u32_at(answer, at + 8) as usize {
            0 => break,
            next => at += next,
        }
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
            assert!(bad.parse::<DmName>().is_err(), "{bad:?}");
        }
        assert_eq!("bgr-a_1.x".parse::<DmName>().unwrap().to_string(), "bgr-a_1.x");
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
            assert!(row(&bad).is_err());
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
        assert_eq!(names(&answer), []);
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        let number = DeviceNumber::decode(0x0010_fd02);
        assert_eq!(number, DeviceNumber { major: 253, minor: 0x102 });
        assert_eq!(number.path(), PathBuf::from("/dev/dm-258"));
        assert_eq!(Command::Create.request(), 0xc138_fd03);
    }
}
