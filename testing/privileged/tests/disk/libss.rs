//! A path inside an image is one word to debugfs: the parser of libss (e2fsprogs 1.47,
//! lib/ss/parse.c, `ss_parse`; lib/ss/execute_cmd.c, `ss_execute_line`; debugfs/debugfs.c,
//! `source_file`), modelled, and every path that the gate lets through.

use banger_gates::GuestPath;
use proptest::prelude::*;

/// What becomes of a file of commands: the words of each line that is executed. None for a line
/// that goes to a shell, or has a quote that does not end.
fn lines(script: &[u8]) -> Vec<Option<Vec<Vec<u8>>>> {
    let mut executed = Vec::new();
    // fgets takes BUFSIZ - 1 bytes or a line.
    for line in script.split_inclusive(|byte| *byte == b'\n') {
        for line in line.chunks(8191) {
            if line[0] == b'#' {
                continue;
            }
            let end = line.iter().position(|byte| b"\n\r\0".contains(byte)).unwrap_or(line.len());
            executed.push(words(&line[..end]));
        }
    }
    executed
}

fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    enum Mode {
        Whitespace,
        Token,
        Quoted,
    }
    let start = line.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(line.len());
    let line = &line[start..];
    if line.first() == Some(&b'!') {
        return None;
    }
    let mut mode = Mode::Whitespace;
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut at = 0;
    loop {
        let byte = line.get(at).copied();
        match mode {
            Mode::Whitespace => match byte {
                None => return Some(words),
                Some(b' ' | b'\t') => at += 1,
                Some(b'"') => {
                    mode = Mode::Quoted;
                    at += 1;
                    words.push(Vec::new());
                }
                Some(_) => {
                    mode = Mode::Token;
                    words.push(Vec::new());
                }
            },
            Mode::Token => match byte {
                None => return Some(words),
                Some(b' ' | b'\t') => {
                    mode = Mode::Whitespace;
                    at += 1;
                }
                Some(b'"') => {
                    mode = Mode::Quoted;
                    at += 1;
                }
                Some(byte) => {
                    words.last_mut()?.push(byte);
                    at += 1;
                }
            },
            Mode::Quoted => match byte {
                None => return None,
                Some(b'"') if line.get(at + 1) == Some(&b'"') => {
                    words.last_mut()?.push(b'"');
                    at += 2;
                }
                Some(b'"') => {
                    mode = Mode::Token;
                    at += 1;
                }
                Some(byte) => {
                    words.last_mut()?.push(byte);
                    at += 1;
                }
            },
        }
    }
}

/// The commands that the helper writes, with a path in each place.
fn assert_harmless(path: &str) {
    let staged = format!("{}/.banger-0123456789abcdef", path.rsplit_once('/').unwrap().0);
    let commands: [Vec<&str>; 5] = [
        vec!["inode_dump", path],
        vec!["write", "content", path],
        vec!["set_inode_field", path, "mode", "0100644"],
        vec!["ln", &staged, path],
        vec!["cat", path],
    ];
    let mut script = String::new();
    for command in &commands {
        let words = command.iter().map(|word| {
            if word.starts_with('/') { format!("\"{word}\"") } else { (*word).to_owned() }
        });
        script += &(words.collect::<Vec<_>>().join(" ") + "\n");
    }
    let expected: Vec<Option<Vec<Vec<u8>>>> = commands
        .iter()
        .map(|words| Some(words.iter().map(|word| word.as_bytes().to_vec()).collect()))
        .collect();
    assert_eq!(lines(script.as_bytes()), expected, "{path:?}");
    // `<12>` would be an inode, `-x` an option.
    assert!(path.starts_with('/'));
}

#[test]
fn the_model_knows_what_would_harm() {
    let line = |text: &str| lines(text.as_bytes());
    let words = |words: &[&str]| {
        Some(words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
    };
    assert_eq!(line("cat /a b\n"), [words(&["cat", "/a", "b"])]);
    assert_eq!(line("cat \"/a\nrm /b\n"), [None, words(&["rm", "/b"])]);
    assert_eq!(line("cat \"/a\"\"b\"\n"), [words(&["cat", "/a\"b"])]);
    assert_eq!(line("cat \"/a\rrm\"\n"), [None]);
    assert_eq!(line("!true\n#x\n"), [None]);
    assert_eq!(line("cat \"/a\\\"\n"), [words(&["cat", "/a\\"])]);
}

#[test]
fn the_longest_path_fits_a_line_in_both_places() {
    let path = format!("/{}", "p/".repeat(511)) + "q";
    assert_eq!(path.len(), 1024);
    assert_harmless(GuestPath::parse("guest_path", &path).unwrap().as_str());
    assert!(GuestPath::parse("guest_path", &(path + "q")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_gate_accepts_is_one_word(path in "/(\\PC|[ \"'\\\\<>#;!$`|&*?~\n\r\t\0-]|[a-z./]){0,80}") {
        if let Ok(path) = GuestPath::parse("guest_path", &path) {
            assert_harmless(path.as_str());
        }
    }
}
