//! The kernel command line's `banger.*` keys: how the host tells the agent what to boot.
//!
//! One type writes and reads them, so host and guest cannot disagree. The names contain a dot, so
//! the kernel takes them for parameters of a module and hands none of them to the init process.
//!
//! | key | value |
//! |---|---|
//! | `banger.root` | UUID of the root disk's file system |
//! | `banger.work` | UUID of the file system to mount at `/root` |
//! | `banger.modules` | UUID of a read-only file system with this kernel's modules |
//! | `banger.hostname` | the VM's name |
//! | `banger.ip` | `ADDRESS/PREFIX` of the first network interface |
//! | `banger.gw` | default gateway |
//! | `banger.dns` | up to three name servers, with commas |
//! | `banger.init` | `auto` (the image's init, or none), `none`, or a path |
//! | `banger.session` | 32 hexadecimal digits that name this start of the VM |
//! | `banger.end` | `power-off`, or `restart` where the machine has no other way to end |

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use banger_types::VmName;
use uuid::Uuid;

use crate::bytes_text::{GuestPath, Hex};

/// Everything the agent must know before it can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// File system UUID of the root disk.
    pub root: Uuid,
    /// File system UUID of the work disk.
    pub work: Option<Uuid>,
    /// File system UUID of the disk with kernel modules.
    pub modules: Option<Uuid>,
    /// The host name.
    pub hostname: Option<VmName>,
    /// The address of the first network interface.
    pub network: Option<StaticNetwork>,
    /// Who becomes PID 1.
    pub init: InitChoice,
    /// Names this start of the VM.
    pub session: Option<SessionToken>,
    /// How the machine ends.
    pub end: MachineEnd,
}

/// A static IPv4 configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticNetwork {
    /// The interface's address.
    pub address: Ipv4Addr,
    /// Bits of the network, 1 to 32.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, at most three (resolv.conf(5), MAXNS).
    pub dns: Vec<Ipv4Addr>,
}

/// Who becomes PID 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InitChoice {
    /// The image's init where it has one, else the agent.
    #[default]
    Auto,
    /// The agent.
    None,
    /// This program of the image.
    Path(GuestPath),
}

/// 16 bytes that name one start of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionToken(pub [u8; 16]);

/// How a machine ends when its system is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MachineEnd {
    /// It is powered off.
    #[default]
    PowerOff,
    /// It is restarted, which ends a VMM that knows no power switch (Firecracker on x86).
    Restart,
}

impl fmt::Display for SessionToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl FromStr for SessionToken {
    type Err = BootConfigError;

    fn from_str(text: &str) -> Result<Self, BootConfigError> {
        let bad = || BootConfigError::Value { key: "banger.session", value: text.to_owned() };
        let bytes: Hex = text.parse().map_err(|_| bad())?;
        bytes.as_bytes().try_into().map(Self).map_err(|_| bad())
    }
}

/// Why a kernel command line or a configuration is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootConfigError {
    /// A key without which there is nothing to boot.
    #[error("kernel argument {key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key given twice.
    #[error("kernel argument {key} is given twice")]
    Duplicate {
        /// The key.
        key: &'static str,
    },
    /// A value that does not parse.
    #[error("kernel argument {key} has a bad value {value:?}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
}

const KEYS: [&str; 10] = [
    "banger.root",
    "banger.work",
    "banger.modules",
    "banger.hostname",
    "banger.ip",
    "banger.gw",
    "banger.dns",
    "banger.init",
    "banger.session",
    "banger.end",
];

impl BootConfig {
    /// A configuration that boots `root` and nothing else.
    #[must_use]
    pub fn new(root: Uuid) -> Self {
        Self {
            root,
            work: None,
            modules: None,
            hostname: None,
            network: None,
            init: InitChoice::Auto,
            session: None,
            end: MachineEnd::PowerOff,
        }
    }

    /// Writes the kernel arguments, separated by spaces.
    ///
    /// An init path with a character that a kernel command line cannot carry (white space, a
    /// quote) or prefixes over 32 are refused by reading the result back.
    pub fn to_kernel_args(&self) -> Result<String, BootConfigError> {
        let mut args = vec![format!("banger.root={}", self.root)];
        let mut push = |key: &str, value: Option<String>| {
            args.extend(value.map(|value| format!("banger.{key}={value}")));
        };
        push("work", self.work.map(|uuid| uuid.to_string()));
        push("modules", self.modules.map(|uuid| uuid.to_string()));
        push("hostname", self.hostname.as_ref().map(ToString::to_string));
        if let Some(network) = &self.network {
            push("ip", Some(format!("{}/{}", network.address, network.prefix)));
            push("gw", network.gateway.map(|address| address.to_string()));
            let servers: Vec<String> = network.dns.iter().map(ToString::to_string).collect();
            push("dns", (!servers.is_empty()).then(|| servers.join(",")));
        }
        let init = match &self.init {
            InitChoice::Auto => "auto".to_owned(),
            InitChoice::None => "none".to_owned(),
            InitChoice::Path(path) => String::from_utf8_lossy(path.as_bytes()).into_owned(),
        };
        push("init", Some(init.clone()));
        push("session", self.session.map(|token| token.to_string()));
        push("end", (self.end == MachineEnd::Restart).then(|| "restart".to_owned()));
        let text = args.join(" ");
        if Self::parse(&text)? == *self {
            Ok(text)
        } else {
            Err(BootConfigError::Value { key: "banger.init", value: init })
        }
    }

    /// Reads a kernel command line; arguments that are not ours are ignored, and so are `banger.`
    /// keys of a newer host.
    pub fn parse(command_line: &str) -> Result<Self, BootConfigError> {
        let mut values: [Option<&str>; KEYS.len()] = [None; KEYS.len()];
        for argument in command_line.split_ascii_whitespace() {
            let Some((name, value)) = argument.split_once('=') else { continue };
            if let Some(index) = KEYS.iter().position(|&key| key == name)
                && values[index].replace(value).is_some()
            {
                return Err(BootConfigError::Duplicate { key: KEYS[index] });
            }
        }
        let [root, work, modules, hostname, address, gateway, dns, init, session, end] = values;
        let uuid = |key, value: Option<&str>| parse_value::<Uuid>(key, value);
        Ok(Self {
            root: uuid(KEYS[0], root)?.ok_or(BootConfigError::Missing { key: KEYS[0] })?,
            work: uuid(KEYS[1], work)?,
            modules: uuid(KEYS[2], modules)?,
            hostname: parse_value(KEYS[3], hostname)?,
            network: parse_network(address, gateway, dns)?,
            init: match init {
                None | Some("auto") => InitChoice::Auto,
                Some("none") => InitChoice::None,
                Some(path) if path.contains(['"', '\'']) => return Err(bad_value(KEYS[7], path)),
                Some(path) => InitChoice::Path(path.parse().map_err(|_| bad_value(KEYS[7], path))?),
            },
            session: parse_value(KEYS[8], session)?,
            end: match end {
                None | Some("power-off") => MachineEnd::PowerOff,
                Some("restart") => MachineEnd::Restart,
                Some(other) => return Err(bad_value(KEYS[9], other)),
            },
        })
    }
}

fn bad_value(key: &'static str, value: &str) -> BootConfigError {
    BootConfigError::Value { key, value: value.to_owned() }
}

fn parse_value<T: FromStr>(
    key: &'static str,
    value: Option<&str>,
) -> Result<Option<T>, BootConfigError> {
    value.map(|value| value.parse().map_err(|_| bad_value(key, value))).transpose()
}

fn parse_network(
    address: Option<&str>,
    gateway: Option<&str>,
    dns: Option<&str>,
) -> Result<Option<StaticNetwork>, BootConfigError> {
    let Some(text) = address else {
        // A gateway or a name server alone would be dropped without a word.
        return match (gateway, dns) {
            (None, None) => Ok(None),
            _ => Err(BootConfigError::Missing { key: KEYS[4] }),
        };
    };
    let bad = || bad_value(KEYS[4], text);
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if !(1..=32).contains(&prefix) || address.is_unspecified() || address.is_multicast() {
        return Err(bad());
    }
    let gateway = parse_value(KEYS[5], gateway)?;
    let servers = match dns {
        None => Vec::new(),
        Some(list) => list
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<Ipv4Addr>, _>>()
            .ok()
            .filter(|servers| servers.len() <= 3)
            .ok_or_else(|| bad_value(KEYS[6], list))?,
    };
    Ok(Some(StaticNetwork { address, prefix, gateway, dns: servers }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "banger.root=11111111-1111-4111-8111-111111111111";

    #[test]
    fn bad_command_lines_are_refused() {
        for bad in [
            "",
            "quiet",
            "banger.root=",
            "banger.root=sda1",
            &format!("{ROOT} {ROOT}"),
            &format!("{ROOT} banger.work=x"),
            &format!("{ROOT} banger.hostname=-a"),
            &format!("{ROOT} banger.ip=10.0.2.15"),
            &format!("{ROOT} banger.ip=10.0.2.15/33"),
            &format!("{ROOT} banger.ip=10.0.2.15/0"),
            &format!("{ROOT} banger.ip=0.0.0.0/24"),
            &format!("{ROOT} banger.gw=10.0.2.2"),
            &format!("{ROOT} banger.dns=10.0.2.3"),
            &format!("{ROOT} banger.ip=10.0.2.15/24 banger.gw=x"),
            &format!("{ROOT} banger.ip=10.0.2.15/24 banger.dns=1.1.1.1,,1.1.1.2"),
            &format!("{ROOT} banger.ip=10.0.2.15/24 banger.dns=1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1"),
            &format!("{ROOT} banger.init=sbin/init"),
            &format!("{ROOT} banger.init=/a/../b"),
            &format!("{ROOT} banger.session=12"),
            &format!("{ROOT} banger.end=halt"),
        ] {
            assert!(BootConfig::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn foreign_and_newer_arguments_are_ignored() {
        let line = format!("console=ttyS0 quiet {ROOT} banger.future=1 panic=-1\n");
        assert_eq!(BootConfig::parse(&line).unwrap().init, InitChoice::Auto);
    }

    #[test]
    fn an_init_path_that_a_command_line_cannot_carry_is_refused() {
        let mut config = BootConfig::new(Uuid::from_u128(1));
        for path in ["/a b", "/a\"b", "/a\tb", "/a\u{a0}b\n"] {
            config.init = InitChoice::Path(GuestPath::new(path).unwrap());
            assert!(config.to_kernel_args().is_err(), "{path:?}");
        }
        config.init = InitChoice::Path(GuestPath::new("/sbin/init").unwrap());
        assert!(config.to_kernel_args().is_ok());
    }

    proptest! {
        #[test]
        fn configurations_round_trip(
            root: u128, work: Option<u128>, modules: Option<u128>,
            hostname in proptest::option::of("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"),
            network in proptest::option::of((any::<[u8; 4]>(), 1u8..=32, any::<Option<[u8; 4]>>(), proptest::collection::vec(any::<[u8; 4]>(), 0..=3))),
            session: Option<[u8; 16]>, init in 0..3, restarts: bool,
        ) {
            let config = BootConfig {
                root: Uuid::from_u128(root),
                work: work.map(Uuid::from_u128),
                modules: modules.map(Uuid::from_u128),
                hostname: hostname.map(|name| name.parse().unwrap()),
                network: network.map(|(mut address, prefix, gateway, dns)| {
                    address[0] = 10;
                    StaticNetwork {
                        address: address.into(), prefix,
                        gateway: gateway.map(Into::into),
                        dns: dns.into_iter().map(Into::into).collect(),
                    }
                }),
                init: match init {
                    0 => InitChoice::Auto,
                    1 => InitChoice::None,
                    _ => InitChoice::Path(GuestPath::new("/usr/lib/systemd/systemd").unwrap()),
                },
                session: session.map(SessionToken),
                end: if restarts { MachineEnd::Restart } else { MachineEnd::PowerOff },
            };
            let line = config.to_kernel_args().unwrap();
            prop_assert_eq!(BootConfig::parse(&format!("quiet {line} panic=-1")).unwrap(), config);
        }

        #[test]
        fn hostile_command_lines_never_panic(line in ".*") {
            let _ = BootConfig::parse(&line);
        }
    }
}
