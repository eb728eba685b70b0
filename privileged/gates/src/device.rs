//! Device-mapper and loop devices.

use banger_helper_api::SnapshotHandles;

use crate::name::{given, is_word, proven};
use crate::{Name, Refusal, Result};

const DM_PREFIX: &str = "fc-rootfs-";
const DM_FOLDER: &str = "/dev/mapper/";

proven! {
    /// The name of one of banger's snapshots: `fc-rootfs-` and 1 to 64 of `A-Z a-z 0-9 -`.
    DmName: |text| text.strip_prefix(DM_PREFIX).is_some_and(|rest| is_word(rest, 1..=64, b"-")),
    "a snapshot's name is fc-rootfs- and 1 to 64 of A-Z a-z 0-9 -"
}

/// A snapshot by its path `/dev/mapper/NAME`. The path is only its name on the wire: what is opened
/// is the device that the kernel has under that name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DmDevice(DmName);

impl DmDevice {
    /// Checks a path.
    ///
    /// # Errors
    /// A path that is not of that one form.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        let name = text.strip_prefix(DM_FOLDER);
        let name = name.ok_or_else(|| Refusal::new(parameter, "not /dev/mapper/NAME"))?;
        DmName::parse(parameter, name).map(Self)
    }

    /// The snapshot's name.
    #[must_use]
    pub fn name(&self) -> &DmName {
        &self.0
    }

    /// The path on the wire.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{DM_FOLDER}{}", self.0.as_str())
    }
}

/// A loop device by its path `/dev/loopN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoopDevice(u32);

impl LoopDevice {
    /// Checks a path.
    ///
    /// # Errors
    /// A path that is not of that one form; a minor number has 20 bits.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        let digits = text.strip_prefix("/dev/loop").unwrap_or_default();
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        let number = digits.parse().ok().filter(|number| is_plain && *number < 1 << 20);
        number.map(Self).ok_or_else(|| Refusal::new(parameter, "not /dev/loopN"))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What is left of a snapshot, each part that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotParts {
    /// The device.
    pub dm: Option<DmName>,
    /// The loop device that takes what is written.
    pub cow_loop: Option<LoopDevice>,
    /// The loop device of the image.
    pub base_loop: Option<LoopDevice>,
}

impl SnapshotParts {
    /// Checks each field that is not blank.
    ///
    /// # Errors
    /// A field that is not of its form, a name and a path of two devices, twice the same loop.
    pub fn parse(handles: &SnapshotHandles) -> Result<Self> {
        let name = given(&handles.dm_name, |text| DmName::parse("dm_name", text))?;
        let device = given(&handles.dm_dev, |text| DmDevice::parse("dm_dev", text))?;
        let device = device.map(|device| device.0);
        if let (Some(name), Some(device)) = (&name, &device)
            && name != device
        {
            return Err(Refusal::new("dm_dev", "another device than dm_name"));
        }
        let cow_loop = given(&handles.cow_loop, |text| LoopDevice::parse("cow_loop", text))?;
        let base_loop = given(&handles.base_loop, |text| LoopDevice::parse("base_loop", text))?;
        let rule = "the same device as base_loop";
        Refusal::when(cow_loop.is_some() && cow_loop == base_loop, "cow_loop", rule)?;
        Ok(Self { dm: name.or(device), cow_loop, base_loop })
    }
}
