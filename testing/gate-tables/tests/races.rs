//! Every path that a request can name has a race.

use std::collections::BTreeMap;
use std::path::Path;

use banger_gate_tables::{Kind, parameters};
use banger_helper_api::Method;

/// Below `testing/privileged/tests`.
const DISK: &str = "disk/race.rs";
const SOCKETS: &str = "vmm/socket_races.rs";
const MACHINES: &str = "vmm/races.rs";
const PIDS: &str = "vmm/pid_races.rs";

/// Which race swaps the path of a parameter; none where no file is opened or changed by it.
fn race(method: Method, pointer: &str) -> Option<(&'static str, &'static str)> {
    Some(match (method, pointer) {
        (Method::CreateDmSnapshot, "/rootfs_path") => {
            (DISK, "a_snapshots_image_is_attached_while_paths_are_swapped")
        }
        (Method::CreateDmSnapshot, "/cow_path") => {
            (DISK, "a_snapshots_changes_are_attached_while_paths_are_swapped")
        }
        (Method::ReadExt4File, "/image_path") => (DISK, "reading_while_paths_are_swapped"),
        (Method::WriteExt4Files, "/image_path") => (DISK, "writing_while_paths_are_swapped"),
        (Method::ResolveFirecrackerBinary, "/requested") => {
            (MACHINES, "a_swapped_program_is_never_found")
        }
        (Method::LaunchFirecracker, "/binary_path") => {
            (MACHINES, "a_swapped_firecracker_never_runs_as_root")
        }
        (Method::LaunchFirecracker, "/jailer/binary") => {
            (MACHINES, "a_swapped_jailer_is_never_executed")
        }
        (Method::LaunchFirecracker, "/jailer/chroot_base_dir") => return None,
        (Method::LaunchFirecracker, "/kernel_image_path") => {
            (MACHINES, "launches_with_a_swapped_kernel_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/initrd_path") => {
            (MACHINES, "launches_with_a_swapped_initrd_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/drives/0/path") => {
            (MACHINES, "launches_with_a_swapped_writable_disk_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/log_path") => {
            (MACHINES, "launches_with_a_swapped_log_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/metrics_path") => {
            (MACHINES, "launches_with_a_swapped_place_for_metrics_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/socket_path") => {
            (MACHINES, "launches_with_a_swapped_api_socket_touch_nothing_outside")
        }
        (Method::LaunchFirecracker, "/vsock_path") => {
            (MACHINES, "launches_with_a_swapped_vsock_touch_nothing_outside")
        }
        (Method::EnsureSocketAccess, "/socket_path") => {
            (SOCKETS, "a_socket_path_that_is_swapped_changes_nothing_outside")
        }
        (Method::FindFirecrackerPid | Method::ProcessRunning, "/api_sock") => {
            (SOCKETS, "questions_about_a_swapped_socket_find_nobody_else")
        }
        (Method::CleanupJailerChroot, "/chroot_root") => {
            (MACHINES, "a_jail_whose_directories_are_swapped_is_cleaned_up_and_nothing_outside")
        }
        (Method::KillProcess | Method::SignalProcess, "/pid") => {
            (PIDS, "a_pid_that_changes_hands_is_killed_in_the_right_ones_only")
        }
        (Method::ProcessRunning, "/pid") => {
            (SOCKETS, "questions_about_a_swapped_socket_find_nobody_else")
        }
        _ => panic!("{method}{pointer} has no race"),
    })
}

#[test]
fn no_path_and_no_pid_is_without_a_race() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../privileged/tests");
    let mut sources = BTreeMap::new();
    for file in [DISK, SOCKETS, MACHINES, PIDS] {
        sources.insert(file, std::fs::read_to_string(tests.join(file)).expect(file));
    }
    let mut count = 0;
    for &method in Method::ALL {
        for parameter in parameters(method) {
            let is_swapped = matches!(
                parameter.kind,
                Kind::StatePath
                    | Kind::OptionalStatePath
                    | Kind::WrittenPath
                    | Kind::LogPath
                    | Kind::OptionalLogPath
                    | Kind::ImagePath
                    | Kind::WrittenImagePath
                    | Kind::DrivePath
                    | Kind::LinkPlace
                    | Kind::OptionalLinkPlace
                    | Kind::SocketPath
                    | Kind::AskedSocket
                    | Kind::Firecracker
                    | Kind::OptionalFirecracker
                    | Kind::Jailer
                    | Kind::JailBase
                    | Kind::ChrootRoot
                    | Kind::Pid
                    | Kind::AskedPid
            );
            if !is_swapped {
                continue;
            }
            count += 1;
            if let Some((file, name)) = race(method, parameter.pointer) {
                assert!(sources[file].contains(&format!("#[test]\nfn {name}(")), "{file}: {name}");
            }
        }
    }
    assert!(count > 20, "{count} parameters");
}
