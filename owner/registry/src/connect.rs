//! Connections: direct or through a proxy, plain or TLS.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use banger_types::RegistryHost;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::error::RegistryError;
use crate::settings::{Proxies, Proxy};
use crate::trust::tls_config;

/// The longest answer of a proxy to `CONNECT`.
const PROXY_ANSWER: usize = 8 << 10;

/// Where a proxy listens that is named without a port, as curl has it.
const PROXY_PORT: u16 = 1080;

/// Why there is no connection; its text is for people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("it took longer than {} s", .0.as_secs_f32())]
    Slow(Duration),
    #[error("{0}")]
    Address(&'static str),
    #[error("connect to {host}")]
    Tcp {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("the proxy {host} {problem}")]
    Proxy { host: String, problem: String },
    #[error("the proxy {host} {problem}")]
    Refused { host: String, problem: String },
    #[error("encrypt the connection to {host}")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Certificates(#[from] RegistryError),
}

/// Makes connections for one request's settings.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    proxies: Proxies,
    authorities: Option<String>,
    deadline: Duration,
    tls: OnceLock<Result<Arc<ClientConfig>, RegistryError>>,
}

impl Connector {
    pub(crate) fn new(proxies: Proxies, authorities: Option<String>, deadline: Duration) -> Self {
        Self(Arc::new(Shared { proxies, authorities, deadline, tls: OnceLock::new() }))
    }

    /// Returns the proxy that a plain request goes to as it is, which then wants its own header.
    pub(crate) fn plain_proxy(&self, host: &RegistryHost) -> Option<&Proxy> {
        self.0.proxies.of(false, host)
    }

    async fn connect(self, uri: Uri) -> Result<Stream, ConnectError> {
        let limit = self.0.deadline;
        let connected = tokio::time::timeout(limit, self.0.open(&uri)).await;
        connected.unwrap_or(Err(ConnectError::Slow(limit)))
    }
}

impl Shared {
    async fn open(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let https = uri.scheme_str() == Some("https");
        let host: RegistryHost = uri
            .authority()
            .and_then(|authority| authority.as_str().parse().ok())
            .ok_or(ConnectError::Address("the address has no host"))?;
        let port = host.port().unwrap_or(if https { 443 } else { 80 });
        let proxy = self.proxies.of(https, &host);
        let stream = match proxy {
            None => tcp(&host, port).await?,
            Some(proxy) => {
                let stream = tcp(&proxy.host, proxy.host.port().unwrap_or(PROXY_PORT)).await?;
                if https { tunnel(stream, proxy, &host, port).await? } else { stream }
            }
        };
        if !https {
            return Ok(Stream { link: Link::Plain(stream), proxied: proxy.is_some() });
        }
        let config = self
            .tls
            .get_or_init(|| tls_config(self.authorities.as_deref()))
            .as_ref()
            .map_err(|error| ConnectError::Certificates(error.clone()))?;
        let name = host.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name)
            .map_err(|_| ConnectError::Address("no certificate can have this name"))?;
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
            .map_err(|source| ConnectError::Tls { host: host.to_string(), source })?;
        Ok(Stream { link: Link::Tls(Box::new(stream)), proxied: false })
    }
}

async fn tcp(host: &RegistryHost, port: u16) -> Result<TcpStream, ConnectError> {
    let failed = |source| ConnectError::Tcp { host: host.to_string(), source };
    let name = host.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// Asks a proxy for a tunnel (RFC 9110 section 9.3.6).
async fn tunnel(
    mut stream: TcpStream,
    proxy: &Proxy,
    host: &RegistryHost,
    port: u16,
) -> Result<TcpStream, ConnectError> {
    let problem = |problem: String| ConnectError::Proxy { host: proxy.host.to_string(), problem };
    let target = format!("{}:{port}", host.host());
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request += &format!("Proxy-Authorization: {}\r\n", authorization.reveal());
    }
    request += "\r\n";
    let io = |error: io::Error| problem(error.to_string());
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    // One byte at a time: what follows the head belongs to TLS.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER {
            return Err(problem("answers without an end".to_owned()));
        }
        answer.push(stream.read_u8().await.map_err(io)?);
    }
    let status = answer.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    if answer.starts_with(b"HTTP/1.") && status.starts_with(b"2") {
        return Ok(stream);
    }
    let code = crate::error::printable(&String::from_utf8_lossy(status));
    let refused = format!("opens no tunnel: status {code}");
    if status.starts_with(b"4") {
        return Err(ConnectError::Refused { host: proxy.host.to_string(), problem: refused });
    }
    Err(problem(refused))
}

/// What a request failed by, and whether it would again.
pub(crate) fn unreachable(host: &str, error: &hyper_util::client::legacy::Error) -> RegistryError {
    // hyper's own text says less than what is below it.
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    let mut text = Vec::new();
    let mut kind = io::ErrorKind::Other;
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(ConnectError::Certificates(error)) => return error.clone(),
            Some(ConnectError::Tls { source, .. }) => {
                if let Some(error) = untrusted(host, source) {
                    return error;
                }
            }
            Some(ConnectError::Refused { host, problem }) => {
                let (place, problem) = (host.clone(), problem.clone());
                return RegistryError::Unusable { place: format!("the proxy {place}"), problem };
            }
            Some(ConnectError::Tcp { source, .. }) => kind = nobody(source),
            _ => {}
        }
        text.push(error.to_string());
        cause = error.source();
    }
    if text.is_empty() {
        text.push(error.to_string());
    }
    RegistryError::Transport {
        place: host.to_owned(),
        source: Arc::new(io::Error::new(kind, text.join(": "))),
    }
}

/// A failure of TLS that another try meets again.
fn untrusted(host: &str, error: &io::Error) -> Option<RegistryError> {
    use tokio_rustls::rustls::Error as TlsError;
    match error.get_ref()?.downcast_ref::<TlsError>()? {
        TlsError::InvalidCertificate(_) => Some(RegistryError::Certificates(format!(
            "this host does not trust the certificate of {host}: {error}"
        ))),
        TlsError::InvalidMessage(_) => Some(RegistryError::Unusable {
            place: host.to_owned(),
            problem: format!("does not speak TLS: {error}"),
        }),
        _ => None,
    }
}

/// The kind of a failed connection that [`RegistryError::is_nobody`] looks at. A name that cannot be
/// resolved is no error of the system's, and has no number.
fn nobody(error: &io::Error) -> io::ErrorKind {
    if error.raw_os_error().is_none() { io::ErrorKind::NotFound } else { error.kind() }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await.map(TokioIo::new) })
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Link,
    /// Whether a proxy takes plain requests from it.
    proxied: bool,
}

#[derive(Debug)]
enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().link {
            Link::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Link::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().link {
            Link::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Link::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().link {
            Link::Plain(stream) => Pin::new(stream).poll_flush(context),
            Link::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().link {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
