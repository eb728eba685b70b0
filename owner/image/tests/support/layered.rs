//! Layers made in a test, and images made of them.

use std::io::{self, Read};
use std::sync::Arc;

use banger_image::{
    BuildError, BuildOptions, CancelFlag, Image, ImageStoreError, Layer, LayerMediaType,
    LayerSource, LayeredImage, NewImage, NoProgress,
};
use banger_types::{Digest, ImageConfig};
use sha2::{Digest as _, Sha256};

use super::Store;

/// Bytes in memory as a layer's.
pub struct Bytes(pub Arc<[u8]>);

impl LayerSource for Bytes {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(Arc::clone(&self.0))))
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// A layer of this uncompressed archive.
pub fn plain(archive: &[u8]) -> Layer {
    coded(archive, archive, LayerMediaType::Tar)
}

/// A layer that comes as `bytes` and is `archive`.
pub fn coded(bytes: &[u8], archive: &[u8], media_type: LayerMediaType) -> Layer {
    Layer {
        media_type,
        digest: Some(digest(bytes)),
        size: Some(bytes.len() as u64),
        diff_id: digest(archive),
        source: Box::new(Bytes(bytes.into())),
    }
}

impl Store {
    /// Builds an image of these layers, the oldest first.
    pub fn build(&self, layers: Vec<Layer>) -> Result<Image, BuildError> {
        self.build_with(layers, ImageConfig::default())
    }

    pub fn build_with(&self, layers: Vec<Layer>, config: ImageConfig) -> Result<Image, BuildError> {
        let new = NewImage {
            name: "test".parse().expect("a name"),
            source: "test".into(),
            kernel: None,
            replace: true,
        };
        let options = BuildOptions {
            size: 64 << 20,
            free: 1 << 20,
            limits: self.limits,
            ..BuildOptions::default()
        };
        let image = LayeredImage { layers, config, manifest_digest: None };
        let cancel = CancelFlag::default();
        match self.store.import_layers(&new, image, &options, &NoProgress, &cancel) {
            Ok(image) => Ok(image),
            Err(ImageStoreError::Build { source, .. }) => Err(source),
            Err(other) => panic!("{other:?}"),
        }
    }
}
