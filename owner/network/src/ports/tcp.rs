//! A published TCP port.

use banger_agent_api::{ConnectCall, carry_connection};
use banger_guest_client::AgentClient;
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
        Ok(stream) => {
            // A failure only makes it slower.
            let _ = socket.set_nodelay(true);
            carry_connection(socket.split(), stream).await
        }
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
