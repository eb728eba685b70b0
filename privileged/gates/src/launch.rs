//! What a machine may be made of.

use crate::name::{is_word, proven};
use crate::{Name, Refusal, Result};

/// The kernel's COMMAND_LINE_SIZE on x86 is 2048 with its NUL byte.
const LONGEST_ARGUMENTS: usize = 2047;
const LEAST_MEMORY_MIB: u64 = 128;

proven! {
    /// A VM's id as the jailer takes it: 1 to 64 of `A-Z a-z 0-9 -`, a letter or digit first, so
    /// that it is no option and no path.
    JailId: |text| is_word(text, 1..=64, b"-") && !text.starts_with('-'),
    "an id has 1 to 64 of A-Z a-z 0-9 -, a letter or digit first"
}
proven! {
    /// A drive's id: 1 to 64 of `A-Z a-z 0-9 _`.
    DriveId: |text| is_word(text, 1..=64, b"_"),
    "a drive's id has 1 to 64 of A-Z a-z 0-9 _"
}
proven! {
    /// A kernel's command line: at most 2047 bytes of printable ASCII.
    KernelArguments: |text| {
        let is_good = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        text.len() <= LONGEST_ARGUMENTS && text.bytes().all(is_good)
    },
    "a kernel's command line is at most 2047 bytes of printable ASCII"
}

/// A number within bounds, which may depend on the host.
macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident($number:ty$(, $host:ident)?): $bounds:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name($number);

        impl $name {
            /// Checks a number.
            ///
            /// # Errors
            /// A number out of bounds.
            pub fn parse(
                parameter: Name,
                number: $number,
                $($host: $number,)?
            ) -> Result<Self> {
                Refusal::when(!$bounds.contains(&number), parameter, $rule)?;
                Ok(Self(number))
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> $number {
                self.0
            }
        }
    };
}

bounded! {
    /// Virtual CPUs: 1 to 32, what Firecracker takes.
    VcpuCount(u32): (1..=32), "a machine has 1 to 32 virtual CPUs"
}
bounded! {
    /// Memory in MiB: 128 up to what the host has.
    MemoryMib(u64, host_mib): (LEAST_MEMORY_MIB..=host_mib),
    format!("a machine has {LEAST_MEMORY_MIB} to {host_mib} MiB of memory")
}
bounded! {
    /// A vsock context id: 3 or more, below the reserved last one (vsock(7)).
    ContextId(u32): (3..u32::MAX), "a context id is 3 or more; 4294967295 is reserved"
}
