//! docs/privileges.md against the code and the units that it describes.

use std::collections::BTreeSet;
use std::path::Path;

use banger_gate_tables::{Expect, Kind, Living, Places, inputs};
use banger_helper_api::{LONGEST_FRAME, LONGEST_WRITE_FRAME, Method};

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows below a heading, each as its cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("{heading}\n")).expect("the heading");
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// The words between backquotes.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_page_has_every_method_once_and_no_other() {
    let page = read("docs/privileges.md");
    let rows = table(&page, "## The twenty operations");
    let named: Vec<String> = rows.iter().flat_map(|row| code(&row[0])).map(str::to_owned).collect();
    let methods: Vec<String> = Method::ALL.iter().map(|method| method.name().to_owned()).collect();
    assert_eq!(named, methods);
    assert!(rows.iter().all(|row| row.len() == 3 && row.iter().all(|cell| !cell.is_empty())));
}

#[test]
fn the_page_and_the_unit_have_the_same_eleven_capabilities() {
    let page = read("docs/privileges.md");
    let rows = table(&page, "## The eleven capabilities");
    let told: BTreeSet<String> =
        rows.iter().flat_map(|row| code(&row[0])).map(str::to_owned).collect();
    let unit = read("cli/systemd/bangerd-root.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let bound: BTreeSet<String> =
        line.expect("a bound").split_whitespace().map(str::to_owned).collect();
    assert_eq!(told, bound);
    assert_eq!(told.len(), 11);
    let (_, rest) = page.split_once("Not granted, and why:").expect("what is not granted");
    for capability in code(rest.split("\n\n").next().expect("a paragraph")) {
        assert!(!bound.contains(capability), "{capability}");
    }
}

#[test]
fn the_trust_list_names_every_proven_type() {
    let page = read("docs/privileges.md");
    let told: BTreeSet<String> = table(&page, "## The trust list")
        .iter()
        .flat_map(|row| code(&row[0]))
        .map(str::to_owned)
        .collect();
    let types = proven_types();
    for name in &told {
        assert!(types.contains(name), "{name} is no type that proves anything");
    }
    for name in &types {
        assert!(told.contains(name), "{name} is missing");
    }
}

#[test]
fn the_trust_list_names_every_function_that_checks_more() {
    let page = read("docs/privileges.md");
    let rows = table(&page, "`privileged/gates/src/request`:");
    let told: BTreeSet<&str> = rows.iter().flat_map(|row| code(&row[0])).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../privileged/gates/src/request");
    let mut checking = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("the requests").flatten() {
        let source = std::fs::read_to_string(entry.path()).expect("a source");
        let mut function = String::new();
        for line in source.lines() {
            if let Some((_, rest)) = line.split_once("fn ") {
                function =
                    rest.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
            } else if line.contains("Refusal::") {
                checking.insert(function.clone());
            }
        }
    }
    assert_eq!(told, checking.iter().map(String::as_str).collect());
}

#[test]
fn the_helper_executes_nothing_at_another_path_than_is_told() {
    let page = read("docs/privileges.md");
    let rows = table(&page, "### Programs that the helper runs");
    let told: BTreeSet<&str> = rows.iter().flat_map(|row| code(&row[0])).collect();
    let mut named = 0;
    for file in ["network/firewalld.rs", "network/firewall.rs", "network/resolver.rs"]
        .into_iter()
        .chain(["disk/debugfs.rs", "disk/ext4.rs", "vmm/launch.rs", "vmm/executable.rs"])
    {
        let source = read(&format!("privileged/host/src/{file}"));
        for path in source.split('"').filter(|text| text.contains("bin/") && text.starts_with('/'))
        {
            let merged =
                if path.starts_with("/usr/") { path.to_owned() } else { format!("/usr{path}") };
            assert!(told.contains(merged.as_str()), "{file}: {path}");
            named += 1;
        }
    }
    assert!(named > 5, "{named} paths");
    assert!(page.contains("looked for in `/sbin` or `/bin`"));
}

/// The types of the gates that are made by a check: those with a constructor that may refuse, and
/// those that the macros of `name.rs` and `launch.rs` give one.
fn proven_types() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../privileged/gates/src");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("the gates").flatten() {
        let path = entry.path();
        if path.is_dir() {
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("a source");
        let (mut made_of, mut by_macro) = (None, false);
        for line in source.lines() {
            let word = |text: &str| {
                let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
                text[..end].to_owned()
            };
            if let Some(rest) = line.strip_prefix("impl") {
                // `impl<R: Root> ManagedPath<R> {`
                let generic = rest.starts_with('<');
                let rest = if generic { rest.split_once("> ").map_or("", |it| it.1) } else { rest };
                made_of = (!rest.contains(" for ")).then(|| word(rest.trim_start()));
            } else if ["proven! {", "bounded! {"].contains(&line) {
                by_macro = true;
            } else if by_macro && !line.trim_start().starts_with("///") {
                found.insert(word(line.trim_start()));
                by_macro = false;
            } else if line.starts_with("    pub fn ") && returns_itself(&source, line) {
                found.extend(made_of.clone().filter(|name| !name.is_empty()));
            }
        }
    }
    found
}

/// Whether a function may refuse, and returns what it belongs to where it does not.
fn returns_itself(source: &str, line: &str) -> bool {
    let (_, rest) = source.split_once(line).expect("a line of it");
    let signature = format!("{line}{}", rest.split_once("{\n").map_or("", |it| it.0));
    signature.contains("-> Result<Self>") || signature.contains("-> Result<Self, ")
}

#[test]
fn places_limits_and_signals_are_as_they_are_told() {
    let page = read("docs/privileges.md");
    assert!(page.contains(&format!("at most {} KiB", LONGEST_FRAME >> 10)));
    assert!(page.contains(&format!("({} MiB for", LONGEST_WRITE_FRAME >> 20)));
    let limits: Vec<String> =
        table(&page, "### How many").iter().map(|row| row[1].clone()).collect();
    let constants = [
        ("vmm/jail.rs", "MOST"),
        ("disk/snapshot.rs", "MOST"),
        ("network/bridge.rs", "MOST_BRIDGES"),
        ("network/tap.rs", "MOST_TAPS"),
    ];
    assert_eq!(limits.len(), constants.len());
    for ((file, name), most) in constants.into_iter().zip(limits) {
        let source = read(&format!("privileged/host/src/{file}"));
        assert!(source.contains(&format!("const {name}: usize = {most};")), "{file}: {most}");
    }
    // What a sentence of the page says, and the line of code that it is about.
    for (file, line, told) in [
        ("helper/src/listener.rs", "const MOST_CONNECTIONS: usize = 32;", "At most 32 connections"),
        (
            "helper/src/connection.rs",
            "const PATIENCE: Duration = Duration::from_secs(10);",
            "has 10 seconds",
        ),
        (
            "helper/src/dispatch.rs",
            "const MOST_OBJECTS: usize = gate::MOST_FILES + 1;",
            "1025 objects (1024 files",
        ),
        ("gates/src/request/disk.rs", "const MOST_FILES: usize = 1024;", "at most 1024 files"),
        ("host/src/disk/snapshot.rs", "Range<u32> = 1 << 19..1 << 20;", "524288 to 1048575"),
        (
            "sys/src/loop_device.rs",
            "NUMBERS: std::ops::Range<u32> = 20_000..30_000;",
            "from 20000 to 29999",
        ),
    ] {
        let source = read(&format!("privileged/{file}"));
        assert!(source.contains(line), "{file}: {line}");
        assert!(page.split_whitespace().collect::<Vec<_>>().join(" ").contains(told), "{told}");
    }
    let policy = read("privileged/gates/src/policy.rs");
    for folder in [
        "/usr/bin",
        "/usr/local/bin",
        "/usr/lib/banger",
        "/usr/local/lib/banger",
        "/opt/firecracker",
    ] {
        assert!(policy.contains(&format!("\"{folder}\"")) && page.contains(&format!("`{folder}`")));
    }
    let places = Places {
        state: "/s".to_owned(),
        runtime: "/r".to_owned(),
        jails: "/j".to_owned(),
        vmm: "/v".to_owned(),
        owner: (1, 1),
        own_pid: 9,
        memory_mib: 4096,
        living: Living::default(),
    };
    let signals = inputs(Kind::Signal, &places);
    let names: Vec<&str> = signals
        .iter()
        .filter(|input| input.class == "name" && input.expect == Expect::Accept)
        .filter_map(|input| input.value.as_str())
        .collect();
    assert!(page.contains(&names.join(" ")), "{names:?}");
    let services = read("cli/src/commands/system/services.rs") + &read("cli/src/install.rs");
    let rows = table(&page, "## What an installation changes");
    let files = rows.iter().flat_map(|row| code(&row[0]));
    let of_services = files.filter(|path| path.starts_with("/etc") || path.starts_with("/usr"));
    for path in of_services {
        let name = path.rsplit('/').next().expect("a name");
        assert!(services.contains(name), "{path}");
        assert!(page.matches(name).count() > 1, "{path} is missing from the removal by hand");
    }
}
