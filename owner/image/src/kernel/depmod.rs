//! Writes the index files of a module tree that `modprobe` reads, as depmod(8) would.
//!
//! The package has the modules but not the indexes, which its installation would make. They are
//! made here from what each module says about itself, so no tool and no unpacked tree is needed.
//! The binary form is a trie; its layout is that of kmod's `libkmod/libkmod-index.c`.

use std::collections::{BTreeMap, BTreeSet};

use super::modinfo::{ModuleInfo, normalize};

/// A module of the tree.
#[derive(Clone, Debug)]
pub(crate) struct TreeModule {
    /// Its path below the tree, such as `kernel/fs/overlayfs/overlay.ko`.
    pub(crate) path: String,
    /// Its name with underscores.
    pub(crate) name: String,
    pub(crate) info: ModuleInfo,
}

/// All modules of a tree by name.
pub(crate) type Tree = BTreeMap<String, TreeModule>;

/// Returns the name of a module file, without its suffixes and with underscores.
pub(crate) fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| normalize(name))
}

/// Most modules that one needs, where real ones need a few dozen: bounds the indexes that a hostile
/// package asks for.
const MOST_NEEDED: usize = 128;

/// Returns the modules that `name` needs, in the order in which to load them, without itself.
///
/// A module that is not in the tree is left out: it is built in, or missing in the package.
pub(crate) fn dependencies<'a>(tree: &'a Tree, name: &str) -> Vec<&'a TreeModule> {
    fn visit<'a>(
        tree: &'a Tree,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<&'a TreeModule>,
        depth: u32,
    ) {
        // Deeper than any real tree: a cycle of a hostile package ends by `seen`, a chain here.
        let Some(module) = tree.get(name).filter(|_| depth < 64 && seen.len() <= MOST_NEEDED)
        else {
            return;
        };
        if !seen.insert(name.to_owned()) {
            return;
        }
        for needed in &module.info.depends {
            visit(tree, needed, seen, order, depth + 1);
        }
        order.push(module);
    }
    let mut order = Vec::new();
    visit(tree, name, &mut BTreeSet::new(), &mut order, 0);
    order.pop();
    order
}

/// Returns the index files by name.
///
/// `builtin` is the text of `modules.builtin`, `builtin_info` the bytes of
/// `modules.builtin.modinfo`: what the kernel itself contains.
pub(crate) fn indexes(
    tree: &Tree,
    builtin: &str,
    builtin_info: &[u8],
) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = Vec::new();
    let mut add = |name, bytes: Vec<u8>| files.push((name, bytes));

    let mut text = String::new();
    let mut index = Node::default();
    for module in tree.values() {
        // The nearest first: modprobe loads them from the last to the first.
        let needed = dependencies(tree, &module.name);
        let paths: String = needed.iter().rev().map(|needed| format!(" {}", needed.path)).collect();
        let line = format!("{}:{paths}", module.path);
        index.insert(module.name.as_bytes(), &line);
        text.push_str(&line);
        text.push('\n');
    }
    add("modules.dep", text.into_bytes());
    add("modules.dep.bin", index.encode());

    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Node::default();
    for module in tree.values() {
        for alias in &module.info.aliases {
            text.push_str(&format!("alias {alias} {}\n", module.name));
            index.insert(normalize_alias(alias).as_bytes(), &module.name);
        }
    }
    add("modules.alias", text.into_bytes());
    add("modules.alias.bin", index.encode());

    let mut text = String::from("# Soft dependencies extracted from modules themselves.\n");
    for module in tree.values() {
        for soft in &module.info.soft {
            text.push_str(&format!("softdep {} {soft}\n", module.name));
        }
    }
    add("modules.softdep", text.into_bytes());

    let mut index = Node::default();
    for name in builtin.lines().filter_map(module_name) {
        index.insert(name.as_bytes(), "");
    }
    add("modules.builtin.bin", index.encode());

    let mut index = Node::default();
    for record in builtin_info.split(|&byte| byte == 0) {
        let Ok(record) = std::str::from_utf8(record) else { continue };
        if let Some((name, alias)) = record.split_once(".alias=") {
            index.insert(normalize_alias(alias).as_bytes(), &normalize(name));
        }
    }
    add("modules.builtin.alias.bin", index.encode());

    // Only `modprobe symbol:NAME` reads these; they exist so that it does not stop at them.
    add("modules.symbols", b"# Aliases for symbols, used by symbol_request().\n".to_vec());
    add("modules.symbols.bin", Node::default().encode());
    add("modules.devname", device_names(tree).into_bytes());
    files
}

/// The device nodes that load a module when they are opened: `tun net/tun c10:200`.
fn device_names(tree: &Tree) -> String {
    let mut text = String::from("# Device nodes to trigger on-demand module loading.\n");
    for module in tree.values() {
        let find =
            |prefix: &str| module.info.aliases.iter().find_map(|alias| alias.strip_prefix(prefix));
        let number = find("char-major-")
            .map(|rest| ('c', rest))
            .or_else(|| find("block-major-").map(|rest| ('b', rest)));
        if let (Some(name), Some((kind, number))) = (find("devname:"), number)
            && let Some((major, minor)) = number.split_once('-')
            && major.parse::<u32>().is_ok()
            && minor.parse::<u32>().is_ok()
        {
            text.push_str(&format!("{} {name} {kind}{major}:{minor}\n", module.name));
        }
    }
    text
}

/// Turns `-` into `_` except between brackets.
fn normalize_alias(alias: &str) -> String {
    let mut inside = false;
    alias
        .chars()
        .map(|c| {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                _ => {}
            }
            if c == '-' && !inside { '_' } else { c }
        })
        .collect()
}

/// A node of the trie: a shared prefix, values for exactly it, and children by the next byte.
#[derive(Debug, Default)]
struct Node {
    prefix: Vec<u8>,
    values: Vec<String>,
    children: BTreeMap<u8, Node>,
}

impl Node {
    fn insert(&mut self, key: &[u8], value: &str) {
        // Keys are 7-bit and hold no NUL in this format, values no NUL.
        if key.iter().any(|&byte| byte == 0 || byte >= 0x80) || value.contains('\0') {
            return;
        }
        self.insert_checked(key, value);
    }

    fn insert_checked(&mut self, key: &[u8], value: &str) {
        if self.prefix.is_empty() && self.values.is_empty() && self.children.is_empty() {
            self.prefix = key.to_vec();
            self.values.push(value.to_owned());
            return;
        }
        let common = self.prefix.iter().zip(key).take_while(|(a, b)| a == b).count();
        if common < self.prefix.len() {
            let rest = self.prefix.split_off(common + 1);
            let branch = self.prefix.pop().unwrap_or_default();
            let child = Self {
                prefix: rest,
                values: std::mem::take(&mut self.values),
                children: std::mem::take(&mut self.children),
            };
            self.children.insert(branch, child);
        }
        match key.get(common) {
            None => {
                if !self.values.iter().any(|have| have == value) {
                    self.values.push(value.to_owned());
                }
            }
            Some(&branch) => {
                let rest = &key[common + 1..];
                self.children.entry(branch).or_default().insert_child(rest, value);
            }
        }
    }

    /// As [`Node::insert_checked`], for a child that may be new and have an empty prefix.
    fn insert_child(&mut self, key: &[u8], value: &str) {
        if self.values.is_empty() && self.children.is_empty() {
            self.prefix = key.to_vec();
            self.values.push(value.to_owned());
        } else {
            self.insert_checked(key, value);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&0xB007_F457_u32.to_be_bytes());
        out.extend_from_slice(&0x0002_0001_u32.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let root = self.write(&mut out);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }

    /// Appends the children and then the node; returns its place and what it has, in the top bits.
    fn write(&self, out: &mut Vec<u8>) -> u32 {
        const PREFIX: u32 = 0x8000_0000;
        const VALUES: u32 = 0x4000_0000;
        const CHILDREN: u32 = 0x2000_0000;
        let places: Vec<(u8, u32)> =
            self.children.iter().map(|(&byte, child)| (byte, child.write(out))).collect();
        // The format has 28 bits for it; a module tree's index is far below 256 MiB.
        let mut place = u32::try_from(out.len()).unwrap_or(0);
        if !self.prefix.is_empty() {
            out.extend_from_slice(&self.prefix);
            out.push(0);
            place |= PREFIX;
        }
        if let (Some(&(first, _)), Some(&(last, _))) = (places.first(), places.last()) {
            out.extend_from_slice(&[first, last]);
            let mut table = vec![0_u32; usize::from(last - first) + 1];
            for (byte, child) in &places {
                table[usize::from(byte - first)] = *child;
            }
            for child in table {
                out.extend_from_slice(&child.to_be_bytes());
            }
            place |= CHILDREN;
        }
        if !self.values.is_empty() {
            let count = u32::try_from(self.values.len()).unwrap_or(0);
            out.extend_from_slice(&count.to_be_bytes());
            for value in &self.values {
                out.extend_from_slice(&[0; 4]); // priority
                out.extend_from_slice(value.as_bytes());
                out.push(0);
            }
            place |= VALUES;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &[&str])]) -> Tree {
        modules
            .iter()
            .map(|(name, depends)| {
                let info = ModuleInfo {
                    depends: depends.iter().map(|&name| name.to_owned()).collect(),
                    ..ModuleInfo::default()
                };
                let path = format!("kernel/{name}.ko");
                ((*name).to_owned(), TreeModule { path, name: (*name).to_owned(), info })
            })
            .collect()
    }

    fn names(tree: &Tree, name: &str) -> Vec<String> {
        dependencies(tree, name).iter().map(|module| module.name.clone()).collect()
    }

    #[test]
    fn cycles_and_missing_modules_end() {
        let tree = tree(&[("a", &["b"]), ("b", &["a", "gone"])]);
        assert_eq!(names(&tree, "a"), ["b"]);
        assert!(names(&tree, "gone").is_empty());
    }

    #[test]
    fn a_module_that_needs_all_others_gets_a_few() {
        let all: Vec<String> = (0..1000).map(|number| format!("m{number}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let tree = tree(&all.iter().map(|&name| (name, &all[..])).collect::<Vec<_>>());
        assert_eq!(names(&tree, "m0").len(), MOST_NEEDED);
    }

    #[test]
    fn dependencies_come_before_what_needs_them() {
        let tree = tree(&[
            ("virtio_net", &["net_failover", "virtio"]),
            ("net_failover", &["failover"]),
            ("failover", &[]),
            ("virtio", &["virtio_ring"]),
            ("virtio_ring", &[]),
        ]);
        assert_eq!(
            names(&tree, "virtio_net"),
            ["failover", "net_failover", "virtio_ring", "virtio"]
        );
    }

    #[test]
    fn names_lose_suffixes_and_hyphens() {
        assert_eq!(module_name("kernel/x/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("kernel/x/a.ko").as_deref(), Some("a"));
        assert_eq!(module_name("kernel/x/a.ko.bak"), None);
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn the_trie_splits_at_shared_prefixes() {
        let mut node = Node::default();
        for key in ["abc", "abd", "ab", "x"] {
            node.insert(key.as_bytes(), key);
        }
        let bytes = node.encode();
        assert_eq!(&bytes[..8], [0xB0, 0x07, 0xF4, 0x57, 0, 2, 0, 1]);
        assert_eq!(node.children.keys().collect::<Vec<_>>(), [&b'a', &b'x']);
    }
}
