//! Subordinate ids: the ranges of which an ordinary user makes a root file system (subuid(5)).

use std::fs;

/// How many ids a root file system needs in one range: all that 16 bits can name.
pub const COUNT: u64 = 65_536;
/// The files, each with the word for its ids.
pub const FILES: [(&str, &str); 2] = [("user", "/etc/subuid"), ("group", "/etc/subgid")];
/// Where useradd begins (`SUB_UID_MIN` of login.defs(5)).
const FIRST: u64 = 100_000;

/// One line of the files, `owner:first:count`.
fn ranges(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        Some((owner, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Returns whether a file's text gives the user [`COUNT`] ids in one range.
pub fn has_range(text: &str, user: &str, id: u32) -> bool {
    let id = id.to_string();
    ranges(text).any(|(owner, _, count)| (owner == user || owner == id) && count >= COUNT)
}

/// Returns the file that gives this user no range, with the word for its ids; `None` where both do.
pub fn missing_for(user: &str, id: u32) -> Option<(&'static str, &'static str)> {
    FILES.into_iter().find(|(_, file)| {
        let text = fs::read_to_string(file).unwrap_or_default();
        !has_range(&text, user, id)
    })
}

/// Returns the command by which root gives the user a range that nobody has.
pub fn command_for(user: &str) -> String {
    let texts = FILES.map(|(_, file)| fs::read_to_string(file).unwrap_or_default());
    let first = free_from(&texts);
    let last = first.saturating_add(COUNT - 1);
    format!("usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}")
}

/// Returns where no range of the files is any more. Two users with the same ids could act on each
/// other's files.
fn free_from(texts: &[String]) -> u64 {
    let ends = texts.iter().flat_map(|text| ranges(text));
    ends.map(|(_, first, count)| first.saturating_add(count)).fold(FIRST, u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_be_the_users_and_large_enough() {
        assert!(!has_range("", "ann", 1000));
        assert!(!has_range("bob:100000:65536\n", "ann", 1000));
        assert!(!has_range("ann:100000:1000\n", "ann", 1000));
        assert!(!has_range("ann:100000\n", "ann", 1000));
        assert!(!has_range("ann:100000:many\nbroken\n", "ann", 1000));
        assert!(has_range("bob:1:1\nann:100000:65536\n", "ann", 1000));
        assert!(has_range("1000:100000:65536\n", "ann", 1000));
    }

    #[test]
    fn nobody_is_given_what_another_has() {
        let texts = |uids: &str, gids: &str| [uids.to_owned(), gids.to_owned()];
        assert_eq!(free_from(&texts("", "")), 100_000);
        assert_eq!(free_from(&texts("a:1000:10\n", "x\n")), 100_000);
        let taken = texts("a:100000:65536\n", "a:100000:65536\nb:165536:65536\n");
        assert_eq!(free_from(&taken), 231_072);
    }
}
