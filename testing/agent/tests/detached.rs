//! Commands without a client, in the real agent as an ordinary process.
//!
//! The agent runs commands as root does (it sets groups), so these tests need root.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{
    Call, DetachReply, DetachedCommand, DetachedOutputCall, DetachedReply, Empty, ErrorCode,
    ExecCall, Frame, FrameReader, MAX_REQUEST, MAX_RESPONSE, Outcome, Request, Response,
    read_message, write_message,
};
use banger_guest_client::{BoxedStream, GuestChannel, SerialChannel};
use serde::de::DeserializeOwned;

/// What the agent keeps of one, and of all together, in bytes.
const KEPT_OF_ONE: u64 = 1 << 20;
const KEPT_OF_ALL: u64 = 8 << 20;

struct Agent(Arc<SerialChannel>);

impl Agent {
    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<(T, BoxedStream), ErrorCode> {
        let mut stream = self.0.open().await.unwrap();
        write_message(&mut stream, &Request::new(call), MAX_REQUEST).await.unwrap();
        let answer: Response<T> = read_message(&mut stream, MAX_RESPONSE).await.unwrap();
        match answer.outcome {
            Outcome::Ok(reply) => Ok((reply, stream)),
            Outcome::Error(error) => Err(error.code),
        }
    }

    async fn detach(&self, script: &str) -> Result<u32, ErrorCode> {
        let argv = ["/bin/sh", "-c", script].map(|word| word.parse().unwrap()).to_vec();
        let call = Call::Detach(ExecCall { argv, ..ExecCall::default() });
        self.call::<DetachReply>(call).await.map(|(reply, _)| reply.id)
    }

    async fn list(&self) -> Vec<DetachedCommand> {
        self.call::<DetachedReply>(Call::Detached).await.unwrap().0.commands
    }

    /// Reads output to its end: standard output, standard error, and the exit code.
    async fn output(&self, id: u32, follow: bool) -> (Vec<u8>, String, Option<u8>) {
        let call = Call::DetachedOutput(DetachedOutputCall { id, follow, skip_kept: false });
        let (Empty {}, stream) = self.call(call).await.unwrap();
        let mut reader = FrameReader::new(stream);
        let (mut out, mut error) = (Vec::new(), Vec::new());
        loop {
            match reader.next().await.unwrap().unwrap() {
                Frame::Stdout(bytes) => out.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => error.extend_from_slice(&bytes),
                Frame::Exit(status) => {
                    return (out, String::from_utf8(error).unwrap(), Some(status.shell_code()));
                }
                Frame::DataEnd => return (out, String::from_utf8(error).unwrap(), None),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn ends(&self, id: u32) -> u8 {
        self.output(id, true).await.2.unwrap()
    }
}

async fn agent() -> Option<Agent> {
    banger_agent_tests::start_as_root().await.map(Agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_and_is_read_by_whoever_comes() {
    let Some(agent) = agent().await else { return };
    let place = tempfile::tempdir().unwrap();
    let go = place.path().join("go");
    let script = format!(
        "echo out; echo err >&2; while [ ! -e {} ]; do sleep 0.01; done; echo late; exit 7",
        go.display()
    );
    let id = agent.detach(&script).await.unwrap();
    let seen = async {
        loop {
            let (out, error, exit) = agent.output(id, false).await;
            if out == b"out\n" && error == "err\n" {
                return assert_eq!(exit, None);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap();
    let listed = agent.list().await;
    assert_eq!((listed[0].id, listed[0].exit_code, listed[0].output_bytes), (id, None, 8));
    assert!(listed[0].command.starts_with("/bin/sh -c echo out"), "{:?}", listed[0].command);
    // Two follow it; both get all of it and its end.
    let go_on = async { std::fs::write(&go, "").unwrap() };
    let (one, two, ()) = tokio::join!(agent.output(id, true), agent.output(id, true), go_on);
    assert_eq!(one, (b"out\nlate\n".to_vec(), "err\n".to_owned(), Some(7)));
    assert_eq!(one, two);
    assert_eq!(agent.list().await[0].exit_code, Some(7));
    let killed = agent.detach("kill -9 $$").await.unwrap();
    assert_eq!((killed, agent.ends(killed).await), (id + 1, 137));
    let call = DetachedOutputCall { id: 99, follow: true, skip_kept: false };
    let unknown = agent.call::<Empty>(Call::DetachedOutput(call)).await;
    assert_eq!(unknown.err(), Some(ErrorCode::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_never_held_up_and_its_end_is_kept() {
    let Some(agent) = agent().await else { return };
    // Somebody asks for all of it and does not read.
    let flood = "i=0; while [ $i -lt 400 ]; do printf '%08192d' $i; i=$((i+1)); done; echo end";
    let id = agent.detach(flood).await.unwrap();
    let call = DetachedOutputCall { id, follow: true, skip_kept: false };
    let (Empty {}, silent) = agent.call(Call::DetachedOutput(call)).await.unwrap();
    assert_eq!(agent.ends(id).await, 0);
    let (out, error, _) = agent.output(id, true).await;
    assert!(out.ends_with(b"end\n") && out.len() as u64 <= KEPT_OF_ONE, "{}", out.len());
    let lost = 400 * 8192 + 4 - out.len();
    assert!(error.contains(&format!("{lost} bytes of output are not kept")), "{error}");
    drop(silent);
    // All together are bounded, too: who has most loses first.
    for _ in 0..10 {
        let id = agent.detach(flood).await.unwrap();
        agent.ends(id).await;
    }
    let small = agent.detach("echo small").await.unwrap();
    agent.ends(small).await;
    let kept: u64 = agent.list().await.iter().map(|one| one.kept_bytes).sum();
    assert!(kept <= KEPT_OF_ALL, "{kept}");
    assert_eq!(agent.output(small, false).await.0, b"small\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_most_and_what_has_ended_makes_room() {
    let Some(agent) = agent().await else { return };
    let first = agent.detach("exit 3").await.unwrap();
    assert_eq!(agent.ends(first).await, 3);
    let mut running = Vec::new();
    while running.len() < 32 {
        running.push(agent.detach("exec sleep 600").await.unwrap());
    }
    assert_eq!(agent.detach("true").await, Err(ErrorCode::Refused));
    let listed = agent.list().await;
    assert_eq!(listed.len(), 32, "the one that had ended is forgotten");
    assert!(listed.iter().all(|one| one.id != first));
    for one in &listed {
        let pid = rustix::process::Pid::from_raw(i32::try_from(one.pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    for id in running {
        assert_eq!(agent.ends(id).await, 137);
    }
    assert!(agent.detach("true").await.is_ok());
    let tty = ExecCall { argv: vec!["true".parse().unwrap()], stdin: true, ..ExecCall::default() };
    let refused = agent.call::<DetachReply>(Call::Detach(tty)).await.err();
    assert_eq!(refused, Some(ErrorCode::BadRequest));
}
