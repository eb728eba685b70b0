//! Commands that go on in a machine without this program: started, listed, read and waited for.

use std::io::{self, IsTerminal};

use banger_agent_api::{
    Call, DetachReply, DetachedCommand, DetachedOutputCall, DetachedReply, Empty, ErrorCode,
    ExecCall, Frame, FrameReader,
};
use banger_daemon_api::vm::Vm;
use serde::Serialize;

use crate::agent;
use crate::client::Client;
use crate::console_text::ConsoleText;
use crate::error::CliError;
use crate::exec::Exec;
use crate::streams::write_all;
use crate::table::{self, printable};

/// Starts the command; returns the number that it is asked for by.
pub async fn start(client: &Client, vm: &Vm, exec: Exec) -> Result<u32, CliError> {
    let call = ExecCall {
        argv: exec.argv,
        env: exec.env,
        cwd: exec.cwd,
        user: exec.user,
        pty: None,
        stdin: false,
    };
    let (DetachReply { id, .. }, _) = agent::call(client, &vm.id, Call::Detach(call)).await?;
    Ok(id)
}

/// A detached command, for programs.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    id: u32,
    pid: u32,
    command: &'a str,
    age_seconds: u64,
    /// As a shell gives it; none of one that runs.
    exit_code: Option<u8>,
    output_bytes: u64,
    kept_bytes: u64,
}

impl<'a> Listed<'a> {
    fn of(command: &'a DetachedCommand) -> Self {
        Self {
            id: command.id,
            pid: command.pid,
            command: &command.command,
            age_seconds: command.age_millis / 1000,
            exit_code: command.exit_code,
            output_bytes: command.output_bytes,
            kept_bytes: command.kept_bytes,
        }
    }
}

/// Lists a machine's detached commands, as text or JSON.
pub async fn list(client: &Client, vm: &Vm, json: bool) -> Result<String, CliError> {
    let (DetachedReply { commands }, _) = agent::call(client, &vm.id, Call::Detached).await?;
    let listed: Vec<Listed<'_>> = commands.iter().map(Listed::of).collect();
    if json {
        return serde_json::to_string_pretty(&listed)
            .map_err(|error| CliError::new("cannot write the result as JSON").because(&error));
    }
    let rows: Vec<[String; 6]> = listed
        .iter()
        .map(|one| {
            [
                one.id.to_string(),
                one.pid.to_string(),
                one.exit_code.map_or_else(|| "running".to_owned(), |code| format!("exit {code}")),
                format!("{} s", one.age_seconds),
                table::size(one.output_bytes),
                printable(one.command),
            ]
        })
        .collect();
    Ok(table::table(["ID", "PID", "STATE", "STARTED", "OUTPUT", "COMMAND"], &rows))
}

/// Writes the output of a detached command to our own streams; returns its exit code, or nothing
/// where it runs and is not followed.
pub async fn output(
    client: &Client,
    vm: &Vm,
    call: DetachedOutputCall,
) -> Result<Option<u8>, CliError> {
    let mut cleaners = [io::stdout().is_terminal(), io::stderr().is_terminal()]
        .map(|is_terminal| is_terminal.then(ConsoleText::default));
    read(client, vm, call, |frame| match frame {
        Frame::Stdout(bytes) => write(io::stdout(), &mut cleaners[0], bytes),
        Frame::Stderr(bytes) => write(io::stderr(), &mut cleaners[1], bytes),
        _ => Ok(()),
    })
    .await
}

/// Waits for a detached command's end without its output; returns as [`output`] does.
pub async fn silent_end(
    client: &Client,
    vm: &Vm,
    call: DetachedOutputCall,
) -> Result<Option<u8>, CliError> {
    read(client, vm, call, |_| Ok(())).await
}

async fn read(
    client: &Client,
    vm: &Vm,
    call: DetachedOutputCall,
    mut take: impl FnMut(&Frame) -> Result<(), CliError>,
) -> Result<Option<u8>, CliError> {
    let id = call.id;
    let opened = agent::call::<Empty>(client, &vm.id, Call::DetachedOutput(call)).await;
    let (_, stream) = opened.map_err(|error| match error.is_guest_code(ErrorCode::NotFound) {
        true => CliError::new(format!("VM {} knows no detached command {id}", vm.name))
            .hint(format!("banger vm exec --list {}", vm.name)),
        false => error,
    })?;
    let mut reader = FrameReader::new(stream);
    let lost = || {
        CliError::new(format!("the connection to VM {} broke off", vm.name))
            .hint(format!("banger vm exec --list {}", vm.name))
    };
    loop {
        match reader.next().await.map_err(|error| lost().because(&error))? {
            Some(Frame::Exit(status)) => return Ok(Some(status.shell_code())),
            Some(Frame::DataEnd) => return Ok(None),
            Some(Frame::Error(error)) => return Err(lost().because(&error)),
            Some(frame) => take(&frame)?,
            None => return Err(lost()),
        }
    }
}

fn write(
    stream: impl std::os::fd::AsFd,
    cleaner: &mut Option<ConsoleText>,
    bytes: &[u8],
) -> Result<(), CliError> {
    let written = match cleaner {
        Some(cleaner) => write_all(stream, cleaner.clean(bytes).as_bytes()),
        None => write_all(stream, bytes),
    };
    written.map_err(|error| CliError::output(&error))
}
