//! The protocol: what strangers, broken clients and careless ones are told.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Answer, Place, connect, is_root};

#[test]
fn a_stranger_gets_403_and_nothing_else() {
    if !is_root() {
        println!("SKIP: root: only root can connect as another user");
        return;
    }
    let place = Place::new();
    let _daemon = place.start();
    // The directory's and the socket's modes keep strangers out already: open both, to see that
    // the peer check stands on its own.
    std::fs::set_permissions(place.path("run"), PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::set_permissions(place.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let socket = place.socket();
    let answer = std::thread::spawn(move || {
        let stranger = rustix::process::Uid::from_raw(54321);
        // This thread's credentials alone; it ends with this closure.
        rustix::thread::set_thread_res_uid(stranger, stranger, stranger).unwrap();
        let mut stream = connect(&socket);
        // The refusal may be there first, and the connection gone.
        let _ = stream.write_all(b"GET /v1/ping HTTP/1.1\r\nhost: x\r\n\r\n");
        Answer::read(stream)
    })
    .join()
    .unwrap();
    assert_eq!(answer.status, 403);
    let error = answer.error("unauthorized");
    assert!(error["message"].as_str().unwrap().contains("54321"), "{error}");
    place.get("/v1/ping");
}

#[test]
fn what_is_not_http_gets_an_api_error() {
    let place = Place::new();
    let _daemon = place.start();
    let send = |bytes: &[u8]| {
        let mut stream = place.connect();
        let _ = stream.write_all(bytes);
        Answer::read(stream)
    };
    for garbage in [
        &b"hello\r\n\r\n"[..],
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET /v1/ping HTTP/9.9\r\n\r\n",
        b"GET /v1/ping HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /v1/ping HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET /v1/ping HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let answer = send(garbage);
        assert_eq!(answer.status, 400, "{garbage:?}");
        answer.error("bad_request");
    }
    let mut many = b"GET /v1/ping HTTP/1.1\r\n".to_vec();
    for number in 0..1000 {
        many.extend_from_slice(format!("x-{number}: y\r\n").as_bytes());
    }
    many.extend_from_slice(b"\r\n");
    send(&many).error("bad_request");
    let mut long = b"GET /v1/ping HTTP/1.1\r\nx: ".to_vec();
    long.resize(1 << 20, b'a');
    send(&long).error("bad_request");
    place.get("/v1/ping");
}

#[test]
fn unknown_paths_methods_headers_and_parameters_are_named() {
    let place = Place::new();
    let _daemon = place.start();
    let refused = |method: &str, path: &str, status: u16, code: &str| {
        let answer = place.request(method, path, b"");
        assert_eq!(answer.status, status, "{method} {path}");
        answer.error(code)["message"].as_str().unwrap().to_owned()
    };
    assert!(refused("GET", "/nowhere", 404, "not_found").contains("/nowhere"));
    assert!(refused("PATCH", "/v1/ping", 404, "not_found").contains("PATCH"));
    assert!(refused("GET", "/v1/operations/x", 400, "bad_params").contains("\"x\""));
    refused("GET", "/v1/operations/op-0123456789abcdef", 404, "not_found");
    refused("DELETE", "/v1/operations/op-0123456789abcdef", 404, "not_found");
    refused("GET", "/v1/operations/op-0123456789abcdef?generation=x", 400, "bad_params");
    refused("GET", "/v1/operations/op-0123456789abcdef?more=1", 400, "bad_params");
    refused("GET", "/v1/images/..%2f..%2fetc", 400, "bad_params");
    refused("GET", "/v1/images/%ff", 400, "bad_params");
    refused("GET", "/v1/images/none", 404, "not_found");
    refused("DELETE", "/v1/kernels/none", 404, "not_found");

    let with = |name: &str, value: &str| {
        place.request_with("GET", "/v1/operations", &[(name, value)], b"")
    };
    with("banger-api-version", "2").error("bad_version");
    with("banger-api-version", "one").error("bad_version");
    with("banger-op-id", "mine").error("bad_params");
    assert_eq!(with("banger-api-version", "1").status, 200);
    let answer = with("banger-op-id", "op-00112233445566ff");
    assert!(answer.head.contains("banger-op-id: op-00112233445566ff"), "{}", answer.head);
    // A client of another version learns which one this is.
    let ping = place.request_with("GET", "/v1/ping", &[("banger-api-version", "2")], b"");
    assert_eq!(ping.json()["api_version"], 1);
}

#[test]
fn bodies_are_capped_and_checked() {
    let place = Place::new();
    let _daemon = place.start();
    let import = |body: &[u8]| place.request("POST", "/v1/images", body);
    import(b"").error("bad_request");
    import(b"{").error("bad_request");
    import(b"[]").error("bad_params");
    import(br#"{"name":"x"}"#).error("bad_params");
    import(br#"{"name":"../x","source":"s"}"#).error("bad_params");
    import(br#"{"name":"x","source":"s","more":1}"#).error("bad_params");
    import(&vec![b' '; (1 << 20) + 1]).error("bad_request");
    // Announced, but never sent: refused all the same once it is known to be too much.
    assert!(place.get("/v1/operations").as_array().unwrap().is_empty());
}

#[test]
fn slow_and_silent_clients_hold_nobody_up() {
    let place = Place::new();
    let _daemon = place.start();
    let silent: Vec<_> = (0..50).map(|_| place.connect()).collect();
    let mut slow = place.connect();
    slow.write_all(b"POST /v1/images HTTP/1.1\r\ncontent-length: 10\r\n\r\n{").unwrap();
    place.get("/v1/ping");
    // The slow one is still served when it gets on with it.
    slow.write_all(b"         ").unwrap();
    slow.shutdown(std::net::Shutdown::Write).ok();
    drop(silent);
}

#[test]
fn too_many_connections_are_refused_with_a_reason() {
    let place = Place::new();
    let _daemon = place.start();
    let mut open = Vec::new();
    let refused = loop {
        let mut stream = place.connect();
        stream.write_all(b"GET /v1/ping HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut first = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut first).unwrap();
        if &first != b"HTTP/1.1 200" {
            assert_eq!(&first, b"HTTP/1.1 503");
            break open.len();
        }
        open.push(stream);
        assert!(open.len() < 10_000, "there is no limit");
    };
    assert!(refused >= 256, "{refused}");
    open.clear();
    // The daemon notices the ends one after the other.
    while place.request("GET", "/v1/ping", b"").status != 200 {
        std::thread::yield_now();
    }
}

#[test]
fn upgrades_need_the_right_protocol() {
    let place = Place::new();
    let _daemon = place.start();
    place.request("POST", "/v1/leases", b"").error("bad_request");
    let upgrade = |path: &str, protocol: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
        );
        let mut stream = place.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut wrong = upgrade("/v1/leases", "websocket");
    let mut first = [0; 12];
    std::io::Read::read_exact(&mut wrong, &mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 400");
    let mut lease = upgrade("/v1/leases", "banger-lease");
    std::io::Read::read_exact(&mut lease, &mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 101");
    let mut nobody = upgrade("/v1/vms/nobody/agent", "banger-agent");
    std::io::Read::read_exact(&mut nobody, &mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 404");
}

/// The table in the wire crate, the router and the OpenAPI document say the same. The last two
/// cannot differ: the router is made from the documented handlers.
#[test]
fn the_document_and_the_table_of_routes_agree() {
    let place = Place::new();
    let _daemon = place.start();
    let document = place.get("/openapi.json");
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_ascii_uppercase();
            if ["GET", "POST", "PUT", "DELETE", "PATCH"].contains(&method.as_str()) {
                documented.insert(format!("{method} {path}"));
            }
        }
    }
    let source = include_str!("../../../../wire/daemon-api/src/routes.rs");
    let mut table = BTreeSet::new();
    for line in source.lines().filter(|line| line.starts_with("//! | `")) {
        let first = line.split('|').nth(1).unwrap();
        for route in first.split('`').skip(1).step_by(2) {
            table.insert(route.split('?').next().unwrap().to_owned());
        }
    }
    assert_eq!(documented, table);
    // Every schema that is mentioned is there.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
}
