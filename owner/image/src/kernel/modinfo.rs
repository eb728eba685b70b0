//! What a kernel module says about itself: the `.modinfo` section of its ELF file.

/// A module's own description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModuleInfo {
    /// The modules whose symbols it uses.
    pub(crate) depends: Vec<String>,
    /// Names by which the kernel and udev ask for it.
    pub(crate) aliases: Vec<String>,
    /// `pre:` and `post:` modules that it would like.
    pub(crate) soft: Vec<String>,
}

/// Most bytes of the section; those of Debian's modules have tens of KiB at most.
const LARGEST: usize = 1 << 20;

impl ModuleInfo {
    /// Returns how much memory this takes, about.
    pub(crate) fn bytes(&self) -> u64 {
        let texts = [&self.depends, &self.aliases, &self.soft].into_iter().flatten();
        texts.map(|text| (text.len() + size_of::<String>()) as u64).sum()
    }
}

/// Reads the section of a 64-bit little-endian ELF file; `None` if there is none, or if it is larger
/// than any module's.
pub(crate) fn parse(module: &[u8]) -> Option<ModuleInfo> {
    let section = section(module, b".modinfo").filter(|section| section.len() <= LARGEST)?;
    let mut info = ModuleInfo::default();
    for record in section.split(|&byte| byte == 0) {
        let Ok(text) = std::str::from_utf8(record) else { continue };
        let Some((key, value)) = text.split_once('=') else { continue };
        match key {
            "depends" => {
                let names = value.split(',').filter(|name| !name.is_empty());
                info.depends.extend(names.map(normalize));
            }
            "alias" => info.aliases.push(value.to_owned()),
            "softdep" => info.soft.push(value.to_owned()),
            _ => {}
        }
    }
    Some(info)
}

/// Module names treat `-` and `_` alike; the kernel's form has `_`.
pub(crate) fn normalize(name: &str) -> String {
    name.replace('-', "_")
}

fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let mut bytes = [0_u8; 8];
        bytes[..size].copy_from_slice(elf.get(at..at.checked_add(size)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(0x28, 8)?;
    let (entry_size, count, names) = (number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry_size)?);
    let content = |at: usize| {
        let start = number(at.checked_add(24)?, 8)?;
        elf.get(start..start.checked_add(number(at.checked_add(32)?, 8)?)?)
    };
    let strings = content(header(names)?)?;
    (0..count).find_map(|index| {
        let at = header(index)?;
        let name = strings.get(number(at, 4)?..)?;
        let name = &name[..name.iter().position(|&byte| byte == 0)?];
        if name == wanted { content(at) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn arbitrary_files_never_panic(mut bytes in proptest::collection::vec(0_u8.., 0..512)) {
            let _ = parse(&bytes);
            if bytes.len() > 6 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                let _ = parse(&bytes);
            }
        }
    }
}
