//! Every environment variable the command line reads, and the directories that follow from them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::error::CliError;

/// Direct or system mode: `direct`, `system` or `auto`.
pub const MODE: &str = "BANGER_MODE";
/// Where the daemon keeps VMs, images and kernels.
pub const STATE_DIR: &str = "BANGER_STATE_DIR";
/// Where the daemon keeps what it can make again.
pub const CACHE_DIR: &str = "BANGER_CACHE_DIR";
/// Where the daemon's socket is.
pub const RUNTIME_DIR: &str = "BANGER_RUNTIME_DIR";
/// The daemon's executable, instead of the one beside `banger`.
pub const BANGERD: &str = "BANGER_BANGERD";
/// How much the daemon logs; passed on to it.
pub const LOG_LEVEL: &str = "BANGER_LOG_LEVEL";
/// Logins of docker: its directory with `config.json`.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Logins of podman and skopeo: a file.
const REGISTRY_AUTH_FILE: &str = "REGISTRY_AUTH_FILE";
/// The proxies of the environment, as curl has them; of `http_proxy` there is only one form,
/// because a server's environment may hold the other for another reason (CVE-2016-5385).
const PROXIES: [[&str; 2]; 4] = [
    ["https_proxy", "HTTPS_PROXY"],
    ["http_proxy", "http_proxy"],
    ["all_proxy", "ALL_PROXY"],
    ["no_proxy", "NO_PROXY"],
];
const NO_COLOR: &str = "NO_COLOR";
const TERM: &str = "TERM";
const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// The user the daemon runs as when root starts it and there is no system user `banger`. It is in
/// the range that systemd's "Users, Groups, UIDs and GIDs" leaves unused (60706 to 61183), and
/// needs no passwd entry.
pub const FALLBACK_UID: u32 = 60907;
/// The system user the daemon runs as when root starts it, where it exists.
pub const SYSTEM_USER: &str = "banger";

/// The daemon's three directories; all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// VMs, images, kernels, the store.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
}

/// Whom the daemon runs as, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectMode {
    /// Its directories.
    pub directories: Directories,
    /// The daemon's uid; never 0.
    pub uid: u32,
    /// The daemon's gid.
    pub gid: u32,
    /// Whether the caller is root, so that the daemon must be dropped to `uid`.
    pub dropped: bool,
}

/// Which `bangerd` a command talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// This user's own, started when it is needed.
    Direct(DirectMode),
    /// The service that `banger system install` wrote; systemd starts and ends it.
    System {
        /// The uid that it runs as.
        owner: u32,
    },
}

/// Where the installed service has its socket, and its state.
pub const SYSTEM_RUNTIME: &str = "/run/banger";
/// The installed service's state directory.
pub const SYSTEM_STATE: &str = "/var/lib/banger";

/// Whether `--direct` was given; said once, when the command line was read.
static DIRECT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();

/// Notes what the command line says about the mode.
pub fn choose_direct(direct: bool) {
    let _ = DIRECT.set(direct);
}

/// Whether `--direct` was given.
pub fn is_direct_chosen() -> bool {
    DIRECT.get().copied().unwrap_or_default()
}

fn user_directories() -> Result<etcetera::base_strategy::Xdg, CliError> {
    etcetera::base_strategy::Xdg::new().map_err(|error| no_home(&error).hint("set HOME"))
}

/// Returns the user's home directory.
pub fn home() -> Result<PathBuf, CliError> {
    etcetera::home_dir().map_err(|error| no_home(&error).hint("set HOME"))
}

fn no_home(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::new("cannot find your home directory").because(error)
}

/// Returns where the user's own SSH key and known hosts are.
pub fn ssh_directory() -> Result<PathBuf, CliError> {
    let state = user_directories()?.state_dir().unwrap_or_default();
    Ok(state.join("banger/ssh"))
}

/// Returns where the user's own configuration of banger is.
pub fn config_directory() -> Result<PathBuf, CliError> {
    Ok(user_directories()?.config_dir().join("banger"))
}

/// Works out which `bangerd` to talk to: the installed one where there is one and the user is its
/// owner or root; the user's own where that is asked for, by option or variable, or a directory of
/// it is named.
pub fn site() -> Result<Site, CliError> {
    let mode = env::var_os(MODE);
    let names_a_directory = [STATE_DIR, CACHE_DIR, RUNTIME_DIR].map(env::var_os);
    let wants_direct = DIRECT.get().copied().unwrap_or_default()
        || mode.as_ref().is_some_and(|mode| mode == "direct");
    let wants_system = mode.as_ref().is_some_and(|mode| mode == "system");
    let names_a_directory = names_a_directory.iter().any(Option::is_some);
    if wants_system && DIRECT.get() == Some(&true) {
        return Err(CliError::usage(format!("--direct and {MODE}=system contradict each other"))
            .hint(format!("leave --direct out, or unset {MODE}")));
    }
    if wants_direct || (names_a_directory && !wants_system) {
        return direct_mode().map(Site::Direct);
    }
    let uid = rustix::process::geteuid().as_raw();
    match crate::install::read()? {
        Some(install) if uid == 0 || uid == install.owner_uid => {
            Ok(Site::System { owner: install.owner_uid })
        }
        Some(install) if wants_system => {
            let owner = &install.owner;
            Err(CliError::usage(format!("{MODE}=system: banger is installed here for {owner}"))
                .hint(format!("unset {MODE}; direct mode needs no installation")))
        }
        _ => direct_mode().map(Site::Direct),
    }
}

/// The word for where a value is from that nobody has set.
pub const DEFAULT: &str = "default";

/// Returns what says which daemon is used, and how: name, value, and where it is from.
pub fn origins() -> Result<Vec<(&'static str, String, String)>, CliError> {
    let from = |variable: &'static str, otherwise: &str| match env::var_os(variable) {
        Some(_) => variable.to_owned(),
        None => otherwise.to_owned(),
    };
    let site = site()?;
    let install = crate::install::PATH;
    let (word, otherwise) = match &site {
        Site::System { .. } => ("system", install),
        Site::Direct(_) => ("direct", DEFAULT),
    };
    let named =
        [STATE_DIR, CACHE_DIR, RUNTIME_DIR].into_iter().find(|name| env::var_os(name).is_some());
    let origin = match (DIRECT.get(), named) {
        (Some(true), _) => "--direct".to_owned(),
        (_, Some(named)) if env::var_os(MODE).is_none() => named.to_owned(),
        _ => from(MODE, otherwise),
    };
    let mut all = vec![("mode", word.to_owned(), origin)];
    if let Site::Direct(DirectMode { directories, .. }) = &site {
        for (key, path, variable) in [
            ("state", &directories.state, STATE_DIR),
            ("cache", &directories.cache, CACHE_DIR),
            ("runtime", &directories.runtime, RUNTIME_DIR),
        ] {
            all.push((key, path.display().to_string(), from(variable, DEFAULT)));
        }
        for (key, variable) in [("bangerd", BANGERD), ("log level", LOG_LEVEL)] {
            let value = env::var_os(variable).unwrap_or_else(|| "auto".into());
            all.push((key, value.display().to_string(), from(variable, DEFAULT)));
        }
    }
    Ok(all)
}

/// Returns whether colours are allowed at all.
pub fn color_allowed() -> bool {
    allows_color(env::var_os(NO_COLOR), env::var_os(TERM))
}

fn allows_color(no_color: Option<OsString>, term: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty()) && term.is_none_or(|value| value != "dumb")
}

/// Returns the terminal type to tell the guest about.
pub fn terminal_type() -> Option<OsString> {
    env::var_os(TERM).filter(|value| !value.is_empty())
}

/// Returns where the command line keeps what is the user's own and not the daemon's.
pub fn user_state() -> Result<PathBuf, CliError> {
    let strategy = user_directories()?;
    Ok(strategy
        .state_dir()
        .unwrap_or_else(|| strategy.home_dir().join(".local/state"))
        .join("banger"))
}

/// Works out where the user's own daemon is and whom it runs as.
pub fn direct_mode() -> Result<DirectMode, CliError> {
    check_mode(env::var_os(MODE))?;
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        let (uid, gid) = dropped_user()?;
        let directories = Directories {
            state: override_or(STATE_DIR, "/var/lib/banger-direct")?,
            cache: override_or(CACHE_DIR, "/var/cache/banger-direct")?,
            runtime: override_or(RUNTIME_DIR, "/run/banger-direct")?,
        };
        return Ok(DirectMode { directories, uid, gid, dropped: true });
    }
    let gid = rustix::process::getegid().as_raw();
    let strategy = etcetera::base_strategy::Xdg::new().map_err(|error| {
        no_home(&error).hint(format!("set HOME, or {STATE_DIR}, {CACHE_DIR} and {RUNTIME_DIR}"))
    });
    let of_home = |pick: fn(&etcetera::base_strategy::Xdg) -> Option<PathBuf>, name| {
        if let Some(path) = env::var_os(name) {
            return absolute(name, path);
        }
        let strategy = strategy.as_ref().map_err(|error| {
            CliError::new(error.message.clone()).hint(format!("set HOME or {name}"))
        })?;
        Ok(pick(strategy).unwrap_or_default().join("banger"))
    };
    let runtime = match (env::var_os(RUNTIME_DIR), env::var_os(XDG_RUNTIME_DIR)) {
        (Some(path), _) => absolute(RUNTIME_DIR, path)?,
        (None, Some(path)) if Path::new(&path).is_absolute() => PathBuf::from(path).join("banger"),
        _ => PathBuf::from(format!("/tmp/banger-runtime-{}", uid.as_raw())),
    };
    let directories = Directories {
        state: of_home(|xdg| xdg.state_dir(), STATE_DIR)?,
        cache: of_home(|xdg| Some(xdg.cache_dir()), CACHE_DIR)?,
        runtime,
    };
    Ok(DirectMode { directories, uid: uid.as_raw(), gid, dropped: false })
}

fn check_mode(mode: Option<OsString>) -> Result<(), CliError> {
    match mode.as_ref().map(|mode| mode.to_str()) {
        None | Some(Some("" | "direct" | "auto")) => Ok(()),
        Some(Some("system")) => Err(CliError::usage(format!(
            "{MODE}=system: banger is not installed here"
        ))
        .hint(format!(
            "sudo banger system install, or unset {MODE}: direct mode needs no \
                               installation"
        ))),
        Some(_) => Err(CliError::usage(format!("{MODE} is none of direct, system and auto"))
            .hint(format!("unset {MODE}, which is the same as auto"))),
    }
}

fn override_or(name: &'static str, default: &str) -> Result<PathBuf, CliError> {
    env::var_os(name).map_or_else(|| Ok(PathBuf::from(default)), |path| absolute(name, path))
}

fn absolute(name: &'static str, path: OsString) -> Result<PathBuf, CliError> {
    let path = PathBuf::from(path);
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path);
    }
    Err(CliError::usage(format!("{name} must be an absolute path, not {}", path.display()))
        .hint(format!("unset {name}, or write it from the root on: {name}=/...")))
}

fn dropped_user() -> Result<(u32, u32), CliError> {
    match nix::unistd::User::from_name(SYSTEM_USER) {
        Ok(Some(user)) if user.uid.is_root() => {
            Err(CliError::new(format!("the system user {SYSTEM_USER} has uid 0"))
                .hint("give it a uid of its own; bangerd never runs as root"))
        }
        Ok(Some(user)) => Ok((user.uid.as_raw(), user.gid.as_raw())),
        Ok(None) => Ok((FALLBACK_UID, FALLBACK_UID)),
        Err(error) => Err(CliError::new(format!("cannot look up the system user {SYSTEM_USER}"))
            .because(&error)
            .hint(format!("getent passwd {SYSTEM_USER}"))),
    }
}

/// Returns the proxies for HTTPS, for plain HTTP and for both, and what needs none.
pub fn proxies() -> [Option<String>; 4] {
    PROXIES.map(|names| {
        let mut values = names.into_iter().filter_map(|name| env::var_os(name)?.into_string().ok());
        values.find(|value| !value.is_empty())
    })
}

/// Returns the files that may hold the user's logins at registries, in order.
pub fn registry_logins() -> Vec<PathBuf> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("HOME").unwrap_or_else(|| PathBuf::from("/"));
    crate::registry::login_files(
        path(DOCKER_CONFIG),
        path(REGISTRY_AUTH_FILE),
        path(XDG_RUNTIME_DIR),
        &home,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_no_color_and_dumb_terminals() {
        assert!(allows_color(None, None));
        assert!(allows_color(Some("".into()), Some("xterm".into())));
        assert!(!allows_color(Some("1".into()), Some("xterm".into())));
        assert!(!allows_color(None, Some("dumb".into())));
    }

    #[test]
    fn relative_directories_are_refused() {
        for bad in ["", "relative", "./x", "/"] {
            assert!(absolute(STATE_DIR, bad.into()).is_err(), "{bad:?}");
        }
        assert!(absolute(STATE_DIR, "/tmp/x".into()).is_ok());
    }

    #[test]
    fn unknown_modes_are_refused() {
        assert!(check_mode(None).is_ok());
        assert!(check_mode(Some("direct".into())).is_ok());
        assert!(check_mode(Some("sideways".into())).is_err());
        assert!(check_mode(Some("system".into())).is_err());
    }
}
