//! Extended attributes, back from what [`super::super::attributes`] makes.

use super::super::Attribute;
use super::{get16, get32};

const MAGIC: u32 = 0xEA02_0000;

/// Reads the attributes behind an inode's fields.
pub(super) fn read_in_inode(area: &[u8], list: &mut Vec<Attribute>) -> Option<()> {
    if area.len() < 4 || get32(area, 0) != MAGIC {
        return Some(());
    }
    read_entries(&area[4..], 0, list)
}

/// Reads a block of attributes.
pub(super) fn read_block(block: &[u8], list: &mut Vec<Attribute>) -> Option<()> {
    if get32(block, 0) != MAGIC {
        return None;
    }
    read_entries(block, 32, list)
}

/// Reads the entries from `at` on; values' offsets count from the beginning of `area`.
fn read_entries(area: &[u8], mut at: usize, list: &mut Vec<Attribute>) -> Option<()> {
    while at + 4 <= area.len() && get32(area, at) != 0 {
        let header = area.get(at..at + 16)?;
        let (length, namespace) = (usize::from(header[0]), header[1]);
        let (offset, inode) = (usize::from(get16(header, 2)), get32(header, 4));
        let size = usize::try_from(get32(header, 8)).ok()?;
        let name = area.get(at + 16..at + 16 + length)?;
        // A value in an inode of its own is a feature that nobody turns on.
        if inode != 0 {
            return None;
        }
        let value = if size == 0 { &[][..] } else { area.get(offset..offset.checked_add(size)?)? };
        let prefix: &[u8] = match namespace {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            _ => return None,
        };
        let value = if matches!(namespace, 2 | 3) { access_list(value)? } else { value.to_vec() };
        list.push(Attribute { name: [prefix, name].concat(), value });
        at += (16 + length).next_multiple_of(4);
    }
    Some(())
}

/// Turns ext4's access list (version 1, short entries) into the kernel's generic form.
fn access_list(own: &[u8]) -> Option<Vec<u8>> {
    let (version, mut entries) = own.split_at_checked(4)?;
    if version != 1_u32.to_le_bytes() {
        return None;
    }
    let mut generic = 2_u32.to_le_bytes().to_vec();
    while !entries.is_empty() {
        let (head, rest) = entries.split_at_checked(4)?;
        generic.extend_from_slice(head);
        entries = rest;
        match get16(head, 0) {
            0x02 | 0x08 => {
                let (id, rest) = entries.split_at_checked(4)?;
                generic.extend_from_slice(id);
                entries = rest;
            }
            _ => generic.extend(u32::MAX.to_le_bytes()),
        }
    }
    Some(generic)
}
