//! A Debian root file system as a tar stream, made by `mmdebstrap` (mmdebstrap(1)).

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::StageReport;
use super::apt::{command, find_tool, transport_options};
use super::child::Streaming;
use super::error::DebianError;
use super::sources::{DEBIAN_KEYRING, SignedBy, Source, debian_sources};
use super::workplace::Workplace;
use crate::subordinate_ids;

/// Debian's own mirror network, for hosts that have no entries for the suite.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// What a developer expects on day one, without recommended packages.
const PACKAGES: [&str; 25] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "ca-certificates",
    "curl",
    "file",
    "gcc",
    "git",
    "iproute2",
    "iputils-ping",
    // modprobe, by which the guest's kernel loads what a program asks for.
    "kmod",
    "less",
    "libc6-dev",
    "make",
    "netbase",
    "openssh-server",
    "patch",
    "procps",
    "python3",
    "rsync",
    "sudo",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
];

/// The last change to the root file system. It removes what would be the same in every machine
/// (host keys, machine id) or belongs to this host (its name, its resolver, its proxy), and masks
/// units that only cost time in a machine that lives for minutes:
/// - apt-daily, apt-daily-upgrade, dpkg-db-backup, e2scrub, fstrim: background work of long-lived
///   machines, which would fight with the user's command for the CPU;
/// - getty on tty1 and ttyS0: nobody logs in there, the console is for the log;
/// - ssh: it would listen with keys that do not exist yet. `systemctl enable --now ssh` after
///   `ssh-keygen -A` brings it back.
const FINISH: &str = r#"set -eu
root="$1"
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
: > "$root/etc/machine-id"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
printf 'LANG=C.UTF-8\n' > "$root/etc/default/locale"
units="$root/etc/systemd/system"
mkdir -p "$units"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty@tty1.service serial-getty@ttyS0.service; do
    ln -sfn /dev/null "$units/$unit"
done
rm -f "$units/multi-user.target.wants/ssh.service" "$units/sshd.service"
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
conf="$root/etc/apt/apt.conf.d/99mmdebstrap"
if [ -e "$conf" ]; then
    sed -i -E '/^Acquire::(https?|ftp)::/Id' "$conf"
    [ -s "$conf" ] || rm -f "$conf"
fi
"#;

/// What to make.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    suite: String,
    mirror: Option<String>,
    packages: Vec<String>,
}

impl ImageRequest {
    /// Makes the request for `suite` with the default packages; `mirror` takes the place of the
    /// host's own sources.
    ///
    /// # Errors
    /// A suite or a mirror that cannot be one.
    pub fn new(suite: &str, mirror: Option<&str>) -> Result<Self, DebianError> {
        let word = |text: &str, extra: &[char]| {
            !text.is_empty()
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(&c))
        };
        if !word(suite, &['-', '.']) || suite.len() > 64 {
            return Err(DebianError::Suite(suite.to_owned()));
        }
        if let Some(mirror) = mirror {
            let known = ["http://", "https://", "file:/", "copy:/"];
            let plain = !mirror.chars().any(|c| c.is_whitespace() || c.is_control() || c == '[');
            if !plain || !known.iter().any(|scheme| mirror.starts_with(scheme)) {
                return Err(DebianError::Mirror(mirror.to_owned()));
            }
        }
        Ok(Self {
            suite: suite.to_owned(),
            mirror: mirror.map(str::to_owned),
            packages: PACKAGES.iter().map(|&name| name.to_owned()).collect(),
        })
    }

    /// Makes the request that an image's name asks for: `debian-SUITE`.
    ///
    /// # Errors
    /// Another name.
    pub fn for_name(name: &str, mirror: Option<&str>) -> Result<Self, DebianError> {
        match name.strip_prefix("debian-") {
            Some(suite) => Self::new(suite, mirror),
            None => Err(DebianError::ImageName(name.to_owned())),
        }
    }

    /// Adds packages to the default ones.
    ///
    /// # Errors
    /// A name that cannot be a package's.
    pub fn with_packages(mut self, names: &[String]) -> Result<Self, DebianError> {
        for name in names {
            let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
            if !good {
                return Err(DebianError::Package(name.clone()));
            }
            self.packages.push(name.clone());
        }
        Ok(self)
    }

    /// What an image's manifest says about where it came from.
    pub fn source(&self) -> String {
        let mut source = format!("mmdebstrap:{}", self.suite);
        for added in self.packages.iter().skip(PACKAGES.len()) {
            source.push('+');
            source.push_str(added);
        }
        if let Some(mirror) = &self.mirror {
            source.push_str(" from ");
            source.push_str(mirror);
        }
        source
    }
}

/// A root file system arriving as an uncompressed tar archive.
///
/// Dropped before its end, it stops the tool and waits until its files are gone.
#[derive(Debug)]
pub struct TarStream {
    // In this order: the process ends before its directory is removed.
    process: Streaming,
    workplace: Workplace,
}

impl TarStream {
    /// Waits for the tool after the stream was read to its end.
    ///
    /// A stream that ends is not yet a good one: only this says whether the archive is whole.
    ///
    /// # Errors
    /// The tool's failure.
    pub fn finish(self) -> Result<(), DebianError> {
        let Self { process, workplace } = self;
        let ended = process.finish();
        drop(workplace);
        ended
    }
}

impl AsFd for TarStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.output_fd()
    }
}

impl Read for TarStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.process.output().read(buffer)
    }
}

/// Begins to make the root file system.
///
/// # Errors
/// Missing tools, keyrings or subordinate ids; [`DebianError::hint`] says what to do.
pub fn image_stream(
    request: &ImageRequest,
    mut report: StageReport,
) -> Result<TarStream, DebianError> {
    let tool = find_tool("mmdebstrap", "mmdebstrap")?;
    let root = nix::unistd::geteuid().is_root();
    if !root {
        check_namespaces()?;
    }
    let sources = match &request.mirror {
        Some(mirror) => vec![Source::mirror(mirror, &request.suite)],
        None => match debian_sources(&request.suite) {
            found if !found.is_empty() => found,
            _ => {
                report(&format!("no entries for {} here, using {DEFAULT_MIRROR}", request.suite));
                vec![
                    Source::mirror(DEFAULT_MIRROR, &request.suite),
                    Source::mirror(DEFAULT_MIRROR, &format!("{}-updates", request.suite)),
                    Source::mirror(SECURITY_MIRROR, &format!("{}-security", request.suite)),
                ]
            }
        },
    };
    let workplace = Workplace::create()?;
    let prepared = Prepared::new(sources, workplace.path())?;
    let mut command = command(&tool);
    command
        .args(arguments(request, &prepared, &transport_options(), root))
        .env("TMPDIR", workplace.path());
    let process = Streaming::start("mmdebstrap", &command, workplace.path(), report)?;
    Ok(TarStream { process, workplace })
}

/// Sources in the form that the tool takes.
struct Prepared {
    lines: Vec<String>,
    /// Keyrings that the image needs as well, because its sources name them.
    keyrings: Vec<PathBuf>,
}

impl Prepared {
    fn new(sources: Vec<Source>, directory: &Path) -> Result<Self, DebianError> {
        let mut prepared = Self { lines: Vec::new(), keyrings: Vec::new() };
        for (index, source) in sources.into_iter().enumerate() {
            let keyring = match &source.signed_by {
                Some(SignedBy::File(path)) => Some(path.clone()),
                Some(SignedBy::Key(text)) => {
                    let path = directory.join(format!("key-{index}.asc"));
                    fs::write(&path, text).map_err(|source| DebianError::File {
                        action: "write",
                        path: path.clone(),
                        source,
                    })?;
                    Some(path)
                }
                // A mirror of Debian is signed by Debian, whatever the host itself trusts.
                None => Some(PathBuf::from(DEBIAN_KEYRING)),
            };
            if let Some(path) = keyring.as_ref().filter(|path| path.is_absolute()) {
                if !path.exists() {
                    return Err(DebianError::Keyring(path.clone()));
                }
                if path != Path::new(DEBIAN_KEYRING) && !prepared.keyrings.contains(path) {
                    prepared.keyrings.push(path.clone());
                }
            }
            prepared.lines.push(source.line(keyring.as_deref()));
        }
        Ok(prepared)
    }
}

fn arguments(
    request: &ImageRequest,
    prepared: &Prepared,
    options: &[String],
    root: bool,
) -> Vec<String> {
    let mut arguments = vec![
        "--format=tar".to_owned(),
        "--variant=minbase".to_owned(),
        "--architectures=amd64".to_owned(),
        format!("--mode={}", if root { "root" } else { "unshare" }),
        format!("--include={}", request.packages.join(",")),
        // What is being made is thrown away if the host dies, so nothing needs to reach the disk.
        "--dpkgopt=force-unsafe-io".to_owned(),
    ];
    arguments.extend(options.iter().map(|option| format!("--aptopt={option}")));
    for keyring in &prepared.keyrings {
        let (file, parent) = (keyring.display(), keyring.parent().unwrap_or(Path::new("/")));
        let parent = parent.display();
        arguments.push(format!("--customize-hook=mkdir -p \"$1\"'{parent}'"));
        arguments.push(format!("--customize-hook=copy-in '{file}' '{parent}'"));
    }
    // The hook's own script, with the root as its only argument.
    arguments.push(format!("--customize-hook={FINISH}"));
    arguments.push(request.suite.clone());
    arguments.push("-".to_owned());
    arguments.extend(prepared.lines.iter().cloned());
    arguments
}

/// Checks what an ordinary user needs to have a root of their own (mmdebstrap(1), unshare mode).
fn check_namespaces() -> Result<(), DebianError> {
    for tool in ["newuidmap", "newgidmap"] {
        find_tool(tool, "uidmap")?;
    }
    let id = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(id)
        .ok()
        .flatten()
        .map_or_else(|| id.to_string(), |user| user.name);
    if let Some((kind, file)) = subordinate_ids::missing_for(&user, id.as_raw()) {
        return Err(DebianError::SubordinateIds { user, kind, file });
    }
    let setting = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if setting("/proc/sys/kernel/unprivileged_userns_clone").trim() == "0" {
        return Err(DebianError::Namespaces("kernel.unprivileged_userns_clone=1"));
    }
    if setting("/proc/sys/user/max_user_namespaces").trim() == "0" {
        return Err(DebianError::Namespaces("user.max_user_namespaces=10000"));
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").trim() == "1" {
        return Err(DebianError::Namespaces("kernel.apparmor_restrict_unprivileged_userns=0"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_suites_mirrors_packages_and_names_are_refused() {
        for suite in ["", "-x", "a b", "a/b", "a'b", "$(id)", &"x".repeat(65)] {
            assert!(
                matches!(ImageRequest::new(suite, None), Err(DebianError::Suite(_))),
                "{suite}"
            );
        }
        for mirror in ["", "deb.debian.org", "ftp://x", "http://a b", "http://[x]", "http://a\nb"] {
            let request = ImageRequest::new("bookworm", Some(mirror));
            assert!(matches!(request, Err(DebianError::Mirror(_))), "{mirror}");
        }
        for package in ["", "-x", "a,b", "A", "a b", "a'"] {
            let request = ImageRequest::new("bookworm", None).unwrap();
            assert!(request.with_packages(&[package.to_owned()]).is_err(), "{package}");
        }
        assert!(ImageRequest::for_name("ubuntu-noble", None).is_err());
    }

    #[test]
    fn the_tool_gets_sources_options_and_packages() {
        let request = ImageRequest::for_name("debian-bookworm", None).unwrap();
        let request = request.with_packages(&["g++".to_owned()]).unwrap();
        let prepared = Prepared {
            lines: vec!["deb http://deb.debian.org/debian bookworm main".into()],
            keyrings: vec!["/etc/apt/keyrings/corp.gpg".into()],
        };
        let options = ["Acquire::http::Proxy \"http://p:1\"".to_owned()];
        let all = arguments(&request, &prepared, &options, false);
        assert!(all.contains(&"--mode=unshare".to_owned()));
        assert!(all.contains(&"--aptopt=Acquire::http::Proxy \"http://p:1\"".to_owned()));
        assert!(all.iter().any(|argument| argument.ends_with(",g++")));
        assert!(
            all.iter().any(|argument| argument.contains("copy-in '/etc/apt/keyrings/corp.gpg'"))
        );
        let end: Vec<&str> = all.iter().rev().take(3).rev().map(String::as_str).collect();
        assert_eq!(end, ["bookworm", "-", "deb http://deb.debian.org/debian bookworm main"]);
        assert!(arguments(&request, &prepared, &[], true).contains(&"--mode=root".to_owned()));
    }
}
