//! Who commits in a machine, where its repository does not say it.

use banger_agent_api::GuestPath;

use crate::agent::AgentGuest;
use crate::archive::Archive;
use crate::error::WorkspaceError;
use crate::git;
use crate::guest_git::write_setting;

/// Where git looks for a user's own configuration (git-config(1)), below the home.
const PLACES: [&str; 2] = [".gitconfig", ".config/git/config"];

/// The user's name and address as their own configuration of git has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitIdentity {
    name: Option<Vec<u8>>,
    email: Option<Vec<u8>>,
}

impl GitIdentity {
    /// Returns the user's, where there is one.
    pub fn of_user() -> Result<Option<Self>, WorkspaceError> {
        let settings = git::user_settings(r"^user\.(name|email)$")?;
        // The last of several counts.
        let get = |wanted: &str| {
            let found = settings.iter().rev().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        let (name, email) = (get("user.name"), get("user.email"));
        Ok((name.is_some() || email.is_some()).then_some(Self { name, email }))
    }

    /// Writes it for a machine's user, unless that one has a configuration already; returns whether it did.
    pub fn give(&self, guest: &mut AgentGuest, home: &GuestPath) -> Result<bool, WorkspaceError> {
        let operation = "give the machine a .gitconfig";
        let failed = || WorkspaceError::guest(operation);
        let names = PLACES.map(|name| name.as_bytes().to_vec());
        match guest.list_names(home, &names) {
            Ok(there) if there.entries.is_empty() => {}
            Ok(_) => return Ok(false),
            // Whether it has one cannot be asked then; the repository's own says it, too.
            Err(crate::error::GuestError::OldAgent) => return Ok(false),
            Err(error) => return Err(failed()(error)),
        }
        let mut text = b"[user]\n".to_vec();
        self.name.iter().for_each(|value| write_setting(&mut text, "name", value));
        self.email.iter().for_each(|value| write_setting(&mut text, "email", value));
        let mut sink = guest.put(home).map_err(failed())?;
        let mut archive = Archive::new(&mut sink);
        archive.text(PLACES[0].as_ref(), &text)?;
        archive.finish()?;
        sink.finish().map_err(failed())?;
        Ok(true)
    }
}
