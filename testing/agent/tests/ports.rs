//! Published ports with the real agent behind them: what a client on the host sees of services in the
//! "guest", which here is this machine.
#![expect(clippy::unwrap_used, reason = "a test: helpers fail it where it stands")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use banger_engine::seams::{PortError, Ports};
use banger_network::PublishedPorts;
use banger_types::{Publication, VmId, VmName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// How long anything here may take, on a machine under load.
const SOON: Duration = Duration::from_secs(60);

struct Host {
    ports: PublishedPorts,
    vm: VmId,
}

impl Host {
    fn new() -> Self {
        Self { ports: PublishedPorts::default(), vm: VmId::random() }
    }

    fn publish(&self, wanted: &[String]) -> Result<Vec<SocketAddr>, PortError> {
        let wanted: Vec<Publication> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let name: VmName = "box".parse().unwrap();
        self.ports.publish(&self.vm, &name, &wanted)?;
        Ok(self.ports.open(&self.vm).into_iter().map(|(_, address)| address).collect())
    }

    /// Publishes a port and leads it to an agent.
    fn lead_to(&self, port: u16, protocol: &str) -> SocketAddr {
        let address = self.publish(&[format!("0:{port}/{protocol}")]).unwrap()[0];
        self.ports.serve(&self.vm, banger_agent_tests::start());
        address
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it hangs")
}

async fn service() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_cross_both_ways_and_ends_are_carried() {
    let (listener, port) = service().await;
    let host = Host::new();
    let address = host.publish(&[format!("0:{port}")]).unwrap()[0];
    // A client that comes before the guest waits for it.
    let mut client = soon(TcpStream::connect(address)).await.unwrap();
    host.ports.serve(&host.vm, banger_agent_tests::start());
    let echo = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        // Nothing is answered before the client's end has come.
        peer.read_to_end(&mut all).await.unwrap();
        peer.write_all(&all).await.unwrap();
    });
    let sent: Vec<u8> = (0..3 << 20).map(|number: u32| number.to_le_bytes()[0] ^ 0x5a).collect();
    soon(client.write_all(&sent)).await.unwrap();
    client.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon(client.read_to_end(&mut back)).await.unwrap();
    assert!(back == sent, "{} bytes of {} came back", back.len(), sent.len());
    echo.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let (listener, port) = service().await;
    let host = Host::new();
    let address = host.lead_to(port, "tcp");
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = [0];
                let _ = peer.read_exact(&mut first).await;
                // More than all buffers on the way hold together.
                let _ = peer.write_all(&vec![first[0]; 16 << 20]).await;
            });
        }
    });
    let mut deaf = TcpStream::connect(address).await.unwrap();
    deaf.write_all(b"d").await.unwrap();
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(b"o").await.unwrap();
    let mut all = Vec::new();
    soon(other.read_to_end(&mut all)).await.unwrap();
    assert!(all.len() == 16 << 20 && all.iter().all(|byte| *byte == b'o'));
    let mut rest = Vec::new();
    soon(deaf.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest.len(), 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_and_a_break_look_like_one() {
    let (listener, port) = service().await;
    let host = Host::new();
    let address = host.lead_to(port, "tcp");
    let mut client = soon(TcpStream::connect(address)).await.unwrap();
    let (peer, _) = soon(listener.accept()).await.unwrap();
    peer.set_zero_linger().unwrap();
    drop(peer);
    let broken = soon(client.read(&mut [0])).await.map_err(|error| error.kind());
    assert_eq!(broken, Err(io::ErrorKind::ConnectionReset));
    drop(listener);
    let mut client = soon(TcpStream::connect(address)).await.unwrap();
    let refused = soon(client.read(&mut [0])).await.map_err(|error| error.kind());
    assert_eq!(refused, Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unpublished_is_closed_and_the_rest_goes_on() {
    let (listener, port) = service().await;
    let host = Host::new();
    let wanted = [format!("127.0.0.1:0:{port}"), format!("127.0.0.2:0:{port}")];
    let both = host.publish(&wanted).unwrap();
    host.ports.serve(&host.vm, banger_agent_tests::start());
    let mut kept = TcpStream::connect(both[0]).await.unwrap();
    let (mut kept_peer, _) = soon(listener.accept()).await.unwrap();
    let mut ended = TcpStream::connect(both[1]).await.unwrap();
    let (mut ended_peer, _) = soon(listener.accept()).await.unwrap();
    assert_eq!(host.publish(&wanted[..1]).unwrap(), [both[0]]);
    assert!(matches!(soon(ended.read(&mut [0])).await, Ok(0) | Err(_)));
    assert!(matches!(soon(ended_peer.read(&mut [0])).await, Ok(0) | Err(_)));
    let refused = soon(TcpStream::connect(both[1])).await.map_err(|error| error.kind());
    assert_eq!(refused.map(drop), Err(io::ErrorKind::ConnectionRefused));
    kept_peer.write_all(b"x").await.unwrap();
    assert_eq!(soon(kept.read_u8()).await.unwrap(), b'x');
    host.ports.withdraw(&host.vm);
    assert!(matches!(soon(kept.read(&mut [0])).await, Ok(0) | Err(_)));
    assert!(host.ports.open(&host.vm).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_changes_nothing_and_says_whose_it_is() {
    let (listener, port) = service().await;
    let host = Host::new();
    let mine = host.publish(&["0:80".to_owned()]).unwrap();
    let taken = host.publish(&["0:80".to_owned(), "0:81".to_owned(), format!("{port}:82")]);
    let error = taken.unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(error.holder, None);
    assert_eq!(host.ports.open(&host.vm).len(), 1);
    drop(listener);
    // Another VM's is known by its name.
    let (other, name) = (VmId::random(), "other".parse().unwrap());
    let same: Publication = format!("{}:80", mine[0].port()).parse().unwrap();
    let error = host.ports.publish(&other, &name, &[same]).unwrap_err();
    assert_eq!(error.holder.unwrap().as_str(), "box");
    let foreign: Publication = "192.0.2.1:0:80".parse().unwrap();
    let error = host.ports.publish(&other, &name, &[foreign]).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrNotAvailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_find_their_way_back_to_each_client() {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let host = Host::new();
    let address = host.lead_to(service.local_addr().unwrap().port(), "udp");
    tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        while let Ok((count, from)) = service.recv_from(&mut buffer).await {
            let _ = service.send_to(&buffer[..count], from).await;
        }
    });
    // More clients than there are flows at a time: the silent ones make room.
    let mut clients = Vec::new();
    for number in 0..80_u8 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        for datagram in [vec![number; 1], Vec::new(), vec![number; 1400]] {
            client.send(&datagram).await.unwrap();
            let mut buffer = vec![0; 65536];
            let count = soon(client.recv(&mut buffer)).await.unwrap();
            assert!(buffer[..count] == datagram[..], "client {number}: {count} bytes");
        }
        clients.push(client);
    }
    // The first one's flow is gone, and it gets another.
    clients[0].send(b"again").await.unwrap();
    let mut buffer = [0; 16];
    let count = soon(clients[0].recv(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..count], b"again");
}
