//! OpenSSH's own programs of this host, into a machine that has no network path to it.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use banger_harness::{Contents, Environment, Invocation};

/// A program of the host's, where the machine's `banger` runs, too.
pub(super) fn host(environment: &Environment, words: &[&str]) -> Invocation {
    let banger = environment.command([""; 0]);
    let mut all: Vec<OsString> = std::iter::once(banger.get_program())
        .chain(banger.get_args())
        .map(OsString::from)
        .collect();
    all.pop();
    all.extend(words.iter().map(OsString::from));
    let mut command = Command::new(&all[0]);
    command.args(&all[1..]).env_clear().current_dir(environment.home());
    command.envs(banger.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Invocation::new(command)
}

/// What a web server of either side says, by the bash of this host.
fn page(environment: &Environment, port: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /word HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    );
    host(environment, &["bash", "-c", &script]).run().out()
}

#[test]
fn ssh_and_its_relatives_reach_a_machine() {
    let environment = Environment::new(Contents::Debian);
    environment.banger(["vm", "run", "-d", "--name", "box"]).ok();
    let home = environment.home().to_owned();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();

    // By itself: a command, its streams and its code.
    let out = environment
        .banger(["vm", "ssh", "box", "--", "cat; echo $SSH_CONNECTION >&2; exit 7"])
        .input("bytes")
        .run()
        .code(7);
    assert_eq!(out.out(), "bytes", "{out}");

    environment.banger(["ssh-config", "--install"]).ok();
    let config = path(".ssh/config");
    let ssh = ["ssh", "-F", &config];
    let run = |words: &[&str]| host(&environment, &[&ssh[..], words].concat());
    let told = run(&["box.vm", "hostname; id -un"]).ok();
    assert_eq!((told.out().as_str(), told.err().as_str()), ("box\nroot\n", ""), "{told}");
    // Nothing listens for it.
    assert_eq!(run(&["box.vm", "ss -Hltn 'sport = :22'"]).ok().out(), "");

    // Files, by each program that copies over ssh.
    std::fs::create_dir_all(home.join("tree/d")).unwrap();
    let bytes: Vec<u8> =
        (0..2_000_000_usize).map(|i| (i.wrapping_mul(31) >> 3).to_le_bytes()[0]).collect();
    std::fs::write(home.join("tree/d/big"), &bytes).unwrap();
    let same = |there: &str| {
        let sum = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        let here = host(&environment, &["sha256sum", &path("tree/d/big")]).ok().out();
        let there = run(&["box.vm", "sha256sum", there]).ok().out();
        assert_eq!(sum(&here), sum(&there));
    };
    host(&environment, &["scp", "-q", "-F", &config, "-r", "tree", "box.vm:by-scp"]).ok();
    same("by-scp/d/big");
    host(&environment, &["sftp", "-q", "-F", &config, "-b", "-", "box.vm"])
        .input("put tree/d/big by-sftp\nget by-sftp back\n")
        .ok();
    assert!(std::fs::read(home.join("back")).unwrap() == bytes);
    let shell = format!("ssh -F {config}");
    host(&environment, &["rsync", "-a", "-e", &shell, "tree/", "box.vm:by-rsync"]).ok();
    same("by-rsync/d/big");

    // git push.
    let git = |words: &[&str]| {
        host(&environment, &[&["git", "-C", "tree"][..], words].concat())
            .env("GIT_SSH_COMMAND", &shell)
    };
    git(&["init", "-q"]).ok();
    git(&["add", "-A"]).ok();
    git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]).ok();
    run(&["box.vm", "git init -q --bare pushed.git"]).ok();
    git(&["push", "-q", "box.vm:pushed.git", "HEAD:refs/heads/main"]).ok();
    let head = git(&["rev-parse", "HEAD"]).ok().out();
    assert_eq!(run(&["box.vm", "git -C pushed.git rev-parse main"]).ok().out(), head);

    // The keys of this host's agent.
    let key = path("agent-key");
    host(&environment, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", &key])
        .ok();
    let script = format!(
        "eval \"$(ssh-agent -s)\" >/dev/null; ssh-add -q {key} && ssh -F {config} -A box.vm ssh-add -l; \
         code=$?; ssh-agent -k >/dev/null; exit $code"
    );
    let listed = host(&environment, &["sh", "-c", &script]).ok().out();
    assert!(listed.contains("mine (ED25519)"), "{listed}");

    // A key of the user's own, and back.
    environment.banger(["config", "set", "ssh.key", &key]).ok();
    assert!(
        environment.banger(["ssh-config"]).ok().out().contains(&format!("IdentityFile \"{key}\""))
    );
    environment.banger(["vm", "ssh", "box", "--", "true"]).ok();
    environment.banger(["config", "set", "ssh.key", "auto"]).ok();

    forwards(&environment, &ssh);
    host_keys(&environment, &ssh);
    environment.finish();
}

/// Many sessions over one connection, and ports both ways.
fn forwards(environment: &Environment, ssh: &[&str]) {
    let home = environment.home().to_owned();
    let control = format!("ControlPath={}", home.join("cm").display());
    let run = |words: &[&str]| host(environment, &[ssh, &["-o", &control], words].concat());
    let master = run(&["-M", "-N", "box.vm"]).spawn();
    banger_harness::wait_for("the master", banger_harness::GUEST_DEADLINE, || {
        (run(&["-O", "check", "box.vm"]).run().exit_code() == Some(0)).then_some(())
    });
    let together: Vec<_> = (0..5)
        .map(|n| run(&["box.vm", &format!("echo {n}; ps -C sshd -o pid= | wc -l")]).spawn())
        .collect();
    for (n, session) in together.into_iter().enumerate() {
        let out = session.finish().code(0).out();
        assert!(out.starts_with(&n.to_string()), "{out}");
    }

    let serve = "mkdir -p /srv/w && echo from the machine > /srv/w/word && cd /srv/w && \
        (setsid python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 &) ; \
        until ss -Hltn 'sport = :8000' | grep -q .; do sleep 0.1; done";
    run(&["box.vm", serve]).ok();
    run(&["-O", "forward", "-L", "18080:127.0.0.1:8000", "box.vm"]).ok();
    assert!(page(environment, "18080").contains("from the machine"));

    std::fs::create_dir_all(home.join("w")).unwrap();
    std::fs::write(home.join("w/word"), "from the host\n").unwrap();
    let folder = home.join("w").display().to_string();
    let server =
        host(environment, &["busybox", "httpd", "-f", "-p", "127.0.0.1:18081", "-h", &folder])
            .spawn();
    run(&["-O", "forward", "-R", "18082:127.0.0.1:18081", "box.vm"]).ok();
    let got = run(&["box.vm", "curl -s http://127.0.0.1:18082/word"]).ok().out();
    assert_eq!(got, "from the host\n");
    server.process().signal(rustix::process::Signal::TERM);
    let _ = server.finish();
    run(&["-O", "exit", "box.vm"]).ok();
    let _ = master.finish();
    // What a session left in the background lives on, as after any ssh.
    assert!(environment.exec("box", ["pgrep", "-f", "http.server"]).run().exit_code() == Some(0));
}

/// A key that has changed is refused; a machine without an sshd says what it lacks.
fn host_keys(environment: &Environment, ssh: &[&str]) {
    let run = |words: &[&str]| host(environment, &[ssh, words].concat());
    let known = environment.home().join(".local/state/banger/ssh/known_hosts");
    let first = std::fs::read_to_string(&known).unwrap();
    assert!(first.starts_with("box.vm ssh-ed25519 AAAA"), "{first}");
    environment.exec("box", ["rm", "-r", "/var/lib/banger/ssh"]).ok();
    run(&["box.vm", "true"]).run().code(255).says(&["HAS CHANGED", "--new-host-key box"]);
    environment.banger(["vm", "ssh", "box", "--", "true"]).run().code(255).says(&["HAS CHANGED"]);
    assert_eq!(std::fs::read_to_string(&known).unwrap(), first);
    environment.banger(["vm", "ssh", "--new-host-key", "box", "--", "true"]).ok();
    run(&["box.vm", "true"]).ok();
    assert_ne!(std::fs::read_to_string(&known).unwrap(), first);
    environment.exec("box", ["mv", "/usr/sbin/sshd", "/usr/sbin/away"]).ok();
    run(&["box.vm", "true"]).run().code(255).says(&["no sshd", "openssh-server"]);
    run(&["nobody.vm", "true"]).run().code(255).says(&["nobody"]);
    run(&["no_body.vm", "true"]).run().code(255).says(&["no_body"]);
}

#[test]
fn the_users_own_configuration_stays_the_users() {
    let environment = Environment::new(Contents::Empty);
    let home = environment.home().to_owned();
    let change = |what: &str| environment.banger(["ssh-config", what]).ok();
    let config = home.join(".ssh/config");
    let own = home.join(".config/banger/ssh_config");
    assert!(
        environment.banger(["ssh-config"]).ok().out().contains("Host *.vm\n    ProxyCommand /")
    );
    assert!(!config.exists() && !own.exists());

    // Out of nothing, and back to nothing.
    change("--install").says(&["changed"]);
    assert_eq!(config.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(config.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let parsed =
        host(&environment, &["ssh", "-F", config.to_str().unwrap(), "-G", "box.vm"]).ok().out();
    for word in ["user root\n", "stricthostkeychecking true\n", "ssh-proxy", "identitiesonly yes\n"]
    {
        assert!(parsed.contains(word), "{word} in {parsed}");
    }
    change("--uninstall");
    assert!(!config.exists() && !own.exists());
    change("--uninstall").says(&["nothing to change"]);

    // A link to a file of the user's.
    let text = "Host a\n  User b\n# end";
    let dotfile = home.join("dotfile");
    std::fs::write(&dotfile, text).unwrap();
    std::fs::set_permissions(&dotfile, PermissionsExt::from_mode(0o640)).unwrap();
    symlink(&dotfile, &config).unwrap();
    change("--install");
    let with = std::fs::read_to_string(&dotfile).unwrap();
    assert!(with.starts_with("# >>> banger >>>\n") && with.ends_with(text), "{with}");
    change("--install").says(&["nothing to change"]);
    assert_eq!(std::fs::read_to_string(&dotfile).unwrap(), with);
    change("--uninstall");
    assert_eq!(std::fs::read_to_string(&dotfile).unwrap(), text);
    assert!(config.is_symlink());
    assert_eq!(dotfile.metadata().unwrap().mode() & 0o7777, 0o640);

    // An empty file was the user's, too.
    std::fs::write(&dotfile, "").unwrap();
    change("--install");
    change("--uninstall");
    assert_eq!(std::fs::read(&dotfile).unwrap(), b"");
    assert_eq!(dotfile.metadata().unwrap().mode() & 0o7777, 0o640);

    // Torn markers are not repaired by guessing.
    std::fs::write(&dotfile, "x\n# >>> banger >>>\n").unwrap();
    let refused = environment.banger(["ssh-config", "--install"]).run().code(1);
    refused.is_a_clear_error().says(&["line 2", "by hand"]);
    environment.finish();
}

#[test]
fn eight_at_once_leave_a_whole_file_and_the_users_lines() {
    let environment = Environment::new(Contents::Empty);
    let directory = environment.home().join(".ssh");
    let config = directory.join("config");
    let own = environment.home().join(".config/banger/ssh_config");
    let read = || std::fs::read_to_string(&config).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let mut text = "Host a\n  User b\n".to_owned();
    std::fs::write(&config, &text).unwrap();
    environment.banger(["ssh-config", "--install"]).ok();
    let block = read().strip_suffix(&text).unwrap().to_owned();
    let is_whole = |now: &str, text: &str| now == text || now.strip_prefix(&block) == Some(text);

    let (mut seen_with, mut seen_without) = (0, 0);
    for round in 0..6 {
        // The user goes on, too, and nothing of it gets lost.
        let more = format!("Host own-{round}\n  Port {round}\n# no end of line {round}\n");
        text.push_str(&more);
        std::fs::write(&config, read() + &more).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Whoever reads meanwhile, as ssh does, never sees a part.
            let watched = scope.spawn(|| {
                while !ended.load(Ordering::Acquire) {
                    let now = read();
                    if !is_whole(&now, &text) {
                        return Err(now);
                    }
                }
                Ok(())
            });
            let running: Vec<_> = (0..8)
                .map(|number| {
                    let what = ["--install", "--uninstall"][number % 2];
                    environment.banger(["ssh-config", what]).spawn()
                })
                .collect();
            let finished: Vec<_> = running.into_iter().map(|one| one.finish()).collect();
            ended.store(true, Ordering::Release);
            for one in finished {
                one.code(0);
            }
            assert_eq!(watched.join().unwrap(), Ok(()));
        });
        let now = read();
        assert!(is_whole(&now, &text), "{now}");
        // The two files are of one and the same change, the last.
        assert_eq!(now != text, own.exists(), "{now}");
        *(if now == text { &mut seen_without } else { &mut seen_with }) += 1;
    }
    println!("the last was an install {seen_with} times, else {seen_without} times");
    environment.banger(["ssh-config", "--uninstall"]).ok();
    assert_eq!(read(), text);
    let left: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&config), "and no temporary file");
    environment.finish();
}
