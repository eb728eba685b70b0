//! What README.md shows is what happens: its `console` blocks are run, one after the other, on a guest
//! of the default image, and what they print is compared line by line.
//!
//! Not compared is, word by word, only what differs from one run or machine to the next:
//!
//! | what | is read as |
//! |---|---|
//! | a boot id | `BOOT-1`, `BOOT-2`: the first, the second that is met, so that equal ones stay equal |
//! | a machine's id, an address, the path of `sample` | `ID`, `ADDRESS`, `SAMPLE` |
//! | an age, a duration | `AGE`, `DURATION` |
//! | a size, and how many CPUs: they follow from the host's | `SIZE`, `COUNT` |
//! | the version and date of Debian's kernel | its name with `0` for each number |
//! | the width of columns | one space |
//!
//! A line of progress (`VM demo: starting the VMM`) is printed for what takes a while only, and is left out
//! on both sides.
//!
//! Standard output and error may alternate differently: each must come in its order.

use banger_harness::{Contents, Environment, repository};

/// A command of the page and what it is said to print.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    command: String,
    printed: Vec<String>,
}

/// Returns the commands of all `console` blocks of a page.
///
/// # Panics
/// A prompt stands outside of such a block, or something else than a prompt begins one.
fn examples(page: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut block: Option<&str> = None;
    let mut is_first = false;
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
            is_first = true;
            continue;
        }
        let prompt = line.strip_prefix("$ ");
        if block != Some("console") {
            assert!(block.is_none() || prompt.is_none(), "not run, because no console: {line}");
            continue;
        }
        match (prompt, found.last_mut()) {
            (Some(command), _) => {
                found.push(Example { command: command.to_owned(), printed: Vec::new() });
            }
            (None, Some(example)) if !is_first => example.printed.push(line.to_owned()),
            _ => panic!("a block begins with no command: {line}"),
        }
        is_first = false;
    }
    for example in &mut found {
        // The line before the next prompt.
        while example.printed.last().is_some_and(String::is_empty) {
            example.printed.pop();
        }
    }
    found
}

/// Reads lines as the table above says.
#[derive(Debug, Default)]
struct Reader {
    boot_ids: Vec<String>,
}

impl Reader {
    fn line(&mut self, line: &str) -> String {
        // Said on a host with little room only.
        let line = line
            .split_once(" root (the host has room")
            .map_or(line, |(line, _)| line.rsplit_once(" | ").map_or(line, |(line, _)| line));
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut read: Vec<String> = Vec::new();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            at += 1;
            let after = |offset: usize| words.get(at + offset - 1).copied().unwrap_or_default();
            let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
            let is_age = after(2) == "ago";
            let behind_address = read.last().is_some_and(|word| word == "ADDRESS");
            if is_number && is_age {
                read.push("AGE".to_owned());
                at += 2;
            } else if is_number && after(1) == "MiB" {
                read.push("SIZE".to_owned());
                at += 1;
            } else if is_number && (after(1) == "vcpu" || behind_address) {
                read.push("COUNT".to_owned());
            } else {
                read.push(self.word(word));
            }
        }
        read.join(" ")
    }

    fn word(&mut self, word: &str) -> String {
        let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parts: Vec<&str> = word.split('-').collect();
        if parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && hexadecimal(&parts.concat())
        {
            let known = self.boot_ids.iter().position(|known| known == word);
            let number = known.unwrap_or_else(|| {
                self.boot_ids.push(word.to_owned());
                self.boot_ids.len() - 1
            });
            return format!("BOOT-{}", number + 1);
        }
        if word.len() == 12 && hexadecimal(word) {
            return "ID".to_owned();
        }
        if word.parse::<std::net::Ipv4Addr>().is_ok() {
            return "ADDRESS".to_owned();
        }
        if word.starts_with('/') && word.ends_with("/sample") {
            return "SAMPLE".to_owned();
        }
        let numeric = |text: &str| text.parse::<f64>().is_ok_and(|number| number >= 0.0);
        if word.strip_suffix('s').is_some_and(|number| number.contains('.') && numeric(number)) {
            return "DURATION".to_owned();
        }
        if word.strip_suffix(['K', 'M', 'G', 'T']).is_some_and(numeric) {
            return "SIZE".to_owned();
        }
        let is_date = word.len() == 12 && word.starts_with("(20") && word.ends_with(')');
        if word.contains("+deb") || word.contains("~deb") || is_date {
            return zeros(word);
        }
        word.to_owned()
    }
}

/// Returns a word with one `0` in the place of each number.
fn zeros(word: &str) -> String {
    let mut read = String::new();
    for letter in word.chars() {
        match letter {
            '0'..='9' if read.ends_with('0') => {}
            '0'..='9' => read.push('0'),
            _ => read.push(letter),
        }
    }
    read
}

/// Returns whether a line says what a machine is about to do.
fn is_progress(line: &str) -> bool {
    line.strip_prefix("VM ").and_then(|line| line.split_once(": ")).is_some_and(|(name, _)| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Returns whether `whole` is the lines of both others, each in their order.
fn alternate(whole: &[String], one: &[String], other: &[String]) -> bool {
    let Some((first, rest)) = whole.split_first() else {
        return one.is_empty() && other.is_empty();
    };
    let takes = |from: &[String]| from.first() == Some(first);
    (takes(one) && alternate(rest, &one[1..], other))
        || (takes(other) && alternate(rest, one, &other[1..]))
}

#[test]
fn what_the_readme_shows_is_what_happens() {
    let page = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let examples = examples(&page);
    assert!(examples.iter().filter(|example| !example.printed.is_empty()).count() >= 5);
    let environment = Environment::new(Contents::Debian);
    let sample = environment.home().join("sample");
    environment.host(
        "cp",
        &["-r", repository().join("examples/sample").to_str().unwrap(), sample.to_str().unwrap()],
    );
    for words in [&["init", "-q"][..], &["add", "-A"]] {
        environment.host("git", &[&["-C", sample.to_str().unwrap()][..], words].concat());
    }
    let (mut shown, mut real) = (Reader::default(), Reader::default());
    for example in examples {
        let words: Vec<&str> = example.command.split_whitespace().collect();
        let quoted = example.command.contains(['\'', '"', '|', '>', '<', '$', '&', ';']);
        assert!(!quoted, "no shell runs this here: {}", example.command);
        let ran = match words.split_first() {
            Some((&"banger", words)) => environment.banger(words).run(),
            Some((program, words)) => environment.host(program, words),
            None => panic!("an empty command"),
        };
        let mut read = |text: String| {
            text.lines().filter(|line| !is_progress(line)).map(|line| real.line(line)).collect()
        };
        let (out, err): (Vec<String>, Vec<String>) = (read(ran.out()), read(ran.err()));
        let said = example.printed.iter().filter(|line| !is_progress(line));
        let said: Vec<String> = said.map(|line| shown.line(line)).collect();
        assert!(
            alternate(&said, &out, &err),
            "$ {}\nREADME.md shows:\n{}\nit prints:\n{}\nand as errors:\n{}",
            example.command,
            said.join("\n"),
            out.join("\n"),
            err.join("\n")
        );
    }
    environment.finish();
}

/// The comparison itself: what differs by chance is not seen, and everything else is.
#[test]
fn only_what_differs_by_chance_is_not_compared() {
    let read = |line: &str| Reader::default().line(line);
    for (one, other) in [
        ("spec: 2 vcpu | 2816 MiB | 8G disk", "spec: 4 vcpu | 512 MiB | 4G disk"),
        (
            "spec: 2 vcpu | 2816 MiB | 8G disk",
            "spec: 1 vcpu | 512 MiB | 960M disk | 960M root (the host has room for 2.0G of disks)",
        ),
        (
            "56a26e8766a8  demo  running  10.0.2.15  2  2816M  8G  /tmp/a/sample  25 seconds ago",
            "aaaa6e8766a8  demo  running  172.16.0.2 1  1G  64M  /x/sample  1 minute ago",
        ),
        ("Linux demo 6.12.117+deb12-cloud-amd64", "Linux demo 6.12.9+deb12-cloud-amd64"),
        ("6.12.117-1~deb12u1 (2026-11-14) x86_64", "6.12.120-2~deb12u3 (2027-01-02) x86_64"),
        ("Ran 2 tests in 0.015s", "Ran 2 tests in 1.2s"),
    ] {
        assert_eq!(read(one), read(other));
    }
    for (one, other) in [
        ("Ran 2 tests in 0.015s", "Ran 3 tests in 0.015s"),
        ("spec: 2 vcpu | 8G disk", "spec: 2 vcpus | 8G disk"),
        ("demo running", "demo stopped"),
        ("6.12.117+deb12-cloud-amd64", "6.12.117+deb12-amd64"),
        ("x", ""),
    ] {
        assert_ne!(read(one), read(other));
    }
    let (id, other) =
        ("1b578a3b-e9cf-487e-a846-b05bc095fb20", "c2313862-fc2c-418b-bec2-6cf2e3aca932");
    let mut reader = Reader::default();
    assert_eq!([id, other, id].map(|word| reader.line(word)), ["BOOT-1", "BOOT-2", "BOOT-1"]);
    assert!(is_progress("VM demo: waiting for the guest") && !is_progress("VM demo is not there"));
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(alternate(&lines("a b c d"), &lines("a d"), &lines("b c")));
    assert!(!alternate(&lines("a b c d"), &lines("d a"), &lines("b c")));
    assert!(!alternate(&lines("a b"), &lines("a b"), &lines("c")));
    let page = "```\nbanger x\n```\n```console\n$ one\n1\n\n$ two\n```\n";
    let example = |command: &str, printed: &[&str]| Example {
        command: command.to_owned(),
        printed: printed.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(examples(page), [example("one", &["1"]), example("two", &[])]);
}
