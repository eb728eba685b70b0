//! What a machine gets of this host beside its repository: files, who commits, tools.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use banger_harness::{Contents, Environment};

use super::applications::{ended, logs};

#[test]
fn machines_get_the_files_that_the_configuration_names() {
    let environment = Environment::new(Contents::Busybox);
    let home = environment.home().to_owned();
    fs::write(home.join("secret"), "token\n").unwrap();
    fs::write(home.join("outside"), "not named\n").unwrap();
    fs::create_dir_all(home.join("tools/bin")).unwrap();
    fs::write(home.join("tools/bin/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(home.join("tools/bin/run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink(home.join("outside"), home.join("tools/link")).unwrap();
    symlink("secret", home.join("to-secret")).unwrap();
    fs::write(home.join(".gitconfig"), "[user]\n\tname = A B\n\temail = a@example.org\n").unwrap();
    fs::create_dir_all(home.join(".config/banger")).unwrap();
    let config = home.join(".config/banger/config.toml");
    let entries = |more: &str| {
        let text = format!(
            "[[file_sync]]\nhost = \"~/secret\"\nguest = \"~/.config/app/token\"\n\
             [[file_sync]]\nhost = \"~/to-secret\"\nguest = \"/root/readable\"\nmode = \"0644\"\n\
             [[file_sync]]\nhost = \"~/tools\"\nguest = \"~/tools\"\nmode = \"0600\"\n\
             [[file_sync]]\nhost = \"~/missing\"\nguest = \"~/missing\"\n{more}"
        );
        fs::write(&config, text).unwrap();
    };
    let vm = |arguments: &[&str]| environment.banger([&["vm"], arguments].concat());
    let inside = |script: &str| vm(&["exec", "box", "--", "sh", "-c", script]).ok().out();

    // What is wrong is said before anything is made.
    entries("[[file_sync]]\nhost = \"~/secret\"\nguest = \"/etc/passwd\"\n");
    let create = ["create", "--image", "busybox", "--name", "box"];
    vm(&create).run().code(2).is_a_clear_error().says(&["config.toml", "file_sync[4]"]);
    assert!(environment.vms().is_empty());

    entries("");
    vm(&create).ok().says(&["missing (file_sync) is not here"]);
    let listing = inside(
        "cd /root; stat -c '%a %u:%g %N' .config/app/token readable tools/bin/run tools/link",
    );
    let outside = home.join("outside");
    assert_eq!(
        listing.replace('\'', ""),
        format!(
            "600 0:0 .config/app/token\n644 0:0 readable\n750 0:0 tools/bin/run\n\
             777 0:0 tools/link -> {}\n",
            outside.display()
        )
    );
    assert_eq!(inside("cat /root/readable; [ -e /root/missing ] || echo none"), "token\nnone\n");
    let config_there = inside("cat /root/.gitconfig");
    assert!(config_there.contains("name = \"A B\"") && config_there.contains("a@example.org"));

    // With each start, and a configuration of git that the machine has stays.
    inside("echo own > /root/.gitconfig");
    fs::write(home.join("secret"), "another\n").unwrap();
    vm(&["restart", "box"]).ok();
    assert_eq!(inside("cat /root/.config/app/token /root/.gitconfig"), "another\nown\n");

    // A machine that puts a link in the way is told of, and nothing goes through it.
    inside("rm -r /root/.config && mkdir /tmp/elsewhere && ln -s /etc /root/.config");
    vm(&["restart", "box"]).run().code(1).is_a_clear_error().says(&["secret", "file_sync"]);
    assert_eq!(inside("[ -e /etc/app ] || echo none"), "none\n");
    environment.finish();
}

#[test]
fn an_application_begins_with_its_files_there() {
    let environment = Environment::new(Contents::Busybox);
    let home = environment.home().to_owned();
    // So much that the program would be over long before.
    fs::create_dir_all(home.join("many")).unwrap();
    for number in 0..20 {
        fs::write(home.join("many").join(number.to_string()), vec![b'x'; 1 << 20]).unwrap();
    }
    fs::write(home.join("last"), "the last one\n").unwrap();
    fs::create_dir_all(home.join(".config/banger")).unwrap();
    let config = "[[file_sync]]\nhost = \"~/many\"\nguest = \"~/many\"\n\
                  [[file_sync]]\nhost = \"~/last\"\nguest = \"~/last\"\n";
    fs::write(home.join(".config/banger/config.toml"), config).unwrap();
    let vm = |arguments: &[&str]| environment.banger([&["vm"], arguments].concat());
    let program = ["--image", "busybox", "--entrypoint", "cat", "--name"];
    for (verb, name) in [(&["run", "-d"][..], "one"), (&["create"][..], "two")] {
        let made = vm(&[verb, &program, &[name, "--", "/root/last"]].concat()).ok();
        assert_eq!(made.out(), format!("{name}\n"));
        assert_eq!(ended(&environment, name)["main_exit"]["code"], 0, "{name}");
        assert!(logs(&environment, name).contains("the last one"), "{name}");
    }
    // Started again it is not held. Whether it is over before its files are there or not, it has run.
    vm(&["start", "one"]).ok();
    assert_eq!(ended(&environment, "one")["main_exit"]["code"], 0);
    environment.finish();
}

#[test]
fn a_repositorys_tools_are_installed_by_the_machines_mise() {
    let environment = Environment::new(Contents::Busybox);
    let repository = environment.home().join("repo");
    let path = repository.to_str().unwrap();
    fs::create_dir_all(&repository).unwrap();
    fs::write(repository.join(".tool-versions"), "node 24\n").unwrap();
    environment.host("git", &["-C", path, "init", "-q", "-b", "main"]);
    environment.host("git", &["-C", path, "add", "-A"]);
    let vm = |arguments: &[&str]| environment.banger([&["vm"], arguments].concat());

    let run = ["run", "--image", "busybox", "--name", "box", path];
    let refused = vm(&[&run[..], &["--", "true"]].concat()).run().code(2).is_a_clear_error();
    refused.says(&[".tool-versions", "--nat", "--no-bootstrap"]);
    assert!(environment.vms().is_empty());
    vm(&[&run[..], &["--no-bootstrap", "--", "true"]].concat()).ok();
    vm(&["workspace", "prepare", "box"]).ok().says(&["not installed", "--nat"]);
    vm(&["delete", "box"]).ok();
    let with_nat = [&run[..], &["--nat", "--", "echo", "ran"]].concat();
    let ran = vm(&with_nat).ok();
    assert_eq!(ran.out(), "ran\n");
    ran.says(&["the machine has no mise"]);

    // One that says what it is asked, for there is no network to install from.
    let stand_in = environment.home().join("mise");
    let script = "#!/bin/sh\necho \"$(pwd) $*\" >> /root/asked\n[ \"$1\" = exec ] || exit 0\n\
                  shift 2\nexport TOOL=there\nexec \"$@\"\n";
    fs::write(&stand_in, script).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    vm(&["exec", "box", "--", "mkdir", "-p", "/usr/local/bin"]).ok();
    vm(&["cp", stand_in.to_str().unwrap(), "box:/usr/local/bin/mise"]).ok();
    vm(&["workspace", "prepare", "box"]).ok();
    let tool = vm(&["exec", "box", "--", "sh", "-c", "echo $TOOL; exit 7"]).run().code(7);
    assert_eq!(tool.out(), "there\n");
    vm(&["exec", "box", "--", "no-such-program"]).run().code(127);
    let asked = vm(&["exec", "box", "--", "cat", "/root/asked"]).ok().out();
    let lines: Vec<&str> = asked.lines().take(3).collect();
    assert_eq!(
        lines,
        [
            "/root/repo trust --quiet",
            "/root/repo install --yes",
            "/root/repo exec -- sh -c echo $TOOL; exit 7"
        ]
    );
    environment.finish();
}
