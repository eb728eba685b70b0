//! Names that people choose: VMs, images, kernels.

use crate::string_type::checked_string;

/// Why a name was refused; says the rule, not the input (the caller shows that).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name is longer than its kind allows.
    #[error("a name has at most {limit} characters, this one has {length}")]
    TooLong {
        /// Most characters allowed.
        limit: usize,
        /// Characters given.
        length: usize,
    },
    /// A character outside the allowed set.
    #[error("character {character:?} is not allowed; use {allowed}")]
    Character {
        /// The first bad character.
        character: char,
        /// The allowed set, in words.
        allowed: &'static str,
    },
    /// The first or last character is not a letter or digit.
    #[error("a name must begin and end with a letter or digit")]
    Edge,
}

fn check(text: &str, limit: usize, extra: &[char], allowed: &'static str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    let length = text.chars().count();
    if length > limit {
        return Err(NameError::TooLong { limit, length });
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(character) = text.chars().find(|&c| !alphanumeric(c) && !extra.contains(&c)) {
        return Err(NameError::Character { character, allowed });
    }
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return Err(NameError::Edge);
    }
    Ok(())
}

fn check_vm_name(text: &str) -> Result<(), NameError> {
    check(text, 63, &['-'], "a-z, 0-9 and -")
}

fn check_artifact_name(text: &str) -> Result<(), NameError> {
    check(text, 64, &['-', '_', '.'], "a-z, 0-9, '-', '_' and '.'")
}

checked_string! {
    /// A VM's name: one DNS label of 1 to 63 characters `[a-z0-9-]`, no hyphen at an edge
    /// (RFC 1123 section 2.1). It is also the guest's host name and its `.vm` name.
    VmName, NameError, check_vm_name
}

checked_string! {
    /// The local name of an image: 1 to 64 characters `[a-z0-9._-]`, a letter or digit at both ends.
    /// It is a directory name, so it can never be `.`, `..` or hold a slash.
    ImageName, NameError, check_artifact_name
}

checked_string! {
    /// The local name of a kernel; the rule of [`ImageName`].
    KernelName, NameError, check_artifact_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_names_are_dns_labels() {
        for good in ["a", "box", "a-b", "0", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in
            ["", "-a", "a-", "A", "a.b", "a_b", "a b", "ä", "a/b", "..", "a\n", &"x".repeat(64)]
        {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn artifact_names_are_single_harmless_path_components() {
        for good in ["debian-bookworm", "debian-6.12-cloud", "a_b", "x"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a.", "a/b", "-a", "A", "a\0", "a b"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn deserializing_goes_through_the_check() {
        assert!(serde_json::from_str::<VmName>("\"box\"").is_ok());
        assert!(serde_json::from_str::<VmName>("\"../box\"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_accepted_name_can_leave_a_directory(text in ".*") {
            if let Ok(name) = text.parse::<ImageName>() {
                proptest::prop_assert!(!name.as_str().contains('/') && !name.as_str().contains('\0'));
                proptest::prop_assert!(name.as_str() != "." && name.as_str() != "..");
            }
        }
    }
}
