//! The twenty methods.

use std::fmt;

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A method of the helper.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Method { $($(#[$doc])* $variant,)* }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

methods! {
    /// Makes the bridge, and the firewall's static rules.
    EnsureBridge = "priv.ensure_bridge",
    /// Makes a tap that the owner may open.
    CreateTap = "priv.create_tap",
    /// Ends a tap.
    DeleteTap = "priv.delete_tap",
    /// Sends questions for `.vm` to `bangerd`.
    SyncResolverRouting = "priv.sync_resolver_routing",
    /// Undoes that.
    ClearResolverRouting = "priv.clear_resolver_routing",
    /// Lets a guest out, or no longer.
    EnsureNat = "priv.ensure_nat",
    /// Makes a copy-on-write block device.
    CreateDmSnapshot = "priv.create_dm_snapshot",
    /// Ends all that a snapshot is made of.
    CleanupDmSnapshot = "priv.cleanup_dm_snapshot",
    /// Ends a device-mapper device.
    RemoveDmSnapshot = "priv.remove_dm_snapshot",
    /// Checks and repairs the file system on a snapshot.
    FsckSnapshot = "priv.fsck_snapshot",
    /// Reads a file of an ext4 image.
    ReadExt4File = "priv.read_ext4_file",
    /// Writes files into an ext4 image.
    WriteExt4Files = "priv.write_ext4_files",
    /// Finds the firecracker that may be launched.
    ResolveFirecrackerBinary = "priv.resolve_firecracker_binary",
    /// Starts Firecracker in a jail.
    LaunchFirecracker = "priv.launch_firecracker",
    /// Gives a socket to the owner.
    EnsureSocketAccess = "priv.ensure_socket_access",
    /// Finds the Firecracker of an API socket.
    FindFirecrackerPid = "priv.find_firecracker_pid",
    /// Kills a Firecracker.
    KillProcess = "priv.kill_process",
    /// Sends a signal to a Firecracker.
    SignalProcess = "priv.signal_process",
    /// Says whether a Firecracker runs.
    ProcessRunning = "priv.process_running",
    /// Removes a jail.
    CleanupJailerChroot = "priv.cleanup_jailer_chroot",
}

impl Method {
    /// The method of a name; none if no method has it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|method| method.name() == name)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twenty_and_each_is_found_by_its_name() {
        assert_eq!(Method::ALL.len(), 20);
        for method in Method::ALL {
            assert_eq!(Method::named(method.name()), Some(*method));
        }
        assert_eq!(Method::named("priv.exec"), None);
    }
}
