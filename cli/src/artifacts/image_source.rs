//! What a user may call an image: the name of one that is here, or what is in a registry.

use std::fmt;
use std::str::FromStr;

use banger_types::{ImageName, NameError, OciReference, OciReferenceError};

/// An image as the user names it.
///
/// What has a `/`, `:` or `@` is a reference to a registry; everything else is a name. So a name
/// never leads to a stranger's image by a slip of the finger, except where it says `pull`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// The name of an image that is here, or that banger knows how to build.
    Name(ImageName),
    /// An image in a registry, and the name that it has here.
    Registry(OciReference, ImageName),
}

/// Why it is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageSourceError {
    /// No name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No reference.
    #[error(transparent)]
    Reference(#[from] OciReferenceError),
    /// A reference whose parts make no name.
    #[error("no name can be made from it; `banger image pull REFERENCE --name NAME` says one")]
    NoName,
}

impl ImageSource {
    /// Returns the name that the image has here.
    pub const fn name(&self) -> &ImageName {
        match self {
            Self::Name(name) | Self::Registry(_, name) => name,
        }
    }
}

/// Returns whether a text is a reference and no name.
pub fn is_reference(text: &str) -> bool {
    text.contains(['/', ':', '@'])
}

impl FromStr for ImageSource {
    type Err = ImageSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !is_reference(text) {
            return Ok(Self::Name(text.parse()?));
        }
        let reference: OciReference = text.parse()?;
        let name = reference.default_name().ok_or(ImageSourceError::NoName)?;
        Ok(Self::Registry(reference, name))
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(formatter),
            Self::Registry(reference, _) => reference.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_references_are_told_apart() {
        let parse = |text: &str| text.parse::<ImageSource>();
        assert!(matches!(parse("alpine"), Ok(ImageSource::Name(_))));
        assert!(matches!(parse("debian-bookworm"), Ok(ImageSource::Name(_))));
        for (text, name) in [
            ("alpine:3.20", "alpine-3.20"),
            ("library/alpine", "alpine"),
            ("ghcr.io/a/b:v1", "b-v1"),
            ("127.0.0.1:5000/x", "x"),
        ] {
            let source = parse(text).unwrap();
            assert!(matches!(source, ImageSource::Registry(..)), "{text}");
            assert_eq!(source.name().as_str(), name);
        }
        assert!(matches!(parse("Alpine"), Err(ImageSourceError::Name(_))));
        assert!(matches!(parse("../x"), Err(ImageSourceError::Reference(_))));
        let long = format!("a:{}", "x".repeat(100));
        assert_eq!(parse(&long), Err(ImageSourceError::NoName));
    }
}
