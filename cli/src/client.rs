//! HTTP over the daemon's unix socket: one connection per request.
//!
//! The peer's uid is checked on every connection before a byte is sent, because whoever answers
//! here gets the user's repository and terminal.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_daemon_api::API_VERSION;
use banger_daemon_api::daemon::Ping;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::routes;
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::CliError;

/// Most bytes of a JSON answer.
const ANSWER_LIMIT: usize = 64 << 20;
/// Most bytes of one line of an event stream.
const LINE_LIMIT: usize = 1 << 20;
/// The daemon's lock beside its log; it holds the process id.
const LOCK_NAME: &str = "bangerd.lock";
/// How long the daemon may take to accept and to answer a ping.
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// Longest socket path (`sun_path`, unix(7)), its final NUL not counted.
const SOCKET_PATH_LIMIT: usize = 107;

/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A byte stream that an upgraded connection became.
pub type UpgradedStream = TokioIo<hyper::upgrade::Upgraded>;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no bangerd listens at {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else listens.
    #[error("the process at {} runs as uid {found}, not as {expected}", socket.display())]
    WrongPeer {
        /// The socket.
        socket: PathBuf,
        /// The peer's uid.
        found: u32,
        /// The uid that bangerd runs as.
        expected: u32,
    },
    /// The daemon went away, or does not speak HTTP.
    #[error("bangerd broke off during {what}")]
    Lost {
        /// The request.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer cannot be understood.
    #[error("bangerd's answer to {what} cannot be understood")]
    Answer {
        /// The request.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("bangerd does not answer {what}")]
    Silent {
        /// The request.
        what: String,
    },
    /// The daemon refused.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Talks to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    daemon_uid: u32,
    log: PathBuf,
}

impl Client {
    /// Makes a client of the daemon in `runtime_dir` that runs as `daemon_uid` and logs to `log`.
    pub fn new(runtime_dir: &Path, daemon_uid: u32, log: PathBuf) -> Self {
        Self { socket: runtime_dir.join(routes::SOCKET_NAME), daemon_uid, log }
    }

    /// Returns the socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects, and checks who is there.
    pub async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = || self.socket.clone();
        if self.socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            let source = io::Error::other(format!(
                "the path is longer than a socket's path may be, {SOCKET_PATH_LIMIT} bytes"
            ));
            return Err(ClientError::Connect { socket: socket(), source });
        }
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning { socket: socket(), source }
                }
                _ => ClientError::Connect { socket: socket(), source },
            })?;
        let peer = stream
            .peer_cred()
            .map_err(|source| ClientError::Connect { socket: socket(), source })?;
        if peer.uid() != self.daemon_uid {
            return Err(ClientError::WrongPeer {
                socket: socket(),
                found: peer.uid(),
                expected: self.daemon_uid,
            });
        }
        Ok(stream)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, ClientError> {
        let what = format!("{method} {path}");
        let lost = |source: hyper::Error| ClientError::Lost {
            what: what.clone(),
            source: Box::new(source),
        };
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|source| ClientError::Answer {
            what: what.clone(),
            source: Box::new(source),
        })?;
        *request.headers_mut() = headers;
        let headers = request.headers_mut();
        headers.insert(HOST, hyper::header::HeaderValue::from_static("bangerd"));
        if path != routes::PING && path != routes::SHUTDOWN {
            headers.insert(routes::API_VERSION_HEADER, API_VERSION.into());
        }
        let response = sender.send_request(request).await.map_err(lost)?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(&what, response).await?;
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(error.into()),
            Err(source) => Err(ClientError::Answer {
                what: format!("{what} (status {status})"),
                source: Box::new(source),
            }),
        }
    }

    async fn collect(
        &self,
        what: &str,
        response: Response<Incoming>,
    ) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT);
        let collected = body
            .collect()
            .await
            .map_err(|source| ClientError::Lost { what: what.to_owned(), source })?;
        Ok(collected.to_bytes())
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
        headers: HeaderMap,
    ) -> Result<T, ClientError> {
        let what = format!("{method} {path}");
        let response = self.send(method, path, body, headers).await?;
        let body = self.collect(&what, response).await?;
        serde_json::from_slice(&body)
            .map_err(|source| ClientError::Answer { what, source: Box::new(source) })
    }

    /// `GET`s a JSON answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(Method::GET, path, no_body(), HeaderMap::new()).await
    }

    /// `POST`s JSON for a JSON answer.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json(Method::POST, path, body).await
    }

    /// `PATCH`es by JSON for a JSON answer.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json(Method::PATCH, path, body).await
    }

    async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let json = serde_json::to_vec(body).map_err(|source| ClientError::Answer {
            what: format!("{method} {path}"),
            source: Box::new(source),
        })?;
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        self.answer(method, path, body, headers).await
    }

    /// `DELETE`s for a JSON answer.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(Method::DELETE, path, no_body(), HeaderMap::new()).await
    }

    /// `PUT`s a stream of bytes.
    pub async fn put(&self, path: &str, body: RequestBody) -> Result<(), ClientError> {
        let response = self.send(Method::PUT, path, body, HeaderMap::new()).await?;
        self.collect(&format!("PUT {path}"), response).await.map(drop)
    }

    /// `GET`s bytes as they come.
    pub async fn stream(&self, path: &str) -> Result<ByteStream, ClientError> {
        let response = self.send(Method::GET, path, no_body(), HeaderMap::new()).await?;
        Ok(ByteStream {
            what: format!("GET {path}"),
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    /// `POST`s an upgrade to `protocol`; returns the answer's headers and the stream.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<(HeaderMap, UpgradedStream), ClientError> {
        let what = format!("POST {path}");
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static(protocol));
        let response = self.send(Method::POST, path, no_body(), headers).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let source = format!("status {status} instead of an upgrade").into();
            return Err(ClientError::Answer { what, source });
        }
        let headers = response.headers().clone();
        let stream = hyper::upgrade::on(response)
            .await
            .map_err(|source| ClientError::Lost { what, source: Box::new(source) })?;
        Ok((headers, TokioIo::new(stream)))
    }

    /// Asks the daemon who it is.
    pub async fn ping(&self) -> Result<Ping, ClientError> {
        match tokio::time::timeout(PING_DEADLINE, self.get(routes::PING)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Silent { what: "a ping".to_owned() }),
        }
    }

    /// Turns a failed request into what the user reads.
    pub fn explain(&self, error: ClientError) -> CliError {
        match error {
            ClientError::Api(error) => error.into(),
            ClientError::Lost { .. } => chained(&error)
                .hint(format!("its log is {}; VMs keep running without it", self.log.display()))
                .hint("run the command again: it starts a new bangerd"),
            // It is there, and the next command would meet the same one.
            ClientError::Silent { .. } => chained(&error)
                .hint(format!("its log is {}; VMs keep running without it", self.log.display()))
                .hint(format!(
                    "try again; if it stays silent, end it: kill -KILL $(cat {})",
                    self.log.with_file_name(LOCK_NAME).display()
                )),
            ClientError::Answer { .. } => {
                chained(&error).hint(format!("its log is {}", self.log.display()))
            }
            ClientError::WrongPeer { .. } => chained(&error)
                .hint("another user's process sits on this socket; banger does not talk to it"),
            ClientError::NotRunning { .. } | ClientError::Connect { .. } => chained(&error),
        }
    }
}

fn chained(error: &ClientError) -> CliError {
    let mut made = CliError::new(error.to_string());
    if let Some(source) = std::error::Error::source(error) {
        made = made.because(source);
    }
    made
}

fn no_body() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An answer that is read as it comes.
#[derive(Debug)]
pub struct ByteStream {
    what: String,
    body: Incoming,
    buffer: BytesMut,
}

impl ByteStream {
    /// Returns the next bytes, or `None` at the end.
    ///
    /// Cancel safe: nothing is lost when the call is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::Lost {
                        what: self.what.clone(),
                        source: Box::new(source),
                    });
                }
            }
        }
    }

    /// Returns the next line as JSON, or `None` at the end.
    ///
    /// Cancel safe, as [`Self::next`].
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|source| {
                    ClientError::Answer { what: self.what.clone(), source: Box::new(source) }
                });
            }
            if self.buffer.len() > LINE_LIMIT {
                let source = format!("a line is longer than {LINE_LIMIT} bytes").into();
                return Err(ClientError::Answer { what: self.what.clone(), source });
            }
            match self.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}
