//! Every channel against the contract, and what happens when the far end misbehaves.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::mux::{Multiplexer, SessionConfig};
use banger_guest_client::contract;
use banger_guest_client::{
    AgentClient, ChannelError, ClientError, Deadlines, GuestChannel, SerialChannel, VsockUdsChannel,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::UnixListener;

const GUEST: SessionConfig = SessionConfig { window: 128 * 1024, max_streams: 256 };

/// Serves streams of a multiplexed pipe until the pipe breaks.
fn stand_in(pipe: DuplexStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let (multiplexer, driver) = Multiplexer::guest(pipe, GUEST);
        let accept = async {
            while let Some(stream) = multiplexer.accept().await {
                tokio::spawn(contract::answer(stream));
            }
        };
        tokio::select! {
            _ = driver => {}
            () = accept => {}
        }
    })
}

/// Firecracker's end of the handshake; `reply` is what it says for the right port.
fn vsock_device(path: &Path, reply: &'static str) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                let _ = (&mut stream).take(64).read_line(&mut line).await;
                if line == "CONNECT 1024\n" && stream.write_all(reply.as_bytes()).await.is_ok() {
                    let _ = contract::answer(stream).await;
                }
            });
        }
    })
}

fn socket_path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("vsock.sock")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serial_channel_keeps_the_contract() {
    let (near, far) = tokio::io::duplex(8 * 1024);
    let guest = stand_in(far);
    contract::check(Arc::new(SerialChannel::over(near))).await.unwrap();
    guest.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vsock_channel_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let device = vsock_device(&socket_path(&directory), "OK 1073741824\n");
    contract::check(Arc::new(VsockUdsChannel::new(&socket_path(&directory)))).await.unwrap();
    device.abort();
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_an_error_with_its_path() {
    let error = SerialChannel::attach(Path::new("/nowhere/agent.sock")).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/agent.sock"), "{error}");
    let channel = VsockUdsChannel::new(Path::new("/nowhere/vsock.sock"));
    assert!(matches!(channel.open().await, Err(ChannelError::Connect { .. })));
}

#[tokio::test]
async fn a_vsock_device_that_answers_nonsense_is_refused() {
    for reply in
        ["OK x\n", "OK \n", "NO\n", "OK 12345678901234567890123456789012345678\n", "\x1b[2J\n"]
    {
        let directory = tempfile::tempdir().unwrap();
        let device = vsock_device(&socket_path(&directory), reply);
        let error = VsockUdsChannel::new(&socket_path(&directory)).open().await.unwrap_err();
        assert!(matches!(error, ChannelError::Handshake { .. }), "{reply:?}: {error}");
        assert!(!error.to_string().contains('\x1b'));
        device.abort();
    }
}

#[tokio::test]
async fn before_the_agent_speaks_calls_fail_at_once_and_readiness_waits() {
    let (near, far) = tokio::io::duplex(1024);
    let channel = SerialChannel::over(near);
    assert!(matches!(channel.open().await, Err(ChannelError::Detached)));
    let ready = channel.wait_ready();
    tokio::pin!(ready);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut ready).await.is_err());
    let guest = stand_in(far);
    ready.await.unwrap();
    guest.abort();
}

#[tokio::test]
async fn a_guest_that_ends_closes_the_channel_and_fails_its_calls() {
    let (near, far) = tokio::io::duplex(8 * 1024);
    let guest = stand_in(far);
    let channel = Arc::new(SerialChannel::over(near));
    channel.wait_ready().await.unwrap();
    let client = AgentClient::new(channel.clone());
    let echo = client.echo().await.unwrap();
    guest.abort();
    channel.closed().await;
    let mut rest = Vec::new();
    assert!({ echo }.read_to_end(&mut rest).await.is_err());
    assert!(matches!(channel.open().await, Err(ChannelError::Closed)));
    assert!(matches!(channel.wait_ready().await, Err(ChannelError::Closed)));
}

#[tokio::test]
async fn a_new_daemon_takes_over_a_pipe_that_the_old_one_left_in_the_middle() {
    // The pipe outlives the daemons: each half is handed from one to the next.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let guest = stand_in(far);
    let shared = Arc::new(tokio::sync::Mutex::new(near));
    for round in 0..5u8 {
        let (daemon, bridge) = tokio::io::duplex(1000);
        let pipe = Arc::clone(&shared);
        let bridge = tokio::spawn(async move {
            let mut bridge = bridge;
            let _ = tokio::io::copy_bidirectional(&mut bridge, &mut *pipe.lock().await).await;
        });
        let channel = Arc::new(SerialChannel::over(daemon));
        channel.wait_ready().await.unwrap();
        let client = AgentClient::new(channel.clone());
        client.health().await.unwrap();
        let mut echo = client.echo().await.unwrap();
        // Cut somewhere inside the frames that this makes.
        let _ = tokio::time::timeout(
            Duration::from_millis(u64::from(round)),
            echo.write_all(&[round; 200_000]),
        )
        .await;
        bridge.abort();
        let _ = bridge.await;
    }
    guest.abort();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_runs_into_the_deadline() {
    let (near, far) = tokio::io::duplex(8 * 1024);
    let guest = tokio::spawn(async move {
        let (multiplexer, driver) = Multiplexer::guest(far, GUEST);
        let mut kept = Vec::new();
        let accept = async {
            while let Some(stream) = multiplexer.accept().await {
                kept.push(stream);
            }
        };
        tokio::select! { _ = driver => {} () = accept => {} }
    });
    let channel = Arc::new(SerialChannel::over(near));
    channel.wait_ready().await.unwrap();
    let deadlines = Deadlines { answer: Duration::from_secs(3), ..Deadlines::default() };
    let error = AgentClient::with_deadlines(channel, deadlines).health().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { call: "health", seconds: 3 }), "{error}");
    guest.abort();
}

#[tokio::test]
async fn a_hostile_guest_is_refused_not_believed() {
    for answer in [
        &b"\xff\xff\xff\xff"[..],
        b"\x00\x00\x00\x02{]",
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x10short",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket_path(&directory)).unwrap();
        let device = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"OK 1\n").await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        let client = AgentClient::new(Arc::new(VsockUdsChannel::new(&socket_path(&directory))));
        let error = client.health().await.unwrap_err();
        assert!(matches!(error, ClientError::Wire { .. }), "{answer:?}: {error}");
        device.await.unwrap();
    }
}
