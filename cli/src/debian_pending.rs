//! Placeholder until the Debian module lands.
use crate::error::CliError;
use banger_types::KernelName;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
#[derive(Clone)]
pub struct ImageRequest {
    suite: String,
}
impl ImageRequest {
    pub fn new(suite: &str, _mirror: Option<&str>) -> Self {
        Self { suite: suite.to_owned() }
    }
}
pub struct TarStream;
#[derive(Clone)]
pub struct Killer;
impl Killer {
    pub fn kill(&self) {}
}
impl TarStream {
    pub fn killer(&self) -> Killer {
        Killer
    }
    pub fn finish(self) -> Result<(), CliError> {
        Ok(())
    }
}
impl Read for TarStream {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}
#[derive(Clone)]
pub struct KernelRequest {
    package: String,
}
impl KernelRequest {
    pub fn from_name(name: &KernelName) -> Option<Self> {
        name.as_str().starts_with("debian-").then(|| Self { package: name.to_string() })
    }
    pub fn package(&self) -> &str {
        &self.package
    }
}
pub struct DownloadedDeb(PathBuf);
impl DownloadedDeb {
    pub fn path(&self) -> &Path {
        &self.0
    }
}
pub fn image_stream(
    request: &ImageRequest,
    _: impl Fn(&str) + Send + Sync + 'static,
) -> Result<TarStream, CliError> {
    Err(CliError::new(format!("cannot pull {}", request.suite)))
}
pub fn kernel_package(
    request: &KernelRequest,
    _: impl Fn(&str) + Send + Sync + 'static,
) -> Result<DownloadedDeb, CliError> {
    Err(CliError::new(format!("cannot pull {}", request.package)))
}
