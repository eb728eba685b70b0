//! Calls to a guest agent, each with a deadline.

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{
    AgentError, AttachMainCall, Call, ConfigureCall, ConnectCall, Empty, ExecCall, ExecStarted,
    ExitStatus, Frame, FrameReader, FrameWriter, GetTreeCall, HealthReply, MAX_FRAME_PAYLOAD,
    MAX_REQUEST, MAX_RESPONSE, Outcome, PortsReply, PowerOffCall, PutTreeCall, PutTreeReply,
    Request, Response, SetIdentityCall, SpawnBenchCall, SpawnBenchReply, StatCall, StatReply,
    StatsReply, WireError, read_message, write_message,
};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::channel::{BoxedStream, ChannelError, GuestChannel};
use crate::exec::ExecStream;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No stream.
    #[error("open a stream for {call}")]
    Channel {
        /// The call.
        call: &'static str,
        /// The cause.
        #[source]
        source: ChannelError,
    },
    /// The stream failed, or the guest wrote something else than the protocol.
    #[error("talk to the guest agent for {call}")]
    Wire {
        /// The call.
        call: &'static str,
        /// The cause.
        #[source]
        source: WireError,
    },
    /// The agent answered with an error.
    #[error("the guest refused {call}")]
    Agent {
        /// The call.
        call: &'static str,
        /// The agent's words.
        #[source]
        source: AgentError,
    },
    /// Nothing within the deadline.
    #[error("the guest agent did not answer {call} within {seconds} s")]
    Timeout {
        /// The call.
        call: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// The other side of a copy failed, not the guest.
    #[error("{operation} for {call}")]
    Local {
        /// The call.
        call: &'static str,
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The agent ended the stream without saying how the call went.
    #[error("the guest agent broke off {call}")]
    BrokenOff {
        /// The call.
        call: &'static str,
    },
}

impl ClientError {
    /// Returns the agent's own error, where the agent was reached and refused.
    #[must_use]
    pub fn agent_error(&self) -> Option<&AgentError> {
        match self {
            Self::Agent { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the request to the first answer.
    pub answer: Duration,
    /// A `sync`: the disk may have gigabytes to write.
    pub sync: Duration,
    /// Silence in the middle of a tree; the guest's disk may stall, the whole may take hours.
    pub silence: Duration,
}

impl Default for Deadlines {
    /// Generous: a loaded machine under software emulation answers in seconds, not milliseconds.
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            sync: Duration::from_secs(300),
            silence: Duration::from_secs(120),
        }
    }
}

/// Makes calls to one guest's agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgentClient {
    channel: Arc<dyn GuestChannel>,
    deadlines: Deadlines,
}

impl AgentClient {
    /// Makes a client with the default deadlines.
    #[must_use]
    pub fn new(channel: Arc<dyn GuestChannel>) -> Self {
        Self { channel, deadlines: Deadlines::default() }
    }

    /// Makes a client with deadlines of its own.
    #[must_use]
    pub fn with_deadlines(channel: Arc<dyn GuestChannel>, deadlines: Deadlines) -> Self {
        Self { channel, deadlines }
    }

    /// Returns the channel.
    #[must_use]
    pub fn channel(&self) -> &Arc<dyn GuestChannel> {
        &self.channel
    }

    /// Sends `call` and returns the agent's answer with the stream, on which the frames of the call
    /// follow byte for byte: whoever bridges a call needs to understand none of them.
    pub async fn open_raw<T: DeserializeOwned>(
        &self,
        call: Call,
    ) -> Result<(T, BoxedStream), ClientError> {
        let name = call_name(&call);
        let limit =
            if matches!(call, Call::Sync) { self.deadlines.sync } else { self.deadlines.answer };
        self.open_within(call, name, limit).await
    }

    async fn open_within<T: DeserializeOwned>(
        &self,
        call: Call,
        name: &'static str,
        limit: Duration,
    ) -> Result<(T, BoxedStream), ClientError> {
        let attempt = async {
            let channel_error = |source| ClientError::Channel { call: name, source };
            let wire_error = |source| ClientError::Wire { call: name, source };
            let mut stream = self.channel.open().await.map_err(channel_error)?;
            write_message(&mut stream, &Request::new(call), MAX_REQUEST)
                .await
                .map_err(wire_error)?;
            let response: Response<T> =
                read_message(&mut stream, MAX_RESPONSE).await.map_err(wire_error)?;
            match response.outcome {
                Outcome::Ok(reply) => Ok((reply, stream)),
                Outcome::Error(source) => Err(ClientError::Agent { call: name, source }),
            }
        };
        let timeout = ClientError::Timeout { call: name, seconds: limit.as_secs() };
        tokio::time::timeout(limit, attempt).await.unwrap_or(Err(timeout))
    }

    async fn simple<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let (reply, mut stream) = self.open_raw(call).await?;
        // The answer is complete; a failure to say goodbye changes nothing.
        let _ = stream.shutdown().await;
        Ok(reply)
    }

    /// Asks who the guest is and how it does.
    pub async fn health(&self) -> Result<HealthReply, ClientError> {
        self.simple(Call::Health).await
    }

    /// Lists listening sockets.
    pub async fn ports(&self) -> Result<PortsReply, ClientError> {
        self.simple(Call::Ports).await
    }

    /// Connects to a port of the guest. Frames follow, as [`Call::Connect`] says.
    pub async fn connect(&self, call: ConnectCall) -> Result<BoxedStream, ClientError> {
        self.open_raw::<Empty>(Call::Connect(call)).await.map(|(_, stream)| stream)
    }

    /// Asks what a path leads to.
    pub async fn stat(&self, call: StatCall) -> Result<StatReply, ClientError> {
        self.simple(Call::Stat(call)).await
    }

    /// Asks for resource use.
    pub async fn stats(&self) -> Result<StatsReply, ClientError> {
        self.simple(Call::Stats).await
    }

    /// Writes everything to the disks.
    pub async fn sync(&self) -> Result<(), ClientError> {
        self.simple::<Empty>(Call::Sync).await.map(|Empty {}| ())
    }

    /// Begins to power off; returns when the agent has agreed, not when the machine is off.
    /// `grace` is what the image's init gets before the agent uses force.
    pub async fn power_off(&self, grace: Duration) -> Result<(), ClientError> {
        let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let call = Call::PowerOff(PowerOffCall { grace_seconds });
        self.simple::<Empty>(call).await.map(|Empty {}| ())
    }

    /// Tells the guest who and when it is.
    pub async fn set_identity(&self, identity: SetIdentityCall) -> Result<(), ClientError> {
        self.simple::<Empty>(Call::SetIdentity(identity)).await.map(|Empty {}| ())
    }

    /// Times the guest's own fork, exec and wait.
    pub async fn spawn_bench(&self, bench: SpawnBenchCall) -> Result<SpawnBenchReply, ClientError> {
        self.simple(Call::SpawnBench(bench)).await
    }

    /// Starts a command.
    pub async fn exec(&self, call: ExecCall) -> Result<ExecStream, ClientError> {
        let stdin = call.stdin;
        let (started, stream) = self.open_raw::<ExecStarted>(Call::Exec(call)).await?;
        Ok(ExecStream::new(started, stream, stdin))
    }

    /// Tells the guest what the image and the user say of programs, and starts the main process.
    pub async fn configure(&self, call: ConfigureCall) -> Result<(), ClientError> {
        self.simple::<Empty>(Call::Configure(call)).await.map(|Empty {}| ())
    }

    /// Attaches to the main process, and starts it where it is held.
    pub async fn attach_main(&self, call: AttachMainCall) -> Result<ExecStream, ClientError> {
        let stdin = call.stdin;
        let (started, stream) = self.open_raw::<ExecStarted>(Call::AttachMain(call)).await?;
        Ok(ExecStream::new(started, stream, stdin))
    }

    /// Waits for the end of the main process, for as long as that takes; the guest ends when this
    /// has returned.
    pub async fn wait_main(&self) -> Result<ExitStatus, ClientError> {
        const CALL: &str = "wait for the main process";
        let (Empty {}, stream) = self.open_raw(Call::WaitMain).await?;
        let mut reader = FrameReader::new(stream);
        loop {
            match reader.next().await.map_err(|source| ClientError::Wire { call: CALL, source })? {
                Some(Frame::Exit(status)) => return Ok(status),
                Some(_) => {}
                None => return Err(ClientError::BrokenOff { call: CALL }),
            }
        }
    }

    /// Opens an echo: what is written as data frames comes back.
    pub async fn echo(&self) -> Result<BoxedStream, ClientError> {
        self.open_raw::<Empty>(Call::Echo).await.map(|(_, stream)| stream)
    }

    /// Unpacks the tar stream `tree` in the guest.
    pub async fn put_tree(
        &self,
        call: PutTreeCall,
        mut tree: impl AsyncRead + Send + Unpin,
    ) -> Result<PutTreeReply, ClientError> {
        const CALL: &str = "put tree";
        let (Empty {}, stream) = self.open_raw(Call::PutTree(call)).await?;
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        let silence = self.deadlines.silence;
        let send =
            async {
                let mut buffer = vec![0; MAX_FRAME_PAYLOAD];
                loop {
                    let count = tree.read(&mut buffer).await.map_err(|source| {
                        ClientError::Local { call: CALL, operation: "read the tree", source }
                    })?;
                    let frame = match count {
                        0 => Frame::DataEnd,
                        _ => Frame::Data(Bytes::copy_from_slice(&buffer[..count])),
                    };
                    within(CALL, silence, writer.send(&frame)).await?;
                    if count == 0 {
                        return Ok(());
                    }
                }
            };
        let mut sent = std::pin::pin!(send);
        let mut sending = true;
        loop {
            // The agent may refuse in the middle, and then reads no more.
            let frame = tokio::select! {
                biased;
                frame = reader.next() => frame,
                result = &mut sent, if sending => {
                    match result {
                        Ok(()) => sending = false,
                        // What the agent said last tells more than the broken stream.
                        Err(ClientError::Wire { .. }) => sending = false,
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                () = tokio::time::sleep(silence), if !sending => {
                    return Err(ClientError::Timeout { call: CALL, seconds: silence.as_secs() });
                }
            };
            match frame.map_err(|source| ClientError::Wire { call: CALL, source })? {
                Some(Frame::Data(json)) => {
                    return serde_json::from_slice(&json).map_err(|source| ClientError::Wire {
                        call: CALL,
                        source: WireError::Json(source),
                    });
                }
                Some(Frame::Error(source)) => {
                    return Err(ClientError::Agent { call: CALL, source });
                }
                Some(_) => {}
                None => return Err(ClientError::BrokenOff { call: CALL }),
            }
        }
    }

    /// Writes a tar stream of a guest's file or directory to `tree`, at most `limit` bytes of it.
    /// The archive was made by the guest: extract it beneath one directory only.
    pub async fn get_tree(
        &self,
        call: GetTreeCall,
        limit: u64,
        mut tree: impl AsyncWrite + Send + Unpin,
    ) -> Result<u64, ClientError> {
        const CALL: &str = "get tree";
        let (Empty {}, stream) = self.open_raw(Call::GetTree(call)).await?;
        let mut reader = FrameReader::new(stream);
        let mut total: u64 = 0;
        loop {
            match within(CALL, self.deadlines.silence, reader.next()).await? {
                Some(Frame::Data(bytes)) => {
                    total += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    if total > limit {
                        let number = |value| usize::try_from(value).unwrap_or(usize::MAX);
                        let source =
                            WireError::TooLong { length: number(total), limit: number(limit) };
                        return Err(ClientError::Wire { call: CALL, source });
                    }
                    tree.write_all(&bytes).await.map_err(|source| ClientError::Local {
                        call: CALL,
                        operation: "write the tree",
                        source,
                    })?;
                }
                Some(Frame::DataEnd) => return Ok(total),
                Some(Frame::Error(source)) => {
                    return Err(ClientError::Agent { call: CALL, source });
                }
                Some(_) => {}
                None => return Err(ClientError::BrokenOff { call: CALL }),
            }
        }
    }
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, WireError>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(|source| ClientError::Wire { call, source }),
        Err(_) => Err(ClientError::Timeout { call, seconds: limit.as_secs() }),
    }
}

fn call_name(call: &Call) -> &'static str {
    match call {
        Call::Health => "health",
        Call::Echo => "echo",
        Call::Exec(_) => "exec",
        Call::PutTree(_) => "put tree",
        Call::GetTree(_) => "get tree",
        Call::Stat(_) => "stat",
        Call::Ssh(_) => "ssh",
        Call::ListTree(_) => "list tree",
        Call::GetEntries(_) => "get entries",
        Call::ListEntries(_) => "list entries",
        Call::Ports => "ports",
        Call::Connect(_) => "connect",
        Call::Sync => "sync",
        Call::PowerOff(_) => "power off",
        Call::Stats => "stats",
        Call::SetIdentity(_) => "set identity",
        Call::SpawnBench(_) => "spawn bench",
        Call::Configure(_) => "configure",
        Call::AttachMain(_) => "attach to the main process",
        Call::WaitMain => "wait for the main process",
        Call::Detach(_) => "start a detached command",
        Call::Detached => "list detached commands",
        Call::DetachedOutput(_) => "output of a detached command",
        Call::Console(_) => "answer on the console",
        Call::Unknown => "an unknown call",
    }
}
