//! A published TCP port.

use banger_agent_api::{ConnectCall, Frame, FrameReader, FrameWriter, WireError};
use banger_guest_client::{AgentClient, BoxedStream};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{PAUSE, Way, connect};

/// Accepts and carries connections for as long as it runs; they end with it.
pub(super) async fn serve(listener: TcpListener, mut way: Way) {
    // Until then clients wait in the socket's queue.
    if way.client().await.is_none() {
        return;
    }
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let streams = std::sync::Arc::clone(&way.streams);
            // Beyond the most at a time clients wait in the socket's queue too.
            let permit = streams.acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Some((accepted, permit)) = accepted else { return };
        match accepted {
            Ok((socket, _)) => {
                let Some(client) = way.client().await else { return };
                let publication = way.publication;
                let call = ConnectCall { protocol: publication.protocol, port: publication.guest };
                connections.spawn(async move {
                    let _permit = permit;
                    connection(socket, &client, call).await;
                });
            }
            Err(error) => {
                tracing::warn!(publication = %way.publication, %error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(mut socket: TcpStream, client: &AgentClient, call: ConnectCall) {
    let port = call.port;
    let ended = match connect(client, call).await {
        Ok(stream) => carry(&mut socket, stream).await,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::debug!(port, %error, cause, "a client was not connected to the guest");
            Ok(false)
        }
    };
    if !matches!(ended, Ok(true)) {
        // What the guest refused or broke off is not to look like an end.
        let _ = socket.set_zero_linger();
    }
}

/// Carries bytes until both directions have ended, which is true, or one broke off.
async fn carry(socket: &mut TcpStream, stream: BoxedStream) -> Result<bool, WireError> {
    // A failure only makes it slower.
    let _ = socket.set_nodelay(true);
    let (from_guest, to_guest) = tokio::io::split(stream);
    let (mut from_guest, mut to_guest) = (FrameReader::new(from_guest), FrameWriter::new(to_guest));
    let (mut from_client, mut to_client) = socket.split();
    let down = async {
        while let Some(frame) = from_guest.next().await? {
            let written = match frame {
                Frame::Data(bytes) => to_client.write_all(&bytes).await,
                Frame::DataEnd => return Ok(to_client.shutdown().await.is_ok()),
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        Ok::<bool, WireError>(false)
    };
    let up = to_guest.send_all_of(&mut from_client);
    {
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        let (mut client_ended, mut guest_ended) = (false, false);
        while !(client_ended && guest_ended) {
            let whole = tokio::select! {
                ended = &mut down, if !guest_ended => { guest_ended = true; ended? }
                ended = &mut up, if !client_ended => { client_ended = true; ended? }
            };
            if !whole {
                return Ok(false);
            }
        }
    }
    // Without it the stream's end would overtake what the guest has not read yet.
    to_guest.shutdown().await.map(|()| true)
}
