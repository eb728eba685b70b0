//! Identifiers that banger makes, and the ways a user may refer to a VM.

use crate::name::{NameError, VmName};
use crate::string_type::checked_string;

fn check_hex(text: &str, length: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() != length {
        return Err(NameError::TooLong { limit: length, length: text.len() });
    }
    match text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        Some(character) => Err(NameError::Character { character, allowed: "0-9 and a-f" }),
        None => Ok(()),
    }
}

fn check_vm_id(text: &str) -> Result<(), NameError> {
    check_hex(text, 32)
}

fn check_operation_id(text: &str) -> Result<(), NameError> {
    match text.strip_prefix("op-") {
        Some(rest) => check_hex(rest, 16),
        None => Err(NameError::Edge),
    }
}

fn check_lease_id(text: &str) -> Result<(), NameError> {
    match text.strip_prefix("lease-") {
        Some(rest) => check_hex(rest, 16),
        None => Err(NameError::Edge),
    }
}

checked_string! {
    /// A VM's identity for life: 32 lower-case hexadecimal digits (a random UUID without hyphens).
    VmId, NameError, check_vm_id
}

checked_string! {
    /// One request's identity, `op-` and 16 hexadecimal digits: the same from the command line's
    /// request to every log line that it causes.
    OperationId, NameError, check_operation_id
}

checked_string! {
    /// A client's lease, `lease-` and 16 hexadecimal digits: VMs bound to it are deleted when the
    /// connection that holds it closes.
    LeaseId, NameError, check_lease_id
}

fn random_hex(digits: usize) -> String {
    let mut text = uuid::Uuid::new_v4().simple().to_string();
    text.truncate(digits);
    text
}

impl VmId {
    /// Makes a new random identity.
    #[must_use]
    pub fn random() -> Self {
        Self::try_from(random_hex(32))
            .unwrap_or_else(|_| unreachable!("a UUID has 32 hexadecimal digits"))
    }

    /// Returns the first 12 digits, what tables show.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.as_str()[..12]
    }
}

impl OperationId {
    /// Makes a new random identity.
    #[must_use]
    pub fn random() -> Self {
        Self::try_from(format!("op-{}", random_hex(16)))
            .unwrap_or_else(|_| unreachable!("16 hexadecimal digits"))
    }
}

impl LeaseId {
    /// Makes a new random identity.
    #[must_use]
    pub fn random() -> Self {
        Self::try_from(format!("lease-{}", random_hex(16)))
            .unwrap_or_else(|_| unreachable!("16 hexadecimal digits"))
    }
}

/// How a user names a VM: its name, its id, or the beginning of its id.
///
/// Every id prefix of `[0-9a-f]` is also a valid [`VmName`], so resolution tries the exact name,
/// then the exact id, then the prefix; more than one match of a prefix is an error of the resolver.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmReference(VmName);

impl VmReference {
    /// Returns the text as the user gave it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns whether this reference is the beginning of `id` (4 digits at least) or all of it.
    #[must_use]
    pub fn matches_id(&self, id: &VmId) -> bool {
        let text = self.as_str();
        text.len() >= 4 && id.as_str().starts_with(text)
    }
}

impl std::str::FromStr for VmReference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for VmReference {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VmReference> for String {
    fn from(value: VmReference) -> Self {
        value.0.into()
    }
}

impl From<&VmId> for VmReference {
    fn from(id: &VmId) -> Self {
        Self(
            id.as_str()
                .parse()
                .unwrap_or_else(|_| unreachable!("32 hexadecimal digits are a DNS label")),
        )
    }
}

impl From<VmName> for VmReference {
    fn from(name: VmName) -> Self {
        Self(name)
    }
}

impl std::fmt::Display for VmReference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_identities_obey_their_own_rule() {
        assert_eq!(VmId::random().as_str().len(), 32);
        assert!(OperationId::random().as_str().parse::<OperationId>().is_ok());
        assert!(LeaseId::random().as_str().parse::<LeaseId>().is_ok());
        assert_ne!(VmId::random(), VmId::random());
    }

    #[test]
    fn references_match_ids_by_prefix_of_four_or_more() {
        let id = VmId::random();
        let prefix: VmReference = id.as_str()[..4].parse().unwrap();
        let short: VmReference = id.as_str()[..3].parse().unwrap();
        assert!(prefix.matches_id(&id));
        assert!(!short.matches_id(&id));
        assert!(VmReference::from(&id).matches_id(&id));
    }

    #[test]
    fn hostile_references_are_refused() {
        for bad in ["", "../x", "a/b", "a b", "%2e", "A"] {
            assert!(bad.parse::<VmReference>().is_err(), "{bad:?}");
        }
    }
}
