//! The main process under the real agent's server, run as an ordinary process over a socket pair.
//!
//! That server is not under a PID 1 of its own, so nothing is powered off here. The agent sets the
//! groups of what it runs, so these tests need root.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

use std::time::Duration;

use banger_agent_api::{
    AttachMainCall, ConfigureCall, ErrorCode, ExecCall, ExitStatus, MainProcess, PtyCall,
    SignalNumber, WindowSize,
};
use banger_guest_client::{AgentClient, ClientError, ExecEvent, ExecStream};

/// Longer than anything here takes, and less than a held process waits.
const SOON: Duration = Duration::from_secs(20);

async fn agent() -> Option<AgentClient> {
    banger_agent_tests::start_as_root().await.map(|channel| AgentClient::new(channel))
}

fn shell(script: &str, held: bool) -> MainProcess {
    MainProcess {
        argv: ["sh", "-c", script].map(|word| word.parse().unwrap()).to_vec(),
        cwd: None,
        user: None,
        stop_signal: SignalNumber::new(15).unwrap(),
        held,
    }
}

fn configuration(main: MainProcess) -> ConfigureCall {
    ConfigureCall { main: Some(main), ..ConfigureCall::default() }
}

fn code(error: &ClientError) -> ErrorCode {
    error.agent_error().unwrap().code
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_attaches_has_it_from_the_first_word_and_the_host_hears_the_end() {
    let Some(client) = agent().await else { return };
    assert_eq!(code(&client.wait_main().await.unwrap_err()), ErrorCode::NoMainProcess);
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(place.path(), Some(65534), None).unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (cwd, volume) = (path("work/dir"), path("data/deep"));
    let script =
        "read line; echo \"$line $A $HOME\"; pwd; id -u; id -g; echo bad > /dev/stderr; exit 3";
    let main = MainProcess {
        cwd: Some(cwd.parse().unwrap()),
        user: Some("65533".parse().unwrap()),
        ..shell(script, true)
    };
    let call = ConfigureCall {
        environment: vec!["A=from the image".parse().unwrap()],
        volumes: vec![volume.parse().unwrap()],
        main: Some(main),
    };
    client.configure(call).await.unwrap();
    assert!(std::path::Path::new(&volume).is_dir());
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_main().await }
    });
    let attach = AttachMainCall { stdin: true, pty: None };
    let stream = client.attach_main(attach).await.unwrap();
    let (mut input, mut events, _control) = stream.split();
    input.write(b"hello\n").await.unwrap();
    let (mut out, mut error) = (Vec::new(), Vec::new());
    let status = loop {
        match tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap() {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => error.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => break status,
            ExecEvent::Failed(error) => panic!("{error}"),
        }
    };
    let expected = format!("hello from the image /\n{cwd}\n65533\n0\n");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    // A stranger to the pipe's maker opens it by its name, as images' logs do.
    assert_eq!(String::from_utf8(error).unwrap(), "bad\n");
    assert_eq!(status, ExitStatus::Code(3));
    let heard = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(heard, ExitStatus::Code(3));
    // Whoever comes late hears it too; there is nothing to attach to.
    assert_eq!(client.wait_main().await.unwrap(), ExitStatus::Code(3));
    let late = client.attach_main(AttachMainCall::default()).await.unwrap_err();
    assert_eq!(code(&late), ErrorCode::NoMainProcess);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_its_client_and_takes_another() {
    let Some(client) = agent().await else { return };
    let script = "trap 'echo got it; exit 5' USR1; echo here; while :; do sleep 0.05; done";
    client.configure(configuration(shell(script, true))).await.unwrap();
    let pty = PtyCall { size: WindowSize { columns: 80, rows: 24 }, term: None };
    let attach = AttachMainCall { pty: Some(pty), stdin: true };
    let (input, mut events, control) = client.attach_main(attach).await.unwrap().split();
    let first = tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap();
    assert!(
        matches!(&first, Some(ExecEvent::Stdout(bytes)) if &bytes[..] == b"here\r\n"),
        "{first:?}"
    );
    let busy = client.attach_main(AttachMainCall::default()).await.unwrap_err();
    assert_eq!(code(&busy), ErrorCode::Refused);
    drop((input, events, control));
    // The main process's output has only the console meanwhile.
    let (_input, mut events, control) =
        attach_again(&client, AttachMainCall::default()).await.split();
    control.signal(SignalNumber::new(10).unwrap()).await.unwrap();
    let mut out = Vec::new();
    let status = loop {
        match tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap() {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => break status,
            other => panic!("{other:?}"),
        }
    };
    // Before it the shell may say what the signal did to its sleep, which is in its group.
    assert!(out.ends_with(b"got it\r\n"), "{}", String::from_utf8_lossy(&out));
    assert_eq!(status, ExitStatus::Code(5));
}

/// What the first left to a process that does not read is not of the second one's window.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_has_a_window_of_its_own_for_input() {
    let Some(client) = agent().await else { return };
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(place.path(), Some(65534), None).unwrap();
    let go = place.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; wc -c", go.display());
    client.configure(configuration(shell(&script, true))).await.unwrap();
    let attach = || AttachMainCall { stdin: true, pty: None };
    // A pipe takes 64 KiB of it, and the window is 128.
    let bytes = vec![b'x'; 150 << 10];
    let (mut input, events, control) = client.attach_main(attach()).await.unwrap().split();
    let mut events = events;
    let reading = tokio::spawn(async move { while let Ok(Some(_)) = events.next().await {} });
    tokio::time::timeout(SOON, input.write(&bytes)).await.unwrap().unwrap();
    reading.abort();
    drop((input, control, reading.await));
    let (mut input, mut events, _control) = attach_again(&client, attach()).await.split();
    input.write(&bytes[..128 << 10]).await.unwrap();
    let sent = (150 + 128) << 10;
    std::fs::write(&go, "").unwrap();
    input.close().await.unwrap();
    let mut out = Vec::new();
    loop {
        match tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap() {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => break assert_eq!(status, ExitStatus::Code(0)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(String::from_utf8(out).unwrap(), format!("{sent}\n"));
}

/// Attaches once the client before has gone, which is noticed soon.
async fn attach_again(client: &AgentClient, call: AttachMainCall) -> ExecStream {
    let attached = async {
        loop {
            match client.attach_main(call.clone()).await {
                Ok(stream) => return stream,
                Err(error) => assert_eq!(code(&error), ErrorCode::Refused),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, attached).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_needs_to_attach_and_what_is_known_to_fail_is_refused() {
    let Some(client) = agent().await else { return };
    let nobody =
        MainProcess { user: Some("no-such-user".parse().unwrap()), ..shell("true", false) };
    let refused = client.configure(configuration(nobody)).await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::NoSuchUser);
    let nowhere = MainProcess { cwd: Some("/dev/null/x".parse().unwrap()), ..shell("true", false) };
    let refused = client.configure(configuration(nowhere)).await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::Failed);
    let missing =
        MainProcess { argv: vec!["no-such-program".parse().unwrap()], ..shell("true", false) };
    let call = ConfigureCall {
        environment: vec!["B=of the image".parse().unwrap()],
        ..configuration(missing)
    };
    client.configure(call).await.unwrap();
    let end = tokio::time::timeout(SOON, client.wait_main()).await.unwrap().unwrap();
    assert_eq!(end, ExitStatus::Code(127));
    // A main process is started once.
    client.configure(configuration(shell("exit 9", false))).await.unwrap();
    assert_eq!(client.wait_main().await.unwrap(), ExitStatus::Code(127));
    let argv = ["sh", "-c", "echo $B"].map(|word| word.parse().unwrap()).to_vec();
    let exec = ExecCall { argv, ..ExecCall::default() };
    let (out, ..) = client.exec(exec).await.unwrap().collect(1000).await.unwrap();
    assert_eq!(out, b"\n", "the last configuration has no environment");
}
