//! The helper's connection: bytes in, acts and answers out. It is the helper's own source, over a
//! [host that does nothing](crate::Host).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use banger_gate_tables::{Places, base, inputs, parameters};
use banger_helper_api::{ErrorCode, LONGEST_FRAME, Method, PROTOCOL_VERSION};
use serde_json::{Map, Value, json};

use crate::{Host, connection, places, policy};

/// The name of the fuzz target.
pub const TARGET: &str = "frame";

/// More than this is not sent at once: the sockets between hold it, so that nobody waits.
const MOST: usize = 100_000;

/// Frames that are good, and frames with one bad value, one after another.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let places = places();
    let line = |method: Method, params: &Value| {
        let name = method.name();
        let frame = json!({"version": 1, "method": name, "params": params, "op_id": "op-1"});
        format!("{frame}\n").into_bytes()
    };
    let mut seeds = Vec::new();
    for &method in Method::ALL {
        let good = base(method, &places);
        seeds.push(line(method, &good));
        for parameter in parameters(method) {
            let mut lines = Vec::new();
            let inputs = inputs(parameter.kind, &places);
            // A few of each: all of them are put to the running helper elsewhere.
            for at in [0, inputs.len() / 2, inputs.len() - 1] {
                let mut params = good.clone();
                *params.pointer_mut(parameter.pointer).unwrap() = inputs[at].value.clone();
                lines.extend(line(method, &params));
            }
            seeds.push(lines);
        }
    }
    let good = line(Method::DeleteTap, &base(Method::DeleteTap, &places));
    let text = String::from_utf8(good).unwrap();
    let changed = [
        text.replace("\"version\":1", "\"version\":2"),
        text.replace("\"version\":1", "\"version\":1,\"version\":1"),
        text.replace("priv.delete_tap", "priv.exec"),
        text.replace("\"op-1\"", "\"a b\""),
        text.replace("{\"tap_name\":\"tap-fc-a\"}", "[\"tap-fc-a\"]"),
        format!("{text}{text}\n\n{{}}\nnull\n[]\n{text}"),
        "[1,\"priv.delete_tap\",{\"tap_name\":\"tap-fc-a\"},\"op-1\"]\n".to_owned(),
        format!("{}\n{text}", " ".repeat(LONGEST_FRAME + 1)),
        format!("{}priv.write_ext4_files\n{text}", " ".repeat(LONGEST_FRAME - 8)),
        padded(&text.replace("tap-fc-a", "priv.write_ext4_files")),
        padded(&text),
    ];
    seeds.extend(changed.into_iter().map(String::into_bytes));
    let write = line(Method::WriteExt4Files, &base(Method::WriteExt4Files, &places));
    seeds.push(padded(&String::from_utf8(write).unwrap()).into_bytes());
    let mut unfit = Vec::new();
    for (method, pointer, value) in unfitting(&places) {
        let mut params = base(method, &places);
        *params.pointer_mut(pointer).unwrap() = value;
        unfit.extend(line(method, &params));
    }
    seeds.push(unfit);
    seeds
}

/// A frame that is longer than most may be.
fn padded(line: &str) -> String {
    let space = " ".repeat(LONGEST_FRAME);
    line.replacen("\"params\":", &format!("\"params\":{space}"), 1)
}

/// Values that do not fit together, some that do, and lists in the place of objects.
fn unfitting(places: &Places) -> Vec<(Method, &'static str, Value)> {
    let drive = |id: &str, is_root: bool, path: &str| json!({"id": id, "path": format!("{}{path}", places.state), "is_root": is_root});
    let snapshot = json!({"id": "a", "path": "/dev/mapper/fc-rootfs-a"});
    let files = |paths: &[&str]| {
        let file = |path: &&str| json!({"guest_path": path, "data": ""});
        Value::Array(paths.iter().map(file).collect())
    };
    let many = (0..16).map(|at| drive(&format!("d{at}"), false, "/a")).collect();
    let launches = [
        ("/drives", json!([drive("a", true, "/a"), drive("b", false, "/b")])),
        ("/drives", json!([drive("a", true, "/a"), drive("a", false, "/b")])),
        ("/drives", json!([drive("a", true, "/a"), drive("b", true, "/b")])),
        ("/drives", json!([snapshot])),
        ("/drives", Value::Array(many)),
        ("/drives", json!([["a", format!("{}/a", places.state), false, false]])),
        ("/network", json!(["br-fc", "10.0.0.1", "24"])),
        ("/limits", json!([256])),
        ("/vsock_path", json!(format!("{}/api.sock", places.runtime))),
        ("/tap_device", json!("")),
    ];
    let files = [
        files(&["/a", "/a"]),
        files(&["/a/b", "/a"]),
        files(&["/a", "/a.b", "/a/b"]),
        files(&["/a", "/ab", "/b"]),
        json!([["/a", "", 0]]),
    ];
    let launches =
        launches.into_iter().map(|(pointer, value)| (Method::LaunchFirecracker, pointer, value));
    let writes = files.into_iter().map(|files| (Method::WriteExt4Files, "/files", files));
    launches.chain(writes).collect()
}

/// Whether all lists are of drives or files, and have objects in them.
fn has_its_lists(value: &Value, name: &str) -> bool {
    match value {
        Value::Array(items) => {
            ["drives", "files"].contains(&name)
                && items.iter().all(|item| item.is_object() && has_its_lists(item, ""))
        }
        Value::Object(fields) => fields.iter().all(|(name, value)| has_its_lists(value, name)),
        _ => true,
    }
}

/// Has a helper read all these bytes from a peer that then sends no more, and holds each act and
/// each answer against the line that it came of. How many acts there were; none for more bytes than
/// are sent at once.
///
/// # Panics
/// A property does not hold.
pub fn check(data: &[u8]) -> Option<usize> {
    if data.len() > MOST {
        return None;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let host = Host::new(policy());
    let answers = std::thread::scope(|scope| {
        let peer = scope.spawn(|| {
            (&ours).write_all(data).unwrap();
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            let lines = BufReader::new(&ours).lines();
            lines.map_while(Result::ok).collect::<Vec<String>>()
        });
        // Closed also where a property does not hold: the peer waits for that.
        let theirs = theirs;
        let owner = host.policy().owner;
        let asking = connection::Peer::of(&theirs, owner).expect("root or the owner");
        connection::serve(&theirs, asking, &host);
        drop(theirs);
        peer.join().unwrap()
    });
    let acts = host.take_asked();
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let rest = lines.pop().unwrap_or_default();
    let (mut answers, mut asked) = (answers.iter(), acts.iter().copied());
    let is_long = |line: &[u8]| line.len() > LONGEST_FRAME;
    for line in lines {
        let answer = answers.next().unwrap_or_else(|| panic!("no answer to {line:?}"));
        let is_refused = hold(line, answer, &mut asked) == Some(ErrorCode::BadRequest);
        // The one method that may be longer has its name in the front of the line.
        if is_long(line) && is_refused && answers.len() == 0 {
            return Some(acts.len());
        }
    }
    // What has no end is no line, and is answered only if it is too long.
    if let Some(answer) = answers.next() {
        assert!(is_long(rest), "an answer to no line: {answer}");
        assert_eq!(hold(rest, answer, &mut asked), Some(ErrorCode::BadRequest));
    }
    assert_eq!((answers.next(), asked.next()), (None, None), "more answers or acts than lines");
    Some(acts.len())
}

/// The fields of an object, counted as they come: a name that is there twice counts twice.
struct Fields(usize);

impl<'de> serde::Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> serde::de::Visitor<'de> for Counter {
            type Value = Fields;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields, A::Error> {
                let mut count = 0;
                while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Fields(count))
            }
        }
        deserializer.deserialize_map(Counter)
    }
}

fn is_plain(op_id: &str) -> bool {
    op_id.len() < 65 && op_id.chars().all(|one| one.is_ascii_alphanumeric() || one == '-')
}

/// Whether a line is as long as one of its method may be. A long one has its method in its front.
fn is_short(line: &[u8], frame: &Map<String, Value>) -> bool {
    let write = Method::WriteExt4Files.name();
    let is_early = || String::from_utf8_lossy(&line[..LONGEST_FRAME]).contains(write);
    let is_write = || frame.get("method").is_some_and(|method| method == write) && is_early();
    line.len() <= LONGEST_FRAME || is_write()
}

/// Whether a line is a request as docs/privileges.md says, whatever it asks for.
fn is_request(line: &[u8], frame: &Map<String, Value>) -> bool {
    let is_once = serde_json::from_slice::<Fields>(line).is_ok_and(|count| count.0 == frame.len());
    let is_known =
        |name: &String| ["version", "method", "params", "op_id"].contains(&name.as_str());
    let is_version = |version: &Value| {
        version.is_null() || version.as_u64().is_some_and(|number| u32::try_from(number).is_ok())
    };
    is_short(line, frame)
        && is_once
        && frame.keys().all(is_known)
        && frame.get("version").is_none_or(is_version)
        && frame.get("method").is_some_and(Value::is_string)
        && frame.get("op_id").is_none_or(|op_id| op_id.as_str().is_some_and(is_plain))
}

/// Holds an answer against its line; the code of a refusal.
fn hold(line: &[u8], answer: &str, asked: &mut impl Iterator<Item = Method>) -> Option<ErrorCode> {
    let text = String::from_utf8_lossy(line);
    let what = || format!("{text}\n{answer}");
    let answer: Value = serde_json::from_str(answer).expect("an answer is JSON");
    let frame: Option<Map<String, Value>> = serde_json::from_slice(line).ok();
    let field = |name: &str| frame.as_ref().and_then(|frame| frame.get(name));
    let method = field("method").and_then(Value::as_str).map(Method::named);
    let is_spoken = field("version").and_then(Value::as_u64) == Some(PROTOCOL_VERSION.into());
    if answer["ok"] == true {
        let frame = frame.as_ref().unwrap_or_else(|| panic!("no object: {}", what()));
        assert!(is_request(line, frame), "{}", what());
        let params = field("params").unwrap_or(&Value::Null);
        // No parameters are an empty object.
        let is_whole = params.is_object() || params.is_null();
        assert!(is_whole && has_its_lists(params, ""), "a list for an object: {}", what());
        let method = method.flatten().unwrap_or_else(|| panic!("{}", what()));
        assert!(is_spoken && answer["error"].is_null(), "{}", what());
        let is_blank = |name: &str| {
            field("params").is_none_or(|params| params[name] == "" || params[name].is_null())
        };
        let is_idle = match method {
            Method::SyncResolverRouting => is_blank("bridge_name") && is_blank("server_addr"),
            Method::ClearResolverRouting => is_blank("bridge_name"),
            _ => false,
        };
        if !is_idle {
            assert_eq!(asked.next(), Some(method), "{}", what());
        }
        return None;
    }
    let error = &answer["error"];
    let code: ErrorCode = serde_json::from_value(error["code"].clone()).expect("a known code");
    assert!(answer["ok"] == false && answer["result"].is_null() && error["message"].is_string());
    if let Some(op_id) = error.get("op_id") {
        assert!(
            op_id.as_str().is_some_and(is_plain) && field("op_id") == Some(op_id),
            "{}",
            what()
        );
    }
    // Numbers that no type can hold are no `Value`, and are refused with their parameter.
    let Some(frame) = &frame else {
        let may_be = [
            ErrorCode::BadRequest,
            ErrorCode::BadParams,
            ErrorCode::UnknownMethod,
            ErrorCode::BadVersion,
        ];
        assert!(may_be.contains(&code), "{}", what());
        return Some(code);
    };
    let is_right = match code {
        ErrorCode::BadRequest => !is_request(line, frame),
        ErrorCode::BadVersion => !is_spoken,
        ErrorCode::UnknownMethod => method.is_some_and(|method| method.is_none()),
        ErrorCode::BadParams
        | ErrorCode::InvalidPath
        | ErrorCode::InvalidPid
        | ErrorCode::InvalidSignal => {
            is_spoken && method.is_some_and(|method| method.is_some()) && is_short(line, frame)
        }
        ErrorCode::Unauthorized | ErrorCode::OperationFailed | ErrorCode::MarshalFailed => false,
    };
    assert!(is_right, "{}", what());
    Some(code)
}
