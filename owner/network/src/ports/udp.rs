//! A published UDP port.
//!
//! Each client's address is a flow: a stream to the agent with a socket of its own in the guest, so
//! that answers find back. A flow ends when nothing came either way for [`IDLE`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{ConnectCall, Frame, FrameReader, FrameWriter, MAX_FRAME_PAYLOAD};
use banger_guest_client::AgentClient;
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use super::{PAUSE, Way, connect};

/// How long a flow may be silent; conntrack gives an answered one 120 s, an unanswered one 30
/// (net.netfilter.nf_conntrack_udp_timeout).
const IDLE: Duration = Duration::from_secs(90);
/// The most flows of one port; a new one takes the place of the one that was silent longest.
const FLOWS_MOST: usize = 64;
/// Datagrams of a client that may wait for the guest; more are lost.
const QUEUE: usize = 64;

struct Flow {
    datagrams: mpsc::Sender<Bytes>,
    last: Instant,
    task: AbortHandle,
}

/// Carries datagrams for as long as it runs.
pub(super) async fn serve(socket: UdpSocket, mut way: Way) {
    if way.client().await.is_none() {
        return;
    }
    let socket = Arc::new(socket);
    let (mut flows, mut tasks) = (HashMap::<SocketAddr, Flow>::new(), JoinSet::new());
    // One byte more than fits, to tell what was cut.
    let mut buffer = vec![0; MAX_FRAME_PAYLOAD + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = tasks.join_next_with_id() => {
                let id: Id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                flows.retain(|_, flow| flow.task.id() != id);
                continue;
            }
        };
        let (count, from) = match received {
            Ok((count, from)) if count <= MAX_FRAME_PAYLOAD => (count, from),
            Ok(_) => {
                tracing::debug!(publication = %way.publication, "a datagram is too large to carry");
                continue;
            }
            Err(error) => {
                tracing::warn!(publication = %way.publication, %error, "no datagram was received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let datagram = Bytes::copy_from_slice(&buffer[..count]);
        if !flows.contains_key(&from) {
            if flows.len() >= FLOWS_MOST
                && let Some(oldest) =
                    flows.iter().min_by_key(|(_, flow)| flow.last).map(|(from, _)| *from)
                && let Some(flow) = flows.remove(&oldest)
            {
                flow.task.abort();
            }
            let Some(client) = way.client().await else { return };
            // Without a stream to spare the datagram is lost, as datagrams are.
            let Ok(permit) = Arc::clone(&way.streams).try_acquire_owned() else { continue };
            let (sender, receiver) = mpsc::channel(QUEUE);
            let publication = way.publication;
            let call = ConnectCall { protocol: publication.protocol, port: publication.guest };
            let back = Arc::clone(&socket);
            let task = tasks.spawn(async move {
                let _permit = permit;
                carry(&client, call, receiver, &back, from).await;
            });
            flows.insert(from, Flow { datagrams: sender, last: Instant::now(), task });
        }
        if let Some(flow) = flows.get_mut(&from) {
            flow.last = Instant::now();
            let _ = flow.datagrams.try_send(datagram);
        }
    }
}

async fn carry(
    client: &AgentClient,
    call: ConnectCall,
    mut datagrams: mpsc::Receiver<Bytes>,
    socket: &UdpSocket,
    peer: SocketAddr,
) {
    let stream = match connect(client, call).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a client's datagrams were not carried to the guest");
            return;
        }
    };
    let (from_guest, to_guest) = tokio::io::split(stream);
    let (mut from_guest, mut to_guest) = (FrameReader::new(from_guest), FrameWriter::new(to_guest));
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(datagram) = datagram else { return };
                if to_guest.send(&Frame::Datagram(datagram)).await.is_err() {
                    return;
                }
            }
            frame = from_guest.next() => match frame {
                // A client that is gone, or a full queue: datagrams get lost.
                Ok(Some(Frame::Datagram(bytes))) => drop(socket.send_to(&bytes, peer).await),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
            () = tokio::time::sleep(IDLE) => return,
        }
    }
}
