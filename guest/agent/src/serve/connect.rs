//! A connection to a port of the guest, carried in frames.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use banger_agent_api::{
    AgentError, ConnectCall, Empty, ErrorCode, Frame, FrameReader, FrameWriter, MAX_FRAME_PAYLOAD,
    PortProtocol, WireError,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Notify;

use super::calls::{begin, refuse};
use super::ports;

/// How long a listener of this machine may take to accept.
const PATIENCE: Duration = Duration::from_secs(10);

const HERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Runs the call.
pub(super) async fn run<S>(call: &ConnectCall, mut stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let port = call.port.get();
    match call.protocol {
        PortProtocol::Tcp => match connect(port).await {
            Ok(mut socket) => {
                begin(&mut stream, Empty {}).await?;
                let (from_guest, to_guest) = socket.split();
                carry(from_guest, to_guest, stream).await
            }
            Err(error) => refuse(&mut stream, refusal(call, &error)).await,
        },
        PortProtocol::Udp => match associate(port).await {
            Ok(socket) => {
                begin(&mut stream, Empty {}).await?;
                exchange(&socket, stream).await
            }
            Err(error) => refuse(&mut stream, refusal(call, &error)).await,
        },
    }
}

fn refusal(call: &ConnectCall, error: &io::Error) -> AgentError {
    let (port, protocol) = (call.port, call.protocol);
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            let words = format!("nobody listens on port {port}/{protocol}");
            AgentError::new(ErrorCode::Refused, words)
        }
        _ => {
            AgentError::new(ErrorCode::Failed, format!("connecting to {port}/{protocol}: {error}"))
        }
    }
}

/// Connects to whoever listens on the loopback address, else on another address of the machine.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in HERE {
        match connect_to(address, port).await {
            Err(error) if is_elsewhere(&error) => last = error,
            other => return other,
        }
    }
    for address in ports::listeners(PortProtocol::Tcp, port) {
        match connect_to(address, port).await {
            Err(error) if is_elsewhere(&error) => {}
            other => return other,
        }
    }
    Err(match last.kind() {
        // A guest without IPv6 says so; that nobody listens is what matters.
        io::ErrorKind::AddrNotAvailable => io::ErrorKind::ConnectionRefused.into(),
        _ => last,
    })
}

async fn connect_to(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect(SocketAddr::new(address, port));
    let socket = tokio::time::timeout(PATIENCE, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Whether another address may still be listened on.
fn is_elsewhere(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let unsupported = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    let number = rustix::io::Errno::from_io_error(error);
    matches!(error.kind(), Kind::ConnectionRefused | Kind::AddrNotAvailable)
        || number.is_some_and(|number| unsupported.contains(&number))
}

async fn associate(port: u16) -> io::Result<UdpSocket> {
    let address = ports::listeners(PortProtocol::Udp, port).next().unwrap_or(HERE[0]);
    let own: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).await?;
    socket.connect(SocketAddr::new(address, port)).await?;
    Ok(socket)
}

/// Carries bytes until both directions have ended, or either side is gone: what is not ended with a
/// data end was broken off.
pub(super) async fn carry<S>(
    mut from_guest: impl AsyncRead + Unpin,
    mut to_guest: impl AsyncWrite + Unpin,
    stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from_host, to_host) = tokio::io::split(stream);
    let (mut from_host, mut to_host) = (FrameReader::new(from_host), FrameWriter::new(to_host));
    let (host_ended, told) = (Cell::new(false), Notify::new());
    let up = async {
        // Read on after the end, to learn that the host has gone.
        while let Some(frame) = from_host.next().await? {
            let written = match frame {
                Frame::Data(bytes) => to_guest.write_all(&bytes).await,
                Frame::DataEnd => {
                    host_ended.set(true);
                    told.notify_one();
                    to_guest.shutdown().await
                }
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        Ok::<(), WireError>(())
    };
    let down = to_host.send_all_of(&mut from_guest);
    {
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        let mut guest_ended = false;
        while !(guest_ended && host_ended.get()) {
            tokio::select! {
                ended = &mut up => return ended,
                ended = &mut down, if !guest_ended => match ended? {
                    true => guest_ended = true,
                    false => return Ok(()),
                },
                () = told.notified() => {}
            }
        }
    }
    // Without it the stream's end would overtake what the host has not read yet.
    to_host.shutdown().await
}

/// Carries datagrams until the host has had enough.
async fn exchange<S>(socket: &UdpSocket, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from_host, to_host) = tokio::io::split(stream);
    let (mut from_host, mut to_host) = (FrameReader::new(from_host), FrameWriter::new(to_host));
    let up = async {
        while let Some(frame) = from_host.next().await? {
            match frame {
                // Datagrams get lost, and a port may be opened later.
                Frame::Datagram(bytes) => drop(socket.send(&bytes).await),
                Frame::DataEnd => break,
                _ => {}
            }
        }
        Ok(())
    };
    let down = async {
        // One byte more than fits, to tell what was cut.
        let mut buffer = vec![0; MAX_FRAME_PAYLOAD + 1];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(count) if count <= MAX_FRAME_PAYLOAD => {
                    to_host
                        .send(&Frame::Datagram(Bytes::copy_from_slice(&buffer[..count])))
                        .await?;
                }
                Ok(_) => {}
                // The word of an earlier datagram's refusal.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return Ok(()),
            }
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use banger_agent_api::{Call, Outcome, Request, Response, read_message, write_message};
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;

    type Host = (
        FrameReader<tokio::io::ReadHalf<DuplexStream>>,
        FrameWriter<tokio::io::WriteHalf<DuplexStream>>,
    );

    /// Makes the call on a server of its own.
    async fn call(protocol: PortProtocol, port: u16) -> Result<Host, AgentError> {
        let (mut near, far) = tokio::io::duplex(256 * 1024);
        let server = std::rc::Rc::new(super::super::calls::Server::without_cgroups());
        tokio::task::spawn_local(server.serve(far));
        let call = ConnectCall { protocol, port: NonZeroU16::new(port).unwrap() };
        write_message(&mut near, &Request::new(Call::Connect(call)), 4096).await.unwrap();
        let response: Response<Empty> = read_message(&mut near, 4096).await.unwrap();
        match response.outcome {
            Outcome::Ok(Empty {}) => {
                let (reader, writer) = tokio::io::split(near);
                Ok((FrameReader::new(reader), FrameWriter::new(writer)))
            }
            Outcome::Error(error) => Err(error),
        }
    }

    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn bytes_and_both_ends_are_carried() {
        local(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (mut reader, mut writer) = call(PortProtocol::Tcp, port).await.unwrap();
            let (mut peer, _) = listener.accept().await.unwrap();
            writer.send(&Frame::Data(Bytes::from_static(b"question"))).await.unwrap();
            writer.send(&Frame::DataEnd).await.unwrap();
            let mut heard = String::new();
            peer.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "question");
            // Half closed, the other direction goes on.
            peer.write_all(b"answer").await.unwrap();
            assert_eq!(
                reader.next().await.unwrap(),
                Some(Frame::Data(Bytes::from_static(b"answer")))
            );
            drop(peer);
            assert_eq!(reader.next().await.unwrap(), Some(Frame::DataEnd));
            assert_eq!(reader.next().await.unwrap(), None);
        });
    }

    #[test]
    fn a_reset_is_no_end_and_a_host_that_goes_is_noticed() {
        local(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (mut reader, _writer) = call(PortProtocol::Tcp, port).await.unwrap();
            let (peer, _) = listener.accept().await.unwrap();
            peer.set_zero_linger().unwrap();
            drop(peer);
            assert!(!matches!(reader.next().await, Ok(Some(_))));

            let (reader, mut writer) = call(PortProtocol::Tcp, port).await.unwrap();
            let (mut peer, _) = listener.accept().await.unwrap();
            writer.send(&Frame::DataEnd).await.unwrap();
            drop((reader, writer));
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).await.unwrap();
            let gone = async {
                while peer.write_all(&[0; 4096]).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, gone).await.unwrap();
        });
    }

    #[test]
    fn where_nobody_listens_is_refused() {
        local(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            let error = call(PortProtocol::Tcp, port).await.err().unwrap();
            assert_eq!(error.code, ErrorCode::Refused);
            assert!(error.to_string().contains(&port.to_string()), "{error}");
        });
    }

    #[test]
    fn datagrams_stay_whole() {
        local(async {
            let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = service.local_addr().unwrap().port();
            let (mut reader, mut writer) = call(PortProtocol::Udp, port).await.unwrap();
            for datagram in [&b"one"[..], b"", b"three"] {
                writer.send(&Frame::Datagram(Bytes::from_static(datagram))).await.unwrap();
                let mut buffer = [0; 16];
                let (count, from) = service.recv_from(&mut buffer).await.unwrap();
                assert_eq!(&buffer[..count], datagram);
                service.send_to(&buffer[..count], from).await.unwrap();
                let back = reader.next().await.unwrap();
                assert_eq!(back, Some(Frame::Datagram(Bytes::from_static(datagram))));
            }
        });
    }
}
