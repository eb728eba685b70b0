//! Every parameter of every method against the tables of `testing/gate-tables`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use banger_gate_tables::{Expect, Living, Places, base, classes, fit, inputs, parameters};
use banger_gates::{Owner, Policy, Refusal, request};
use banger_helper_api::{ErrorCode, Method};
use serde_json::Value;

fn places() -> Places {
    Places {
        state: "/var/lib/banger".to_owned(),
        runtime: "/run/banger".to_owned(),
        jails: "/var/lib/banger-root/jail".to_owned(),
        vmm: "/usr/lib/banger".to_owned(),
        owner: (1000, 1001),
        own_pid: 77,
        memory_mib: 4096,
        living: Living::default(),
    }
}

fn policy() -> Policy {
    let places = places();
    Policy {
        owner: Owner::new(1000, 1001).unwrap(),
        state: places.state.into(),
        runtime: places.runtime.into(),
        jails: places.jails.into(),
        vmm_directories: vec![PathBuf::from("/usr/lib/banger")],
        vmm_files: vec![],
        host_memory_mib: places.memory_mib,
        own_pid: places.own_pid,
    }
}

/// Decodes and gates, as the helper does.
fn gate(method: Method, params: &Value) -> Result<(), ErrorCode> {
    fn decoded<T: for<'a> serde::Deserialize<'a>>(params: &Value) -> Result<T, ErrorCode> {
        serde_json::from_str(&params.to_string()).map_err(|_| ErrorCode::BadParams)
    }
    fn plain<T>(result: Result<T, Refusal>) -> Result<(), ErrorCode> {
        result.map(drop).map_err(|refusal| refusal.code)
    }
    let policy = &policy();
    match method {
        Method::EnsureBridge => plain(request::ensure_bridge(decoded(params)?)),
        Method::CreateTap => plain(request::create_tap(decoded(params)?)),
        Method::DeleteTap => plain(request::delete_tap(&decoded(params)?)),
        Method::SyncResolverRouting => plain(request::sync_resolver_routing(&decoded(params)?)),
        Method::ClearResolverRouting => plain(request::clear_resolver_routing(&decoded(params)?)),
        Method::EnsureNat => plain(request::ensure_nat(&decoded(params)?)),
        Method::CreateDmSnapshot => plain(request::create_dm_snapshot(&decoded(params)?, policy)),
        Method::CleanupDmSnapshot => plain(request::cleanup_dm_snapshot(&decoded(params)?)),
        Method::RemoveDmSnapshot => plain(request::remove_dm_snapshot(&decoded(params)?)),
        Method::FsckSnapshot => plain(request::fsck_snapshot(&decoded(params)?)),
        Method::ReadExt4File => plain(request::read_ext4_file(&decoded(params)?, policy)),
        Method::WriteExt4Files => plain(request::write_ext4_files(decoded(params)?, policy)),
        Method::ResolveFirecrackerBinary => {
            plain(request::resolve_firecracker_binary(&decoded(params)?, policy))
        }
        Method::LaunchFirecracker => plain(request::launch_firecracker(decoded(params)?, policy)),
        Method::EnsureSocketAccess => {
            plain(request::ensure_socket_access(&decoded(params)?, policy))
        }
        Method::FindFirecrackerPid => {
            plain(request::find_firecracker_pid(&decoded(params)?, policy))
        }
        Method::KillProcess => plain(request::kill_process(decoded(params)?, policy)),
        Method::SignalProcess => plain(request::signal_process(&decoded(params)?, policy)),
        Method::ProcessRunning => plain(request::process_running(&decoded(params)?, policy)),
        Method::CleanupJailerChroot => {
            plain(request::cleanup_jailer_chroot(&decoded(params)?, policy))
        }
    }
}

/// The fields that the decoder knows at a place, told by its own complaint about an unknown one.
fn known_fields(method: Method, parent: &str) -> BTreeSet<String> {
    let mut params = base(method, &places());
    params.pointer_mut(parent).unwrap()["no such field"] = Value::Null;
    let complaint = match method {
        Method::EnsureBridge => complaint::<banger_helper_api::EnsureBridgeParams>(&params),
        Method::CreateTap => complaint::<banger_helper_api::CreateTapParams>(&params),
        Method::DeleteTap => complaint::<banger_helper_api::DeleteTapParams>(&params),
        Method::SyncResolverRouting => {
            complaint::<banger_helper_api::SyncResolverRoutingParams>(&params)
        }
        Method::ClearResolverRouting => {
            complaint::<banger_helper_api::ClearResolverRoutingParams>(&params)
        }
        Method::EnsureNat => complaint::<banger_helper_api::EnsureNatParams>(&params),
        Method::CreateDmSnapshot => complaint::<banger_helper_api::CreateDmSnapshotParams>(&params),
        Method::CleanupDmSnapshot => complaint::<banger_helper_api::SnapshotHandles>(&params),
        Method::RemoveDmSnapshot => complaint::<banger_helper_api::RemoveDmSnapshotParams>(&params),
        Method::FsckSnapshot => complaint::<banger_helper_api::FsckSnapshotParams>(&params),
        Method::ReadExt4File => complaint::<banger_helper_api::ReadExt4FileParams>(&params),
        Method::WriteExt4Files => complaint::<banger_helper_api::WriteExt4FilesParams>(&params),
        Method::ResolveFirecrackerBinary => {
            complaint::<banger_helper_api::ResolveFirecrackerBinaryParams>(&params)
        }
        Method::LaunchFirecracker => {
            complaint::<banger_helper_api::LaunchFirecrackerParams>(&params)
        }
        Method::EnsureSocketAccess => {
            complaint::<banger_helper_api::EnsureSocketAccessParams>(&params)
        }
        Method::FindFirecrackerPid => {
            complaint::<banger_helper_api::FindFirecrackerPidParams>(&params)
        }
        Method::KillProcess => complaint::<banger_helper_api::KillProcessParams>(&params),
        Method::SignalProcess => complaint::<banger_helper_api::SignalProcessParams>(&params),
        Method::ProcessRunning => complaint::<banger_helper_api::ProcessRunningParams>(&params),
        Method::CleanupJailerChroot => {
            complaint::<banger_helper_api::CleanupJailerChrootParams>(&params)
        }
    };
    assert!(complaint.starts_with("unknown field `no such field`"), "{complaint}");
    complaint.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

fn complaint<T: for<'a> serde::Deserialize<'a>>(params: &Value) -> String {
    serde_json::from_value::<T>(params.clone()).err().map(|error| error.to_string()).unwrap()
}

/// Every place in a value that has fields of its own, and every one that has none.
fn places_of(value: &Value, at: String, parents: &mut Vec<String>, leaves: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            parents.push(at.clone());
            for (name, value) in fields {
                places_of(value, format!("{at}/{name}"), parents, leaves);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places_of(value, format!("{at}/{index}"), parents, leaves);
            }
        }
        _ => {
            leaves.insert(at);
        }
    }
}

#[test]
fn no_parameter_is_without_a_table() {
    for &method in Method::ALL {
        let (mut parents, mut leaves) = (Vec::new(), BTreeSet::new());
        let base = base(method, &places());
        places_of(&base, String::new(), &mut parents, &mut leaves);
        let tables: BTreeSet<String> =
            parameters(method).iter().map(|parameter| parameter.pointer.to_owned()).collect();
        assert_eq!(leaves, tables, "{method}: the tables name every parameter of the request");
        for parent in parents {
            let given: BTreeSet<String> =
                base.pointer(&parent).unwrap().as_object().unwrap().keys().cloned().collect();
            assert_eq!(known_fields(method, &parent), given, "{method}{parent}");
        }
    }
}

#[test]
fn no_kind_is_without_a_class() {
    for &method in Method::ALL {
        for parameter in parameters(method) {
            let inputs = inputs(parameter.kind, &places());
            for class in classes(parameter.kind) {
                assert!(
                    inputs.iter().any(|input| input.class == class),
                    "{method}{}: {class}",
                    parameter.pointer
                );
            }
            for expect in [Expect::Accept, Expect::Refuse] {
                let pointer = parameter.pointer;
                let has = inputs.iter().any(|input| input.expect == expect);
                assert!(has, "{method}{pointer}: nothing to {expect:?}");
            }
        }
    }
}

#[test]
fn each_parameter_takes_and_refuses_what_its_table_says() {
    let places = places();
    for &method in Method::ALL {
        let base = base(method, &places);
        assert_eq!(gate(method, &base), Ok(()), "{method}: {base}");
        for parameter in parameters(method) {
            let pointer = parameter.pointer;
            for input in inputs(parameter.kind, &places) {
                let mut params = base.clone();
                fit(method, pointer, &mut params, &input.value);
                *params.pointer_mut(pointer).unwrap() = input.value.clone();
                let outcome = gate(method, &params);
                let what = format!("{method}{pointer} {}: {}", input.class, input.value);
                match input.expect {
                    Expect::Refuse => {
                        let code = outcome.expect_err(&what);
                        let may_be = [parameter.code, ErrorCode::BadParams];
                        let is_of_type =
                            input.value.is_string() == base.pointer(pointer).unwrap().is_string();
                        let is_type_wrong = ["wrong type", "sign"].contains(&input.class);
                        assert!(is_of_type || is_type_wrong, "{what}");
                        assert!(may_be.contains(&code), "{what}: {code:?}");
                    }
                    _ => assert_eq!(outcome, Ok(()), "{what}"),
                }
            }
        }
    }
}

#[test]
fn values_of_another_type_are_refused() {
    for &method in Method::ALL {
        let base = base(method, &places());
        for parameter in parameters(method) {
            let good = base.pointer(parameter.pointer).unwrap();
            let others = [
                Value::Array(vec![]),
                serde_json::json!({}),
                1.5.into(),
                true.into(),
                "x".into(),
                7.into(),
            ];
            for other in others {
                let is_same = std::mem::discriminant(&other) == std::mem::discriminant(good);
                if is_same && other != 1.5 {
                    continue;
                }
                let mut params = base.clone();
                *params.pointer_mut(parameter.pointer).unwrap() = other.clone();
                let outcome = gate(method, &params);
                assert_eq!(
                    outcome,
                    Err(ErrorCode::BadParams),
                    "{method}{}: {other}",
                    parameter.pointer
                );
            }
        }
    }
}

/// A request of a method with some values changed, `null` standing for left out.
fn changed(method: Method, changes: &[(&str, Value)]) -> Value {
    let mut params = base(method, &places());
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = params.pointer_mut(parent).unwrap();
        match parent {
            Value::Object(fields) if value.is_null() => drop(fields.remove(name)),
            parent => parent[name] = value.clone(),
        }
    }
    params
}

#[test]
fn parameters_that_do_not_fit_together_are_refused() {
    let null = || Value::Null;
    let state = |name: &str| Value::from(format!("/var/lib/banger/{name}"));
    let drive = |id: &str, is_root: bool, path: Value| serde_json::json!({"id": id, "path": path, "is_root": is_root});
    let drives = |list: Vec<Value>| ("/drives", Value::Array(list));
    let snapshot = || Value::from("/dev/mapper/fc-rootfs-a");
    let launch = Method::LaunchFirecracker;
    let refused: Vec<(Method, Vec<(&str, Value)>)> = vec![
        (Method::CreateTap, vec![("/guest_mac", null())]),
        (Method::CreateTap, vec![("/guest_ip", null())]),
        (Method::CreateTap, vec![("/isolated", true.into())]),
        (Method::CreateTap, vec![("/bridge_ip", "172.16.0.2".into())]),
        (Method::EnsureNat, vec![("/enable", false.into())]),
        (Method::SyncResolverRouting, vec![("/bridge_name", "".into())]),
        (Method::SyncResolverRouting, vec![("/server_addr", "".into())]),
        (Method::CreateDmSnapshot, vec![("/cow_path", state("image"))]),
        (Method::CleanupDmSnapshot, vec![("/dm_name", "fc-rootfs-b".into())]),
        (Method::CleanupDmSnapshot, vec![("/cow_loop", "/dev/loop1048570".into())]),
        (launch, vec![("/jailer", null())]),
        (launch, vec![("/tap_device", "".into())]),
        (launch, vec![("/vsock_path", "/run/banger/vm-1.sock".into())]),
        (launch, vec![drives(vec![drive("a", true, state("a")), drive("a", false, state("b"))])]),
        (launch, vec![drives(vec![drive("a", true, state("a")), drive("b", true, state("b"))])]),
        (launch, vec![drives(vec![drive("a", false, snapshot())])]),
        (
            launch,
            vec![drives((0..16).map(|n| drive(&format!("d{n}"), false, state("a"))).collect())],
        ),
    ];
    for (method, changes) in refused {
        let params = changed(method, &changes);
        assert_eq!(gate(method, &params), Err(ErrorCode::BadParams), "{method}: {changes:?}");
    }
    let taken: Vec<(Method, Vec<(&str, Value)>)> = vec![
        (Method::CreateTap, vec![("/guest_mac", null()), ("/guest_ip", null())]),
        (Method::CreateTap, vec![("/isolated", true.into()), ("/group", null())]),
        (Method::CreateTap, vec![("/isolated", null())]),
        (
            Method::SyncResolverRouting,
            vec![("/bridge_name", "".into()), ("/server_addr", "".into())],
        ),
        (Method::CleanupDmSnapshot, vec![("/base_loop", "".into()), ("/cow_loop", "".into())]),
        (launch, vec![("/tap_device", "".into()), ("/guest_mac", null())]),
        (launch, vec![("/vsock_path", "".into()), ("/vsock_cid", 0.into())]),
        (launch, vec![drives(vec![drive("a", true, snapshot()), drive("b", false, state("b"))])]),
        (
            launch,
            vec![drives((0..15).map(|n| drive(&format!("d{n}"), false, state("a"))).collect())],
        ),
        (launch, vec![drives(vec![]), ("/network", null()), ("/limits", null())]),
    ];
    for (method, changes) in taken {
        assert_eq!(gate(method, &changed(method, &changes)), Ok(()), "{method}: {changes:?}");
    }
    let files = |count: usize| {
        let file = |at| serde_json::json!({"guest_path": format!("/{at}"), "data": ""});
        changed(Method::WriteExt4Files, &[("/files", (0..count).map(file).collect())])
    };
    assert_eq!(gate(Method::WriteExt4Files, &files(1024)), Ok(()));
    assert_eq!(gate(Method::WriteExt4Files, &files(1025)), Err(ErrorCode::BadParams));
}

#[test]
fn root_is_no_owner() {
    for (uid, gid) in [(0, 1), (1, 0), (0, 0), (u32::MAX, 1), (1, u32::MAX)] {
        assert!(Owner::new(uid, gid).is_err(), "{uid}:{gid}");
    }
    let owner = Owner::new(7, 8).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (7, 8));
}

#[test]
fn a_default_is_what_is_documented() {
    let tap = |changes: &[(&str, Value)]| {
        let params = changed(Method::CreateTap, changes).to_string();
        request::create_tap(serde_json::from_str(&params).unwrap()).unwrap()
    };
    assert!(!tap(&[("/isolated", Value::Null)]).is_isolated, "a tap of a group");
    assert!(tap(&[("/isolated", Value::Null), ("/group", Value::Null)]).is_isolated);
    let params = changed(Method::WriteExt4Files, &[("/files/0/mode", 0.into())]).to_string();
    let write = request::write_ext4_files(serde_json::from_str(&params).unwrap(), &policy());
    assert_eq!(write.unwrap().files[0].mode, 0o644);
    let params = serde_json::from_str("{\"pid\":5,\"signal\":\"\"}").unwrap();
    let (pid, signal) = request::signal_process(&params, &policy()).unwrap();
    assert_eq!((pid.get(), signal), (5, banger_gates::Signal::Term));
    let blank = serde_json::from_str("{}").unwrap();
    let places = request::resolve_firecracker_binary(&blank, &policy()).unwrap();
    assert_eq!(places[0].path(), PathBuf::from("/usr/lib/banger/firecracker"));
}

#[test]
fn the_three_forms_of_an_api_socket_are_read() {
    let read = |words: &[&str]| banger_gates::api_sockets(words.join("\0").as_bytes());
    let one = vec![PathBuf::from("/run/banger/a.sock")];
    assert_eq!(read(&["firecracker", "--api-sock", "/run/banger/a.sock", ""]), one);
    assert_eq!(read(&["firecracker", "--api-sock=/run/banger/a.sock"]), one);
    assert_eq!(read(&["firecracker", "-a", "/run/banger/a.sock"]), one);
    assert_eq!(read(&["firecracker", "--api-sock"]), Vec::<PathBuf>::new());
    assert_eq!(read(&["firecracker", "--api-sockx", "/run/banger/a.sock"]), Vec::<PathBuf>::new());
    assert_eq!(read(&["x --api-sock /run/banger/a.sock"]), Vec::<PathBuf>::new());
    assert_eq!(read(&["f", "-a", "x", "--api-sock=y"]).len(), 2);
}

#[test]
fn what_passed_a_gate_says_the_same_again() {
    use banger_gates::{DmDevice, LoopDevice, MacAddress, NetworkConfig, ResolverAddress};
    let resolver = |text| ResolverAddress::parse("x", text).unwrap().to_string();
    assert_eq!(resolver("127.0.0.1:42069"), "127.0.0.1:42069");
    assert_eq!(resolver("::1"), "::1");
    assert_eq!(resolver("[::1]:53"), "[::1]:53");
    assert_eq!(
        MacAddress::parse("x", "0A:0b:cC:00:00:01").unwrap().to_string(),
        "0a:0b:cc:00:00:01"
    );
    assert_eq!(LoopDevice::parse("x", "/dev/loop17").unwrap().number(), 17);
    let device = DmDevice::parse("x", "/dev/mapper/fc-rootfs-a").unwrap();
    assert_eq!(
        (device.name().as_str(), device.path()),
        ("fc-rootfs-a", "/dev/mapper/fc-rootfs-a".into())
    );
    let network = banger_helper_api::Network {
        bridge_name: "br-fc".into(),
        bridge_ip: "172.16.5.1".into(),
        cidr: "20".into(),
    };
    let network = NetworkConfig::parse(&network).unwrap();
    assert_eq!(network.network().to_string(), "172.16.0.0");
    assert_eq!((network.bridge().as_str(), network.prefix()), ("br-fc", 20));
    let has = |text: &str| network.has_guest(text.parse().unwrap());
    assert!(has("172.16.0.1") && has("172.16.15.254") && has("172.16.5.0"));
    assert!(
        !has("172.16.5.1") && !has("172.16.0.0") && !has("172.16.15.255") && !has("172.16.16.1")
    );
    let refusal = Refusal::new("tap_name", "no");
    assert_eq!(refusal.to_string(), "tap_name: no");
}

proptest::proptest! {
    #[test]
    fn no_accepted_path_leaves_its_root(tail in "[a-z./\\x00-\\x7f]{0,40}") {
        use banger_gates::{ManagedPath, State};
        let text = format!("/var/lib/banger/{tail}");
        if let Ok(path) = ManagedPath::<State>::parse("x", &text, &policy()) {
            let relative = path.relative();
            proptest::prop_assert!(relative.is_relative() && relative.components().count() > 0);
            let is_normal = |part| matches!(part, std::path::Component::Normal(_));
            proptest::prop_assert!(relative.components().all(is_normal));
        }
    }

    #[test]
    fn no_accepted_name_means_more_than_itself(text in ".{0,20}") {
        use banger_gates::{BridgeName, DmName, DriveId, GroupName, JailId, TapName};
        let names = [
            BridgeName::parse("x", &text).map(|name| name.as_str().to_owned()),
            TapName::parse("x", &text).map(|name| name.as_str().to_owned()),
            GroupName::parse("x", &text).map(|name| name.as_str().to_owned()),
            DmName::parse("x", &text).map(|name| name.as_str().to_owned()),
            JailId::parse("x", &text).map(|name| name.as_str().to_owned()),
            DriveId::parse("x", &text).map(|name| name.as_str().to_owned()),
        ];
        for name in names.into_iter().flatten() {
            proptest::prop_assert_eq!(&name, &text);
            proptest::prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        }
    }
}

/// A path of exactly so many bytes below a folder, its parts as long as they may be.
fn path_of(folder: &str, length: usize) -> String {
    let mut path = folder.to_owned();
    while path.len() < length {
        let part = (length - path.len() - 1).min(255);
        // What would be left for the next part is a slash and nothing.
        let part = if length - path.len() - 1 == part + 1 { part - 1 } else { part };
        path = format!("{path}/{}", "a".repeat(part));
    }
    path
}

#[test]
fn limits_are_where_they_are_said_to_be() {
    use banger_gates::{GuestPath, ManagedPath, State};
    let policy = policy();
    let managed = |path: String| ManagedPath::<State>::parse("path", &path, &policy);
    let length = |length: usize| {
        let path = path_of("/var/lib/banger", length);
        assert_eq!(path.len(), length);
        managed(path)
    };
    length(4095).unwrap();
    for longer in [4096, 4097, 5000] {
        assert!(length(longer).unwrap_err().reason.contains("longer than a path"), "{longer}");
    }
    managed(format!("/var/lib/banger/{}", "a".repeat(255))).unwrap();
    managed(format!("/var/lib/banger/{}", "a".repeat(256))).unwrap_err();

    GuestPath::parse("path", &path_of("", 1024)).unwrap();
    for longer in [1025, 1026, 2000] {
        GuestPath::parse("path", &path_of("", longer)).unwrap_err();
    }
}

#[test]
fn sizes_and_labels_have_limits_and_refusals_their_codes() {
    use banger_helper_api::{Base64, EnsureSocketAccessParams, Ext4File, WriteExt4FilesParams};
    let policy = policy();
    let write = |sizes: &[usize]| {
        let file = |(number, size): (usize, &usize)| Ext4File {
            guest_path: format!("/{number}"),
            data: Base64(vec![0; *size]),
            mode: 0,
        };
        let files = sizes.iter().enumerate().map(file).collect();
        let image_path = "/var/lib/banger/image".to_owned();
        request::write_ext4_files(WriteExt4FilesParams { image_path, files }, &policy)
    };
    const MOST: usize = 16 << 20;
    write(&[MOST]).unwrap();
    write(&[MOST - 1, 1]).unwrap();
    for sizes in [&[MOST + 1][..], &[MOST, 1], &[MOST, MOST]] {
        assert!(write(sizes).unwrap_err().reason.contains("16 MiB"), "{sizes:?}");
    }
    let access = |path: &str, label: usize| {
        let (socket_path, label) = (path.to_owned(), "a".repeat(label));
        request::ensure_socket_access(&EnsureSocketAccessParams { socket_path, label }, &policy)
    };
    access("/run/banger/socket", 64).unwrap();
    assert_eq!(access("/run/banger/socket", 65).unwrap_err().code, ErrorCode::BadParams);
    assert_eq!(access("/etc/socket", 1).unwrap_err().code, ErrorCode::InvalidPath);
}
