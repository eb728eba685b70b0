//! `GET /v1/vms/{vm}/logs`: what the guest wrote to its serial console, as it wrote it.
//!
//! The VMM's driver keeps the newest output in two files, `console.log.1` and then `console.log`;
//! when the second is full it becomes the first. The bytes are the guest's: whoever prints them has
//! to make them harmless.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::VmState;
use banger_engine::VmWatch;
use banger_types::VmReference;
use bytes::Bytes;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{OCTETS, Shared, stream};
use crate::server::{Answer, PathPart, Query};

/// How often a follower looks for more.
const LOOK: Duration = Duration::from_millis(200);

/// What of the log a client wants.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Logs {
    /// Go on until the VM has stopped.
    #[serde(default)]
    follow: bool,
}

/// Streams the console log.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/logs",
    params(("vm" = String, Path), Logs),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = ApiError)
    )
)]
pub async fn get(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    Query(logs): Query<Logs>,
) -> Answer<Response> {
    let engine = api.services.engine();
    let path = engine.console_log(&vm).map_err(|error| error.to_api())?;
    let log = ConsoleLog { path, older: None, current: None, opened: false };
    let follower = if logs.follow {
        let watch = engine.watch(&vm).map_err(|error| error.to_api())?;
        Some((watch, api.end.clone()))
    } else {
        None
    };
    let chunks = futures::stream::try_unfold((log, follower), |(mut log, follower)| async move {
        let chunk = match &follower {
            None => log.next().await?,
            Some((vm, end)) => log.follow(vm, end).await?,
        };
        io::Result::Ok(chunk.map(|chunk| (chunk, (log, follower))))
    });
    Ok(stream(OCTETS, chunks))
}

/// Returns whether a VM in this state may still write to its console.
const fn writes(state: VmState) -> bool {
    matches!(state, VmState::Starting | VmState::Running | VmState::Stopping)
}

struct ConsoleLog {
    path: PathBuf,
    older: Option<File>,
    current: Option<File>,
    opened: bool,
}

impl ConsoleLog {
    /// Returns the next bytes; `None` at the end of what there is now.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.opened {
            self.open().await?;
        }
        if let Some(file) = &mut self.older {
            match read(file).await? {
                Some(chunk) => return Ok(Some(chunk)),
                None => self.older = None,
            }
        }
        match &mut self.current {
            Some(file) => read(file).await,
            None => Ok(None),
        }
    }

    /// Returns the next bytes, waiting for them as long as the VM is one that writes.
    async fn follow(&mut self, vm: &VmWatch, end: &CancellationToken) -> io::Result<Option<Bytes>> {
        loop {
            // Asked first: what was written before the end of the guest is then read after it.
            let goes_on = vm.state().is_some_and(writes);
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            if self.was_replaced().await? {
                // Nothing is written to a file that was moved away, so its end is final.
                if let Some(chunk) = self.next().await? {
                    return Ok(Some(chunk));
                }
                self.current = open(&self.path).await?;
                continue;
            }
            if !goes_on {
                return Ok(None);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = end.cancelled() => return Ok(None),
            }
        }
    }

    async fn open(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        // The current one first: where it is moved in between, it is found again as the older one
        // and opened twice rather than missed.
        self.current = open(&self.path).await?;
        self.older = open(older.as_ref()).await?;
        if let (Some(current), Some(older)) = (&self.current, &self.older)
            && current.metadata().await?.ino() == older.metadata().await?.ino()
        {
            self.current = open(&self.path).await?;
        }
        self.opened = true;
        Ok(())
    }

    async fn was_replaced(&self) -> io::Result<bool> {
        let now = match tokio::fs::metadata(&self.path).await {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match &self.current {
            Some(file) => Ok(file.metadata().await?.ino() != now),
            None => Ok(true),
        }
    }
}

async fn open(path: &std::path::Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn read(file: &mut File) -> io::Result<Option<Bytes>> {
    let mut buffer = bytes::BytesMut::with_capacity(64 << 10);
    let count = file.read_buf(&mut buffer).await?;
    Ok((count > 0).then(|| buffer.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(log: &mut ConsoleLog) -> Vec<u8> {
        let mut text = Vec::new();
        while let Some(chunk) = log.next().await.unwrap() {
            text.extend_from_slice(&chunk);
        }
        text
    }

    fn log(path: PathBuf) -> ConsoleLog {
        ConsoleLog { path, older: None, current: None, opened: false }
    }

    #[tokio::test]
    async fn both_files_are_read_in_order_and_none_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        assert!(all(&mut log(path.clone())).await.is_empty());
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(all(&mut log(path.clone())).await, b"new\n");
        std::fs::write(directory.path().join("console.log.1"), "old\n").unwrap();
        assert_eq!(all(&mut log(path)).await, b"old\nnew\n");
    }

    #[tokio::test]
    async fn a_reader_notices_that_the_file_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, "one\n").unwrap();
        let mut log = log(path.clone());
        assert_eq!(all(&mut log).await, b"one\n");
        assert!(!log.was_replaced().await.unwrap());
        std::fs::rename(&path, directory.path().join("console.log.1")).unwrap();
        assert!(!log.was_replaced().await.unwrap());
        std::fs::write(&path, "two\n").unwrap();
        assert!(log.was_replaced().await.unwrap());
    }
}
