//! Users and groups from the guest's own /etc/passwd and /etc/group.
//!
//! A static program has no name service switch; a user that only a directory service knows must be
//! given by number.

use std::path::PathBuf;

use banger_agent_api::{AgentError, ErrorCode, UserSpec};
use banger_guest_sys::Identity;

/// Someone to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub name: String,
    pub home: PathBuf,
    pub shell: String,
    pub identity: Identity,
}

/// Looks the user of an exec up; root where none is named.
pub(super) fn look_up(spec: Option<&UserSpec>) -> Result<User, AgentError> {
    look_up_with(spec, None)
}

/// Looks the user of the main process up. A number without an entry has group 0 there, on which
/// images for any user rely (OCI image specification, `config.User`, as container engines read it).
pub(super) fn look_up_for_image(spec: Option<&UserSpec>) -> Result<User, AgentError> {
    look_up_with(spec, Some(0))
}

fn look_up_with(spec: Option<&UserSpec>, stranger: Option<u32>) -> Result<User, AgentError> {
    // Files of an image may be anything; these are read with a cap, as bytes.
    let read = |path: &str| {
        use std::io::Read;
        let mut bytes = Vec::new();
        if let Ok(file) = std::fs::File::open(path) {
            let _ = file.take(1024 * 1024).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let passwd = read("/etc/passwd");
    match spec {
        None => Ok(root(&passwd)),
        Some(spec) => resolve(spec, &passwd, &read("/etc/group"), stranger),
    }
}

/// Root exists even in an image without any passwd file.
fn root(passwd: &str) -> User {
    let entry = passwd_entries(passwd).find(|entry| entry.uid == 0);
    User {
        name: "root".to_owned(),
        home: entry.as_ref().map_or("/root", |entry| entry.home).into(),
        shell: entry.as_ref().map_or("/bin/sh", |entry| entry.shell).to_owned(),
        identity: Identity { uid: 0, gid: 0, groups: Vec::new() },
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        Some(PasswdEntry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: if home.starts_with('/') { home } else { "/" },
            shell: if shell.is_empty() { "/bin/sh" } else { shell },
        })
    })
}

/// Name, number and members of each group.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid, members) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next().unwrap_or(""));
        Some((name, gid.parse().ok()?, members))
    })
}

/// `stranger` is the group of a number without an entry, instead of one of the same number.
fn resolve(
    spec: &UserSpec,
    passwd: &str,
    group: &str,
    stranger: Option<u32>,
) -> Result<User, AgentError> {
    let missing = |kind: &str, name: &str| {
        AgentError::new(ErrorCode::NoSuchUser, format!("the guest has no {kind} {name}"))
    };
    let number: Option<u32> = spec.user().parse().ok();
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == spec.user())
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let (name, uid, own_gid, home, shell) = match (&entry, number) {
        (Some(entry), _) => (entry.name, entry.uid, entry.gid, entry.home, entry.shell),
        // As containers do: a bare number needs no entry.
        (None, Some(uid)) => (spec.user(), uid, stranger.unwrap_or(uid), "/", "/bin/sh"),
        (None, None) => return Err(missing("user", spec.user())),
    };
    let (gid, groups) = match spec.group() {
        Some(wanted) => {
            let found = group_entries(group).find(|(name, ..)| *name == wanted).map(|g| g.1);
            let gid = found.or_else(|| wanted.parse().ok());
            (gid.ok_or_else(|| missing("group", wanted))?, Vec::new())
        }
        None => {
            let member = group_entries(group)
                .filter(|(.., members)| members.split(',').any(|member| member == name))
                .map(|(_, gid, _)| gid);
            (own_gid, std::iter::once(own_gid).chain(member).take(1024).collect())
        }
    };
    Ok(User {
        name: name.to_owned(),
        home: home.into(),
        shell: shell.to_owned(),
        identity: Identity { uid, gid, groups },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken\ndev:x:1000:1000:,,,:/home/dev:\nbad:x:abc:1:::\n";
    const GROUP: &str = "root:x:0:\ndev:x:1000:\nadm:x:4:dev,other\nsudo:x:27:other\n";

    fn find(spec: &str) -> Result<User, ErrorCode> {
        resolve(&spec.parse().unwrap(), PASSWD, GROUP, None).map_err(|error| error.code)
    }

    #[test]
    fn unknown_users_and_groups_are_refused() {
        for spec in ["nobody", "bad", "dev:wheel", "root:-1"] {
            assert_eq!(find(spec).unwrap_err(), ErrorCode::NoSuchUser, "{spec}");
        }
    }

    #[test]
    fn users_by_name_and_number() {
        let user = find("dev").unwrap();
        assert_eq!(user.identity, Identity { uid: 1000, gid: 1000, groups: vec![1000, 4] });
        assert_eq!((user.home.to_str().unwrap(), &*user.shell), ("/home/dev", "/bin/sh"));
        assert_eq!(find("1000").unwrap(), user);
        assert_eq!(find("4242").unwrap().identity.uid, 4242);
        assert_eq!(
            find("dev:adm").unwrap().identity,
            Identity { uid: 1000, gid: 4, groups: vec![] }
        );
        assert_eq!(find("dev:77").unwrap().identity.gid, 77);
    }

    #[test]
    fn a_stranger_of_an_image_has_group_0() {
        let find = |spec: &str, passwd: &str| {
            resolve(&spec.parse().unwrap(), passwd, GROUP, Some(0)).unwrap().identity
        };
        assert_eq!(find("4242", ""), Identity { uid: 4242, gid: 0, groups: vec![0] });
        assert_eq!(find("4242:77", ""), Identity { uid: 4242, gid: 77, groups: vec![] });
        assert_eq!(find("1000", PASSWD).gid, 1000);
    }

    #[test]
    fn root_needs_no_passwd() {
        assert_eq!(root("").home.to_str(), Some("/root"));
        assert_eq!(root(PASSWD).shell, "/bin/bash");
    }
}
