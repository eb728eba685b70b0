//! Lines in, lines out.

use banger_helper_api::{ErrorCode, LONGEST_FRAME, LONGEST_WRITE_FRAME, Method};
use banger_privileged_tests::running::{RunningHelper, outcome, request};
use serde_json::{Value, json};

use crate::{enter_own_world, is_not_root};

fn harmless(helper: &RunningHelper) -> String {
    let socket = helper.directories.runtime.join("a.sock");
    request(Method::ProcessRunning, &json!({"pid": 4_194_304, "api_sock": socket}))
}

fn code(answer: &Value) -> ErrorCode {
    outcome(answer).expect_err("a refusal").0
}

#[test]
fn a_connection_carries_requests_one_after_another() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let mut peer = helper.connect();
    let good = harmless(&helper);
    for _ in 0..3 {
        assert_eq!(peer.ask(&good).unwrap(), json!({"ok": true, "result": {"running": false}}));
    }
    // Refused requests end nothing.
    let bad = peer.ask("{").unwrap();
    assert_eq!(code(&bad), ErrorCode::BadRequest);
    assert!(outcome(&peer.ask(&good).unwrap()).is_ok());
    // Two in one write, and one in two.
    peer.send(format!("{good}\n{good}\n").as_bytes()).unwrap();
    assert!(outcome(&peer.answer().unwrap()).is_ok() && outcome(&peer.answer().unwrap()).is_ok());
    let (front, back) = good.split_at(20);
    peer.send(front.as_bytes()).unwrap();
    assert!(outcome(&peer.ask(back).unwrap()).is_ok());
    assert!(helper.log().contains("\"method\":\"priv.process_running\""));
}

#[test]
fn what_is_no_request_is_refused_with_its_code() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let mut peer = helper.connect();
    let delete = |version: &str, more: &str| {
        format!(
            "{{{version}\"method\":\"priv.delete_tap\",\"params\":{{\"tap_name\":\"tap-fc-a\"}}{more}}}"
        )
    };
    let version = "\"version\":1,";
    let cases = [
        (String::new(), ErrorCode::BadRequest),
        ("null".to_owned(), ErrorCode::BadRequest),
        ("[]".to_owned(), ErrorCode::BadRequest),
        ("{}".to_owned(), ErrorCode::BadRequest),
        (
            r#"[1,"priv.delete_tap",{"tap_name":"tap-fc-a"},"op-1"]"#.to_owned(),
            ErrorCode::BadRequest,
        ),
        ("\u{fffd}".to_owned(), ErrorCode::BadRequest),
        (delete("", ""), ErrorCode::BadVersion),
        (delete("\"version\":0,", ""), ErrorCode::BadVersion),
        (delete("\"version\":2,", ""), ErrorCode::BadVersion),
        (delete("\"version\":\"1\",", ""), ErrorCode::BadRequest),
        (delete("\"version\":1,\"version\":1,", ""), ErrorCode::BadRequest),
        (delete(version, ",\"more\":1"), ErrorCode::BadRequest),
        (delete(version, ",\"params\":{}"), ErrorCode::BadRequest),
        (delete(version, ",\"op_id\":1"), ErrorCode::BadRequest),
        (delete(version, ",\"op_id\":\"a\\nb\""), ErrorCode::BadRequest),
        (delete(version, &format!(",\"op_id\":\"{}\"", "a".repeat(65))), ErrorCode::BadRequest),
        (delete(version, "").replace("delete_tap", "exec"), ErrorCode::UnknownMethod),
        (delete(version, "").replace("priv.", ""), ErrorCode::UnknownMethod),
        (delete(version, "").replace("tap_name", "name"), ErrorCode::BadParams),
        (
            delete(version, "").replace("{\"tap_name\":", "{\"tap_name\":1,\"tap_name\":"),
            ErrorCode::BadParams,
        ),
        (delete(version, "").replace("\"tap-fc-a\"", "1"), ErrorCode::BadParams),
        (delete(version, "").replace("{\"tap_name\":\"tap-fc-a\"}", "null"), ErrorCode::BadParams),
        (
            delete(version, "").replace("{\"tap_name\":\"tap-fc-a\"}", "[\"tap-fc-a\"]"),
            ErrorCode::BadParams,
        ),
    ];
    for (line, expected) in cases {
        let answer = peer.ask(&line).unwrap_or_else(|| panic!("no answer to {line:?}"));
        assert_eq!(code(&answer), expected, "{line}: {answer}");
    }
    let answer = peer.ask(&delete(version, ",\"op_id\":\"op-77\"").replace("tap-fc-a", "eth0"));
    assert_eq!(answer.unwrap()["error"]["op_id"], "op-77");
    let answer = peer.ask(&delete(version, "").replace("delete_tap", "exec")).unwrap();
    assert_eq!(answer["error"]["message"], "priv.exec");
    // Bytes that are no text.
    peer.send(b"\xff\xfe\n").unwrap();
    assert_eq!(code(&peer.answer().unwrap()), ErrorCode::BadRequest);
}

#[test]
fn a_line_has_its_longest_length() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let padded = |line: &str, length: usize| {
        let space = " ".repeat(length - line.len());
        // Behind the method, which a long line names near its beginning.
        line.replacen("\"params\":", &format!("\"params\":{space}"), 1)
    };
    let good = harmless(&helper);
    let mut peer = helper.connect();
    assert!(outcome(&peer.ask(&padded(&good, LONGEST_FRAME)).unwrap()).is_ok());
    let answer = peer.ask(&padded(&good, LONGEST_FRAME + 1)).unwrap();
    assert_eq!(code(&answer), ErrorCode::BadRequest);
    assert!(peer.is_closed());

    // The one long method, whose image is not there.
    let image = helper.directories.state.join("image");
    let write = request(Method::WriteExt4Files, &json!({"image_path": image, "files": []}));
    let mut peer = helper.connect();
    let answer = peer.ask(&padded(&write, LONGEST_WRITE_FRAME)).unwrap();
    assert_eq!(code(&answer), ErrorCode::BadParams, "{answer}");
    let _ = peer.send(format!("{}\n", padded(&write, LONGEST_WRITE_FRAME + 1)).as_bytes());
    let answer = peer.answer();
    assert!(answer.is_none_or(|answer| code(&answer) == ErrorCode::BadRequest));
    assert!(peer.is_closed());

    // Its name alone makes no other request long.
    let fake = padded(&good, LONGEST_FRAME + 100);
    let fake = fake.replacen('{', "{\"op_id\":\"priv.write_ext4_files\",", 1);
    let fake = fake.replace(",\"op_id\":\"op-1\"", "");
    assert!(fake.len() > LONGEST_FRAME);
    let mut peer = helper.connect();
    assert!(fake.contains("\"op_id\":\"priv.write"), "{}", &fake[..200]);
    assert_eq!(code(&peer.ask(&fake).unwrap()), ErrorCode::BadRequest);
    assert!(outcome(&helper.connect().ask(&good).unwrap()).is_ok());
}

#[test]
fn silence_in_the_middle_of_a_line_ends_the_connection() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let mut silent = helper.connect();
    silent.send(b"{\"version\":1").unwrap();
    let answer = silent.answer().expect("a word before the end");
    assert_eq!(code(&answer), ErrorCode::BadRequest);
    assert!(silent.is_closed());
    // A peer that leaves in the middle is no trouble.
    let mut gone = helper.connect();
    gone.send(b"{\"version\":1").unwrap();
    drop(gone);
    assert!(outcome(&helper.connect().ask(&harmless(&helper)).unwrap()).is_ok());
}
