//! A tap by nothing but system calls, and one by `ip`.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use banger_privileged_sys::tun::Tap;
use banger_privileged_tests::OWNER;
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::BRIDGE;

// <linux/rtnetlink.h>, <linux/netlink.h>, <linux/if_link.h>, <linux/if.h>
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const NLM_F_REQUEST_ACK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFF_UP: u32 = 1;

/// Has the kernel change or end an interface.
fn ask(netlink: &OwnedFd, kind: u16, index: u32, flags: u32, attributes: &[u8]) -> Result<()> {
    let length = u32::try_from(32 + attributes.len()).context("a short message")?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0, index, flags, flags].iter().flat_map(|word| word.to_ne_bytes()));
    message.extend(attributes);
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(netlink, &message, SendFlags::empty(), &kernel)
        .context("ask the kernel")?;
    let mut answer = [0; 4096];
    rustix::net::recv(netlink, &mut answer, RecvFlags::empty()).context("hear the kernel")?;
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(code == 0, "the kernel says {}", Errno::from_raw_os_error(-code));
    Ok(())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn open() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .context("open a netlink socket")
}

/// The kernel's acts of `priv.create_tap`: made, given to the owner, persistent, no IPv6, a port of
/// the bridge, isolated, up. Nothing is looked at before, and nothing is read back.
pub(crate) fn create(name: &str, bridge: &str, owner: u32) -> Result<()> {
    let netlink = open()?;
    let tap = Tap::create(name).context("make a tap")?;
    tap.give_to(owner, owner).and_then(|()| tap.persist()).context("set up a tap")?;
    drop(tap);
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    // Not there in a kernel without IPv6.
    let _ = std::fs::write(path, "1");
    let index = name_to_index(&netlink, name).context("find the tap")?;
    let bridge = name_to_index(&netlink, bridge).context("find the bridge")?;
    ask(&netlink, RTM_NEWLINK, index, 0, &attribute(IFLA_MASTER, &bridge.to_ne_bytes()))?;
    let isolated = attribute(IFLA_INFO_SLAVE_DATA, &attribute(IFLA_BRPORT_ISOLATED, &[1]));
    let info = [attribute(IFLA_INFO_SLAVE_KIND, b"bridge"), isolated].concat();
    ask(&netlink, RTM_NEWLINK, index, 0, &attribute(IFLA_LINKINFO, &info))?;
    ask(&netlink, RTM_NEWLINK, index, IFF_UP, &[])
}

/// The kernel's act of `priv.delete_tap`.
pub(crate) fn delete(name: &str) -> Result<()> {
    let netlink = open()?;
    let index = name_to_index(&netlink, name).context("find the tap")?;
    ask(&netlink, RTM_DELLINK, index, 0, &[])
}

/// Has `nft` add the elements by which a guest's addresses are checked, or take them away.
pub(crate) fn check_guest(verb: &str, name: &str, mac: &str, ip: &str) -> Result<()> {
    let script = format!(
        "{verb} element bridge banger checked {{ \"{name}\" }}\n\
         {verb} element bridge banger guests {{ \"{name}\" . {mac} . {ip} }}\n"
    );
    let mut command = Command::new("/usr/sbin/nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("start nft")?;
    let mut input = child.stdin.take().context("nft's input")?;
    input.write_all(script.as_bytes()).context("write to nft")?;
    drop(input);
    ensure!(child.wait().context("wait for nft")?.success(), "nft failed");
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    let status = Command::new("/usr/sbin/ip").args(line.split(' ')).status().context("run ip")?;
    ensure!(status.success(), "ip {line}: {status}");
    Ok(())
}

/// The same tap by iproute2.
pub(super) fn create_by_ip(name: &str) -> Result<()> {
    ip(&format!("tuntap add dev {name} mode tap user {OWNER} group {OWNER} vnet_hdr"))?;
    ip(&format!("link set dev {name} master {BRIDGE}"))?;
    ip(&format!("link set dev {name} type bridge_slave isolated on"))?;
    ip(&format!("link set dev {name} up"))
}

/// Its end by iproute2.
pub(super) fn delete_by_ip(name: &str) -> Result<()> {
    ip(&format!("link del dev {name}"))
}
