//! The fields of one 512-byte tar header (POSIX ustar and GNU tar).

/// Bytes of a header and unit of everything in an archive.
pub(crate) const RECORD: usize = 512;

/// A header whose checksum is right.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) bytes: [u8; RECORD],
}

/// The name of a field that holds no number or one that is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadField(pub(crate) &'static str);

impl Header {
    /// Returns the header if the checksum fits, counting bytes as unsigned or, as old tars did,
    /// as signed.
    pub(crate) fn parse(bytes: [u8; RECORD]) -> Option<Self> {
        let expected = number(&bytes[148..156])?;
        let mut unsigned = 0_i64;
        let mut signed = 0_i64;
        for (index, &byte) in bytes.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (expected == unsigned || expected == signed).then_some(Self { bytes })
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.bytes[156]
    }

    /// The path: the name, behind the prefix where the format is POSIX ustar.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.bytes[..100]);
        let prefix = until_nul(&self.bytes[345..500]);
        if &self.bytes[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        until_nul(&self.bytes[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u16, BadField> {
        let mode = number(&self.bytes[100..108]).ok_or(BadField("mode"))?;
        u16::try_from(mode & 0o7777).map_err(|_| BadField("mode"))
    }

    pub(crate) fn owner(&self) -> Result<u32, BadField> {
        self.field(108..116, "owner")
    }

    pub(crate) fn group(&self) -> Result<u32, BadField> {
        self.field(116..124, "group")
    }

    pub(crate) fn size(&self) -> Result<u64, BadField> {
        self.field(124..136, "size")
    }

    pub(crate) fn modified(&self) -> Result<i64, BadField> {
        number(&self.bytes[136..148]).ok_or(BadField("modification time"))
    }

    pub(crate) fn device(&self) -> Result<(u32, u32), BadField> {
        Ok((self.field(329..337, "device")?, self.field(337..345, "device")?))
    }

    fn field<T: TryFrom<i64>>(
        &self,
        range: std::ops::Range<usize>,
        name: &'static str,
    ) -> Result<T, BadField> {
        let value = number(&self.bytes[range]).ok_or(BadField(name))?;
        T::try_from(value).map_err(|_| BadField(name))
    }
}

/// Parses octal digits between blanks, or GNU's base 256 with the highest bit set; blank is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; more than 64 bits must all repeat it.
        let fill = if first & 0x40 == 0 { 0 } else { 0xff };
        let mut digits = field.to_vec();
        digits[0] = if fill == 0 { first & 0x7f } else { first };
        let (high, low) = digits.split_at(digits.len().saturating_sub(8));
        if high.iter().any(|&byte| byte != fill) {
            return None;
        }
        let mut bytes = [fill; 8];
        bytes[8 - low.len()..].copy_from_slice(low);
        let value = i64::from_be_bytes(bytes);
        return ((value < 0) == (fill == 0xff)).then_some(value);
    }
    let text = until_nul(field);
    let text = text.trim_ascii();
    text.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

pub(crate) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_lie_are_refused() {
        for bad in [&b"12a4567\0"[..], b"-1\0", b"0x10\0", b"8\0", b"1 2\0"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
        let mut huge = [0xff_u8; 12];
        huge[0] = 0x80;
        assert_eq!(number(&huge), None);
        assert_eq!(number(b""), None);
    }

    #[test]
    fn octal_blank_and_base_256_numbers_are_read() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        let mut big = [0_u8; 12];
        big[0] = 0x80;
        big[7] = 2;
        assert_eq!(number(&big), Some(2 << 32));
        assert_eq!(number(&[0xff; 12]), Some(-1));
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_none() {
        assert!(Header::parse([7; RECORD]).is_none());
        assert!(Header::parse([0; RECORD]).is_none());
    }
}
