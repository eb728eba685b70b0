//! An ordinary user, made for one test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A user with a home and a range of subordinate ids; removed when dropped.
#[derive(Debug)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let Some(program) = crate::find_program(program) else { return false };
    let status =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl User {
    /// Makes the user with `useradd`; needs root.
    ///
    /// `home` is where the home directory is made.
    #[must_use]
    pub fn create(home: &Path) -> Self {
        let name = format!("bgr{}", std::process::id());
        let home_text = home.to_str().expect("a test's folder is text").to_owned();
        let made = run(
            "useradd",
            &["--create-home", "--home-dir", &home_text, "--shell", "/bin/bash", &name],
        );
        assert!(made, "useradd {name}");
        let passwd = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let line = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))
            .expect("the user is there");
        let id = |field: usize| {
            line.split(':').nth(field).and_then(|id| id.parse().ok()).expect("an id")
        };
        let user = Self { uid: id(2), gid: id(3), home: home.to_owned(), name };
        // useradd gives a range by itself where login.defs says so.
        let subuid = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
        if !subuid.lines().any(|line| line.starts_with(&format!("{}:", user.name))) {
            let range = "1879048192-1879113727";
            assert!(
                run("usermod", &["--add-subuids", range, "--add-subgids", range, &user.name]),
                "usermod"
            );
        }
        user
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its user and group id.
    #[must_use]
    pub fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Its home directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The words that run the following words as this user.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        let setpriv = crate::find_program("setpriv").expect("util-linux has setpriv");
        let mut words = vec![setpriv.display().to_string()];
        words.extend([
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            "--init-groups".to_owned(),
        ]);
        words
    }
}

impl Drop for User {
    fn drop(&mut self) {
        run("userdel", &["--remove", &self.name]);
    }
}
