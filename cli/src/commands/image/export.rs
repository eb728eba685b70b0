//! `banger image export`: an image as others take it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use banger_daemon_api::artifact::ExportFormat;
use banger_daemon_api::routes;
use banger_types::ImageName;
use bytes::Bytes;
use clap::Args;
use tokio::sync::mpsc;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon};

/// Chunks between the connection and the writing thread.
const QUEUE: usize = 4;

/// Arguments of `banger image export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = completion::images())]
    name: ImageName,
    /// A directory that is there or whose path ends with /, a file, or - for standard output [default:
    /// the directory IMAGE, or the file IMAGE.tar.zst for a bundle]
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write a bundle: rootfs.ext4 and manifest.json, which banger imports in one step
    #[arg(long)]
    bundle: bool,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// Where an export goes.
enum Output {
    Standard,
    /// A file that gets its name when it is whole.
    File(PathBuf),
    /// A new directory, or one that is empty.
    Directory(PathBuf),
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &ExportArgs) -> Result<(), CliError> {
    let format = if args.bundle { ExportFormat::Bundle } else { ExportFormat::Layout };
    let output = output_of(args)?;
    check(&output, args.force)?;
    let client = daemon::connect(ui).await?;
    ui.status(format_args!("exporting image {}", args.name));
    super::get(&client, &args.name).await?;
    let mut stream = client
        .stream(&routes::image_export(&args.name, format))
        .await
        .map_err(|error| client.explain(error))?;
    let (sender, chunks) = mpsc::channel::<Bytes>(QUEUE);
    let shown = match &output {
        Output::Standard => None,
        Output::File(path) | Output::Directory(path) => Some(path.display().to_string()),
    };
    let writing = tokio::task::spawn_blocking(move || write(&output, ChunkReader::new(chunks)));
    let mut broken = None;
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok(None) => {
                // An empty chunk says that this is the end, and not that the connection was lost.
                let _ = sender.send(Bytes::new()).await;
                break;
            }
            Err(error) => {
                broken = Some(client.explain(error));
                break;
            }
        }
    }
    drop(sender);
    let written = writing
        .await
        .map_err(|error| CliError::new("writing the export failed").because(&error))?;
    if let Some(error) = broken {
        return Err(error);
    }
    written?;
    match shown {
        Some(path) => ui.line(path),
        None => Ok(()),
    }
}

fn output_of(args: &ExportArgs) -> Result<Output, CliError> {
    let Some(path) = &args.output else {
        return Ok(if args.bundle {
            Output::File(format!("{}.tar.zst", args.name).into())
        } else {
            Output::Directory(args.name.as_str().into())
        });
    };
    if path == Path::new("-") {
        if rustix::termios::isatty(io::stdout()) {
            return Err(CliError::usage("an image is not for a terminal")
                .hint("--output FILE, or send it on: banger image export NAME -o - | ..."));
        }
        return Ok(Output::Standard);
    }
    let directory = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    Ok(match (directory, args.bundle) {
        (true, true) => Output::File(path.join(format!("{}.tar.zst", args.name))),
        (true, false) => Output::Directory(path.clone()),
        (false, _) => Output::File(path.clone()),
    })
}

/// Refuses what is in the way before anything is fetched.
fn check(output: &Output, replace: bool) -> Result<(), CliError> {
    match output {
        Output::File(path) if !replace && path.symlink_metadata().is_ok() => {
            Err(CliError::new(format!("{} is there already", path.display()))
                .hint("--force replaces it"))
        }
        Output::Directory(path) => match fs::read_dir(path).map(|mut entries| entries.next()) {
            Ok(Some(_)) => {
                Err(CliError::new(format!("the directory {} is not empty", path.display()))
                    .hint("--output PATH/ with a PATH that is new or empty"))
            }
            Ok(None) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CliError::new(format!("cannot write into {}", path.display()))
                .because(&error)
                .hint("--output PATH/ with a PATH that is new or empty")),
        },
        Output::File(_) | Output::Standard => Ok(()),
    }
}

fn write(output: &Output, mut input: ChunkReader) -> Result<(), CliError> {
    let failed = |path: &Path| {
        let text = format!("cannot write {}", path.display());
        move |error: io::Error| CliError::new(text).because(&error)
    };
    match output {
        Output::Standard => {
            let mut out = io::stdout().lock();
            io::copy(&mut input, &mut out)
                .and_then(|_| out.flush())
                .map_err(failed(Path::new("standard output")))
        }
        Output::File(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
            let written = File::create_new(&partial).and_then(|mut file| {
                io::copy(&mut input, &mut file)?;
                file.sync_all()?;
                fs::rename(&partial, path)
            });
            if written.is_err() {
                // It may not be there.
                let _ = fs::remove_file(&partial);
            }
            written.map_err(failed(path))
        }
        Output::Directory(path) => write_layout(path, input).map_err(failed(path)),
    }
}

/// Writes the files of a layout into a directory that is new or empty.
fn write_layout(path: &Path, input: ChunkReader) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::ErrorKind::DirectoryNotEmpty.into());
    }
    let mut archive = tar::Archive::new(input);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let inside = entry.path()?.into_owned();
        let plain = inside.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(io::Error::other("the daemon sent a path that is none of a layout"));
        }
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(path.join(&inside))?;
        } else {
            let mut file = File::create_new(path.join(&inside))?;
            io::copy(&mut entry, &mut file)?;
        }
    }
    // To the end of the stream, which says whether it is whole.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

/// The chunks of a connection as bytes; without the empty last one it was cut off.
struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

impl ChunkReader {
    fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, current: Bytes::new(), ended: false }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.chunks.blocking_recv() {
                Some(chunk) if chunk.is_empty() => self.ended = true,
                Some(chunk) => self.current = chunk,
                None => return Err(io::Error::other("the export was cut off")),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
