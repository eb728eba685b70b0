//! The tables against the helper as it runs: what is refused changes nothing.

use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use banger_gate_tables::{Expect, base, inputs, parameters};
use banger_helper_api::{ErrorCode, Method};
use banger_privileged_tests::running::RunningHelper;
use banger_privileged_tests::{Directories, OWNER};

use crate::snapshot::Snapshot;
use crate::{enter_own_world, is_not_root};

/// Makes what the tables' paths name.
fn furnish(directories: &Directories) {
    let outside = &directories.outside;
    let owned = |path: &Path| chown(path, Some(OWNER), Some(OWNER)).unwrap();
    let file = |path: &Path| {
        std::fs::write(path, "content").unwrap();
        owned(path);
    };
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::fs::create_dir(outside.join("folder")).unwrap();
    std::fs::write(outside.join("folder/good"), "secret").unwrap();
    for root in [&directories.state, &directories.runtime] {
        std::fs::create_dir(root.join("folder")).unwrap();
        owned(&root.join("folder"));
        symlink(root.join("folder"), root.join("folder-link")).unwrap();
        symlink(outside.join("folder"), root.join("folder-link-outside")).unwrap();
    }
    let state = &directories.state;
    for name in ["good", "folder/good", "image", "cow", "log", "metrics", "kernel", "initrd"] {
        file(&state.join(name));
    }
    symlink(state.join("good"), state.join("link")).unwrap();
    symlink(outside.join("secret"), state.join("link-outside")).unwrap();
    symlink(state.join("link-to-itself"), state.join("link-to-itself")).unwrap();
    std::fs::hard_link(outside.join("secret"), state.join("hard-link-outside")).unwrap();
    std::fs::write(state.join("roots"), "root's").unwrap();
    let fifo = state.join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    owned(&fifo);
}

#[test]
fn what_the_tables_refuse_changes_nothing_on_the_host() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    furnish(&helper.directories);
    let places = helper.places();
    let mut peer = helper.connect();
    let mut count = 0;
    for &method in Method::ALL {
        let base = base(method, &places);
        for parameter in parameters(method) {
            let before = Snapshot::take(&helper.directories, helper.pid());
            for input in inputs(parameter.kind, &places) {
                if input.expect == Expect::Accept {
                    continue;
                }
                let mut params = base.clone();
                *params.pointer_mut(parameter.pointer).unwrap() = input.value.clone();
                let what =
                    format!("{method}{} {}: {}", parameter.pointer, input.class, input.value);
                let (code, message) = peer.call(method, &params).expect_err(&what);
                let is_gates = input.expect == Expect::Refuse;
                let may_be = [parameter.code, ErrorCode::BadParams];
                assert!(!is_gates || may_be.contains(&code), "{what}: {code:?} {message}");
                count += 1;
            }
            let after = Snapshot::take(&helper.directories, helper.pid());
            assert_eq!(before, after, "{method}{}", parameter.pointer);
        }
    }
    assert!(count > 1000, "{count} refusals");
    assert!(!helper.log().contains("panicked"), "{}", helper.log());
}
