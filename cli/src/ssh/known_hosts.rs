//! The keys of machines, in the form of OpenSSH's `known_hosts` (sshd(8)): a line a name, whose
//! comment says which machine that was.

use std::io;

use banger_agent_api::PublicKey;
use banger_types::VmId;

use super::{Store, replace};
use crate::error::CliError;

/// Begins the comment of banger's lines.
const COMMENT: &str = "banger:";

/// What a machine's key means for what is written down.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It is written down as it is.
    Same,
    /// The name is new, or was another machine's: the new text.
    New(String),
    /// The same machine had another key.
    Changed,
}

impl Store {
    /// Writes down that the machine `vm`, called `host`, has this key. A key that has changed is
    /// refused, unless it is to be accepted.
    pub fn know(
        &self,
        host: &str,
        (vm, key): (&VmId, &PublicKey),
        accept: bool,
    ) -> Result<(), CliError> {
        let path = self.known_hosts_path();
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot write the machine's key to {}", path.display()))
                .because(error)
        };
        let _lock = self.lock()?;
        let text = self.known_hosts().map_err(|error| failed(&error))?;
        match look(&text, host, (vm, key), accept) {
            Found::Same => Ok(()),
            Found::New(text) => {
                replace(&path, text.as_bytes(), 0o600).map_err(|error| failed(&error))
            }
            Found::Changed => Err(CliError::new(format!(
                "THE HOST KEY OF {host} HAS CHANGED: it is not the key that this machine had before"
            ))
            .because(&io::Error::other(
                "something in the machine has replaced /var/lib/banger/ssh, or the key in it",
            ))
            .hint(format!(
                "banger vm ssh --new-host-key {} accepts the new key, if you know why it changed",
                super::strip_domain(host)
            ))),
        }
    }
}

impl Store {
    fn known_hosts(&self) -> io::Result<String> {
        match std::fs::read_to_string(self.known_hosts_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }

    /// Edits what is written down, where there is anything.
    fn edit(&self, edit: impl FnOnce(&str) -> String) -> Result<(), CliError> {
        let path = self.known_hosts_path();
        let change = || {
            let text = self.known_hosts()?;
            let new = edit(&text);
            if new == text { Ok(()) } else { replace(&path, new.as_bytes(), 0o600) }
        };
        let _lock = self.lock()?;
        change().map_err(|error| {
            CliError::new(format!("cannot change {}", path.display())).because(&error)
        })
    }

    /// Takes out the keys of machines that are gone.
    pub fn forget(&self, vms: &[VmId]) -> Result<(), CliError> {
        self.edit(|text| without(text, vms))
    }

    /// Writes a machine's key to its new name, in place of what was known of that.
    pub fn rename(&self, vm: &VmId, host: &str) -> Result<(), CliError> {
        self.edit(|text| with_name(text, vm, host))
    }
}

/// Returns whose key a line has.
fn machine_of(line: &str) -> Option<&str> {
    line.rsplit(' ').next().and_then(|comment| comment.strip_prefix(COMMENT))
}

fn without(text: &str, vms: &[VmId]) -> String {
    let is_gone = |line: &&str| vms.iter().any(|vm| machine_of(line) == Some(vm.as_str()));
    text.split_inclusive('\n').filter(|line| !is_gone(&line.trim_end_matches('\n'))).collect()
}

fn with_name(text: &str, vm: &VmId, host: &str) -> String {
    let is_its = |line: &&str| machine_of(line) == Some(vm.as_str());
    // The newest is the last; it has been called otherwise before.
    let Some(line) = text.lines().rfind(is_its) else { return text.to_owned() };
    let Some((_, key)) = line.split_once(' ') else { return text.to_owned() };
    let is_of_host = |line: &&str| line.split(' ').next() == Some(host);
    let others = text.lines().filter(|line| !is_its(line) && !is_of_host(line));
    let mut new: String = others.map(|line| format!("{line}\n")).collect();
    new.push_str(&format!("{host} {key}\n"));
    new
}

/// Compares a key with what `text` says of `host`.
fn look(text: &str, host: &str, (vm, key): (&VmId, &PublicKey), accept: bool) -> Found {
    let line = format!("{host} {key} {COMMENT}{vm}");
    let is_of_host = |line: &&str| line.split(' ').next() == Some(host);
    let mut of_host = text.lines().filter(is_of_host);
    match (of_host.next(), of_host.next()) {
        (Some(one), None) if one == line => return Found::Same,
        (Some(one), _)
            if !accept
                && machine_of(one) == Some(vm.as_str())
                && !one.starts_with(&format!("{host} {key} ")) =>
        {
            return Found::Changed;
        }
        _ => {}
    }
    let mut new: String =
        text.lines().filter(|line| !is_of_host(line)).map(|line| format!("{line}\n")).collect();
    new.push_str(&line);
    new.push('\n');
    Found::New(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_key_is_loud_and_another_machine_of_the_same_name_is_not() {
        let id = |digit: &str| -> VmId { digit.repeat(32).parse().unwrap() };
        let (one, two) = (id("1"), id("2"));
        let key =
            |letter: &str| -> PublicKey { format!("ssh-ed25519 AAAA{letter}").parse().unwrap() };
        let (a, b) = (key("a"), key("b"));
        let Found::New(text) = look("", "box.vm", (&one, &a), false) else { panic!("new") };
        assert_eq!(text, format!("box.vm ssh-ed25519 AAAAa banger:{one}\n"));
        assert_eq!(look(&text, "box.vm", (&one, &a), false), Found::Same);
        assert_eq!(look(&text, "box.vm", (&one, &b), false), Found::Changed);
        let accepted = format!("box.vm ssh-ed25519 AAAAb banger:{one}\n");
        assert_eq!(look(&text, "box.vm", (&one, &b), true), Found::New(accepted));
        // Its name went to another machine; others keep their lines.
        let both = format!("{text}boxer.vm x\n");
        let other = format!("boxer.vm x\nbox.vm ssh-ed25519 AAAAb banger:{two}\n");
        assert_eq!(look(&both, "box.vm", (&two, &b), false), Found::New(other));
    }

    #[test]
    fn a_machine_that_is_renamed_or_gone_takes_its_key_along() {
        let id = |digit: &str| -> VmId { digit.repeat(32).parse().unwrap() };
        let (one, two) = (id("1"), id("2"));
        let text = format!("a.vm k1 banger:{one}\nb.vm k2 banger:{two}\nc.vm own line\n");
        let renamed = with_name(&text, &one, "b.vm");
        assert_eq!(renamed, format!("c.vm own line\nb.vm k1 banger:{one}\n"));
        assert_eq!(with_name(&text, &id("3"), "a.vm"), text, "one without a key");
        let kept = format!("b.vm k2 banger:{two}\nc.vm own line\n");
        assert_eq!(without(&text, std::slice::from_ref(&one)), kept);
        assert_eq!(without(&text, &[]), text);
        assert_eq!(without(&text, &[one, two]), "c.vm own line\n");
    }

    #[test]
    fn what_is_written_down_stays_so() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::at(place.path().to_owned()).unwrap();
        let vm: VmId = "1".repeat(32).parse().unwrap();
        let key =
            |letter: &str| -> PublicKey { format!("ssh-ed25519 AAAA{letter}").parse().unwrap() };
        store.know("box.vm", (&vm, &key("a")), false).unwrap();
        let error = store.know("box.vm", (&vm, &key("b")), false).unwrap_err();
        assert!(error.message.contains("HAS CHANGED"));
        assert!(error.hints[0].contains("--new-host-key box "));
        let read = || std::fs::read_to_string(store.known_hosts_path()).unwrap();
        assert!(read().contains("AAAAa"));
        store.know("box.vm", (&vm, &key("b")), true).unwrap();
        assert!(!read().contains("AAAAa"));
    }
}
