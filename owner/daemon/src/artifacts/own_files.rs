//! Files of the user's own as images, and images as files that others take.

use std::io::{self, Write};
use std::path::Path;

use banger_daemon_api::artifact::{self, RegisterImage};
use banger_daemon_api::error::ApiError;
use banger_image::{CancelFlag, Export, ExportFormat, NewImage};
use banger_types::ImageName;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{ArtifactStores, blocking, failure, image_shown};

const CHUNK: usize = 256 << 10;
/// Chunks between the reading thread and the socket.
const QUEUE: usize = 4;

/// An export that waits to be read; dropped, its files are removed.
#[derive(Debug)]
pub struct ReadyExport(Export);

/// Calls off what a client waits for when the client goes.
struct CancelOnDrop(CancelFlag);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl ArtifactStores {
    /// Gives a file system of the user's own a name.
    pub async fn register_image(
        &self,
        request: RegisterImage,
    ) -> Result<artifact::Image, ApiError> {
        let store = self.images.clone();
        let cancel = CancelOnDrop(CancelFlag::default());
        let flag = cancel.0.clone();
        blocking(move || {
            let new = NewImage {
                name: request.name,
                source: format!("register:{}", request.path),
                kernel: request.default_kernel,
                replace: request.replace,
            };
            let image = store
                .register(&new, Path::new(&request.path), &flag)
                .map_err(|error| failure::image(&new.name, &error))?;
            Ok(image_shown(&image))
        })
        .await
    }

    /// Takes a registered image into the store.
    pub async fn promote_image(&self, name: &ImageName) -> Result<artifact::Image, ApiError> {
        let (store, name) = (self.images.clone(), name.clone());
        let cancel = CancelOnDrop(CancelFlag::default());
        let flag = cancel.0.clone();
        blocking(move || {
            let failed = |error| failure::image(&name, &error);
            store.promote(&name, &flag).map_err(failed)?;
            Ok(image_shown(&store.get(&name).map_err(failed)?))
        })
        .await
    }

    /// Makes an export of an image.
    pub async fn export_image(
        &self,
        name: &ImageName,
        format: artifact::ExportFormat,
    ) -> Result<ReadyExport, ApiError> {
        let (store, name) = (self.images.clone(), name.clone());
        let format = match format {
            artifact::ExportFormat::Layout => ExportFormat::Layout,
            artifact::ExportFormat::Bundle => ExportFormat::Bundle,
        };
        let cancel = CancelOnDrop(CancelFlag::default());
        let flag = cancel.0.clone();
        blocking(move || {
            store
                .export(&name, format, &flag)
                .map(ReadyExport)
                .map_err(|error| failure::image(&name, &error))
        })
        .await
    }
}

impl ReadyExport {
    /// Reads the export on a thread that may block; a failure is the last thing that comes.
    pub fn read(self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (sender, chunks) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let out = Chunks { sender: sender.clone() };
            if let Err(error) = self.0.write(io::BufWriter::with_capacity(CHUNK, out)) {
                // Nobody may be left to tell.
                let _ = sender.blocking_send(Err(error));
            }
        });
        chunks
    }
}

/// What is written, as chunks.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Chunks {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let chunk = &buffer[..buffer.len().min(CHUNK)];
        self.sender
            .blocking_send(Ok(Bytes::copy_from_slice(chunk)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
