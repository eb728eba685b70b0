//! What puts a terminal back as a terminal usually is, whatever was sent to it.
//!
//! For output that was let through unjudged: what it switched is not known for sure, so all is switched
//! back that xterm's control sequences (ctlseqs, patch 379) can switch and that can be switched back
//! without a trace where it was not. A soft reset (DECSTR) alone is not enough: it leaves the mouse, the
//! other screen and pasting as they are. Sizes, titles, colours and settings of the terminal's own menus
//! are not modes of its output; of modes that a user may like one way or the other only those that were
//! seen to be switched are switched back, by [`crate::terminal_text`].

use std::fmt::Write;

/// Ends what was begun and not ended, without its effect (CAN) or else with it (ST); leaves VT52 mode
/// (`ESC <`), Tektronix mode (`ESC ETX`) and what sends all output to a printer (MC, both kinds). Comes
/// before anything else, because nothing else is understood until then.
pub const FIRST: &str = "\x18\x1b\\\x1b<\x1b\x03\x1b[4i\x1b[?4i";

/// The usual screen again. To leave the other one restores the cursor, also where there is none to
/// leave; so it is saved first (DECSC), each screen having a place of its own for that.
const SCREEN: &str = "\x1b7\x1b[?1049l";

/// The soft reset of ctlseqs, and then what not every terminal makes part of it: margins and origin,
/// which move the cursor, between saving and restoring that; inserting, keyboard lock, automatic
/// newlines and echo (SM, RM); the keypad; character sets; answers in 7-bit controls.
const REST: &str = concat!(
    "\x1b[!p",
    "\x1b7\x1b[?69l\x1b[?6l\x1b[r\x1b8",
    "\x1b[2;4;20l\x1b[12h",
    "\x1b>",
    "\x1b(B\x1b)B\x1b*B\x1b+B\x0f",
    "\x1b F",
);

/// How keys are told: xterm's key modifiers (XTMODKEYS), and kitty's keyboard protocol, which others
/// have, too. The DEC locator (DECELR). Where output goes (DECSASD). The cursor's form (DECSCUSR),
/// protected characters (DECSCA), colours (SGR).
const LAST: &str = concat!(
    "\x1b[>m\x1b[>4m\x1b[=0u\x1b[<99u",
    "\x1b[0'z",
    "\x1b[0$}",
    "\x1b[0 q",
    "\x1b[0\"q",
    "\x1b[0m",
);

/// Private modes that are on in a terminal that nobody has touched: wrapping, repeated keys, the cursor.
const ON: [u16; 3] = [7, 8, 25];

/// Private modes that are off: cursor keys, smooth scrolling, reverse video, X10 mouse, blinking,
/// printing, national characters, keypad, sixel display, no clearing; all of the mouse and focus;
/// readline's and bracketed paste. Behind them those that others than xterm have: synchronized output,
/// news of colours and of sizes, keys as in Windows.
const OFF: [u16; 32] = [
    1, 4, 5, 9, 12, 18, 42, 43, 66, 80, 95, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016,
    1045, 2001, 2002, 2003, 2004, 2005, 2006, 2026, 2031, 2048, 5522, 9001,
];

/// Private modes that [`all`] sees to in another way, and 1048, which is no mode: it saves the cursor.
const OTHERWISE: [u16; 8] = [2, 6, 38, 47, 69, 1047, 1048, 1049];

/// Returns whether [`FIRST`] and [`all`] see to a private mode.
pub fn covers(mode: u16) -> bool {
    ON.contains(&mode) || OFF.contains(&mode) || OTHERWISE.contains(&mode)
}

/// Returns the whole of it but [`FIRST`].
pub fn all() -> String {
    let mut text = format!("{SCREEN}{REST}");
    // One at a time: a terminal may give up at the first that it does not know.
    for (modes, letter) in [(&ON[..], 'h'), (&OFF[..], 'l')] {
        for mode in modes {
            let _ = write!(text, "\x1b[?{mode}{letter}");
        }
    }
    text + LAST
}
