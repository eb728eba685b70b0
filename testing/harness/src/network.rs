//! A network of a test's own: what banger's root helper does to it is nobody else's business.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A network namespace, kept by a file until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnNetwork {
    file: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let path = crate::find_program(program).unwrap_or_else(|| panic!("{program} is missing"));
    let output = Command::new(path).args(arguments).output().expect("run a program");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl OwnNetwork {
    /// Makes one with nothing but a loopback; needs root.
    pub(crate) fn new(base: &Path) -> Self {
        let file = base.join("n");
        std::fs::write(&file, "").expect("make a file");
        let network = Self { file };
        run("unshare", &[&format!("--net={}", network.text()), "true"]);
        run("nsenter", &[&network.option(), "ip", "link", "set", "lo", "up"]);
        network
    }

    fn text(&self) -> &str {
        self.file.to_str().expect("a test's folder is text")
    }

    fn option(&self) -> String {
        format!("--net={}", self.text())
    }

    /// The words before a command that is to run there.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let nsenter = crate::find_program("nsenter").expect("nsenter is missing");
        vec![nsenter.display().to_string(), self.option()]
    }

    /// Runs a line of words there; fails unless it succeeds.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = vec![self.option()];
        words.extend(line.split(' ').map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run("nsenter", &words)
    }

    /// The taps that are there.
    pub(crate) fn taps(&self) -> Vec<String> {
        let links = self.run("ip -o link");
        links.lines().filter(|line| line.contains(": tap-")).map(str::to_owned).collect()
    }
}

impl Drop for OwnNetwork {
    fn drop(&mut self) {
        let _ = Command::new("/bin/umount").args(["--lazy", "--", self.text()]).status();
    }
}

/// Removes what a root helper remembers of a daemon's bridge after both have ended.
pub(crate) fn forget_helper(runtime: &Path) {
    use std::os::unix::fs::MetadataExt;
    let Ok(place) = std::fs::symlink_metadata(runtime) else { return };
    let name = format!("/run/banger-root/direct-{:x}-{:x}", place.dev(), place.ino());
    let _ = std::fs::remove_dir_all(name);
}
