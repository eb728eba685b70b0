//! The host's package sources, and which of them are Debian's own archives.
//!
//! Both formats of sources.list(5) are read. Entries of other vendors are left out even where they
//! use Debian's suite names: their packages have no place in an image, and their keys no say in it.

use std::fs;
use std::path::{Path, PathBuf};

/// Debian's keyring; the package debian-archive-keyring brings it.
pub const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// A sources file is a few lines; more is not one.
const LARGEST_FILE: u64 = 1 << 20;
const COMPONENTS: [&str; 4] = ["main", "contrib", "non-free", "non-free-firmware"];

/// What signs a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// A keyring file.
    File(PathBuf),
    /// A key in the sources file itself.
    Key(String),
}

/// One archive and suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub uri: String,
    pub suite: String,
    pub components: Vec<String>,
    pub signed_by: Option<SignedBy>,
    /// `key=value` options other than `signed-by` and `arch`.
    pub options: Vec<String>,
    /// Empty for all.
    architectures: Vec<String>,
}

impl Source {
    /// Makes an entry for a mirror of Debian.
    pub fn mirror(uri: &str, suite: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
            components: vec!["main".to_owned()],
            signed_by: None,
            options: Vec::new(),
            architectures: Vec::new(),
        }
    }

    /// Returns the entry in the one-line format; `keyring` is the file for a key that was inline.
    pub fn line(&self, keyring: Option<&Path>) -> String {
        let mut options = self.options.clone();
        match (&self.signed_by, keyring) {
            (_, Some(path)) => options.push(format!("signed-by={}", path.display())),
            (Some(SignedBy::File(path)), None) => {
                options.push(format!("signed-by={}", path.display()));
            }
            _ => {}
        }
        let options =
            if options.is_empty() { String::new() } else { format!("[{}] ", options.join(" ")) };
        format!("deb {options}{} {} {}", self.uri, self.suite, self.components.join(" "))
    }

    /// Returns whether this is one of Debian's archives of `suite`; `origin` tells what the
    /// archive's signed index says about itself, where apt has it.
    fn is_debian(&self, suite: &str, origin: impl Fn(&Self) -> Option<String>) -> bool {
        let suites = [suite.to_owned(), format!("{suite}-updates"), format!("{suite}-security")];
        let architecture =
            self.architectures.is_empty() || self.architectures.iter().any(|name| name == "amd64");
        if !suites.contains(&self.suite)
            || !architecture
            || self.components.is_empty()
            || !self.components.iter().all(|name| COMPONENTS.contains(&name.as_str()))
        {
            return false;
        }
        if let Some(SignedBy::File(path)) = &self.signed_by
            && path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"debian-archive-"))
        {
            return true;
        }
        match origin(self) {
            Some(origin) => origin == "Debian",
            // Without an index only an entry that looks like Debian's in every way is taken.
            None => self.signed_by.is_none() && host(&self.uri).is_some_and(is_debian_host),
        }
    }

    /// The name of the archive's index in apt's list directory.
    fn list_file(&self) -> Option<String> {
        let (_, rest) = self.uri.split_once("://")?;
        let escaped = rest.trim_end_matches('/').replace('_', "%5f").replace('/', "_");
        Some(format!("{escaped}_dists_{}_InRelease", self.suite))
    }
}

fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit('@').next()?;
    Some(host.split(':').next().unwrap_or(host))
}

fn is_debian_host(host: &str) -> bool {
    host == "debian.org" || host.ends_with(".debian.org")
}

/// Reads the entries of `suite` that are Debian's from the host's sources.
pub fn debian_sources(suite: &str) -> Vec<Source> {
    let origin = |source: &Source| {
        let file = Path::new("/var/lib/apt/lists").join(source.list_file()?);
        let text = read(&file)?;
        // The signature was checked by apt when it stored the file.
        text.lines().find_map(|line| Some(line.strip_prefix("Origin:")?.trim().to_owned()))
    };
    let mut found: Vec<Source> = Vec::new();
    for source in all_sources(Path::new("/etc/apt")) {
        if source.is_debian(suite, origin) && !found.contains(&source) {
            found.push(source);
        }
    }
    found
}

fn read(path: &Path) -> Option<String> {
    if fs::metadata(path).ok()?.len() > LARGEST_FILE {
        return None;
    }
    String::from_utf8(fs::read(path).ok()?).ok()
}

/// Reads `sources.list` and `sources.list.d` below `directory`.
fn all_sources(directory: &Path) -> Vec<Source> {
    let mut files = vec![directory.join("sources.list")];
    if let Ok(entries) = fs::read_dir(directory.join("sources.list.d")) {
        let mut more: Vec<PathBuf> =
            entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let Some(text) = read(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    sources
}

/// Parses `deb [option=value ...] uri suite component ...`.
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix(char::is_whitespace)?.trim_start();
    let mut source = Source::mirror("", "");
    source.components.clear();
    if let Some(inside) = rest.strip_prefix('[') {
        let (options, after) = inside.split_once(']')?;
        rest = after.trim_start();
        for option in options.split_whitespace() {
            let (key, value) = option.split_once('=')?;
            match key {
                "signed-by" => source.signed_by = Some(SignedBy::File(value.into())),
                "arch" => source.architectures = value.split(',').map(str::to_owned).collect(),
                _ => source.options.push(option.to_owned()),
            }
        }
    }
    let mut words = rest.split_whitespace();
    source.uri = words.next()?.to_owned();
    source.suite = words.next()?.to_owned();
    source.components = words.map(str::to_owned).collect();
    Some(source)
}

/// Parses the stanzas of a deb822 file; each may stand for several archives and suites.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.replace("\r\n", "\n").split("\n\n") {
        sources.extend(parse_stanza(stanza));
    }
    sources
}

fn parse_stanza(stanza: &str) -> Vec<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                // A lone dot stands for an empty line.
                value.push_str(if line.trim() == "." { "" } else { line.trim() });
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field =
        |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim());
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let disabled =
        field("enabled").is_some_and(|value| matches!(value, "no" | "false" | "0" | "off"));
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let signed_by = field("signed-by").map(|value| {
        if value.contains("-----BEGIN PGP") {
            SignedBy::Key(format!("{value}\n"))
        } else {
            SignedBy::File(value.split_whitespace().next().unwrap_or(value).into())
        }
    });
    let options: Vec<String> =
        ["trusted", "check-valid-until", "check-date", "allow-insecure", "by-hash"]
            .iter()
            .filter_map(|name| field(name).map(|value| format!("{name}={value}")))
            .collect();
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source {
                uri: uri.clone(),
                suite,
                components: words("components"),
                signed_by: signed_by.clone(),
                options: options.clone(),
                architectures: words("architectures"),
            });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(&Source) -> Option<String> = |_| None;

    fn kept(text: &str, origin: fn(&Source) -> Option<String>) -> Vec<String> {
        parse_stanzas(text)
            .into_iter()
            .chain(text.lines().filter_map(parse_line))
            .filter(|source| source.is_debian("bookworm", origin))
            .map(|source| source.line(None))
            .collect()
    }

    #[test]
    fn malformed_entries_are_left_out() {
        for text in [
            "",
            "deb",
            "deb http://deb.debian.org/debian",
            "deb [signed-by] http://deb.debian.org/debian bookworm main",
            "deb [arch=amd64 http://deb.debian.org/debian bookworm main",
            "debx http://deb.debian.org/debian bookworm main",
            "# deb http://deb.debian.org/debian bookworm main",
            "deb-src http://deb.debian.org/debian bookworm main",
            "Types: deb\nURIs: http://deb.debian.org/debian\n",
            "Enabled: no\nTypes: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\nComponents: main\n",
        ] {
            assert_eq!(kept(text, NONE), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn other_vendors_are_left_out_even_with_debian_suite_names() {
        for text in [
            "deb https://packages.cloud.google.com/apt cloud-sdk-bookworm main",
            "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\nComponents: main\nSigned-By: /usr/share/keyrings/nodesource.gpg\n",
            "deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] https://apt.releases.hashicorp.com bookworm main",
            "deb [arch=amd64] https://download.docker.com/linux/debian bookworm stable",
            "deb https://apt.example.com/debian bookworm main",
            "deb https://deb.debian.org.example.com/debian bookworm main",
        ] {
            assert_eq!(kept(text, NONE), Vec::<String>::new(), "{text}");
        }
        let vendor = |_: &Source| Some("Artifactory".to_owned());
        assert!(kept("deb http://deb.debian.org/debian bookworm main", vendor).is_empty());
    }

    #[test]
    fn other_suites_and_architectures_are_left_out() {
        for text in [
            "deb http://deb.debian.org/debian trixie main",
            "deb http://deb.debian.org/debian bookworm-backports main",
            "deb [arch=arm64] http://deb.debian.org/debian bookworm main",
        ] {
            assert_eq!(kept(text, NONE), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn debian_entries_of_both_formats_are_kept_with_their_options() {
        let text = "\
Types: deb deb-src
# a comment
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

deb [arch=amd64,arm64 check-valid-until=no] http://security.debian.org/debian-security bookworm-security main # mine
";
        let keyring = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
        assert_eq!(
            kept(text, NONE),
            [
                format!("deb [{keyring}] http://deb.debian.org/debian bookworm main contrib"),
                format!("deb [{keyring}] http://deb.debian.org/debian bookworm-updates main contrib"),
                "deb [check-valid-until=no] http://security.debian.org/debian-security bookworm-security main".to_owned(),
            ]
        );
    }

    #[test]
    fn a_company_mirror_is_kept_where_its_signed_index_says_debian() {
        let debian = |_: &Source| Some("Debian".to_owned());
        let line = "deb http://mirror.corp.example/debian bookworm main";
        assert_eq!(kept(line, debian), [line]);
        assert!(kept(line, NONE).is_empty());
    }

    #[test]
    fn the_index_of_an_archive_is_found_as_apt_names_it() {
        let source = Source::mirror("http://deb.debian.org/debian/", "bookworm");
        let file = source.list_file();
        assert_eq!(file.as_deref(), Some("deb.debian.org_debian_dists_bookworm_InRelease"));
    }

    #[test]
    fn a_key_in_the_file_is_kept_as_text() {
        let text = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let sources = parse_stanzas(text);
        assert_eq!(
            sources[0].signed_by,
            Some(SignedBy::Key(
                "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n"
                    .into()
            ))
        );
    }
}
