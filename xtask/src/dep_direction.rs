//! The trust boundary as a rule over `cargo metadata`.
//!
//! A crate's zone is the first folder of its path. An edge between zones goes
//! through `wire/`; see docs/architecture.md for the reasons. `violations` is
//! pure, so every rule is shown to fail on a graph that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::say;

/// Crates that code acting as root never contains, however far down.
const BANNED_IN_PRIVILEGED: [&str; 5] = ["tokio", "hyper", "axum", "rusqlite", "rustls"];

/// What one workspace crate depends on.
#[derive(Debug, Default, Clone)]
pub(crate) struct Crate {
    /// Folder of the crate, relative to the workspace root: `owner/store`.
    folder: String,
    /// Folders of the workspace crates it is linked with.
    links: BTreeSet<String>,
    /// Folders of the workspace crates only its tests use.
    tests_use: BTreeSet<String>,
    /// Names of all registry crates it is linked with, directly or not.
    contains: BTreeSet<String>,
}

/// An edge that the layout forbids.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    from: String,
    to: String,
    rule: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} -> {}: {}", self.from, self.to, self.rule)
    }
}

fn zone(folder: &str) -> &str {
    folder.split('/').next().unwrap_or_default()
}

/// The zones that a zone may be linked with, or why the zone itself is wrong.
fn allowed_zones(from: &str) -> Result<(&'static [&'static str], &'static str), &'static str> {
    match from {
        "privileged" => {
            Ok((&["privileged", "wire"], "privileged/ stands on privileged/ and wire/"))
        }
        "owner" => Ok((&["owner", "wire"], "owner/ stands on owner/ and wire/")),
        "guest" => Ok((&["guest", "wire"], "guest/ stands on guest/ and wire/")),
        "cli" => Ok((&["cli", "wire"], "cli/ stands on cli/ and wire/")),
        "wire" => Ok((&["wire"], "wire/ stands on wire/ only")),
        "testing" | "xtask" => Ok((
            &["privileged", "owner", "guest", "cli", "wire", "testing", "xtask"],
            "testing/ and xtask/ may use anything",
        )),
        _ => Err("every crate lies in a zone: privileged, owner, guest, cli, wire, testing, xtask"),
    }
}

/// Why a link inside a zone, or into one, is forbidden for this very crate.
fn special_rule(from: &str, to: &str) -> Option<&'static str> {
    let outside_product = matches!(zone(from), "testing" | "xtask");
    match to {
        "owner/daemon" if !outside_product => {
            Some("nothing depends on the daemon: it wires the others")
        }
        "owner/store" if !outside_product && !matches!(from, "owner/daemon" | "owner/engine") => {
            Some("only owner/engine and owner/daemon use the store")
        }
        "owner/vmm" | "owner/image" if from == "owner/engine" => {
            Some("the engine sees the host through its own traits")
        }
        _ => None,
    }
}

/// Every forbidden edge, sorted.
pub(crate) fn violations(crates: &[Crate]) -> Vec<Violation> {
    let mut found = BTreeSet::new();
    for one in crates {
        let mut report = |to: &str, rule| {
            found.insert(Violation { from: one.folder.clone(), to: to.to_owned(), rule });
        };
        let (allowed, rule) = match allowed_zones(zone(&one.folder)) {
            Ok(allowed) => allowed,
            Err(rule) => {
                report("-", rule);
                continue;
            }
        };
        for to in &one.links {
            if !allowed.contains(&zone(to)) {
                report(to, rule);
            } else if let Some(rule) = special_rule(&one.folder, to) {
                report(to, rule);
            }
        }
        for to in &one.tests_use {
            // A test may stand on the harness and on what its own zone may see.
            if zone(to) == "testing" {
                continue;
            }
            if !allowed.contains(&zone(to)) {
                report(to, rule);
            } else if let Some(rule) = special_rule(&one.folder, to) {
                report(to, rule);
            }
        }
        if zone(&one.folder) == "privileged" {
            for name in BANNED_IN_PRIVILEGED {
                if one.contains.contains(name) {
                    report(name, "code that acts as root has no async runtime, HTTP, TLS or SQL");
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Reads the graph out of `cargo metadata`.
pub(crate) fn graph(metadata: &Metadata) -> Result<Vec<Crate>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata has no dependency graph")?;
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let mut folders = BTreeMap::new();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        let folder = folder
            .strip_prefix(&metadata.workspace_root)
            .with_context(|| format!("{} lies outside the workspace", package.name))?;
        folders.insert(&package.id, folder.to_string());
    }

    let linked = |kinds: &[cargo_metadata::DepKindInfo]| {
        kinds.iter().any(|kind| kind.kind != DependencyKind::Development)
    };
    let mut crates = Vec::new();
    for (id, folder) in &folders {
        let mut one = Crate { folder: folder.clone(), ..Crate::default() };
        let node = nodes.get(id).with_context(|| format!("{folder} is not in the graph"))?;
        for edge in &node.deps {
            let Some(to) = folders.get(&edge.pkg) else { continue };
            if linked(&edge.dep_kinds) {
                one.links.insert(to.clone());
            } else {
                one.tests_use.insert(to.clone());
            }
        }
        let mut waiting = vec![*id];
        let mut seen = BTreeSet::new();
        while let Some(next) = waiting.pop() {
            if !seen.insert(next) {
                continue;
            }
            if !folders.contains_key(next)
                && let Some(name) = names.get(next)
            {
                one.contains.insert(name.clone());
            }
            let edges = nodes.get(next).map(|node| node.deps.as_slice()).unwrap_or_default();
            waiting
                .extend(edges.iter().filter(|edge| linked(&edge.dep_kinds)).map(|edge| &edge.pkg));
        }
        crates.push(one);
    }
    Ok(crates)
}

/// Checks this workspace, or the one of another manifest.
pub(crate) fn run(manifest: Option<&Path>) -> Result<()> {
    let mut command = MetadataCommand::new();
    match manifest {
        Some(manifest) => command.manifest_path(manifest),
        None => command.manifest_path(crate::root()?.join("Cargo.toml")),
    };
    let metadata = command.exec().context("cargo metadata")?;
    let crates = graph(&metadata)?;
    let found = violations(&crates);
    for violation in &found {
        say(format_args!("forbidden: {violation}"));
    }
    if !found.is_empty() {
        bail!("{} forbidden dependencies", found.len());
    }
    say(format_args!("dep-direction: {} crates, no forbidden edge", crates.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(folder: &str, links: &[&str]) -> Crate {
        Crate {
            folder: folder.to_owned(),
            links: links.iter().map(ToString::to_string).collect(),
            ..Crate::default()
        }
    }

    /// Asserts that exactly this edge is forbidden.
    fn forbidden(from: &str, to: &str) -> &'static str {
        let found = violations(&[one(from, &[to])]);
        assert_eq!(found.len(), 1, "{from} -> {to} must be forbidden: {found:?}");
        assert_eq!((found[0].from.as_str(), found[0].to.as_str()), (from, to));
        found[0].rule
    }

    #[test]
    fn every_edge_out_of_a_zone_but_to_wire_is_forbidden() {
        let folders = ["privileged/helper", "owner/image", "guest/agent", "cli", "wire/types"];
        for from in folders {
            for to in folders.into_iter().chain(["testing/harness", "xtask"]) {
                if zone(from) == zone(to) || zone(to) == "wire" {
                    assert_eq!(violations(&[one(from, &[to])]), [], "{from} -> {to}");
                } else {
                    forbidden(from, to);
                }
            }
        }
    }

    #[test]
    fn tools_may_use_anything() {
        let everything = [
            "privileged/helper",
            "owner/daemon",
            "owner/store",
            "guest/agent",
            "cli",
            "wire/types",
        ];
        for from in ["xtask", "testing/e2e"] {
            assert_eq!(violations(&[one(from, &everything)]), []);
        }
    }

    #[test]
    fn nothing_depends_on_the_daemon() {
        for from in ["owner/engine", "owner/store", "owner/vmm"] {
            assert!(forbidden(from, "owner/daemon").contains("nothing depends on the daemon"));
        }
    }

    #[test]
    fn the_store_has_two_users() {
        for from in ["owner/image", "owner/vmm", "owner/guest-client"] {
            assert!(forbidden(from, "owner/store").contains("only owner/engine"));
        }
        for from in ["owner/engine", "owner/daemon"] {
            assert_eq!(violations(&[one(from, &["owner/store"])]), []);
        }
    }

    #[test]
    fn the_engine_does_not_see_the_host() {
        for to in ["owner/vmm", "owner/image"] {
            assert!(forbidden("owner/engine", to).contains("own traits"));
        }
    }

    #[test]
    fn tests_may_stand_on_the_harness_only() {
        let mut from = one("owner/image", &[]);
        from.tests_use.insert("testing/harness".to_owned());
        assert_eq!(violations(&[from.clone()]), []);
        from.tests_use.insert("guest/agent".to_owned());
        assert_eq!(violations(&[from]).len(), 1);
    }

    #[test]
    fn root_code_contains_no_runtime_and_no_database() {
        for name in BANNED_IN_PRIVILEGED {
            let mut helper = one("privileged/helper", &["wire/types"]);
            helper.contains.insert(name.to_owned());
            let found = violations(&[helper]);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            let mut daemon = one("owner/daemon", &[]);
            daemon.contains.insert(name.to_owned());
            assert_eq!(violations(&[daemon]), []);
        }
    }

    #[test]
    fn a_crate_outside_the_zones_is_refused() {
        assert_eq!(violations(&[one("helpers/misc", &[])]).len(), 1);
        assert_eq!(violations(&[one("", &[])]).len(), 1);
    }

    /// The whole way from manifests to a refusal, through the real cargo.
    #[test]
    fn a_real_workspace_with_a_forbidden_edge_fails() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let package = |name: &str, rest: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{rest}")
        };
        write(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"cli\", \"owner/store\", \"wire/types\"]\n",
        );
        for path in ["cli", "owner/store", "wire/types"] {
            write(&format!("{path}/src/lib.rs"), "");
        }
        let good = "[dependencies]\ntypes = { path = \"../wire/types\" }\n";
        write("wire/types/Cargo.toml", &package("types", ""));
        write(
            "owner/store/Cargo.toml",
            &package("store", "[dependencies]\ntypes = { path = \"../../wire/types\" }\n"),
        );
        write("cli/Cargo.toml", &package("cli", good));
        let manifest = folder.path().join("Cargo.toml");
        run(Some(&manifest)).unwrap();

        let bad = format!("{good}store = {{ path = \"../owner/store\" }}\n");
        write("cli/Cargo.toml", &package("cli", &bad));
        let error = run(Some(&manifest)).unwrap_err();
        assert!(error.to_string().contains("1 forbidden"), "{error:#}");
    }
}
