//! Lets a guest draw on the user's terminal, and nothing more.
//!
//! A shell or an editor on a console moves the cursor, erases and colours; those sequences (ECMA-48,
//! and the private modes that full-screen programs use) pass. What makes a terminal answer as if the
//! user had typed, report the mouse, change keys, set its title or clipboard or load anything is taken
//! out. What was switched on is known, so that it can be switched off at the end; where all was let
//! through, what cannot be known is switched off, too.

use std::collections::{BTreeMap, BTreeSet};

use crate::guest_text::{GuestText, disguises};
use crate::terminal_reset;

/// Longest control sequence that passes, in characters.
const LONGEST: usize = 64;
/// Longest of which it is remembered what it switches, where all is let through, in characters; xterm
/// itself takes no more than 30 parameters.
const LONGEST_KNOWN: usize = 256;
/// Final characters of the sequences that draw: moving, erasing, inserting, deleting, scrolling,
/// tabs, colours, the scrolling region, saving and restoring the cursor.
const DRAWING: &str = "@ABCDEFGHIJKLMPSTXZ`abdefgmrsu";
/// Private modes that may be switched: cursor keys, origin, wrapping, blinking, the cursor, the other
/// screen, bracketed paste.
const MODES: [u16; 10] = [1, 6, 7, 12, 25, 47, 1047, 1048, 1049, 2004];
/// The most other modes that are remembered; there are fewer than that in any terminal.
const OTHERS: usize = 256;
/// Those that are on in a terminal that nobody has touched.
const USUALLY_ON: [u16; 2] = [7, 25];

/// Takes out what does more than draw, across chunk boundaries.
#[derive(Debug, Default)]
pub struct TerminalText {
    characters: GuestText,
    state: State,
    /// Private modes that are not as usual.
    switched: BTreeSet<u16>,
    /// Private modes of lists that do not pass, and whether the first to switch them set them.
    others: BTreeMap<u16, bool>,
    has_region: bool,
    has_charset: bool,
    has_keypad: bool,
    inserts: bool,
    has_tabs: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Escape,
    /// After `ESC (` and `ESC )`.
    Charset(char),
    /// After `ESC [`: what came of it.
    Sequence(String),
    /// After `ESC ]`, `ESC P` and their like: until BEL or `ESC \`.
    String,
    StringEscape,
}

impl TerminalText {
    /// Returns what of `bytes` may be shown.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        let text = self.characters.take(bytes);
        let mut clean = String::with_capacity(text.len());
        for c in text.chars() {
            self.take(c, &mut clean);
        }
        clean
    }

    /// Returns what puts the terminal back where it was sent everything, not only what passes: the
    /// modes known here, those seen here that a user may like one way or the other, which are taken to
    /// have been the other way, and then all that a terminal may be left in.
    pub fn resetting(&self) -> String {
        let mut text = format!("{}{}", terminal_reset::FIRST, self.restoring());
        for (mode, set) in &self.others {
            text.push_str(&format!("\x1b[?{mode}{}", if *set { 'l' } else { 'h' }));
        }
        text + &terminal_reset::all()
    }

    /// Returns what puts the terminal back as it was found, where it was sent what passes.
    pub fn restoring(&self) -> String {
        let mut text = String::new();
        for mode in &self.switched {
            let letter = if USUALLY_ON.contains(mode) { 'h' } else { 'l' };
            text.push_str(&format!("\x1b[?{mode}{letter}"));
        }
        if self.has_region {
            // To set it moves the cursor.
            text.push_str("\x1b7\x1b[r\x1b8");
        }
        if self.has_charset {
            text.push_str("\x1b(B\x1b)B\x0f");
        }
        if self.has_keypad {
            text.push_str("\x1b>");
        }
        if self.inserts {
            text.push_str("\x1b[4l");
        }
        if self.has_tabs {
            // Every eight columns again (ECMA-48 has no word for all of them; xterm's DECST8C).
            text.push_str("\x1b[?5W");
        }
        text.push_str("\x1b[0m");
        text
    }

    fn take(&mut self, c: char, clean: &mut String) {
        self.state = match (std::mem::take(&mut self.state), c) {
            (State::String, '\x1b') => State::StringEscape,
            (State::StringEscape, '\\') | (State::String, '\x07') => State::Text,
            (State::String | State::StringEscape, _) => State::String,
            (_, '\x1b') => State::Escape,
            (State::Escape, '[') => State::Sequence(String::new()),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String,
            (State::Escape, '(' | ')') => State::Charset(c),
            (State::Escape, '7' | '8' | '=' | '>' | 'D' | 'E' | 'M') => {
                self.has_keypad |= c == '=';
                clean.extend(['\x1b', c]);
                State::Text
            }
            // The rest of a short sequence, such as `ESC # 8`.
            (State::Escape, ' '..='/') => State::Escape,
            (State::Escape, _) => State::Text,
            (State::Charset(which), 'A' | 'B' | '0') => {
                self.has_charset |= c != 'B';
                clean.extend(['\x1b', which, c]);
                State::Text
            }
            (State::Charset(_), _) => State::Text,
            (State::Sequence(mut begun), ' '..='?') => {
                // One that is too long has no end that passes.
                if begun.len() <= LONGEST_KNOWN {
                    begun.push(c);
                }
                State::Sequence(begun)
            }
            (State::Sequence(begun), '@'..='~') => {
                if begun.len() <= LONGEST && self.passes(&begun, c) {
                    clean.push_str(&format!("\x1b[{begun}{c}"));
                } else if begun.len() <= LONGEST_KNOWN {
                    self.remember_others(&begun, c);
                }
                State::Text
            }
            (State::Sequence(_) | State::Text, c) => {
                self.has_charset |= c == '\x0e';
                if is_shown(c) {
                    clean.push(c);
                }
                State::Text
            }
        };
    }

    /// Remembers what a sequence that does not pass switches, for who is sent it all the same.
    fn remember_others(&mut self, parameters: &str, last: char) {
        let Some(modes) = parameters.strip_prefix('?').filter(|_| "hl".contains(last)) else {
            return;
        };
        for mode in modes.split(';').filter_map(|mode| mode.parse().ok()) {
            if self.others.len() < OTHERS && !terminal_reset::covers(mode) {
                self.others.entry(mode).or_insert(last == 'h');
            }
        }
    }

    /// Judges a control sequence and remembers what it switches.
    fn passes(&mut self, parameters: &str, last: char) -> bool {
        let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_digit() || ";:".contains(c));
        if is_plain(parameters) {
            self.has_region |= last == 'r';
            // Tabs that are cleared all at once; one that is set anew is not noticed.
            self.has_tabs |= last == 'g';
            // Inserting instead of overwriting, and back.
            let is_insertion = "hl".contains(last) && parameters == "4";
            self.inserts = if is_insertion { last == 'h' } else { self.inserts };
            return DRAWING.contains(last) || is_insertion;
        }
        let Some(modes) = parameters.strip_prefix('?').filter(|_| "hl".contains(last)) else {
            return false;
        };
        let modes: Option<Vec<u16>> = modes.split(';').map(|mode| mode.parse().ok()).collect();
        let Some(modes) = modes.filter(|modes| modes.iter().all(|mode| MODES.contains(mode)))
        else {
            return false;
        };
        for mode in modes {
            if (last == 'h') == USUALLY_ON.contains(&mode) {
                self.switched.remove(&mode);
            } else {
                self.switched.insert(mode);
            }
        }
        true
    }
}

fn is_shown(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t' | '\x07' | '\x08' | '\x0e' | '\x0f')
        || !(c.is_control() || disguises(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        TerminalText::default().clean(text.as_bytes())
    }

    #[test]
    fn what_draws_passes_unchanged() {
        for text in [
            "a\r\nb\tc\x08\x07",
            "\x1b[31;1mred\x1b[0m\x1b[38;2;1;2;3mx",
            "\x1b[H\x1b[2J\x1b[K\x1b[10;20H\x1b[3A\x1b[1;24r",
            "\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?7;25h\x1b[4h",
            "\x1b7\x1b8\x1bM\x1b=\x1b(0lqk\x1b(B\x0e\x0f",
            "\u{e9}\u{2192}\u{1f980}",
        ] {
            assert_eq!(clean(text), text, "{text:?}");
        }
    }

    #[test]
    fn what_does_more_than_draw_is_taken_out() {
        for (text, shown) in [
            // Questions, whose answers are typed.
            ("\x1b[6n\x1b[c\x1b[>c\x1b[5n\x1b[?6n\x1bZ\x1b[0c\x05", ""),
            ("\x1b]0;title\x07x\x1b]52;c;YQ==\x1b\\y", "xy"),
            ("\x1bP$qm\x1b\\a\x1b_Gf=1;\x1b\\b\x1b^x\x1b\\c", "abc"),
            // The mouse, keys, the window, the printer, a reset, a private mode in a list.
            ("\x1b[?1000h\x1b[?1006h\x1b[>4;2m\x1b[=1u\x1b[>1u\x1b[8;1;1t\x1b[5i\x1bc", ""),
            ("\x1b[?25;1000h\x1b[!p\x1b[1 q\x1b[\"q", ""),
            ("\u{9b}2Jx\u{202e}y\u{90}z", "2Jxyz"),
            ("\x1b[12\nnext", "\nnext"),
            ("\x1b[1\x1b[31mx", "\x1b[31mx"),
        ] {
            assert_eq!(clean(text), shown, "{text:?}");
        }
        assert_eq!(
            clean(&format!("\x1b[{}mx", "1;".repeat(1 << 20))),
            "x",
            "and memory is bounded"
        );
    }

    #[test]
    fn the_result_does_not_depend_on_where_chunks_end() {
        let text =
            "\u{e9}\x1b[1;31m\u{fc}\x1b[0m\x1b]0;t\x1b\\\u{2192}\x1b[6n\x1b(0q\x1b(B\u{1f980}\n";
        let whole = clean(text);
        for step in 1..text.len() {
            let mut cleaner = TerminalText::default();
            let pieces: String =
                text.as_bytes().chunks(step).map(|piece| cleaner.clean(piece)).collect();
            assert_eq!(pieces, whole, "{step}");
        }
    }

    /// What a terminal's private modes are after a text; of those that it did not name, nothing.
    fn modes_after(text: &str) -> BTreeMap<u16, bool> {
        let mut modes = BTreeMap::new();
        for sequence in text.split('\x1b').skip(1) {
            if let Some(list) = sequence.strip_prefix("[?")
                && let Some(end) = list.find(['h', 'l'])
            {
                let set = list.as_bytes()[end] == b'h';
                modes.extend(list[..end].split(';').map(|mode| (mode.parse().unwrap(), set)));
            } else if sequence.starts_with('<') {
                modes.insert(2, true);
            } else if sequence.starts_with('\x03') {
                modes.insert(38, false);
            }
        }
        modes
    }

    /// The modes that ctlseqs has under "CSI ? Pm h" (patch 379), all but 1048, which saves the cursor,
    /// and those of the last patches and of other terminals that are said to be reset.
    const DOCUMENTED: [u16; 73] = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 18, 19, 25, 30, 35, 38, 40, 41, 42, 43, 44, 45,
        46, 47, 66, 67, 69, 80, 95, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1010, 1011,
        1015, 1016, 1034, 1035, 1036, 1037, 1039, 1040, 1041, 1042, 1043, 1044, 1045, 1046, 1047,
        1049, 1050, 1051, 1052, 1053, 1060, 1061, 2001, 2002, 2003, 2004, 2005, 2006, 2026, 2031,
        2048,
    ];

    #[test]
    fn no_mode_of_xterm_is_left_as_a_machine_had_it() {
        for mode in DOCUMENTED {
            let usually = [2, 7, 8, 25].contains(&mode);
            let letter = if usually { 'l' } else { 'h' };
            let long = format!("{}{mode}", "1002;".repeat(29));
            for list in [format!("{mode}"), format!("1;{mode}"), format!("{mode};99"), long] {
                let sent = format!("text\x1b[?{list}{letter}more");
                let mut text = TerminalText::default();
                text.clean(sent.as_bytes());
                let after = modes_after(&(sent + &text.resetting()));
                // 47 and 1047 name the same screen as 1049.
                let mode = if [47, 1047].contains(&mode) { 1049 } else { mode };
                assert_eq!(after.get(&mode), Some(&usually), "{mode} of {list}");
            }
        }
    }

    #[test]
    fn a_reset_reaches_a_terminal_in_the_middle_of_something_and_moves_no_cursor() {
        let untouched = TerminalText::default().resetting();
        assert!(untouched.starts_with("\x18\x1b\\"), "{untouched:?}");
        assert!(untouched.ends_with("\x1b[0m"), "{untouched:?}");
        assert!(untouched.contains("\x1b[!p"), "{untouched:?}");
        // What moves the cursor stands behind a DECSC, of which each is used up once.
        let mut is_saved = false;
        for sequence in untouched.split('\x1b').skip(1) {
            match sequence {
                "7" => is_saved = true,
                "[?6l" | "[r" | "[?69l" => assert!(is_saved, "{sequence}"),
                "8" | "[?1049l" => assert!(std::mem::take(&mut is_saved), "{sequence}"),
                _ => {}
            }
        }
        // A user's liking is not touched where nobody has.
        for mode in [3, 10, 30, 35, 40, 45, 67, 1007, 1010, 1034, 1036, 1042, 1046] {
            assert!(!untouched.contains(&format!("[?{mode}h")), "{mode}");
            assert!(!untouched.contains(&format!("[?{mode}l")), "{mode}");
        }
    }

    #[test]
    fn a_machine_that_switches_all_modes_there_could_be_takes_no_memory() {
        let mut text = TerminalText::default();
        for mode in 0..=u16::MAX {
            text.clean(format!("\x1b[?{mode}h").as_bytes());
        }
        assert!(text.resetting().len() < 8 * 1024);
    }

    #[test]
    fn what_was_switched_is_switched_back_and_nothing_else() {
        let mut text = TerminalText::default();
        assert_eq!(text.restoring(), "\x1b[0m");
        text.clean(b"\x1b[?1049h\x1b[?25l\x1b[?1h\x1b[?1l\x1b[2;5r\x1b=\x1b(0\x1b[4h\x1b[3g");
        assert_eq!(
            text.restoring(),
            "\x1b[?25h\x1b[?1049l\x1b7\x1b[r\x1b8\x1b(B\x1b)B\x0f\x1b>\x1b[4l\x1b[?5W\x1b[0m"
        );
        text.clean(b"\x1b[?1049l\x1b[?25h");
        assert_eq!(text.restoring().matches('?').count(), 1, "the tabs");
    }
}
