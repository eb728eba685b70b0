//! Which image of an archive is meant, and what it is made of.

use banger_types::{Digest, ImageConfig, OciReference};

use super::documents::{
    Configuration, Descriptor, Index, LayoutVersion, MOST_IMAGES, MOST_LAYERS, Manifest, Platform,
    SavedImage,
};
use super::error::ContainerError;
use super::kept::{Kept, blob_path};
use crate::layers::{Layer, LayerMediaType, LayeredImage};

/// Most indexes within each other.
const DEEPEST: usize = 4;
const NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// Which image of an archive is meant.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Its tag, name or digest; may be absent where there is one.
    pub reference: Option<String>,
    /// Such as `linux/amd64`.
    pub platform: String,
    /// How the image is to be run, in place of what it says itself.
    pub config: Option<ImageConfig>,
}

impl Default for Selection {
    /// The only image, for what virtual machines run on here.
    fn default() -> Self {
        Self { reference: None, platform: "linux/amd64".into(), config: None }
    }
}

impl Selection {
    fn fits(&self, platform: &Platform) -> bool {
        // A variant such as linux/amd64/v2 runs where the plain one does.
        let wanted = self.platform.splitn(3, '/').take(2);
        wanted.eq([platform.os.as_str(), platform.architecture.as_str()])
    }

    fn no_platform(&self, found: impl IntoIterator<Item = Platform>) -> ContainerError {
        let mut found: Vec<String> = found.into_iter().map(|it| clean(&it.to_string())).collect();
        found.truncate(20);
        ContainerError::NoPlatform { wanted: self.platform.clone(), found }
    }
}

/// Finds the image in what was kept of an archive.
pub(super) fn select(kept: &Kept, selection: &Selection) -> Result<LayeredImage, ContainerError> {
    if kept.has("index.json") && kept.has("oci-layout") {
        return from_layout(kept, selection);
    }
    if kept.has("manifest.json") {
        return from_docker(kept, selection);
    }
    let what = "index.json of an OCI layout, and no manifest.json of docker save";
    Err(ContainerError::Missing(what.into()))
}

fn from_layout(kept: &Kept, selection: &Selection) -> Result<LayeredImage, ContainerError> {
    let version: LayoutVersion = kept.document("oci-layout")?;
    if version.image_layout_version != "1.0.0" {
        return Err(ContainerError::Version(clean(&version.image_layout_version)));
    }
    let index: Index = kept.document("index.json")?;
    let listed = images_of(index)?;
    let named: Vec<Descriptor> = match &selection.reference {
        None => listed,
        Some(wanted) => {
            let found = names_of(&listed);
            let named: Vec<_> =
                listed.into_iter().filter(|descriptor| is_named(descriptor, wanted)).collect();
            if named.is_empty() {
                return Err(ContainerError::NoReference { wanted: clean(wanted), found });
            }
            named
        }
    };
    let names = names_of(&named);
    if names.len() > 1 && selection.reference.is_none() {
        return Err(ContainerError::Several(names));
    }
    let mut other = Vec::new();
    for descriptor in named {
        if let Some(image) = follow(kept, selection, descriptor, 0, &mut other)? {
            return Ok(image);
        }
    }
    Err(selection.no_platform(other))
}

/// The entries of an index that may be images: attestations and the like are for no platform.
fn images_of(index: Index) -> Result<Vec<Descriptor>, ContainerError> {
    if index.manifests.len() > MOST_IMAGES {
        return Err(ContainerError::Limit {
            what: "images in an index",
            limit: MOST_IMAGES as u64,
        });
    }
    let is_image = |descriptor: &Descriptor| {
        descriptor.annotation("vnd.docker.reference.type").is_none()
            && descriptor.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
    };
    Ok(index.manifests.into_iter().filter(is_image).collect())
}

/// The different names in an index, by which one can choose.
fn names_of(listed: &[Descriptor]) -> Vec<String> {
    let name = |descriptor: &Descriptor| {
        let name = descriptor.annotation(FULL_NAME).or_else(|| descriptor.annotation(NAME));
        // What differs by its platform alone has no name of its own.
        match (name, &descriptor.platform) {
            (Some(name), _) => clean(name),
            (None, Some(_)) => String::new(),
            (None, None) => descriptor.digest.to_string(),
        }
    };
    let mut names: Vec<String> = listed.iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(50);
    names
}

fn is_named(descriptor: &Descriptor, wanted: &str) -> bool {
    [NAME, FULL_NAME]
        .into_iter()
        .filter_map(|key| descriptor.annotation(key))
        .any(|name| is_same_name(name, wanted))
        || descriptor.digest.as_str() == wanted
}

/// Whether two names are one reference: `alpine` is `docker.io/library/alpine:latest`.
fn is_same_name(one: &str, other: &str) -> bool {
    let meant = |name: &str| name.parse::<OciReference>().ok();
    one == other || meant(one).is_some_and(|one| meant(other) == Some(one))
}

/// Follows a descriptor to an image for the platform; what it is for otherwise goes to `other`.
fn follow(
    kept: &Kept,
    selection: &Selection,
    descriptor: Descriptor,
    depth: usize,
    other: &mut Vec<Platform>,
) -> Result<Option<LayeredImage>, ContainerError> {
    if let Some(platform) = &descriptor.platform
        && !selection.fits(platform)
    {
        other.push(platform.clone());
        return Ok(None);
    }
    if descriptor.is_index() {
        if depth >= DEEPEST {
            return Err(ContainerError::TooDeep(DEEPEST));
        }
        for below in images_of(kept.blob(&descriptor)?)? {
            if let Some(image) = follow(kept, selection, below, depth + 1, other)? {
                return Ok(Some(image));
            }
        }
        return Ok(None);
    }
    if !descriptor.is_manifest() {
        return Err(ContainerError::ManifestType(clean(&descriptor.media_type)));
    }
    let manifest: Manifest = kept.blob(&descriptor)?;
    let configuration: Configuration = kept.blob(&manifest.config)?;
    if !selection.fits(&configuration.platform) {
        other.push(configuration.platform);
        return Ok(None);
    }
    let mut parts = Vec::new();
    for layer in &manifest.layers {
        let media_type = layer.media_type.parse()?;
        parts.push((blob_path(&layer.digest), media_type, Some(layer)));
    }
    image(kept, &parts, configuration, Some(descriptor.digest)).map(Some)
}

fn from_docker(kept: &Kept, selection: &Selection) -> Result<LayeredImage, ContainerError> {
    let saved: Vec<SavedImage> = kept.document("manifest.json")?;
    if saved.len() > MOST_IMAGES {
        return Err(ContainerError::Limit { what: "images", limit: MOST_IMAGES as u64 });
    }
    let tags = |image: &SavedImage| image.repo_tags.clone().unwrap_or_default();
    let names = || {
        let name = |image: &SavedImage| {
            tags(image).first().map_or_else(|| clean(&image.config), |tag| clean(tag))
        };
        saved.iter().take(50).map(name).collect::<Vec<_>>()
    };
    let chosen = match &selection.reference {
        None if saved.len() > 1 => return Err(ContainerError::Several(names())),
        None => saved.first().ok_or_else(|| ContainerError::Missing("image at all".into()))?,
        Some(wanted) => {
            let is_wanted =
                |image: &&SavedImage| tags(image).iter().any(|tag| is_same_name(tag, wanted));
            saved.iter().find(is_wanted).ok_or_else(|| ContainerError::NoReference {
                wanted: clean(wanted),
                found: names(),
            })?
        }
    };
    let configuration: Configuration = kept.document(&chosen.config)?;
    if !selection.fits(&configuration.platform) {
        return Err(selection.no_platform([configuration.platform]));
    }
    let parts: Vec<_> =
        chosen.layers.iter().map(|path| (path.clone(), LayerMediaType::Tar, None)).collect();
    image(kept, &parts, configuration, None)
}

/// Puts an image together of its layers' paths, types and descriptors.
fn image(
    kept: &Kept,
    parts: &[(String, LayerMediaType, Option<&Descriptor>)],
    configuration: Configuration,
    manifest_digest: Option<Digest>,
) -> Result<LayeredImage, ContainerError> {
    let diff_ids = configuration.rootfs.diff_ids;
    if parts.len() != diff_ids.len() {
        return Err(ContainerError::Layers { layers: parts.len(), named: diff_ids.len() });
    }
    if parts.len() > MOST_LAYERS {
        return Err(ContainerError::Limit { what: "layers", limit: MOST_LAYERS as u64 });
    }
    let mut layers = Vec::with_capacity(parts.len());
    for ((path, media_type, descriptor), diff_id) in parts.iter().zip(diff_ids) {
        let (source, size) = kept.layer(path)?;
        layers.push(Layer {
            media_type: *media_type,
            digest: descriptor.map(|descriptor| descriptor.digest.clone()),
            size: Some(descriptor.map_or(size, |descriptor| descriptor.size)),
            diff_id,
            source,
        });
    }
    let config = configuration.config.unwrap_or_default();
    Ok(LayeredImage { layers, config, manifest_digest })
}

/// A text of the archive as it may be shown.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
