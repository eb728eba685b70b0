//! Extended attributes as ext4 stores them: behind the inode's fields, else in one block.
//!
//! Layout: <https://docs.kernel.org/filesystems/ext4/attributes.html>. POSIX access control lists
//! come in the kernel's generic form (`linux/posix_acl_xattr.h`) and are stored in ext4's own
//! shorter one (`fs/ext4/acl.h`).

use super::layout::{BLOCK_SIZE, INODE_ATTRIBUTES, INODE_SIZE, put16, put32};

const MAGIC: u32 = 0xEA02_0000;
const INODE_ROOM: usize = INODE_SIZE - INODE_ATTRIBUTES;

/// One attribute: its full name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// With its namespace, such as `security.capability`.
    pub name: Vec<u8>,
    /// The value's bytes.
    pub value: Vec<u8>,
}

/// Why attributes cannot be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// Together they are larger than an inode's tail and one block.
    #[error("its extended attributes need more than one {BLOCK_SIZE}-byte block")]
    TooLarge,
    /// The name behind the namespace is empty where it may not be, or over 255 bytes.
    #[error("an extended attribute's name is empty or over 255 bytes")]
    BadName,
    /// An access control list that does not parse.
    #[error("a POSIX access control list is malformed")]
    BadAccessList,
}

/// What the attributes of one inode become.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// Bytes behind the inode's fields.
    pub(crate) in_inode: Option<Box<[u8]>>,
    /// The content of an attribute block.
    pub(crate) in_block: Option<Box<[u8]>>,
    /// Attributes left out because ext4 on Linux has no namespace for them.
    pub(crate) ignored: u32,
}

struct Stored {
    namespace: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Stored {
    fn entry_size(&self) -> usize {
        (16 + self.name.len()).next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry_size() + self.value.len().next_multiple_of(4)
    }

    /// As `ext4_xattr_hash_entry`; the order of operations is the kernel's, on unsigned bytes.
    fn hash(&self) -> u32 {
        let mut hash = 0_u32;
        for &byte in &self.name {
            hash = (hash << 5) ^ (hash >> 27) ^ u32::from(byte);
        }
        for word in self.value.chunks(4) {
            let mut bytes = [0_u8; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
        }
        hash
    }
}

pub(crate) fn encode(attributes: &[Attribute]) -> Result<Encoded, AttributeError> {
    let mut encoded = Encoded::default();
    let mut stored = Vec::new();
    for attribute in attributes {
        match store(attribute)? {
            Some(entry) => stored.push(entry),
            None => encoded.ignored += 1,
        }
    }
    // A value over a block can never fit; saying so here keeps the sums below small.
    if stored.iter().any(|entry| entry.value.len() > BLOCK_SIZE) {
        return Err(AttributeError::TooLarge);
    }
    let mut inside = Vec::new();
    let mut outside = Vec::new();
    let mut room = INODE_ROOM - 4 - 4;
    for entry in stored {
        if entry.size() <= room {
            room -= entry.size();
            inside.push(entry);
        } else {
            outside.push(entry);
        }
    }
    if !inside.is_empty() {
        let mut buffer = vec![0_u8; INODE_ROOM].into_boxed_slice();
        put32(&mut buffer, 0, MAGIC);
        // Offsets of values count from the first entry.
        write_entries(&mut buffer[4..], 0, &inside, false);
        encoded.in_inode = Some(buffer);
    }
    if !outside.is_empty() {
        let total: usize = outside.iter().map(Stored::size).sum();
        if 32 + total + 4 > BLOCK_SIZE {
            return Err(AttributeError::TooLarge);
        }
        outside.sort_by(|a, b| {
            (a.namespace, a.name.len(), &a.name).cmp(&(b.namespace, b.name.len(), &b.name))
        });
        let mut buffer = vec![0_u8; BLOCK_SIZE].into_boxed_slice();
        put32(&mut buffer, 0, MAGIC);
        put32(&mut buffer, 4, 1); // one inode refers to it
        put32(&mut buffer, 8, 1); // one block
        let hash = outside.iter().fold(0_u32, |hash, entry| hash.rotate_left(16) ^ entry.hash());
        put32(&mut buffer, 12, hash);
        write_entries(&mut buffer, 32, &outside, true);
        encoded.in_block = Some(buffer);
    }
    Ok(encoded)
}

/// Writes entries from `start` upwards and values from the end of `area` downwards.
fn write_entries(area: &mut [u8], start: usize, entries: &[Stored], hashed: bool) {
    let mut entry_at = start;
    let mut value_end = area.len();
    for entry in entries {
        value_end -= entry.value.len().next_multiple_of(4);
        // A value without bytes has no place.
        let offset = if entry.value.is_empty() { 0 } else { value_end };
        area[entry_at] = u8::try_from(entry.name.len()).unwrap_or(u8::MAX);
        area[entry_at + 1] = entry.namespace;
        put16(area, entry_at + 2, u16::try_from(offset).unwrap_or(0));
        put32(area, entry_at + 8, u32::try_from(entry.value.len()).unwrap_or(0));
        put32(area, entry_at + 12, if hashed { entry.hash() } else { 0 });
        area[entry_at + 16..entry_at + 16 + entry.name.len()].copy_from_slice(&entry.name);
        area[value_end..value_end + entry.value.len()].copy_from_slice(&entry.value);
        entry_at += entry.entry_size();
    }
}

fn store(attribute: &Attribute) -> Result<Option<Stored>, AttributeError> {
    const NAMESPACES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    const LISTS: [(&[u8], u8); 2] =
        [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];
    for (name, namespace) in LISTS {
        if attribute.name == name {
            let value = access_list(&attribute.value).ok_or(AttributeError::BadAccessList)?;
            return Ok(Some(Stored { namespace, name: Vec::new(), value }));
        }
    }
    for (prefix, namespace) in NAMESPACES {
        if let Some(name) = attribute.name.strip_prefix(prefix) {
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err(AttributeError::BadName);
            }
            let (name, value) = (name.to_vec(), attribute.value.clone());
            return Ok(Some(Stored { namespace, name, value }));
        }
    }
    Ok(None)
}

/// Turns a list of 8-byte entries behind a version 2 header into ext4's version 1.
fn access_list(generic: &[u8]) -> Option<Vec<u8>> {
    const NAMED_USER: u16 = 0x02;
    const NAMED_GROUP: u16 = 0x08;
    let (version, entries) = generic.split_at_checked(4)?;
    if version != 2_u32.to_le_bytes() || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut own = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        own.extend_from_slice(&entry[..4]);
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            NAMED_USER | NAMED_GROUP => own.extend_from_slice(&entry[4..]),
            0x01 | 0x04 | 0x10 | 0x20 => {}
            _ => return None,
        }
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, value: Vec<u8>) -> Attribute {
        Attribute { name: name.into(), value }
    }

    #[test]
    fn too_large_values_and_bad_names_are_refused() {
        let error = |list: &[Attribute]| encode(list).map(|_| ()).unwrap_err();
        assert_eq!(error(&[attribute("user.x", vec![0; 4097])]), AttributeError::TooLarge);
        assert_eq!(error(&[attribute("user.x", vec![0; 4070])]), AttributeError::TooLarge);
        let many: Vec<_> = (0..40).map(|n| attribute(&format!("user.{n}"), vec![0; 200])).collect();
        assert_eq!(error(&many), AttributeError::TooLarge);
        assert_eq!(error(&[attribute("user.", vec![])]), AttributeError::BadName);
        let long = format!("user.{}", "x".repeat(256));
        assert_eq!(error(&[attribute(&long, vec![])]), AttributeError::BadName);
        let list = attribute("system.posix_acl_access", vec![2, 0, 0, 0, 1]);
        assert_eq!(error(&[list]), AttributeError::BadAccessList);
    }

    #[test]
    fn foreign_namespaces_are_counted_and_left_out() {
        let encoded = encode(&[attribute("com.apple.quarantine", vec![1])]).unwrap();
        assert_eq!(encoded.ignored, 1);
        assert!(encoded.in_inode.is_none() && encoded.in_block.is_none());
    }

    #[test]
    fn small_attributes_stay_in_the_inode() {
        let encoded = encode(&[attribute("security.capability", vec![7; 20])]).unwrap();
        assert!(encoded.in_inode.is_some() && encoded.in_block.is_none());
    }
}
