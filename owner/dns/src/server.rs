//! Sockets: UDP and TCP on one address and port.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::answer::{Outcome, answer};
use crate::forward::Upstreams;
use crate::rebinding::leads_inside;
use crate::zone::Zone;

/// The largest question that is read; real ones are a tenth of it.
const LARGEST_QUESTION: usize = 4096;
/// The most questions that wait for others at a time, of all and of one asker.
const MOST_FORWARDED: usize = 256;
const MOST_OF_ONE: usize = 64;
/// The most TCP connections at a time, and how long one may say nothing.
const MOST_CONNECTIONS: usize = 64;
const SILENCE: Duration = Duration::from_secs(10);
/// After an error of a socket, so that one that stays does not fill the log.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[error("listening for questions at {address}")]
pub struct ServerError {
    /// Where.
    pub address: SocketAddr,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

/// A server that listens; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    _end: DropGuard,
}

#[derive(Debug)]
struct Shared {
    zone: Zone,
    upstreams: RwLock<Upstreams>,
    own: IpAddr,
    forwarded: Arc<Semaphore>,
    of_one: Mutex<HashMap<IpAddr, usize>>,
}

impl Server {
    /// Listens at an address.
    pub async fn start(
        address: SocketAddr,
        zone: Zone,
        upstreams: Upstreams,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError { address, source };
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        let bound = udp.local_addr().map_err(failed)?;
        let tcp = TcpListener::bind(bound).await.map_err(failed)?;
        let shared = Arc::new(Shared {
            zone,
            upstreams: RwLock::new(upstreams),
            own: bound.ip(),
            forwarded: Arc::new(Semaphore::new(MOST_FORWARDED)),
            of_one: Mutex::default(),
        });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(packets(Arc::clone(&shared), udp)));
        tokio::spawn(end.clone().run_until_cancelled_owned(connections(Arc::clone(&shared), tcp)));
        Ok(Self { address: bound, shared, _end: end.drop_guard() })
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks others from now on.
    pub fn set_upstreams(&self, upstreams: Upstreams) {
        *self.shared.upstreams.write().unwrap_or_else(PoisonError::into_inner) = upstreams;
    }
}

/// One asker's place among those who wait for others.
struct Place {
    shared: Arc<Shared>,
    asker: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_one = self.shared.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of_one.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                of_one.remove(&self.asker);
            }
        }
    }
}

impl Shared {
    fn place(self: &Arc<Self>, asker: IpAddr) -> Option<Place> {
        let permit = Arc::clone(&self.forwarded).try_acquire_owned().ok()?;
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of_one.entry(asker).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        drop(of_one);
        Some(Place { shared: Arc::clone(self), asker, _permit: permit })
    }

    /// Asks others; `failure` is what is said if they do not answer, or too many ask already. An answer
    /// that leads inside is not passed on.
    async fn forward(
        self: &Arc<Self>,
        asker: IpAddr,
        packet: &[u8],
        failure: Vec<u8>,
        over_tcp: bool,
    ) -> Vec<u8> {
        let Some(_place) = self.place(asker) else { return failure };
        let upstreams = self.upstreams.read().unwrap_or_else(PoisonError::into_inner).clone();
        match upstreams.ask(packet, self.own, over_tcp).await {
            Some(answer) if leads_inside(&answer, self.zone.subnet()) => {
                tracing::info!(%asker, "an answer from outside that leads inside is not passed on");
                nothing(failure)
            }
            Some(answer) => answer,
            None => failure,
        }
    }
}

/// Makes a reply that says that there is nothing of one that says that nobody answers.
fn nothing(mut failure: Vec<u8>) -> Vec<u8> {
    // The code is the lower half of the header's fourth byte (RFC 1035, 4.1.1); 0 is NOERROR.
    if let Some(byte) = failure.get_mut(3) {
        *byte &= 0xf0;
    }
    failure
}

async fn packets(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LARGEST_QUESTION];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a question");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let packet = &buffer[..length];
        let asker = shared.zone.asker(from.ip());
        match answer(&shared.zone, &asker, packet) {
            Outcome::Silence => {}
            Outcome::Reply(reply) => {
                // An asker that is gone needs no answer.
                let _ = socket.send_to(&reply, from).await;
            }
            Outcome::Forward(failure) => {
                let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
                let packet = packet.to_vec();
                tokio::spawn(async move {
                    let reply = shared.forward(from.ip(), &packet, failure, false).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }
}

async fn connections(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _place = place;
            // A connection that breaks a rule, or falls silent, is closed.
            let _ = serve(&shared, stream, from.ip()).await;
        });
    }
}

/// Answers one question after another (RFC 7766).
async fn serve(shared: &Arc<Shared>, mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
    loop {
        let question = tokio::time::timeout(SILENCE, async {
            let length = usize::from(stream.read_u16().await?);
            if length > LARGEST_QUESTION {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await.map(|_| question)
        });
        let question = question.await??;
        let asker = shared.zone.asker(from);
        let reply = match answer(&shared.zone, &asker, &question) {
            Outcome::Silence => return Ok(()),
            Outcome::Reply(reply) => reply,
            Outcome::Forward(failure) => shared.forward(from, &question, failure, true).await,
        };
        let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
        let reply = [&length.to_be_bytes()[..], &reply].concat();
        tokio::time::timeout(SILENCE, stream.write_all(&reply)).await??;
    }
}
