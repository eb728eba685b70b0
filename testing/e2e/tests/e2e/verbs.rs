//! Verbs that need no guest.

use banger_harness::{Contents, Environment};
use serde_json::Value;

#[test]
fn version_and_help_need_no_daemon() {
    let environment = Environment::new(Contents::Empty);
    let version = environment.banger(["version"]).ok().out();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    environment.banger(["--version"]).ok();
    let help = environment.banger(["--help"]).ok().out();
    for verb in ["vm", "image", "kernel", "ps", "doctor", "version"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} in {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(!environment.banger(["completion", shell]).ok().stdout.is_empty(), "{shell}");
    }
    assert!(environment.daemon().is_none());
    environment.finish();
}

#[test]
fn there_is_a_man_page_for_every_verb() {
    let environment = Environment::new(Contents::Empty);
    let pages = environment.home().join("man");
    std::fs::create_dir(&pages).unwrap();
    environment.banger(["internal", "man"]).arg(&pages).ok();
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).unwrap_or_default();
    assert!(page("banger.1").contains("banger\\-vm(1)"), "{}", page("banger.1"));
    assert!(page("banger-vm-run.1").contains("SYNOPSIS"), "{}", page("banger-vm-run.1"));
    assert!(!page("banger-image-pull.1").is_empty());
    environment.finish();
}

#[test]
fn lists_are_empty_at_first_in_both_forms() {
    let environment = Environment::new(Contents::Empty);
    for list in [&["vm", "list"][..], &["ps"], &["image", "list"], &["kernel", "list"]] {
        environment.banger(list).ok();
        let json = environment.banger(list).arg("--json").ok().json();
        assert_eq!(json.as_array().map(Vec::len), Some(0), "{list:?}: {json}");
    }
    environment.finish();
}

#[test]
fn the_shared_image_and_kernel_are_found_by_a_new_daemon() {
    let environment = Environment::new(Contents::Busybox);
    let images = environment.banger(["image", "list", "--json"]).ok().json();
    assert_eq!(images[0]["name"], "busybox");
    assert_eq!(images[0]["has_init"], false);
    let kernels = environment.banger(["kernel", "list", "--json"]).ok().json();
    assert_eq!(kernels[0]["name"], banger_harness::DEFAULT_KERNEL);
    let shown = environment.banger(["image", "show", "busybox"]).ok().out();
    assert!(shown.contains("busybox"), "{shown}");
    let shown = environment
        .banger(["kernel", "show", banger_harness::DEFAULT_KERNEL, "--json"])
        .ok()
        .json();
    assert!(shown["version"].as_str().is_some_and(|version| version.starts_with("6.")), "{shown}");
    environment.finish();
}

#[test]
fn doctor_names_the_vmm_and_gives_a_verdict_per_check() {
    let environment = Environment::new(Contents::Empty);
    let text = environment.banger(["doctor"]).run().out();
    assert!(text.contains("PASS"), "{text}");
    assert!(text.to_lowercase().contains("qemu"), "{text}");
    let finished = environment.banger(["doctor", "--json"]).run();
    let report = finished.json();
    let checks =
        report.get("checks").unwrap_or(&report).as_array().expect("a list of checks").clone();
    assert!(checks.len() >= 5, "{report}");
    let status = |check: &Value| check["status"].as_str().unwrap_or_default().to_owned();
    for check in &checks {
        assert!(["PASS", "WARN", "FAIL"].contains(&status(check).as_str()), "{check}");
        if status(check) != "PASS" {
            assert!(check["hint"].is_string(), "a check that does not pass has a hint: {check}");
        }
    }
    let failed = checks.iter().any(|check| status(check) == "FAIL");
    assert_eq!(finished.exit_code(), Some(i32::from(failed)));
    environment.finish();
}

#[test]
fn output_to_a_closed_pipe_ends_quietly() {
    let environment = Environment::new(Contents::Empty);
    let mut help = environment.banger(["--help"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(help.command().get_program());
    command.arg("--help").stdout(writer).stderr(std::process::Stdio::piped());
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    environment.finish();
}
