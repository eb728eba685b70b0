//! Parameters of the methods on disks. Paths are absolute and below the state directory.

use serde::{Deserialize, Serialize};

use crate::Base64;

/// Whether the host is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// False if all was as asked for already.
    pub changed: bool,
}

parameters! {
    /// Parameters of `priv.create_dm_snapshot`.
    pub struct CreateDmSnapshotParams {
        /// The image that is read.
        pub rootfs_path: String,
        /// The sparse file that takes what is written.
        pub cow_path: String,
        /// Begins with `fc-rootfs-`.
        pub dm_name: String,
    }

    /// What a snapshot is made of: the result of `priv.create_dm_snapshot` and the parameters of
    /// `priv.cleanup_dm_snapshot`, where a blank field is something that is not there.
    #[derive(Default)]
    #[serde(default)]
pub struct SnapshotHandles {
        /// `/dev/loopN` of the image.
        pub base_loop: String,
        /// `/dev/loopN` of the file that takes what is written.
        pub cow_loop: String,
        /// The device's name.
        pub dm_name: String,
        /// `/dev/mapper/NAME`.
        pub dm_dev: String,
    }

    /// Parameters of `priv.remove_dm_snapshot`.
    pub struct RemoveDmSnapshotParams {
        /// A device's name or its `/dev/mapper/NAME`.
        pub target: String,
    }

    /// Parameters of `priv.fsck_snapshot`.
    pub struct FsckSnapshotParams {
        /// `/dev/mapper/NAME`.
        pub dm_dev: String,
    }

    /// Parameters of `priv.read_ext4_file`.
    pub struct ReadExt4FileParams {
        /// An image below the state directory, or `/dev/mapper/NAME` of a snapshot.
        pub image_path: String,
        /// The file's path inside.
        pub guest_path: String,
    }
}

/// Result of `priv.read_ext4_file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadExt4FileResult {
    /// The content, at most 16 MiB.
    pub data: Base64,
}

parameters! {
    /// Parameters of `priv.write_ext4_files`.
    pub struct WriteExt4FilesParams {
        /// An image below the state directory, or `/dev/mapper/NAME` of a snapshot.
        pub image_path: String,
        /// What to write, in this order; the first failure ends it.
        pub files: Vec<Ext4File>,
    }

    /// One file to write, owner 0:0.
    pub struct Ext4File {
        /// The file's path inside.
        pub guest_path: String,
        /// The content.
        pub data: Base64,
        /// Permission bits; 0 means 0644.
        #[serde(default)]
        pub mode: u32,
    }
}
