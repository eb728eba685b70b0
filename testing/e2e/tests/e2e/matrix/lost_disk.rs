//! A machine that has lost one of its disks keeps the other, whatever `doctor --fix` removes.

use std::os::unix::fs::MetadataExt;

use super::scene::Scene;

#[test]
fn a_disk_that_is_there_outlives_doctor() {
    let Some(scene) = Scene::new("qemu") else { return };
    scene.create("box").ok();
    scene.banger(&["vm", "stop", "box"]).ok();
    let shown = scene.banger(&["vm", "show", "box", "--json"]).ok().json();
    let disk = |number: usize| {
        std::path::PathBuf::from(shown["disks"][number]["path"].as_str().expect("a path"))
    };
    let (root, work) = (disk(0), disk(1));
    let aside = scene.environment.state().join("aside");
    std::fs::rename(&root, &aside).unwrap();
    let kept = || work.metadata().map(|file| (file.ino(), file.blocks(), file.mtime())).unwrap();
    let before = kept();
    let report = scene.banger(&["doctor", "--fix"]).run().out();
    assert!(report.contains("VM box cannot start"), "{report}");
    assert!(report.contains(&work.display().to_string()), "{report}");
    assert!(!report.contains("without a disk"), "{report}");
    assert_eq!(kept(), before);
    let refused = scene.banger(&["vm", "start", "box"]).run();
    assert!(refused.err().contains(&root.display().to_string()), "{}", refused.err());
    // Put back, it is whole.
    std::fs::rename(&aside, &root).unwrap();
    scene.banger(&["vm", "start", "box"]).ok();
    scene.banger(&["vm", "stop", "box"]).ok();
    // With none left there is only the record.
    std::fs::remove_file(&root).unwrap();
    std::fs::remove_file(&work).unwrap();
    let report = scene.banger(&["doctor", "--fix"]).run().out();
    assert!(report.contains("without a disk"), "{report}");
    scene.finish();
}
