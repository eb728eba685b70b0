//! Whether guests can run on this host's processor through KVM, found out by trying.
//!
//! A `/dev/kvm` that opens is not enough. On a host that is itself a guest without nested
//! virtualisation, a paravirtual KVM (PVM) offers the device although the processor has neither VMX
//! nor SVM; a stock guest kernel there runs in an instruction emulator, about a thousand times slower
//! than on a processor and far slower than under QEMU's translator.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use banger_engine::seams::Acceleration;
use kvm_ioctls::Kvm;

/// The only version of the KVM interface there has been since Linux 2.6.22
/// (`Documentation/virt/kvm/api.rst`, KVM_GET_API_VERSION).
const KVM_API_VERSION: i32 = 12;
const KVM_DEVICE: &str = "/dev/kvm";

/// How the user wants guest instructions to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelerationChoice {
    /// KVM where it is usable, else TCG.
    #[default]
    Auto,
    /// KVM, or nothing.
    Kvm,
    /// TCG, even where KVM is usable.
    Tcg,
}

/// An acceleration's name was not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an acceleration is auto, kvm or tcg")]
pub struct UnknownAcceleration;

impl std::str::FromStr for AccelerationChoice {
    type Err = UnknownAcceleration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(UnknownAcceleration),
        }
    }
}

/// What became of trying KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmStatus {
    /// A virtual machine could be created and the processor has hardware virtualisation.
    Usable,
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` is there, but this user may not open it.
    Forbidden,
    /// KVM is there and the processor has neither VMX nor SVM.
    WithoutHardware,
    /// Something else failed.
    Broken {
        /// What, in printable words.
        problem: String,
    },
}

impl KvmStatus {
    /// Says the status in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Usable => "KVM is usable".to_owned(),
            Self::Missing => format!("there is no {KVM_DEVICE}"),
            Self::Forbidden => format!("this user may not open {KVM_DEVICE}"),
            Self::WithoutHardware => {
                "KVM is there but has no hardware virtualisation (PVM): guests would run in an \
                 instruction emulator about a thousand times slower"
                    .to_owned()
            }
            Self::Broken { problem } => format!("KVM does not work: {problem}"),
        }
    }

    /// Says what the user can do about it, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Usable => None,
            Self::Missing => Some(
                "switch virtualisation on in the firmware and load kvm_intel or kvm_amd; inside \
                 a virtual machine, ask its host for nested virtualisation",
            ),
            Self::Forbidden => {
                Some("add the user to the group that owns /dev/kvm: sudo usermod -aG kvm $USER")
            }
            Self::WithoutHardware => {
                Some("ask this machine's host for nested virtualisation; until then TCG is faster")
            }
            Self::Broken { .. } => None,
        }
    }
}

/// What this host offers and what was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// What became of trying KVM.
    pub kvm: KvmStatus,
    /// What guests will run on.
    pub chosen: Acceleration,
    /// Why, in one line.
    pub reason: String,
}

/// Tries KVM and chooses. Takes well below a millisecond.
#[must_use]
pub fn host_report(choice: AccelerationChoice) -> HostReport {
    decide(choice, try_kvm(Path::new(KVM_DEVICE)))
}

fn decide(choice: AccelerationChoice, kvm: KvmStatus) -> HostReport {
    let usable = kvm == KvmStatus::Usable;
    let (chosen, reason) = match choice {
        AccelerationChoice::Tcg => (
            Acceleration::Tcg,
            "TCG (software): asked for; guests run slower than on KVM".to_owned(),
        ),
        _ if usable => (Acceleration::Kvm, "KVM: hardware virtualisation is usable".to_owned()),
        _ => (Acceleration::Tcg, format!("TCG (software): {}", kvm.describe())),
    };
    HostReport { kvm, chosen, reason }
}

fn try_kvm(device: &Path) -> KvmStatus {
    // Opened by std first, for an error that tells a missing device from a forbidden one.
    let opened = OpenOptions::new().read(true).write(true).open(device);
    if let Err(error) = &opened
        && error.kind() == io::ErrorKind::NotFound
    {
        return KvmStatus::Missing;
    }
    // Before permission: without the hardware, being let in would be of no use.
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(cpuinfo) if !has_hardware_virtualisation(&cpuinfo) => KvmStatus::WithoutHardware,
        Err(error) => KvmStatus::Broken { problem: format!("reading /proc/cpuinfo: {error}") },
        Ok(_) => match opened {
            Ok(_) => create_probe_vm(device),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => KvmStatus::Forbidden,
            Err(error) => {
                let problem = format!("opening {}: {error}", device.display());
                KvmStatus::Broken { problem }
            }
        },
    }
}

/// Creates a virtual machine, which exists for the length of this call.
fn create_probe_vm(device: &Path) -> KvmStatus {
    let broken = |problem: String| KvmStatus::Broken { problem };
    let Ok(path) = std::ffi::CString::new(device.as_os_str().as_encoded_bytes()) else {
        return broken("the device's path holds a NUL byte".to_owned());
    };
    let kvm = match Kvm::new_with_path(path) {
        Ok(kvm) => kvm,
        Err(error) => return broken(format!("opening {}: {error}", device.display())),
    };
    match kvm.get_api_version() {
        KVM_API_VERSION => {}
        version => {
            return broken(format!("its interface has version {version}, not {KVM_API_VERSION}"));
        }
    }
    match kvm.create_vm() {
        Ok(_) => KvmStatus::Usable,
        Err(error) => broken(format!("creating a virtual machine: {error}")),
    }
}

/// Returns whether the processor's flags hold `vmx` (Intel) or `svm` (AMD).
fn has_hardware_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flag_of_its_own_counts() {
        assert!(has_hardware_virtualisation("model : x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_hardware_virtualisation("flags : svm\n"));
        for without in ["", "flags : fpu svm_lock vmxx\n", "bugs : svm\n", "vmx flags : x\n"] {
            assert!(!has_hardware_virtualisation(without), "{without:?}");
        }
    }

    #[test]
    fn a_device_that_is_none_is_told_apart() {
        assert_eq!(try_kvm(Path::new("/dev/no-such-kvm")), KvmStatus::Missing);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_ne!(try_kvm(file.path()), KvmStatus::Usable);
        assert!(matches!(create_probe_vm(file.path()), KvmStatus::Broken { .. }));
    }

    #[test]
    fn the_choice_follows_the_probe_unless_the_user_says_otherwise() {
        use AccelerationChoice::{Auto, Kvm, Tcg};
        assert_eq!(decide(Auto, KvmStatus::Usable).chosen, Acceleration::Kvm);
        assert_eq!(decide(Tcg, KvmStatus::Usable).chosen, Acceleration::Tcg);
        assert_eq!(decide(Kvm, KvmStatus::Missing).chosen, Acceleration::Tcg);
        let report = decide(Auto, KvmStatus::WithoutHardware);
        assert_eq!(report.chosen, Acceleration::Tcg);
        assert!(report.reason.contains("PVM") && !report.reason.contains('\n'));
    }

    #[test]
    fn this_host_is_reported_without_contradiction() {
        let report = host_report(AccelerationChoice::Auto);
        assert_eq!(report.chosen == Acceleration::Kvm, report.kvm == KvmStatus::Usable);
    }
}
