//! What every [`GuestChannel`] must do, checked against a far end that speaks the agent's protocol:
//! a real agent, or [`answer`] in its place.

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{
    AgentError, Call, Empty, ErrorCode, Frame, FrameReader, FrameWriter, HealthReply, InitKind,
    MAX_REQUEST, MAX_RESPONSE, NetworkState, Outcome, Request, Response, WireError, read_message,
    write_message,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::channel::GuestChannel;
use crate::client::{AgentClient, ClientError};

/// Nothing of the contract takes longer on a machine that works at all.
const PATIENCE: Duration = Duration::from_secs(120);

/// A rule that the channel broke.
#[derive(Debug, thiserror::Error)]
#[error("guest channel contract: {rule}")]
pub struct Violation {
    rule: &'static str,
    #[source]
    source: Option<ClientError>,
}

fn because(rule: &'static str) -> impl Fn(ClientError) -> Violation {
    move |source| Violation { rule, source: Some(source) }
}

fn rule(holds: bool, rule: &'static str) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, source: None }) }
}

/// Checks the whole contract.
pub async fn check(channel: Arc<dyn GuestChannel>) -> Result<(), Violation> {
    let work = async {
        rule(channel.wait_ready().await.is_ok(), "a channel whose agent answers becomes ready")?;
        let client = AgentClient::new(Arc::clone(&channel));
        client.health().await.map_err(because("a ready channel carries a call"))?;
        echo(&client, 1, 64).await?;
        echo(&client, 2, 4 * 1024 * 1024).await?;
        concurrent(&client).await?;
        stalled(&client).await?;
        dropped(&client).await?;
        refused(channel.as_ref()).await?;
        client.health().await.map_err(because("a bad request harms no other call"))?;
        Ok(())
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or(Err(Violation { rule: "the channel never hangs", source: None }))
}

/// Bytes that differ from stream to stream and from place to place.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0u8..251).cycle().skip(usize::from(seed)).take(length).collect()
}

async fn echo(client: &AgentClient, seed: u8, length: usize) -> Result<(), Violation> {
    const RULE: &str = "bytes come back whole, in order and of the same stream";
    let stream = client.echo().await.map_err(because(RULE))?;
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let sent = pattern(seed, length);
    let send = async {
        for chunk in sent.chunks(20_000) {
            writer.send(&Frame::Data(Bytes::copy_from_slice(chunk))).await?;
        }
        writer.send(&Frame::DataEnd).await
    };
    let receive = async {
        let mut received = Vec::new();
        loop {
            match reader.next().await? {
                Some(Frame::Data(bytes)) => received.extend_from_slice(&bytes),
                Some(Frame::DataEnd) => break,
                Some(_) => {}
                None => return Err(WireError::Truncated),
            }
        }
        // The far end has ended its direction: the stream's end must show.
        let over = reader.next().await?.is_none();
        Ok((received, over))
    };
    let wire = |source| because(RULE)(ClientError::Wire { call: "echo", source });
    let ((), (received, over)) = tokio::try_join!(send, receive).map_err(wire)?;
    rule(received == sent, RULE)?;
    rule(over, "the far end's end of a stream arrives")
}

async fn concurrent(client: &AgentClient) -> Result<(), Violation> {
    let calls = (0..32).map(|seed| echo(client, seed, 50_000));
    futures::future::try_join_all(calls).await.map(drop)
}

/// A stream that nobody reads fills up; others go on, and it can still be read afterwards.
async fn stalled(client: &AgentClient) -> Result<(), Violation> {
    const RULE: &str = "a stream that is not read stalls no other";
    let stream = client.echo().await.map_err(because(RULE))?;
    let (reader, mut writer) = tokio::io::split(stream);
    let filling = async {
        let frame = Frame::Data(Bytes::from(pattern(9, 20_000)));
        let mut writer = FrameWriter::new(&mut writer);
        while writer.send(&frame).await.is_ok() {}
    };
    // The far end's buffers and ours are full long before this passes.
    let _ = tokio::time::timeout(Duration::from_millis(300), filling).await;
    echo(client, 5, 100_000).await?;
    let first = FrameReader::new(reader).next().await;
    rule(matches!(first, Ok(Some(Frame::Data(_)))), "what a stalled stream holds is not lost")
}

/// Streams that are dropped at any point leave nothing behind: more are opened, one after the
/// other, than may be open at once.
async fn dropped(client: &AgentClient) -> Result<(), Violation> {
    const RULE: &str = "a dropped stream frees its place";
    for round in 0..600 {
        let stream = client.echo().await.map_err(because(RULE))?;
        if round % 3 == 0 {
            let mut writer = FrameWriter::new(stream);
            let _ = writer.send(&Frame::Data(Bytes::from(pattern(1, 30_000)))).await;
        }
    }
    echo(client, 7, 1000).await
}

/// A request that is none is answered or its stream ended, never left hanging.
async fn refused(channel: &dyn GuestChannel) -> Result<(), Violation> {
    const RULE: &str = "a bad request is answered or its stream ended";
    for bytes in [&b"\x00\x00\x00\x02{}"[..], b"\xff\xff\xff\xff", b"\x00\x00\x00\x01x"] {
        let Ok(mut stream) = channel.open().await else {
            return rule(false, "a ready channel opens streams");
        };
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let mut rest = stream.take(100_000);
        let ended = rest.read_to_end(&mut answer);
        rule(tokio::time::timeout(PATIENCE, ended).await.is_ok(), RULE)?;
    }
    Ok(())
}

/// Serves one stream as an agent would: health and echo, everything else refused. For tests of
/// channels without a guest.
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<(), WireError> {
    let request: Request = match read_message(&mut stream, MAX_REQUEST).await {
        Ok(request) => request,
        Err(_) => return reply::<Empty>(&mut stream, Err("not a request")).await,
    };
    match request.call {
        Call::Health => reply(&mut stream, Ok(stand_in())).await,
        Call::Echo => {
            write_message(&mut stream, &Response::new(Outcome::Ok(Empty {})), MAX_RESPONSE).await?;
            let (reader, writer) = tokio::io::split(stream);
            let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
            while let Some(frame) = reader.next().await? {
                writer.send(&frame).await?;
                if frame == Frame::DataEnd {
                    break;
                }
            }
            writer.shutdown().await
        }
        _ => reply::<Empty>(&mut stream, Err("the stand-in has no such call")).await,
    }
}

async fn reply<T: serde::Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    result: Result<T, &str>,
) -> Result<(), WireError> {
    let outcome = match result {
        Ok(value) => Outcome::Ok(value),
        Err(text) => Outcome::Error(AgentError::new(ErrorCode::BadRequest, text)),
    };
    write_message(stream, &Response::new(outcome), MAX_RESPONSE).await?;
    let _ = stream.shutdown().await;
    Ok(())
}

fn stand_in() -> HealthReply {
    HealthReply {
        agent_version: "stand-in".to_owned(),
        boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
        kernel: "none".to_owned(),
        hostname: "stand-in".to_owned(),
        uptime_millis: 0,
        init: InitKind::Other,
        network: NetworkState::None,
        session: None,
        execs: 0,
    }
}
