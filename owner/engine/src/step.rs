//! The steps in which a VM is started, stopped and deleted.
//!
//! A step's name is stable: intents in the store and fault hooks use it.

use std::fmt;

macro_rules! steps {
    ($($(#[$doc:meta])* $variant:ident $name:literal $stage:literal,)*) => {
        /// One step on the host.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Step {
            $($(#[$doc])* $variant,)*
        }

        impl Step {
            /// All steps.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns what an operation in this step shows to people.
            #[must_use]
            pub const fn stage(self) -> &'static str {
                match self { $(Self::$variant => $stage,)* }
            }
        }
    };
}

steps! {
    /// Choose a VMM and look whether the host has room.
    CheckHost "check_host" "checking the host",
    /// Make the VM's directory.
    CreateVmDirectory "create_vm_directory" "making the VM's directory",
    /// Link the base image into it.
    LinkBaseImage "link_base_image" "linking the image",
    /// Make the copy-on-write root disk, or grow the disks that there are.
    CreateRootDisk "create_root_disk" "making the root disk",
    /// Make the work disk.
    CreateWorkDisk "create_work_disk" "making the work disk",
    /// Find or build the initial RAM disk.
    BuildInitrd "build_initrd" "building the initial RAM disk",
    /// Make the directory of the VM's sockets.
    CreateRuntimeDirectory "create_runtime_directory" "making the runtime directory",
    /// Make what the VMM opens of the root disk.
    AttachRootDisk "attach_root_disk" "attaching the root disk",
    /// Make the VM's tap on the bridge.
    AttachNetwork "attach_network" "attaching the network",
    /// Start the VMM with its CPUs held.
    LaunchVmm "launch_vmm" "starting the VMM",
    /// Write the VMM's identity down.
    WriteHandles "write_handles" "recording the VMM",
    /// Let the CPUs run.
    ResumeVmm "resume_vmm" "starting the guest",
    /// Wait for the agent's first word.
    WaitForAgent "wait_for_agent" "waiting for the guest",
    /// Tell the guest the time and who it is.
    SetIdentity "set_identity" "greeting the guest",
    /// Record the VM as running.
    RecordRunning "record_running" "recording the VM",
    /// Ask the guest to power off.
    StopGuest "stop_guest" "waiting for the guest to power off",
    /// End the VMM.
    EndVmm "end_vmm" "ending the VMM",
    /// Remove sockets and handles.
    CleanRuntime "clean_runtime" "removing the runtime directory",
    /// End what the VMM opened of the root disk.
    DetachRootDisk "detach_root_disk" "detaching the root disk",
    /// Remove the VM's tap.
    DetachNetwork "detach_network" "detaching the network",
    /// Remove the disks.
    RemoveDisks "remove_disks" "removing the disks",
    /// Remove the VM's directory.
    RemoveVmDirectory "remove_vm_directory" "removing the VM's directory",
    /// Remove the row.
    RemoveRow "remove_row" "removing the record",
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.stage())
    }
}

/// What is done with a machine, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a machine and start it.
    Create,
    /// Start one that there is.
    Start,
    /// Stop one.
    Stop,
    /// Remove one in any state.
    Delete,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 4] = [Self::Create, Self::Start, Self::Stop, Self::Delete];

    /// Returns the name that documentation and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }

    /// Returns its steps in their order. Those of the root disk and the network are also taken where
    /// there is nothing to attach.
    #[must_use]
    pub fn steps(self) -> Vec<Step> {
        use Step::{
            AttachNetwork, AttachRootDisk, BuildInitrd, CheckHost, CleanRuntime, CreateRootDisk,
            CreateRuntimeDirectory, CreateVmDirectory, CreateWorkDisk, DetachNetwork,
            DetachRootDisk, EndVmm, LaunchVmm, LinkBaseImage, RecordRunning, RemoveDisks,
            RemoveRow, RemoveVmDirectory, ResumeVmm, SetIdentity, StopGuest, WaitForAgent,
            WriteHandles,
        };
        const MAKE: [Step; 5] =
            [CheckHost, CreateVmDirectory, LinkBaseImage, CreateRootDisk, CreateWorkDisk];
        const FIND: [Step; 2] = [CheckHost, CreateRootDisk];
        const RUN: [Step; 10] = [
            BuildInitrd,
            CreateRuntimeDirectory,
            AttachRootDisk,
            AttachNetwork,
            LaunchVmm,
            WriteHandles,
            ResumeVmm,
            WaitForAgent,
            SetIdentity,
            RecordRunning,
        ];
        const END: [Step; 4] = [EndVmm, CleanRuntime, DetachRootDisk, DetachNetwork];
        const REMOVE: [Step; 3] = [RemoveDisks, RemoveVmDirectory, RemoveRow];
        match self {
            Self::Create => [&MAKE[..], &RUN].concat(),
            Self::Start => [&FIND[..], &RUN].concat(),
            Self::Stop => [&[StopGuest][..], &END].concat(),
            Self::Delete => [&END[..], &REMOVE].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_an_actions() {
        for step in Step::ALL {
            let has_it = |action: Action| action.steps().contains(step);
            assert!(Action::ALL.into_iter().any(has_it), "{}", step.name());
        }
    }
}
