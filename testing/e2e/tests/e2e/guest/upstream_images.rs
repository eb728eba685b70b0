//! Images as their makers publish them: nginx, PostgreSQL and Python, with Debian's own programs
//! and upstream's kind of configuration.

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};
use serde_json::{Value, json};

use super::applications::{ended, logs};

/// The first `count` bytes of what a port of this host says, after `words` were sent to it.
fn answer(environment: &Environment, port: u16, words: &str, count: u8) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && printf '{words}' >&3 && timeout 5 head -c {count} <&3"
    );
    let output = environment.command_in_network(&["bash", "-c", &script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Imports the root file system once, and gives it out under each name with its configuration: the
/// manifest beside an image is the daemon's own truth.
fn images(environment: &Environment, configs: &[(&str, Value)]) {
    use std::os::unix::fs::MetadataExt;
    let tar = banger_harness::application_rootfs().unwrap_or_else(|error| panic!("{error:#}"));
    let import = environment.banger(["image", "import", "--name", "base"]).arg(tar);
    import.deadline(std::time::Duration::from_secs(300)).ok();
    let images = environment.state().join("images");
    let base = images.join("base");
    let owner = base.metadata().unwrap();
    let manifest = std::fs::read(base.join("manifest.json")).unwrap();
    for (name, config) in configs {
        let folder = images.join(name);
        banger_harness::link_folder(&base, &folder).unwrap();
        let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["name"] = json!(name);
        manifest["config"] = config.clone();
        let path = folder.join("manifest.json");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, manifest.to_string()).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

#[test]
fn nginx_postgres_and_python_run_as_their_images_say() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "the namespace that keeps the ports apart needs it");
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let pg_path = format!("PATH={path}:/usr/lib/postgresql/15/bin");
    images(
        &environment,
        &[
            (
                "nginx",
                json!({
                    "Entrypoint": ["/nginx-entrypoint.sh"], "Cmd": ["nginx", "-g", "daemon off;"],
                    "Env": [format!("PATH={path}"), "NGINX_VERSION=1.22.1"],
                    "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
                }),
            ),
            (
                "postgres",
                json!({
                    "Entrypoint": ["/postgres-entrypoint.sh"],
                    "Cmd": ["postgres", "-c", "listen_addresses=*"],
                    "Env": [pg_path, "PGDATA=/var/lib/postgresql/data", "LANG=C"],
                    "ExposedPorts": {"5432/tcp": {}}, "StopSignal": "SIGINT",
                    "Volumes": {"/var/lib/postgresql/data": {}},
                }),
            ),
            (
                "python",
                json!({
                    "Cmd": ["python3"], "WorkingDir": "/usr/src/app",
                    "Env": [format!("PATH={path}"), "PYTHONUNBUFFERED=1"],
                }),
            ),
        ],
    );
    let run = |words: &[&str]| environment.banger([&["vm", "run"], words].concat());

    run(&["-d", "--name", "web", "--image", "nginx", "-p", "8080:80"]).ok();
    wait_for("nginx", GUEST_DEADLINE, || {
        (answer(&environment, 8080, "GET / HTTP/1.0\\r\\n\\r\\n", 9) == "HTTP/1.1 ").then_some(())
    });
    let log = wait_for("nginx's log", GUEST_DEADLINE, || {
        Some(logs(&environment, "web")).filter(|log| log.contains("GET / HTTP/1.0"))
    });
    assert!(log.contains("entry point: configuring nginx"), "{log}");
    let seen =
        environment.exec("web", ["sh", "-c", "echo $NGINX_VERSION; cat /proc/*/comm"]).ok().out();
    assert!(seen.starts_with("1.22.1\n") && seen.lines().any(|line| line == "nginx"), "{seen}");
    environment.banger(["vm", "stop", "web"]).ok();
    let web = environment.show("web");
    assert_eq!((&web["main_exit"]["code"], &web["last_error"]), (&json!(0), &Value::Null));

    // Without its password it says why and ends; the image's data directory is a volume.
    let words = ["--image", "postgres", "--name"];
    let failed = run(&[&words[..], &["none"]].concat()).run().code(1);
    assert!(failed.err().contains("superuser password is not specified"), "{}", failed.err());
    assert_eq!(ended(&environment, "none")["main_exit"]["code"], 1);
    let options = ["pg", "-d", "-p", "5432:5432", "-e", "POSTGRES_PASSWORD=secret"];
    run(&[&words[..], &options].concat()).ok();
    wait_for("PostgreSQL", GUEST_DEADLINE, || {
        logs(&environment, "pg").contains("ready to accept connections").then_some(())
    });
    // An SSL request, to which a server without certificates says N (or S with one).
    let said = answer(&environment, 5432, "\\x00\\x00\\x00\\x08\\x04\\xd2\\x16\\x2f", 1);
    assert!(matches!(said.as_str(), "N" | "S"), "{said:?}");
    let query = environment.banger(["vm", "exec", "-e", "PGPASSWORD=secret", "pg", "--", "psql"]);
    let query = ["-h", "127.0.0.1", "-U", "postgres", "-tAc", "select 6 * 7"]
        .iter()
        .fold(query, |query, word| query.arg(word));
    assert_eq!(query.ok().out(), "42\n");
    environment.banger(["vm", "stop", "pg"]).ok();
    let log = logs(&environment, "pg");
    assert!(log.contains("fast shutdown") && log.contains("database system is shut down"), "{log}");
    assert_eq!(environment.show("pg")["main_exit"]["code"], 0);

    let python = ["--rm", "--image", "python"];
    let ran = run(&python).input("import os; print(6 * 7, os.getcwd()); raise SystemExit(5)").run();
    assert_eq!(ran.code(5).out(), "42 /usr/src/app\n");
    let script = "import sys; print(sys.argv[1:])";
    let ran = run(&[&python[..], &["--", "python3", "-c", script, "a b"]].concat()).ok();
    assert_eq!(ran.out(), "['a b']\n");
    environment.finish();
}
