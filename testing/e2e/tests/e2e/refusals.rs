//! Bad input that is refused before anything is created.

use banger_harness::{Contents, Environment};

/// Exit code of a command line that cannot be understood.
const USAGE: i32 = 2;
/// Exit code of `vm run` and `vm exec` where banger itself failed.
const BANGER_FAILED: i32 = 125;

#[test]
fn bad_names_sizes_and_flags_are_usage_errors() {
    let environment = Environment::new(Contents::Empty);
    let long = "x".repeat(64);
    let cases: [&[&str]; 20] = [
        &["vm", "run", "--name", "", "--", "true"],
        &["vm", "run", "--name", "Box", "--", "true"],
        &["vm", "run", "--name", "a/b", "--", "true"],
        &["vm", "run", "--name", "-a", "--", "true"],
        &["vm", "run", "--name", "..", "--", "true"],
        &["vm", "run", "--name", "a\nb", "--", "true"],
        &["vm", "run", "--name", &long, "--", "true"],
        &["vm", "run", "--image", "../etc", "--", "true"],
        &["vm", "run", "--kernel", "a b", "--", "true"],
        &["vm", "run", "--vcpu", "0", "--", "true"],
        &["vm", "run", "--vcpu", "33", "--", "true"],
        &["vm", "run", "--vcpu", "two", "--", "true"],
        &["vm", "run", "--memory", "1", "--", "true"],
        &["vm", "run", "--memory", "lots", "--", "true"],
        &["vm", "run", "--memory", "-5G", "--", "true"],
        &["vm", "run", "--disk-size", "1", "--", "true"],
        &["vm", "run", "--disk-size", "99999999999999999999G", "--", "true"],
        &["vm", "run", "--no-such-flag"],
        &["vm", "fly"],
        &["image", "pull", "a//b"],
    ];
    for arguments in cases {
        let refused = environment.banger(arguments).run();
        assert_eq!(refused.exit_code(), Some(USAGE), "{arguments:?}: {refused}");
        refused.is_a_clear_error();
    }
    assert!(environment.processes().is_empty(), "a usage error starts no daemon");
    assert!(!environment.state().exists(), "a usage error makes no directory");
    environment.finish();
}

#[test]
fn detached_runs_take_neither_a_command_nor_rm() {
    let environment = Environment::new(Contents::Empty);
    environment.banger(["vm", "run", "-d", "--rm"]).run().code(USAGE).is_a_clear_error();
    environment.banger(["vm", "run", "-d", "--", "true"]).run().code(USAGE).is_a_clear_error();
    environment.finish();
}

#[test]
fn an_unknown_vm_is_named_with_what_to_do() {
    let environment = Environment::new(Contents::Empty);
    for verb in [&["show"][..], &["start"], &["stop"], &["delete"], &["logs"]] {
        let mut arguments = vec!["vm"];
        arguments.extend(verb);
        arguments.push("nobody");
        environment.banger(arguments).run().code(1).is_a_clear_error().says(&["nobody"]);
    }
    environment
        .banger(["vm", "exec", "nobody", "--", "true"])
        .run()
        .code(BANGER_FAILED)
        .is_a_clear_error()
        .says(&["nobody"]);
    environment.finish();
}

#[test]
fn an_unknown_image_or_kernel_is_named_and_no_vm_is_made() {
    let environment = Environment::new(Contents::Kernel);
    for verb in [["image", "show"], ["image", "delete"], ["kernel", "show"], ["kernel", "delete"]] {
        environment.banger(verb).arg("nothing").run().code(1).is_a_clear_error().says(&["nothing"]);
    }
    let run = environment.banger(["vm", "run", "--image", "nothing", "--", "true"]).run();
    run.code(BANGER_FAILED).is_a_clear_error().says(&["nothing"]);
    let run = environment.banger(["vm", "run", "--kernel", "nothing", "--", "true"]).run();
    run.code(BANGER_FAILED).is_a_clear_error().says(&["nothing"]);
    assert_eq!(environment.vms(), [""; 0]);
    environment.finish();
}

#[test]
fn a_folder_that_is_no_repository_is_refused_before_a_vm_is_made() {
    let environment = Environment::new(Contents::Empty);
    let plain = environment.home().join("plain");
    std::fs::create_dir(&plain).unwrap();
    for path in [plain.as_path(), &environment.home().join("missing")] {
        let path = path.to_str().unwrap();
        let refused = environment.banger(["vm", "run", path, "--", "true"]).run();
        refused.code(BANGER_FAILED).is_a_clear_error().says(&[path]);
    }
    assert!(environment.daemon().is_none() || environment.vms().is_empty());
    environment.finish();
}
