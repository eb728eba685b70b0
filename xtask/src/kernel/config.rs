//! The options of the kernel.
//!
//! `make allnoconfig` takes what the fragment wants and silently leaves out
//! what it cannot have, so what came out is compared with what was wanted.

use std::collections::{BTreeMap, BTreeSet};

/// What a line of a configuration says about an option.
fn setting(line: &str) -> Option<(&str, Option<&str>)> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
        return name.starts_with("CONFIG_").then_some((name, None));
    }
    let (name, value) = line.split_once('=')?;
    name.starts_with("CONFIG_").then_some((name, Some(value)))
}

/// The options of a configuration; `None` is off.
fn settings(text: &str) -> BTreeMap<&str, Option<&str>> {
    text.lines().filter_map(setting).collect()
}

/// Only the lines that set something, in their order.
pub(super) fn options(text: &str) -> String {
    text.lines().filter(|line| setting(line).is_some()).flat_map(|line| [line, "\n"]).collect()
}

/// The options of `fragment` that `config` does not have as they were wanted.
pub(super) fn lost(fragment: &str, config: &str) -> Vec<String> {
    let got = settings(config);
    let mut seen = BTreeSet::new();
    let mut lost = Vec::new();
    for (name, wanted) in fragment.lines().filter_map(setting) {
        if !seen.insert(name) {
            lost.push(format!("{name} (named twice)"));
        } else if got.get(name).copied().flatten() != wanted {
            lost.push(name.to_owned());
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment() -> String {
        let path = crate::root().unwrap().join(crate::kernel::FRAGMENT);
        std::fs::read_to_string(path).unwrap()
    }

    /// What is asked for, and what came of it where that kernel has been built.
    fn configurations() -> Vec<String> {
        let built = crate::kernel::cached().unwrap();
        let built = built.map(|built| std::fs::read_to_string(built.configuration()).unwrap());
        std::iter::once(fragment()).chain(built).collect()
    }

    /// Fails unless all of these are built in.
    fn must_have(needed: &str) {
        for text in configurations() {
            let have = settings(&text);
            for name in needed.split_whitespace() {
                let option = format!("CONFIG_{name}");
                assert_eq!(have.get(option.as_str()), Some(&Some("y")), "{option}");
            }
        }
    }

    #[test]
    fn what_was_built_is_what_was_asked_for() {
        for text in configurations() {
            assert_eq!(lost(&fragment(), &text), [""; 0]);
        }
    }

    #[test]
    fn what_did_not_survive_is_named() {
        let fragment = "# a comment\n\nCONFIG_A=y\nCONFIG_B=\"x=y\"\n# CONFIG_C is not set\n\
                        CONFIG_D=y\nCONFIG_E=7\n# CONFIG_F is not set\nCONFIG_A=y\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"x=y\"\n# CONFIG_D is not set\nCONFIG_E=8\n\
                      CONFIG_F=y\nCONFIG_G=y\n";
        assert_eq!(
            lost(fragment, config),
            ["CONFIG_D", "CONFIG_E", "CONFIG_F", "CONFIG_A (named twice)"]
        );
        assert_eq!(lost("", config), [""; 0]);
    }

    #[test]
    fn the_fragment_is_only_options_and_comments_and_asks_for_no_modules() {
        let text = fragment();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let comment = line.starts_with('#') && !line.ends_with(" is not set");
            assert!(comment || setting(line).is_some(), "{line:?}");
            assert!(!line.ends_with("=m"), "{line:?}: there are no modules");
            assert!(!line.ends_with("=n"), "{line:?}: write `# CONFIG_X is not set`");
        }
        assert_eq!(settings(&text).get("CONFIG_MODULES"), Some(&None));
    }

    /// What Docker's contrib/check-config.sh calls generally necessary, for
    /// control groups of both versions.
    #[test]
    fn every_group_says_what_it_is_for_and_comments_change_nothing() {
        let text = fragment();
        let mut lines = text.lines();
        while let Some(heading) = lines.find(|line| line.starts_with("# --- ")) {
            let next = lines.next().unwrap_or_default();
            assert!(next.starts_with("# ") && setting(next).is_none(), "{heading}: {next}");
        }
        assert_eq!(
            options("# a\nCONFIG_A=y\n\n# CONFIG_B is not set\n"),
            "CONFIG_A=y\n# CONFIG_B is not set\n"
        );
    }

    #[test]
    fn docker_has_all_it_needs() {
        let needed = "NAMESPACES NET_NS PID_NS IPC_NS UTS_NS \
            CGROUPS CGROUP_CPUACCT CGROUP_DEVICE CGROUP_FREEZER CGROUP_SCHED CPUSETS MEMCG \
            CGROUP_BPF KEYS VETH BRIDGE BRIDGE_NETFILTER \
            IP_NF_FILTER IP_NF_MANGLE IP_NF_TARGET_MASQUERADE IP_NF_RAW IP_NF_NAT \
            IP6_NF_FILTER IP6_NF_MANGLE IP6_NF_TARGET_MASQUERADE IP6_NF_RAW IP6_NF_NAT \
            NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_IPVS \
            NETFILTER_XT_MARK NF_NAT POSIX_MQUEUE OVERLAY_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY";
        must_have(needed);
    }

    /// The README of systemd: what it requires and what it strongly recommends.
    #[test]
    fn systemd_has_all_it_needs() {
        let needed = "DEVTMPFS CGROUPS INOTIFY_USER SIGNALFD TIMERFD EPOLL UNIX SYSFS PROC_FS \
            FHANDLE NET_NS USER_NS IPV6 AUTOFS_FS TMPFS_XATTR TMPFS_POSIX_ACL EXT4_FS_POSIX_ACL \
            XFS_POSIX_ACL BTRFS_FS_POSIX_ACL SECCOMP SECCOMP_FILTER KCMP NET_SCHED \
            NET_SCH_FQ_CODEL CGROUP_SCHED FAIR_GROUP_SCHED CFS_BANDWIDTH BPF_SYSCALL BPF_JIT \
            CGROUP_BPF PSI DMIID CRYPTO_USER_API_HASH CRYPTO_SHA256 BLK_CGROUP MEMCG";
        must_have(needed);
        for text in configurations() {
            let real_time = settings(&text).get("CONFIG_RT_GROUP_SCHED").copied().flatten();
            assert_eq!(real_time, None, "it breaks real-time scheduling");
        }
    }

    /// The machines that banger starts.
    #[test]
    fn every_machine_can_be_booted() {
        let needed = "PVH KVM_GUEST ACPI PCI VIRTIO_MMIO VIRTIO_MMIO_CMDLINE_DEVICES VIRTIO_PCI \
            VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE VIRTIO_BALLOON VIRTIO_VSOCKETS HW_RANDOM_VIRTIO \
            SERIAL_8250_CONSOLE BLK_DEV_INITRD EXT4_FS XFS_FS BTRFS_FS OVERLAY_FS SQUASHFS \
            NF_TABLES NFT_COMPAT FUSE_FS TUN VETH BRIDGE PTP_1588_CLOCK_KVM";
        must_have(needed);
    }
}
