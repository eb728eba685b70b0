//! A repository of 50,000 files into a guest: `vm workspace prepare` against the guest's own `tar -x` of
//! the same files, and against git over ssh.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_harness::Environment;

use crate::number::{Limit, Number, median_ms};
use crate::ssh::Ssh;
use crate::{environment, say};

const FILES: usize = 50_000;
/// Bytes of a file: 50,000 of them are 500 MB.
const FILE: usize = 10_000;
/// Files of a folder.
const FOLDER: usize = 100;
const MACHINE: &str = "box";

fn git(repository: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(["-c", "user.name=b", "-c", "user.email=b@example.org"]);
    command.stdin(Stdio::null());
    command
}

fn must(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(began.elapsed())
}

/// Makes a repository of one commit, of files that compress to about half, as programs and texts do.
fn make_repository(repository: &Path) -> Result<()> {
    let mut state = 1_u64;
    let mut text = vec![0_u8; FILE];
    for number in 0..FILES {
        let folder = repository.join(format!("{:03}", number / FOLDER));
        if number % FOLDER == 0 {
            std::fs::create_dir_all(&folder).context("make a folder")?;
        }
        for byte in &mut text {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = b'a' + (state.to_be_bytes()[0] & 15);
        }
        std::fs::write(folder.join(format!("file-{number}")), &text).context("write a file")?;
    }
    must(git(repository).args(["init", "-q", "--initial-branch=main"]))?;
    must(git(repository).args(["add", "-A"]))?;
    must(git(repository).args(["commit", "-q", "-m", "all"]))?;
    // A pack, as a repository that was cloned has one.
    must(git(repository).args(["repack", "-q", "-a", "-d"])).map(drop)
}

/// Removes what a round left in the guest, and writes everything out. The repository's own folder is where
/// commands run.
fn settle(environment: &Environment) {
    environment
        .exec(
            MACHINE,
            ["sh", "-c", "rm -rf /root/repo/* /root/repo/.git /root/tree /root/pushed; sync"],
        )
        .ok();
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    let repository = environment.home().join("repo");
    std::fs::create_dir(&repository).context("make the repository")?;
    say(format_args!("workspace: making {FILES} files of {FILE} bytes"));
    make_repository(&repository)?;
    let path = repository.display().to_string();
    environment.banger(["vm", "run", "-d", "--name", MACHINE, "--memory", "3G"]).ok();
    let ready = "systemctl is-system-running --wait > /dev/null; true";
    environment.exec(MACHINE, ["sh", "-c", ready]).ok();
    // The guest's own files, of which its `tar` has the archive in memory.
    let archive = environment.home().join("files.tar");
    must(Command::new("/bin/tar").arg("-cf").arg(&archive).args([
        "--exclude=.git",
        "-C",
        &path,
        ".",
    ]))?;
    let to = format!("{MACHINE}:files.tar");
    environment.banger(["vm", "cp", &archive.display().to_string(), &to]).ok();
    let ssh = Ssh::by_name(&environment, MACHINE);
    ssh.run_true()?;

    let (mut ours, mut tar, mut pushed) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        settle(&environment);
        let began = Instant::now();
        environment.banger(["vm", "workspace", "prepare", MACHINE, &path, "--force"]).ok();
        ours.push(began.elapsed());
        let count =
            environment.exec(MACHINE, ["sh", "-c", "find /root/repo/[0-9]* -type f | wc -l"]);
        let count = count.ok().out();
        ensure!(count.trim() == FILES.to_string(), "it has {count} files");

        settle(&environment);
        let began = Instant::now();
        let unpack = "mkdir /root/tree && tar -xf /root/files.tar -C /root/tree";
        environment.exec(MACHINE, ["sh", "-c", unpack]).ok();
        tar.push(began.elapsed());

        settle(&environment);
        pushed.push(push(&environment, &repository, &ssh)?);
        say(format_args!(
            "workspace, round {round}: {:?}, tar {:?}, git {:?}",
            ours.last(),
            tar.last(),
            pushed.last()
        ));
    }
    environment.finish();
    let seconds = |times: &[Duration]| median_ms(times) / 1000.0;
    let number = |peer: &str, times: &[Duration], limit| Number {
        name: format!("workspace: `prepare` of {FILES} files, {} MB", FILES * FILE / 1_000_000),
        ours: seconds(&ours),
        peer: Some((peer.to_owned(), seconds(times))),
        unit: "s",
        limit,
    };
    Ok(vec![
        number("the guest's own `tar -x` of the same files", &tar, Limit::AtMostTimes(1.5)),
        number("`git push` over ssh, checked out in the guest", &pushed, Limit::FasterBy(3.0)),
    ])
}

/// What `git clone` over ssh does, begun at the other side: the guest has no way to this host's sshd. Its
/// git takes the pack and checks the files out.
fn push(environment: &Environment, repository: &Path, ssh: &Ssh) -> Result<Duration> {
    let make = "git init -q --initial-branch=main /root/pushed && \
                git -C /root/pushed config receive.denyCurrentBranch updateInstead";
    let began = Instant::now();
    environment.exec(MACHINE, ["sh", "-c", make]).ok();
    let mut command = git(repository);
    command.envs(ssh.variables().iter().cloned()).env("GIT_SSH_COMMAND", ssh.shell_words());
    command
        .args(["push", "-q"])
        .arg(format!("{MACHINE}.vm:/root/pushed"))
        .arg("HEAD:refs/heads/main");
    must(&mut command)?;
    let took = began.elapsed();
    let count = environment.exec(MACHINE, ["sh", "-c", "find /root/pushed/[0-9]* -type f | wc -l"]);
    let count = count.ok().out();
    ensure!(count.trim() == FILES.to_string(), "git checked {count} files out");
    Ok(took)
}
