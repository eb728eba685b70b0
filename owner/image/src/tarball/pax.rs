//! Pax extended headers: the records that matter to a file system image.

use crate::ext4::{Attribute, Timestamp};

/// What extended headers say about the next entry (or, in a global one, about all that follow).
#[derive(Clone, Debug, Default)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) attributes: Vec<Attribute>,
    /// Attributes in a form that is not understood; they are counted, not kept.
    pub(crate) ignored_attributes: u64,
    pub(crate) sparse: Sparse,
}

/// The `GNU.sparse.*` records of all three pax forms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Offset and length of each stored piece, where the header has them.
    pub(crate) map: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

/// A record that does not follow the format, by its keyword where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadRecord(pub(crate) String);

/// Most pieces of a sparse file's map.
pub(crate) const MOST_PIECES: usize = 1 << 20;

/// Most attributes of an entry and most bytes of them: global headers add up over an archive.
/// An inode has room for a few KiB.
const MOST_ATTRIBUTES: usize = 512;
const LARGEST_ATTRIBUTES: usize = 1 << 20;

impl Extended {
    /// Reads `LENGTH KEYWORD=VALUE\n` records, the later ones winning.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), BadRecord> {
        let malformed = || BadRecord("a record without a length".into());
        while !bytes.is_empty() {
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(malformed)?;
            let length = decimal(&bytes[..space]).ok_or_else(malformed)?;
            let length = usize::try_from(length).map_err(|_| malformed())?;
            let record = bytes.get(..length).filter(|record| record.len() > space + 1);
            let body = record
                .and_then(|record| record[space + 1..].strip_suffix(b"\n"))
                .ok_or_else(malformed)?;
            let equals = body.iter().position(|&byte| byte == b'=').ok_or_else(malformed)?;
            let (key, value) = (&body[..equals], &body[equals + 1..]);
            self.record(key, value)
                .ok_or_else(|| BadRecord(String::from_utf8_lossy(key).into_owned()))?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.owner = Some(u32::try_from(decimal(value)?).ok()?),
            b"gid" => self.group = Some(u32::try_from(decimal(value)?).ok()?),
            b"mtime" => self.modified = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let piece = (self.sparse.offset.take()?, decimal(value)?);
                let map = self.sparse.map.get_or_insert_default();
                if map.len() >= MOST_PIECES {
                    return None;
                }
                map.push(piece);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(decimal).collect();
                let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2))?;
                let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                self.sparse.map = Some(pieces.collect());
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.retain(|attribute| attribute.name != name);
                    let bytes: usize = self.attributes.iter().map(Attribute::bytes).sum();
                    let all = bytes + name.len() + value.len();
                    if self.attributes.len() >= MOST_ATTRIBUTES || all > LARGEST_ATTRIBUTES {
                        return None;
                    }
                    self.attributes.push(Attribute { name: name.to_vec(), value: value.to_vec() });
                } else if key.starts_with(b"LIBARCHIVE.xattr.") || key.starts_with(b"SCHILY.acl.") {
                    self.ignored_attributes += 1;
                }
            }
        }
        Some(())
    }
}

pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Parses seconds with an optional fraction and sign.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    let mut unit = 100_000_000;
    for &digit in parts.next().unwrap_or_default() {
        if !digit.is_ascii_digit() {
            return None;
        }
        nanoseconds += u32::from(digit - b'0') * unit;
        unit /= 10;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp::new(seconds, nanoseconds),
        (true, 0) => Timestamp::new(-seconds, 0),
        // Half a second before 0 is second -1 and half a second.
        (true, _) => Timestamp::new(-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

impl Attribute {
    fn bytes(&self) -> usize {
        self.name.len() + self.value.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"0 a=b\n",
            b"3 \n",
            b"6 abc\n",
            b"11 size=-1\n",
            b"99999999999999999999 a=b\n",
            b"22 GNU.sparse.map=1,2,3\n",
            b"25 GNU.sparse.numbytes=10\n",
        ] {
            assert!(Extended::default().read(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn values_may_hold_newlines_and_nul() {
        let mut extended = Extended::default();
        extended.read(b"23 SCHILY.xattr.user.a=\n\0\n").unwrap_err();
        extended.read(b"27 SCHILY.xattr.user.a=\n\0\n\n").unwrap();
        assert_eq!(extended.attributes[0].value, b"\n\0\n");
    }

    #[test]
    fn attributes_do_not_add_up_without_end() {
        let record = |number: usize, size: usize| {
            let body = format!(" SCHILY.xattr.user.{number:06}={}\n", "v".repeat(size));
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            format!("{length}{body}").into_bytes()
        };
        for (count, size) in [(MOST_ATTRIBUTES, 1), (4, LARGEST_ATTRIBUTES / 5)] {
            let mut extended = Extended::default();
            for number in 0..count {
                extended.read(&record(number, size)).unwrap();
            }
            // The same name again is no more than before.
            extended.read(&record(0, size)).unwrap();
            extended.read(&record(count, LARGEST_ATTRIBUTES / 4)).unwrap_err();
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"1.5"), Some(Timestamp::new(1, 500_000_000)));
        assert_eq!(time(b"-1.5"), Some(Timestamp::new(-2, 500_000_000)));
        assert_eq!(time(b"7"), Some(Timestamp::new(7, 0)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Extended::default().read(&bytes);
        }
    }
}
