//! Firecracker's API over its unix socket, as far as it is used after the launch
//! (`src/firecracker/swagger/firecracker.yaml` of its repository). The VMM may be a broken-out
//! guest's: every answer is bounded in size and time, and nothing of it is believed but its form.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_engine::seams::{NetLimits, VmmError};
use banger_helper_api::{RateLimiter, TokenBucket};
use banger_types::BytesPerSecond;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// How long an answer may take; Firecracker answers from one thread, between devices' events.
const DEADLINE: Duration = Duration::from_secs(20);
/// The longest answer.
const LONGEST: usize = 64 << 10;
/// The longest words of its that are shown, in bytes.
const LONGEST_WORDS: usize = 400;

/// A Firecracker's API.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

/// `GET /`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct InstanceInfo {
    /// The `--id` that it was started with.
    pub(super) id: String,
    /// Whether its CPUs run.
    pub(super) state: InstanceState,
    /// `1.12.1`.
    pub(super) vmm_version: String,
}

/// Whether the CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum InstanceState {
    /// The machine was not begun.
    #[serde(rename = "Not started")]
    NotStarted,
    /// They do.
    Running,
    /// They do not.
    Paused,
}

/// The card's id, as the helper calls it (`vm.json`).
const CARD: &str = "eth0";

/// `PATCH /network-interfaces/{iface_id}`.
#[derive(Serialize)]
struct Card {
    iface_id: &'static str,
    rx_rate_limiter: RateLimiter,
    tx_rate_limiter: RateLimiter,
}

/// Any error's body.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

impl Api {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks what runs there.
    pub(super) async fn instance(&self) -> Result<InstanceInfo, VmmError> {
        self.ask(Method::GET, "/", None::<&()>).await
    }

    /// Lets the CPUs run or holds them.
    pub(super) async fn set_running(&self, run: bool) -> Result<(), VmmError> {
        #[derive(Serialize)]
        struct Vm {
            state: &'static str,
        }
        let vm = Vm { state: if run { "Resumed" } else { "Paused" } };
        self.tell(Method::PATCH, "/vm", &vm).await
    }

    /// Has the network card be this fast at most, each way. A bucket is filled each second, and one
    /// without a size is no limit (`src/vmm/src/rate_limiter/mod.rs`).
    pub(super) async fn limit_network(&self, limits: &NetLimits) -> Result<(), VmmError> {
        let bucket = |rate: Option<u64>| {
            let refill_time = if rate.is_some() { 1000 } else { 0 };
            TokenBucket { size: rate.unwrap_or(0), refill_time, one_time_burst: None }
        };
        let limiter = RateLimiter {
            bandwidth: Some(bucket(limits.bandwidth.map(BytesPerSecond::get))),
            ops: Some(bucket(limits.packets.map(|rate| rate.get().into()))),
        };
        let card = Card { iface_id: CARD, rx_rate_limiter: limiter, tx_rate_limiter: limiter };
        self.tell(Method::PATCH, &format!("/network-interfaces/{CARD}"), &card).await
    }

    async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), VmmError> {
        self.exchange(method, path, Some(body)).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, VmmError> {
        let act = format!("reading Firecracker's answer to {method} {path}");
        let answer = self.exchange(method, path, body).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| VmmError::Io { act, source: std::io::Error::other(error) })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Bytes, VmmError> {
        let act = format!("asking Firecracker {method} {path}");
        let work = self.exchange_unhurried(&method, path, body);
        let (status, answer) = match tokio::time::timeout(DEADLINE, work).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(source)) => return Err(VmmError::Io { act, source }),
            Err(_) => return Err(VmmError::Timeout { act, seconds: DEADLINE.as_secs() }),
        };
        if status.is_success() {
            return Ok(answer);
        }
        let message = match serde_json::from_slice::<Fault>(&answer) {
            Ok(fault) => banger_agent_api::printable_excerpt(&fault.fault_message, LONGEST_WORDS),
            Err(_) => format!("status {status}"),
        };
        Err(VmmError::Refused { vmm: "Firecracker", command: format!("{method} {path}"), message })
    }

    async fn exchange_unhurried(
        &self,
        method: &Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> std::io::Result<(StatusCode, Bytes)> {
        let other = std::io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
        let body = match body {
            Some(body) => serde_json::to_vec(body)?,
            None => Vec::new(),
        };
        let mut request = Request::builder().method(method).uri(path).header("Host", "localhost");
        if !body.is_empty() {
            request = request.header("Content-Type", "application/json");
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| other(error.into()))?;
        let stream = UnixStream::connect(&self.socket).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| other(error.into()))?;
        // Ends with the sender, at the end of this call.
        let driven = tokio::spawn(connection);
        let work = async {
            let response =
                sender.send_request(request).await.map_err(|error| other(error.into()))?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), LONGEST).collect().await.map_err(other)?;
            Ok((status, body.to_bytes()))
        };
        let outcome = work.await;
        driven.abort();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(reply: String) -> Result<InstanceInfo, VmmError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET / HTTP/1.1\r\n"));
            let _ = stream.write_all(reply.as_bytes()).await;
        };
        let api = Api::at(&socket);
        tokio::join!(api.instance(), serve).0
    }

    fn reply(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn answers_are_read_and_faults_reach_the_user() {
        let body = r#"{"id":"a","state":"Not started","vmm_version":"1.12.1","app_name":"F"}"#;
        let info = answered(reply("200 OK", body)).await.unwrap();
        assert_eq!((info.id.as_str(), info.state), ("a", InstanceState::NotStarted));
        assert_eq!(info.vmm_version, "1.12.1");

        let fault = r#"{"fault_message":"no \u001b[2J such thing"}"#;
        let error = answered(reply("400 Bad Request", fault)).await.unwrap_err().to_string();
        assert!(error.contains("no ") && error.contains("such thing"), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
        let error = answered(reply("500 Oh", "{}")).await.unwrap_err().to_string();
        assert!(error.contains("status 500"), "{error}");
    }

    #[tokio::test]
    async fn a_limit_is_a_bucket_a_second_each_way_and_none_takes_it_away() {
        let asked = async |limits: NetLimits| {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("s");
            let listener = UnixListener::bind(&socket).unwrap();
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = String::new();
                while !request.ends_with("}}}") {
                    let mut part = [0; 4096];
                    let read = stream.read(&mut part).await.unwrap();
                    request += std::str::from_utf8(&part[..read]).unwrap();
                }
                stream.write_all(reply("204 No Content", "").as_bytes()).await.unwrap();
                request
            };
            let (told, request) = {
                let api = Api::at(&socket);
                tokio::join!(async move { api.limit_network(&limits).await }, serve)
            };
            told.unwrap();
            assert!(
                request.starts_with("PATCH /network-interfaces/eth0 HTTP/1.1\r\n"),
                "{request}"
            );
            let body = request.split_once("\r\n\r\n").unwrap().1;
            serde_json::from_str::<serde_json::Value>(body).unwrap()
        };
        let bandwidth = Some((1 << 20).try_into().unwrap());
        let said = asked(NetLimits { bandwidth, packets: None }).await;
        for way in ["rx_rate_limiter", "tx_rate_limiter"] {
            assert_eq!(said[way]["bandwidth"]["size"], 1 << 20, "{said}");
            assert_eq!(said[way]["bandwidth"]["refill_time"], 1000, "{said}");
            assert_eq!(said[way]["ops"]["size"], 0, "{said}");
        }
        let said = asked(NetLimits::default()).await;
        assert_eq!(said["tx_rate_limiter"]["bandwidth"]["size"], 0, "{said}");
    }

    #[tokio::test]
    async fn a_broken_vmm_is_an_error_and_costs_no_memory() {
        let huge = "x".repeat(LONGEST + 1);
        for bad in ["", "\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/9 x"] {
            assert!(answered(bad.to_owned()).await.is_err(), "{bad:?}");
        }
        for bad in [reply("200 OK", "[]"), reply("200 OK", &huge), reply("400 No", &huge)] {
            assert!(answered(bad).await.is_err());
        }
        let nobody = Api::at(Path::new("/nothing/there")).instance().await.unwrap_err();
        assert!(nobody.to_string().contains("GET /"));
    }
}
