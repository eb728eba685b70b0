//! The few files of the image that name the machine: hostname, hosts, resolv.conf; and the two
//! directories that every program may expect.
//!
//! They are written on the VM's own root disk, never in the image, and only where they differ.

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{BootConfig, StaticNetwork};

use crate::console;

/// Writes the files below `root`. A failure is said on the console: the machine works without.
pub(super) fn write(root: &Path, config: &BootConfig) {
    // An image of one program has neither.
    attempt("make /etc", make_directory(root, "etc", 0o755));
    attempt("make /tmp", make_directory(root, "tmp", 0o1777));
    if let Some(name) = &config.hostname {
        attempt("set the host name", rustix::system::sethostname(name.as_str().as_bytes()));
        attempt("write /etc/hostname and /etc/hosts", write_name(root, name.as_str()));
    }
    if let Some(network) = config.network.as_ref().filter(|network| !network.dns.is_empty()) {
        attempt("write /etc/resolv.conf", write_resolver(root, network));
    }
}

/// Writes the machine's name into its image's own files.
pub(crate) fn write_name(root: &Path, name: &str) -> std::io::Result<()> {
    replace(&root.join("etc/hostname"), &format!("{name}\n"))?;
    write_hosts(&root.join("etc/hosts"), name)
}

/// Makes a directory where there is none. Where a link leads nowhere, what it names is made: it says
/// where the image wants the directory.
fn make_directory(root: &Path, name: &str, mode: u32) -> std::io::Result<()> {
    let mut path = root.join(name);
    if path.is_dir() {
        return Ok(());
    }
    if let Ok(link) = std::fs::read_link(&path) {
        let inside = normalise(&Path::new("/").join(link));
        path = root.join(inside.strip_prefix("/").unwrap_or(&inside));
    }
    std::fs::create_dir_all(&path)?;
    // Not by the call that makes it, which the umask would change.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

fn attempt<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        console::error(&format!("cannot {what}: {error}"));
    }
}

/// Replaces a file's content; leaves it alone where that is what it holds.
fn replace(path: &Path, content: &str) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(());
    }
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(content.as_bytes())
}

/// Makes `name` resolve to 127.0.1.1, as Debian's installer does, keeping every other line.
fn write_hosts(path: &Path, name: &str) -> std::io::Result<()> {
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    replace(path, &hosts_with(&old, name))
}

fn hosts_with(old: &str, name: &str) -> String {
    let mut text = String::new();
    if !old.lines().any(|line| line.split_ascii_whitespace().skip(1).any(|n| n == "localhost")) {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    for line in old.lines().filter(|line| !line.starts_with("127.0.1.1")) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("127.0.1.1\t");
    text.push_str(name);
    text.push('\n');
    text
}

/// Gives the image its name servers, however it manages resolv.conf.
///
/// A symbolic link below /run belongs to a service (systemd-resolved, resolvconf): the file it
/// points to is made, so that names resolve before or without the service, and systemd-resolved
/// gets its upstream servers by a drop-in of its own in /run. Anything else is a plain file, which
/// is replaced: mmdebstrap leaves a copy of the build host's there.
fn write_resolver(root: &Path, network: &StaticNetwork) -> std::io::Result<()> {
    let servers: Vec<String> = network.dns.iter().map(Ipv4Addr::to_string).collect();
    let drop_in = root.join("run/systemd/resolved.conf.d");
    std::fs::create_dir_all(&drop_in)?;
    replace(&drop_in.join("banger.conf"), &format!("[Resolve]\nDNS={}\n", servers.join(" ")))?;
    let content: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let path = root.join("etc/resolv.conf");
    if let Ok(link) = std::fs::read_link(&path) {
        // Relative links are relative to /etc.
        let below_run = normalise(&Path::new("/etc").join(&link));
        if let Ok(rest) = below_run.strip_prefix("/run") {
            let target = root.join("run").join(rest);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)?;
            }
            return replace(&target, &content);
        }
        if !path.exists() {
            // Dangling, and not into /run: nobody will ever fill it.
            std::fs::remove_file(&path)?;
        }
    }
    replace(&path, &content)
}

/// Takes `.` and `..` out of an absolute path, by text alone.
fn normalise(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                result.pop();
            }
            std::path::Component::Normal(name) => result.push(name),
            _ => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> StaticNetwork {
        StaticNetwork {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: None,
            dns: vec![Ipv4Addr::new(10, 0, 2, 3)],
        }
    }

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::create_dir(root.path().join("run")).unwrap();
        root
    }

    #[test]
    fn hosts_keeps_what_the_user_wrote() {
        let old = "127.0.0.1 localhost\n10.1.1.1 db\n127.0.1.1 old\n";
        let new = hosts_with(old, "box");
        assert_eq!(new, "127.0.0.1 localhost\n10.1.1.1 db\n127.0.1.1\tbox\n");
        assert_eq!(hosts_with(&new, "box"), new);
        assert!(hosts_with("", "box").starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn resolv_conf_as_a_file_missing_dangling_or_a_service_link() {
        let content = "nameserver 10.0.2.3\n";
        for link in [None, Some("/nowhere/x"), Some("../nowhere")] {
            let root = image();
            let path = root.path().join("etc/resolv.conf");
            match link {
                None => std::fs::write(&path, "nameserver 9.9.9.9\n").unwrap(),
                Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            }
            write_resolver(root.path(), &network()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "{link:?}");
        }
        for link in
            ["/run/systemd/resolve/stub-resolv.conf", "../run/systemd/resolve/stub-resolv.conf"]
        {
            let root = image();
            let path = root.path().join("etc/resolv.conf");
            std::os::unix::fs::symlink(link, &path).unwrap();
            write_resolver(root.path(), &network()).unwrap();
            let made = root.path().join("run/systemd/resolve/stub-resolv.conf");
            assert_eq!(std::fs::read_to_string(made).unwrap(), content);
            assert_eq!(std::fs::read_link(&path).unwrap(), Path::new(link));
        }
    }

    #[test]
    fn directories_are_made_where_an_image_has_none() {
        use std::os::unix::fs::PermissionsExt;
        for link in [None, Some("usr/share/etc"), Some("/usr/share/etc"), Some("../../x")] {
            let root = tempfile::tempdir().unwrap();
            if let Some(target) = link {
                std::os::unix::fs::symlink(target, root.path().join("etc")).unwrap();
            }
            make_directory(root.path(), "etc", 0o755).unwrap();
            make_directory(root.path(), "tmp", 0o1777).unwrap();
            let made = match link {
                None => "etc",
                Some("../../x") => "x",
                Some(_) => "usr/share/etc",
            };
            assert!(root.path().join(made).is_dir(), "{link:?}");
            let mode = root.path().join("tmp").metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o1777);
        }
        let own = image();
        let etc = own.path().join("etc");
        std::fs::set_permissions(&etc, PermissionsExt::from_mode(0o700)).unwrap();
        make_directory(own.path(), "etc", 0o755).unwrap();
        assert_eq!(etc.metadata().unwrap().permissions().mode() & 0o7777, 0o700, "the image's own");
    }

    #[test]
    fn a_link_that_climbs_does_not_leave_the_image() {
        assert_eq!(normalise(Path::new("/etc/../../../run/x")), Path::new("/run/x"));
    }
}
