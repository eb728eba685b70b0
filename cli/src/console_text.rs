//! Makes a guest's console output harmless to show on the user's terminal.
//!
//! Escape sequences (ECMA-48) and control characters are taken out; line feeds and tabs stay.

use crate::guest_text::{GuestText, disguises};

/// Takes out what could steer a terminal, across chunk boundaries.
#[derive(Debug, Default)]
pub struct ConsoleText {
    characters: GuestText,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    /// After `ESC [`: until a byte of 0x40 to 0x7e.
    ControlSequence,
    /// After `ESC ]`, `ESC P` and their like: until BEL or `ESC \`.
    ControlString,
    ControlStringEscape,
}

impl ConsoleText {
    /// Returns what of `bytes` may be shown.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        self.characters.take(bytes).chars().filter(|&c| self.keeps(c)).collect()
    }

    fn keeps(&mut self, c: char) -> bool {
        let (next, keep) = match (self.state, c) {
            (State::ControlString, '\x1b') => (State::ControlStringEscape, false),
            (State::ControlString, '\x07') => (State::Text, false),
            (State::ControlString, _) => (State::ControlString, false),
            (State::ControlStringEscape, '\\') => (State::Text, false),
            (_, '\x1b') => (State::Escape, false),
            (State::ControlStringEscape, _) => (State::ControlString, false),
            (State::Escape, '[') | (State::Text, '\u{9b}') => (State::ControlSequence, false),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => (State::ControlString, false),
            // Intermediate bytes of a short sequence, such as `ESC ( B`.
            (State::Escape, ' '..='/') => (State::Escape, false),
            (State::Escape, _) => (State::Text, false),
            (State::ControlSequence, '\x40'..='\x7e') => (State::Text, false),
            (State::ControlSequence, '\n') => (State::Text, true),
            (State::ControlSequence, _) => (State::ControlSequence, false),
            (State::Text, '\n' | '\t') => (State::Text, true),
            (State::Text, c) => (State::Text, !c.is_control() && !disguises(c)),
        };
        self.state = next;
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        ConsoleText::default().clean(text.as_bytes())
    }

    #[test]
    fn sequences_and_controls_are_taken_out() {
        assert_eq!(clean("a\x1b[31mred\x1b[0m\r\nb"), "ared\nb");
        assert_eq!(clean("\x1b]0;title\x07x\x1b]8;;url\x1b\\y"), "xy");
        assert_eq!(clean("\x1b(Bz\x07\x08\x7f"), "z");
        assert_eq!(clean("\u{9b}2Jx\u{202e}y"), "xy");
        assert_eq!(clean("t\tab"), "t\tab");
    }

    #[test]
    fn an_unfinished_sequence_does_not_swallow_the_next_line() {
        assert_eq!(clean("\x1b[12\nnext"), "\nnext");
    }

    #[test]
    fn the_result_does_not_depend_on_where_chunks_end() {
        let text = "é\x1b[1;31mü\x1b[0m\x1b]0;t\x1b\\→\u{1f980}\n".as_bytes();
        let whole = ConsoleText::default().clean(text);
        assert_eq!(whole, "éü→\u{1f980}\n");
        for step in 1..text.len() {
            let mut cleaner = ConsoleText::default();
            let pieces: String = text.chunks(step).map(|piece| cleaner.clean(piece)).collect();
            assert_eq!(pieces, whole, "{step}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let mut cleaner = ConsoleText::default();
        let text = cleaner.clean(&[0xff, b'a', 0x80, 0xc3]);
        assert!(text.contains('a') && !text.chars().any(char::is_control));
    }
}
