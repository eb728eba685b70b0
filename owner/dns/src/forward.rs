//! Asking the host's own resolvers for names outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take; then the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all are asked.
const ROUNDS: usize = 2;
/// The most servers of a file that are asked (resolv.conf(5), MAXNS).
const MOST: usize = 3;
const PORT: u16 = 53;

/// Where names outside are asked for.
#[derive(Clone, Debug)]
pub enum Upstreams {
    /// These servers.
    Fixed(Vec<SocketAddr>),
    /// Those of the first of these files that names any, read anew for each question.
    Files(Vec<PathBuf>),
}

impl Upstreams {
    /// Those that were set, or the host's own: behind systemd-resolved the real ones, so that its
    /// own routing of `vm` plays no part.
    #[must_use]
    pub fn of(set: &[IpAddr]) -> Self {
        if set.is_empty() {
            return Self::Files(
                ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"].map(PathBuf::from).into(),
            );
        }
        Self::Fixed(set.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect())
    }

    /// Returns the servers as they are now, without `own`, which would ask itself.
    fn now(&self, own: IpAddr) -> Vec<SocketAddr> {
        let servers = match self {
            Self::Fixed(servers) => servers.clone(),
            Self::Files(files) => files
                .iter()
                .filter_map(|file| std::fs::read_to_string(file).ok())
                .map(|text| servers(&text))
                .find(|servers| !servers.is_empty())
                .unwrap_or_default(),
        };
        servers.into_iter().filter(|server| server.ip() != own).collect()
    }

    /// Returns the first answer to a question; none if there is none.
    pub(crate) async fn ask(&self, packet: &[u8], own: IpAddr, over_tcp: bool) -> Option<Vec<u8>> {
        let servers = self.now(own);
        let mut refusal = None;
        for _ in 0..ROUNDS {
            for server in &servers {
                let asked = async {
                    if over_tcp { tcp(*server, packet).await } else { udp(*server, packet).await }
                };
                match tokio::time::timeout(PATIENCE, asked).await {
                    // Another may know better.
                    Ok(Ok(answer))
                        if matches!(answer.get(3).map(|byte| byte & 15), Some(2 | 5)) =>
                    {
                        refusal = Some(answer);
                    }
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%server, %error, "a name server failed"),
                    Err(_) => tracing::debug!(%server, "a name server does not answer"),
                }
            }
            if refusal.is_some() {
                break;
            }
        }
        refusal
    }
}

/// Reads the servers of resolv.conf(5).
fn servers(text: &str) -> Vec<SocketAddr> {
    let word = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned)).flatten()
    };
    let addresses = text.lines().filter_map(word).filter_map(|word| word.parse::<IpAddr>().ok());
    addresses.take(MOST).map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// A number that nobody outside can guess, for this question only.
fn identity(packet: &[u8]) -> std::io::Result<([u8; 2], Vec<u8>)> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let mut packet = packet.to_vec();
    packet.get_mut(..2).ok_or(std::io::ErrorKind::InvalidInput)?.copy_from_slice(&id);
    Ok((id, packet))
}

/// Puts the asker's own number back.
fn restore(mut answer: Vec<u8>, packet: &[u8]) -> Vec<u8> {
    if let (Some(ours), Some(theirs)) = (answer.get_mut(..2), packet.get(..2)) {
        ours.copy_from_slice(theirs);
    }
    answer
}

/// Whether a packet answers a question: its number, and the question itself as far as its name goes.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|byte| byte & 0x80 != 0);
    let name = |packet: &[u8]| {
        let rest = packet.get(12..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        // The name's end, type and class.
        rest.get(..end + 5).map(<[u8]>::to_ascii_lowercase)
    };
    is_response && answer.get(..2) == question.get(..2) && name(answer) == name(question)
}

async fn udp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let (_, question) = identity(packet)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question: a second number to guess.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut answer = vec![0; 64 << 10];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(&answer[..length], &question) {
            answer.truncate(length);
            return Ok(restore(answer, packet));
        }
    }
}

async fn tcp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let (_, question) = identity(packet)?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, &question) {
        return Ok(restore(answer, packet));
    }
    Err(std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_file_are_read_as_the_resolver_does() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 10.0.0.1\nnameserver\nnameserver x\n\
            nameserver  fd00::1 # two\nnameserver 1.1.1.1\nnameserver 1.1.1.2\n";
        let read: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(read, ["10.0.0.1:53", "[fd00::1]:53", "1.1.1.1:53"]);
    }

    #[test]
    fn it_never_asks_itself() {
        let own: IpAddr = [172, 16, 0, 1].into();
        let set = Upstreams::of(&[own, [1, 1, 1, 1].into()]);
        assert_eq!(set.now(own), ["1.1.1.1:53".parse().unwrap()]);
    }

    #[test]
    fn only_an_answer_to_the_question_counts() {
        let question = [7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let mut good = question;
        good[2] = 0x81;
        good[13] = b'A';
        assert!(answers(&good, &question));
        for (at, value) in [(0, 0), (2, 1), (13, b'b'), (16, 28)] {
            let mut bad = good;
            bad[at] = value;
            assert!(!answers(&bad, &question), "{at}");
        }
        assert!(!answers(&good[..14], &question));
        assert!(!answers(&[], &question));
    }
}
