//! A day with a machine under Firecracker, by its owner's own programs: a repository goes in, work
//! comes out as a patch, files go both ways, `ssh NAME.vm`, a forwarded port. `testing/e2e` has each of
//! these in full under QEMU.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Inside;
use crate::installation::{OWNER, banger_as, said};
use crate::machines::banger;
use crate::tool::run;

/// What the guest's web server has is at this port of the host's.
const PORT: &str = "18080";

/// Makes a root file system of the busybox with this machine's sshd, for `ssh NAME.vm`.
const MAKE_IMAGE: &str = r#"
set -eu
mkdir "$2"
tar -xf "$1" -C "$2"
module=$(ls /lib/*/security/pam_permit.so /usr/lib/*/security/pam_permit.so | head -n 1)
programs="/usr/sbin/sshd /usr/bin/ssh-keygen $module"
for program in /usr/lib/openssh/sshd-session /usr/lib/openssh/sshd-auth; do
    [ ! -e "$program" ] || programs="$programs $program"
done
for program in $programs; do
    cp -L --parents "$program" "$2"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        cp -L --parents "$library" "$2"
    done
done
mkdir "$2/etc/pam.d"
for kind in auth account session; do
    echo "$kind required $module"
done > "$2/etc/pam.d/sshd"
echo 'sshd:x:100:65534::/run/sshd:/bin/false' >> "$2/etc/passwd"
tar -cf "$2.tar" -C "$2" .
"#;

/// A folder of the owner's with a repository, and an image to work in; removed when dropped, with what
/// the owner's programs wrote into the home directory.
pub(crate) struct Day(PathBuf);

impl Day {
    /// The image's name.
    pub(crate) const IMAGE: &str = "workplace";

    pub(crate) fn new(inside: &Inside) -> Self {
        let day = Self(Path::new("/home").join(OWNER).join("day"));
        let root = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let tree = root.path().join("root");
        let busybox = inside.data.join("busybox.tar");
        run("sh", ["-c", MAKE_IMAGE, "sh", text(&busybox), text(&tree)]);
        run("chmod", ["-R", "a+rX", text(root.path())]);
        banger(&["image", "import", "--name", Self::IMAGE, text(&tree.with_extension("tar"))]);

        run("runuser", ["-u", OWNER, "--", "mkdir", text(&day.0)]);
        day.run(&["mkdir", "-p", "repo", "tree/folder"]);
        let script = "printf 'one\n' > repo/word; printf 'gone\n' > repo/old; \
                      printf '#!/bin/sh\nwc -l < word\n' > repo/tool; chmod 755 repo/tool; \
                      head -c 3000000 /dev/urandom > tree/folder/big; ln -s folder/big tree/link";
        day.run(&["sh", "-c", script]);
        day.git(&["init", "-q"]);
        day.git(&["add", "-A"]);
        day.git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]);
        // As it is now, not as it was committed.
        day.run(&["sh", "-c", "echo two >> repo/word"]);
        day
    }

    /// Goes through it, with a machine that was run with the repository.
    pub(crate) fn live(&self, vm: &str) {
        let exec = |script: &str| self.banger(&["vm", "exec", vm, "--", "sh", "-c", script]);
        // What was not committed is there, and commands run in it.
        assert_eq!(exec("pwd; ./tool"), "/root/repo\n2\n");
        exec("echo three >> word; echo new > added; chmod 755 added; rm old");
        let patch = self.banger(&["vm", "workspace", "export", vm]);
        fs::write(self.0.join("patch"), patch).expect("a patch");
        self.git(&["apply", "../patch"]);
        assert_eq!(self.run(&["cat", "repo/word", "repo/added"]), "one\ntwo\nthree\nnew\n");
        assert_eq!(self.run(&["sh", "-c", "ls repo; test -x repo/added"]), "added\ntool\nword\n");

        // Files, in and out again.
        self.banger(&["vm", "cp", "tree", &format!("{vm}:there")]);
        self.banger(&["vm", "cp", &format!("{vm}:there"), "back"]);
        self.run(&["diff", "-r", "--no-dereference", "tree", "back"]);

        // ssh by name, with the owner's own configuration.
        self.banger(&["ssh-config", "--install"]);
        let name = format!("{vm}.vm");
        assert_eq!(
            self.run(&["ssh", &name, "hostname; cat repo/word"]),
            format!("{vm}\none\ntwo\nthree\n")
        );

        // A port that only the guest itself reaches.
        exec("busybox httpd -p 127.0.0.1:80 -h /root/repo");
        let forward = Forward::begin(self, vm);
        let url = format!("http://127.0.0.1:{PORT}/word");
        assert_eq!(self.run(&["curl", "-sS", &url]), "one\ntwo\nthree\n");
        drop(forward);
    }

    /// A program of the owner's, in the day's folder.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("/usr/sbin/runuser");
        command.args(["-u", OWNER, "--"]).args(words).current_dir(&self.0);
        command.env("HOME", Path::new("/home").join(OWNER)).env("LC_ALL", "C");
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().expect("runuser");
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn git(&self, words: &[&str]) -> String {
        self.run(&[&["git", "-C", "repo"][..], words].concat())
    }

    /// The owner's `banger`, with the owner's home.
    pub(crate) fn banger(&self, words: &[&str]) -> String {
        self.run(&[&["/usr/local/bin/banger"][..], words].concat())
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        let _ = banger_as(OWNER, &["image", "delete", Self::IMAGE]);
        for name in [".ssh", ".local", ".config", ".cache"] {
            let _ = fs::remove_dir_all(Path::new("/home").join(OWNER).join(name));
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `vm forward`, ended when it is dropped.
struct Forward(Child);

impl Forward {
    fn begin(day: &Day, vm: &str) -> Self {
        let ports = format!("{PORT}:80");
        let mut command = day.command(&["/usr/local/bin/banger", "vm", "forward", vm, &ports]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("runuser");
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line, format!("127.0.0.1:{PORT} -> 80/tcp\n"), "it listens when it says so");
        Self(child)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // runuser passes it on and ends with its child.
        let id = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}
