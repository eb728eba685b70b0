//! What a guest prints, as characters: what both kinds of cleaning begin with.

/// Bytes that come in chunks, as text: a character that is cut waits for its rest.
#[derive(Debug, Default)]
pub struct GuestText {
    partial: Vec<u8>,
}

impl GuestText {
    /// Returns what is complete with `bytes`; what is no UTF-8 is U+FFFD.
    pub fn take(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let rest = self.partial.split_off(complete_length(&self.partial));
        let complete = std::mem::replace(&mut self.partial, rest);
        String::from_utf8_lossy(&complete).into_owned()
    }
}

/// Returns whether a character makes text look like other text: marks, embeddings, overrides and
/// isolates of direction (Unicode, UAX 9).
pub const fn disguises(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns how many bytes end on a character's boundary.
fn complete_length(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => return bytes.len(),
        };
        return if back < length { bytes.len() - back } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_cut_waits_for_its_rest_and_nothing_waits_for_ever() {
        let text = "a\u{e9}\u{2192}\u{1f980}b".as_bytes();
        for step in 1..text.len() {
            let mut cut = GuestText::default();
            let pieces: String = text.chunks(step).map(|piece| cut.take(piece)).collect();
            assert_eq!(pieces.as_bytes(), text, "{step}");
        }
        let mut cut = GuestText::default();
        assert_eq!(cut.take(b"\xf0\x9f"), "");
        assert_eq!(cut.take(b"x"), "\u{fffd}x");
        assert_eq!(cut.take(b"\x80\x80\x80\x80"), "\u{fffd}".repeat(4));
    }
}
