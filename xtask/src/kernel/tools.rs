//! The programs that building a kernel needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{find_program, output_of};

/// Programs and the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 10] = [
    ("bc", "bc"),
    ("bison", "bison"),
    ("dpkg-deb", "dpkg"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("lz4", "lz4"),
    ("make", "make"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
];
/// Header files and the Debian packages that bring them.
const HEADERS: [(&str, &str); 2] =
    [("/usr/include/gelf.h", "libelf-dev"), ("/usr/include/stdlib.h", "libc6-dev")];

/// Fails with the line that installs what is missing.
pub(super) fn check() -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("the kernel is built from Debian's source package, and this is not a Debian system");
    }
    let programs = PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none());
    let headers = HEADERS.iter().filter(|(header, _)| !Path::new(header).exists());
    let missing: Vec<_> = programs.chain(headers).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!(
            "building a kernel needs Debian packages that are missing; run `scripts/setup kernel`, \
             or as root: apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        );
    }
    Ok(())
}

/// The versions of what makes the bytes of the kernel.
pub(super) fn versions() -> Result<String> {
    let mut text = String::new();
    for program in ["gcc", "ld", "lz4"] {
        let shown = output_of(Command::new(program).env("LC_ALL", "C").arg("--version"))?;
        let line = shown.lines().find(|line| !line.trim().is_empty());
        let line = line.with_context(|| format!("{program} does not say its version"))?;
        text.push_str(&format!("{program} {}\n", line.trim()));
    }
    Ok(text)
}
