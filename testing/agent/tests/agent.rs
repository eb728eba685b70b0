//! The client against the real agent's server, run as an ordinary process over a socket pair.
//!
//! The agent runs commands as root does (it sets groups), so these tests need root.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{
    Argument, ErrorCode, ExecCall, ExitStatus, FileKind, GetTreeCall, PtyCall, PutTreeCall,
    SignalNumber, SpawnBenchCall, StatCall, WindowSize,
};
use banger_guest_client::{
    AgentClient, ClientError, ExecEvent, ExecEvents, SerialChannel, contract,
};

async fn agent() -> Option<(AgentClient, Arc<SerialChannel>)> {
    let channel = banger_agent_tests::start_as_root().await?;
    Some((AgentClient::new(channel.clone()), channel))
}

fn call(argv: &[&str]) -> ExecCall {
    ExecCall {
        argv: argv.iter().map(|text| text.parse().unwrap()).collect(),
        ..ExecCall::default()
    }
}

async fn output(client: &AgentClient, argv: &[&str]) -> (String, String, ExitStatus) {
    let (out, error, status) =
        client.exec(call(argv)).await.unwrap().collect(1 << 20).await.unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(error).unwrap(), status)
}

/// Reads events until the end; standard output and the status.
async fn finish(events: &mut ExecEvents) -> (Vec<u8>, ExitStatus) {
    let mut out = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        match event {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exited(status) => return (out, status),
            ExecEvent::Failed(error) => panic!("{error}"),
        }
    }
    panic!("no exit");
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn dies(pid: &str) -> bool {
    for _ in 0..500 {
        if !alive(pid) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_with_the_real_agent() {
    let Some((_, channel)) = agent().await else { return };
    contract::check(channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_commands_users_and_directories() {
    let Some((client, _channel)) = agent().await else { return };
    let refused = |error: ClientError| error.agent_error().unwrap().code;
    let error = client.exec(call(&[])).await.unwrap_err();
    assert_eq!(refused(error), ErrorCode::BadRequest);
    let nobody = ExecCall { user: Some("no-such-user".parse().unwrap()), ..call(&["true"]) };
    assert_eq!(refused(client.exec(nobody).await.unwrap_err()), ErrorCode::NoSuchUser);
    let (_, error, status) = output(&client, &["no-such-command"]).await;
    assert_eq!(error, "banger: exec: no-such-command: No such file or directory\n");
    assert_eq!(status, ExitStatus::Code(127));
    let (_, _, status) = output(&client, &["/etc/passwd"]).await;
    assert_eq!(status, ExitStatus::Code(126));
    let away = ExecCall { cwd: Some("/no/such/place".parse().unwrap()), ..call(&["true"]) };
    let (_, error, status) = client.exec(away).await.unwrap().collect(10_000).await.unwrap();
    assert!(String::from_utf8_lossy(&error).contains("/no/such/place"));
    assert_eq!(status, ExitStatus::Code(126));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_status_environment_and_user_pass_through() {
    let Some((client, _channel)) = agent().await else { return };
    let script = "printf 'a\\0b'; printf err >&2; exit 7";
    let (out, error, status) = output(&client, &["sh", "-c", script]).await;
    assert_eq!((&*out, &*error, status), ("a\0b", "err", ExitStatus::Code(7)));
    let (_, _, status) = output(&client, &["sh", "-c", "kill -9 $$"]).await;
    assert_eq!(status, ExitStatus::Signal(9));
    let environment = ExecCall {
        env: vec!["A=1 2".parse().unwrap()],
        cwd: Some("/usr".parse().unwrap()),
        user: Some("65534:65534".parse().unwrap()),
        ..call(&["sh", "-c", "echo $A; pwd; id -u; id -g; echo $HOME $PATH"])
    };
    let (out, ..) = client.exec(environment).await.unwrap().collect(10_000).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("1 2\n/usr\n65534\n65534\n/"), "{out}");
    let odd = ExecCall {
        argv: vec![
            "printf".parse().unwrap(),
            "%s".parse().unwrap(),
            Argument::new(vec![0xff, b'x']).unwrap(),
        ],
        ..ExecCall::default()
    };
    let (out, ..) = client.exec(odd).await.unwrap().collect(100).await.unwrap();
    assert_eq!(out, [0xff, b'x']);
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_go_through_a_command_unchanged_with_a_slow_reader() {
    let Some((client, _channel)) = agent().await else { return };
    let exec = client.exec(ExecCall { stdin: true, ..call(&["cat"]) }).await.unwrap();
    let (mut stdin, mut events, _control) = exec.split();
    let sent: Vec<u8> = (0u8..=255).cycle().take(8 << 20).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        stdin.write(&sent).await.unwrap();
        stdin.close().await.unwrap();
        stdin
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (out, status) = finish(&mut events).await;
    assert!(out == expected, "{} bytes", out.len());
    assert_eq!(status, ExitStatus::Code(0));
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_not_stuck_behind_input_that_nobody_reads() {
    let Some((client, _channel)) = agent().await else { return };
    let exec = client.exec(ExecCall { stdin: true, ..call(&["sleep", "1000"]) }).await.unwrap();
    let (mut stdin, mut events, control) = exec.split();
    let writer = tokio::spawn(async move { stdin.write(&vec![0; 1 << 20]).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    control.signal(SignalNumber::new(15).unwrap()).await.unwrap();
    assert_eq!(finish(&mut events).await.1, ExitStatus::Signal(15));
    // All went into buffers, or the rest was refused by the end: never left waiting.
    let _ = writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ignores_its_input_ends_normally() {
    let Some((client, _channel)) = agent().await else { return };
    let exec = client.exec(ExecCall { stdin: true, ..call(&["true"]) }).await.unwrap();
    let (mut stdin, mut events, _control) = exec.split();
    let writer = tokio::spawn(async move { stdin.write(&vec![0; 1 << 20]).await });
    assert_eq!(finish(&mut events).await.1, ExitStatus::Code(0));
    // The writer is told by an end, not left waiting for credit.
    let _ = writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_that_holds_the_output_hangs_nobody_and_lives() {
    let Some((client, _channel)) = agent().await else { return };
    let (out, _, status) = output(&client, &["sh", "-c", "sleep 20 & echo $!"]).await;
    assert_eq!(status, ExitStatus::Code(0));
    assert!(alive(out.trim()));
    let _ = std::process::Command::new("kill").arg(out.trim()).status();
    assert!(dies(out.trim()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_client_takes_its_command_along() {
    let Some((client, _channel)) = agent().await else { return };
    for (argv, pty) in [
        (vec!["sh", "-c", "echo $$; sleep 1000"], false),
        (vec!["sh", "-c", "trap '' TERM HUP; echo $$; sleep 1000; sleep 1000"], false),
        (vec!["sh", "-c", "echo $$; sleep 1000"], true),
    ] {
        let size = WindowSize { columns: 80, rows: 24 };
        let pty = pty.then_some(PtyCall { size, term: None });
        let exec = client.exec(ExecCall { pty, stdin: true, ..call(&argv) }).await.unwrap();
        let pid = exec.pid.to_string();
        let (stdin, mut events, control) = exec.split();
        let first = events.next().await.unwrap();
        assert!(matches!(first, Some(ExecEvent::Stdout(_))), "{first:?}");
        assert!(alive(&pid));
        drop((stdin, events, control));
        assert!(dies(&pid).await, "{argv:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_size_controls_and_an_end() {
    let Some((client, _channel)) = agent().await else { return };
    let pty = PtyCall {
        size: WindowSize { columns: 93, rows: 31 },
        term: Some("vt100".parse().unwrap()),
    };
    let script = "stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo tty; read x; stty size; cat";
    let exec = client
        .exec(ExecCall { pty: Some(pty), stdin: true, ..call(&["sh", "-c", script]) })
        .await
        .unwrap();
    let (mut stdin, mut events, control) = exec.split();
    let mut text = String::new();
    // The last of these comes from `cat`, which must run before it can be interrupted.
    for expected in ["31 93\r\nvt100\r\ntty\r\n", "5 10\r\n", "go\r\ngo\r\n"] {
        while !text.contains(expected) {
            match events.next().await.unwrap() {
                Some(ExecEvent::Stdout(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} after {text:?}"),
            }
        }
        control.resize(WindowSize { columns: 10, rows: 5 }).await.unwrap();
        let line: &[u8] = if expected.starts_with("5 10") { b"go\n" } else { b"\n" };
        stdin.write(line).await.unwrap();
    }
    // Ctrl-C is a byte on a terminal.
    stdin.write(&[3]).await.unwrap();
    assert_eq!(finish(&mut events).await.1, ExitStatus::Signal(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_go_in_and_come_out() {
    let Some((client, _channel)) = agent().await else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut builder = tar_of(&[("a/file", b"hello"), ("b", &[7; 100_000])]);
    let target = directory.path().join("deep/target");
    let put = PutTreeCall { path: target.to_str().unwrap().parse().unwrap(), owner: None };
    let reply = client.put_tree(put.clone(), &builder[..]).await.unwrap();
    assert_eq!((reply.entries, reply.bytes), (2, 100_005));
    assert_eq!(std::fs::read(target.join("a/file")).unwrap(), b"hello");
    let mut out = Vec::new();
    let get = GetTreeCall { path: put.path.clone() };
    client.get_tree(get.clone(), 1 << 20, &mut out).await.unwrap();
    let text = String::from_utf8_lossy(&out).into_owned();
    assert!(text.contains("target/a/file") && text.contains("hello"));
    // Bounds and refusals.
    let error = client.get_tree(get, 1000, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::Wire { .. }));
    let missing = GetTreeCall { path: "/no/such/thing".parse().unwrap() };
    let error = client.get_tree(missing, 1000, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.agent_error().unwrap().code, ErrorCode::NotFound);
    builder.truncate(builder.len() / 2);
    let error = client.put_tree(put, &builder[..]).await.unwrap_err();
    assert_eq!(error.agent_error().unwrap().code, ErrorCode::BadArchive);
    let hostile = tar_of(&[("../outside", b"x")]);
    let put = PutTreeCall { path: target.to_str().unwrap().parse().unwrap(), owner: None };
    let error = client.put_tree(put, &hostile[..]).await.unwrap_err();
    assert_eq!(error.agent_error().unwrap().code, ErrorCode::BadArchive);
    assert!(!directory.path().join("deep/outside").exists());
    client.health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_told_through_links_and_hard_links_stay_links() {
    let Some((client, _channel)) = agent().await else { return };
    let place = tempfile::tempdir().unwrap();
    let top = place.path().canonicalize().unwrap().join("top");
    std::fs::create_dir(&top).unwrap();
    std::fs::write(top.join("f"), "data").unwrap();
    std::fs::hard_link(top.join("f"), top.join("g")).unwrap();
    std::os::unix::fs::symlink("./top//f", place.path().join("l")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path().join("d")).unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().parse().unwrap();
    for (name, kind, real) in [("top", FileKind::Directory, ""), ("l", FileKind::File, "f")] {
        let reply = client.stat(StatCall { path: path(name) }).await.unwrap();
        let real = if real.is_empty() { top.clone() } else { top.join(real) };
        assert_eq!(
            (reply.kind, reply.real_path.as_bytes()),
            (kind, real.as_os_str().as_encoded_bytes())
        );
    }
    let null = StatCall { path: "/dev/null".parse().unwrap() };
    assert_eq!(client.stat(null).await.unwrap().kind, FileKind::Other);
    for name in ["missing", "d", "top/f/x"] {
        let error = client.stat(StatCall { path: path(name) }).await.unwrap_err();
        let code = error.agent_error().unwrap().code;
        assert!(code == ErrorCode::NotFound || name == "top/f/x", "{name}: {code:?}");
    }
    let mut out = Vec::new();
    client.get_tree(GetTreeCall { path: path("top") }, 1 << 20, &mut out).await.unwrap();
    // Type '1' is a hard link (POSIX.1-2008, pax): one of the two names, whichever came second.
    let kinds: Vec<u8> = out
        .chunks(512)
        .filter(|block| &block[257..262] == b"ustar")
        .map(|block| block[156])
        .collect();
    assert_eq!((kinds.len(), kinds.iter().filter(|&&kind| kind == b'1').count()), (3, 1));
}

/// A ustar archive of regular files, written by hand so that bad paths can be in it.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, data) in files {
        let mut header = [0u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered() {
    let Some((client, _channel)) = agent().await else { return };
    let health = client.health().await.unwrap();
    assert_eq!(health.boot_id.len(), 36);
    assert!(client.stats().await.unwrap().memory_total_kib > 0);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(client.ports().await.unwrap().ports.iter().any(|found| found.port == port));
    let bench = SpawnBenchCall { argv: vec!["true".parse().unwrap()], rounds: 3 };
    assert!(client.spawn_bench(bench).await.unwrap().minimum_nanos > 0);
    let endless = SpawnBenchCall { argv: vec!["true".parse().unwrap()], rounds: 1_000_000 };
    assert!(client.spawn_bench(endless).await.is_err());
}
