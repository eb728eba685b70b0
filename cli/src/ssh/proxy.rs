//! `banger internal ssh-proxy`: a connection's bytes between ssh and a machine's sshd.

use std::io;
use std::time::Duration;

use banger_agent_api::{Call, ErrorCode, Frame, FrameReader, FrameWriter, SshCall, SshReply};
use banger_types::VmReference;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{DOMAIN, Store};
use crate::agent;
use crate::client::Client;
use crate::commands::vm;
use crate::error::CliError;
use crate::streams::{read_stdin, write_stream};

/// How long the machine may go on after ssh has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Takes `.vm` off a name.
pub fn strip_domain(host: &str) -> &str {
    host.strip_suffix(DOMAIN).unwrap_or(host)
}

/// Carries one connection to the machine that ssh calls `host`.
pub async fn proxy(client: &Client, host: &str, new_host_key: bool) -> Result<(), CliError> {
    // OpenSSH looks names up in lower case.
    let host = host.to_ascii_lowercase();
    let reference: VmReference = strip_domain(&host).parse().map_err(|error| {
        CliError::usage(format!("{} names no machine", crate::table::printable(&host)))
            .because(&error)
    })?;
    let store = Store::open(client).await?;
    let key = store.public_key()?;
    let found = vm::get_running(client, &reference).await?;
    let call = Call::Ssh(SshCall { key });
    let (SshReply { host_key }, stream) = agent::call(client, &found.id, call)
        .await
        .map_err(|error| explain(error, found.name.as_str()))?;
    store.know(&host, (&found.id, &host_key), new_host_key)?;
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        ended = down(FrameReader::new(reader)) => ended,
        () = up(FrameWriter::new(writer)) => Ok(()),
    }
}

fn explain(error: CliError, name: &str) -> CliError {
    if error.is_guest_code(ErrorCode::NoSuchProgram) {
        return error.context(format!("VM {name} cannot be reached by ssh")).hint(format!(
            "banger vm exec {name} works without, also to install it: apt-get install openssh-server"
        ));
    }
    error
}

/// Passes standard input on; whether that was all is for the other direction to tell. Returns when
/// the machine has not ended long after ssh has.
async fn up(mut writer: FrameWriter<impl AsyncWrite + Unpin>) {
    let mut input = read_stdin();
    while let Some(bytes) = input.recv().await {
        if writer.send(&Frame::Data(bytes)).await.is_err() {
            return std::future::pending().await;
        }
    }
    let _ = writer.send(&Frame::DataEnd).await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// Writes what the machine sends, until it has no more.
async fn down(mut reader: FrameReader<impl AsyncRead + Unpin>) -> Result<(), CliError> {
    let lost = || CliError::new("the connection to the machine broke off");
    let (output, written) = write_stream(io::stdout());
    loop {
        match reader.next().await.map_err(|error| lost().because(&error))? {
            Some(Frame::Data(bytes)) => {
                if output.send(bytes).await.is_err() {
                    return Err(CliError::output_closed());
                }
            }
            Some(Frame::DataEnd) => break,
            Some(Frame::Error(error)) => return Err(lost().because(&error)),
            Some(_) => {}
            None => return Err(lost()),
        }
    }
    drop(output);
    match written.await {
        Ok(Err(error)) => Err(CliError::output(&error)),
        _ => Ok(()),
    }
}
