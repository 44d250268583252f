//! A linked image: its code, its functions, and the constants that lead to code.

use std::{collections::BTreeMap, fs, path::Path};

use object::{
    Architecture, Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolFlags,
    SymbolKind, elf::SHF_EXECINSTR,
};

use crate::error::Error;

/// Sections whose words are fixed at link time: only these may tell where a jump leads.
const CONSTANTS: [&str; 5] = [".branch_lt", ".got", ".toc", ".rodata", ".data.rel.ro"];

/// A stretch of the image.
#[derive(Debug)]
struct Stretch {
    address: u64,
    bytes: Vec<u8>,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes.len() as u64)
    }

    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let start = usize::try_from(address.checked_sub(self.address)?).ok()?;
        self.bytes.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// A function of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Demangled, without hash.
    pub(super) name: String,
    /// Where it begins.
    pub(super) address: u64,
    /// Where it ends.
    pub(super) end: u64,
    /// Where callers with the same TOC enter (ELFv2 ABI, 3.4.1), from the beginning.
    pub(super) local_entry: u64,
}

impl Function {
    /// Whether `address` is part of it.
    pub(super) fn holds(&self, address: u64) -> bool {
        (self.address..self.end).contains(&address)
    }
}

/// A symbol in code, before it is known where it ends.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) address: u64,
    /// 0 if the symbol does not say.
    pub(super) size: u64,
    pub(super) local_entry: u64,
}

/// A linked image.
#[derive(Debug)]
pub(super) struct Image {
    code: Vec<Stretch>,
    constants: Vec<Stretch>,
    functions: BTreeMap<u64, Function>,
    /// What r2 holds in every function.
    toc: Option<u64>,
}

impl Image {
    /// Reads a file; the error says why it is no image for this audit.
    pub(super) fn load(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(Error::file(path))?;
        Self::parse(&bytes).map_err(|why| Error::Content { path: path.to_owned(), why })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
        if file.architecture() != Architecture::PowerPc64 || file.endianness() != Endianness::Little {
            return Err("is not for little-endian POWER".to_owned());
        }
        let (mut code, mut constants) = (Vec::new(), Vec::new());
        for section in file.sections() {
            let name = section.name().unwrap_or_default();
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
            let executable = sh_flags.contains(SHF_EXECINSTR);
            let list = if executable { &mut code } else { &mut constants };
            if executable || CONSTANTS.contains(&name) {
                let bytes = section.data().map_err(|error| error.to_string())?.to_vec();
                list.push(Stretch { address: section.address(), bytes });
            }
        }
        let toc = file.symbols().find(|symbol| symbol.name() == Ok(".TOC.")).map(|symbol| symbol.address());
        let labels = file.symbols().filter_map(|symbol| label(&symbol)).collect();
        Ok(Self::build(code, constants, labels, toc))
    }

    fn build(code: Vec<Stretch>, constants: Vec<Stretch>, mut labels: Vec<Label>, toc: Option<u64>) -> Self {
        // Where several symbols share an address, one with a size knows best.
        labels.sort_by_key(|label| (label.address, label.size != 0));
        let mut functions = BTreeMap::new();
        let starts: Vec<u64> = labels.iter().map(|label| label.address).collect();
        for label in labels {
            let Some(stretch) = code.iter().find(|s| (s.address..s.end()).contains(&label.address)) else {
                continue;
            };
            let next = starts.partition_point(|start| *start <= label.address);
            let limit = starts.get(next).copied().unwrap_or(u64::MAX).min(stretch.end());
            let end = if label.size == 0 { limit } else { label.address.saturating_add(label.size) };
            let Label { name, address, local_entry, .. } = label;
            functions.insert(address, Function { name, address, end, local_entry });
        }
        Self { code, constants, functions, toc }
    }

    /// The function with this name.
    pub(super) fn named(&self, name: &str) -> Option<&Function> {
        self.functions.values().find(|function| function.name == name)
    }

    /// The function that a call or jump to `address` enters, at one of its two entries.
    pub(super) fn entered_at(&self, address: u64) -> Option<&Function> {
        let (_, function) = self.functions.range(..=address).next_back()?;
        let offset = address.checked_sub(function.address)?;
        (offset == 0 || offset == function.local_entry).then_some(function)
    }

    /// The instruction at `address`.
    pub(super) fn word(&self, address: u64) -> Option<u32> {
        self.code.iter().find_map(|stretch| stretch.read(address)).map(u32::from_le_bytes)
    }

    /// The doubleword at `address`, if it is fixed at link time.
    pub(super) fn constant(&self, address: u64) -> Option<u64> {
        self.constants.iter().find_map(|stretch| stretch.read(address)).map(u64::from_le_bytes)
    }

    /// What r2 holds.
    pub(super) const fn toc(&self) -> Option<u64> {
        self.toc
    }
}

fn label<'data>(symbol: &impl object::ObjectSymbol<'data>) -> Option<Label> {
    let SymbolFlags::Elf { st_other, .. } = symbol.flags() else { return None };
    let in_code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label);
    let raw = symbol.name().ok().filter(|name| !name.is_empty() && *name != ".TOC.")?;
    if !in_code || symbol.section_index().is_none() {
        return None;
    }
    let name = format!("{:#}", rustc_demangle::demangle(raw));
    Some(Label { name, address: symbol.address(), size: symbol.size(), local_entry: local_entry(st_other.0) })
}

/// The three upper bits of `st_other` (ELFv2 ABI, 3.4.1): none, or a power of two.
const fn local_entry(st_other: u8) -> u64 {
    match st_other >> 5 {
        0 | 1 => 0,
        bits => 1 << bits,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Where the first function of a hand-made image stands.
    pub(in crate::audit) const START: u64 = 0x2000_1000;
    /// Where its constants stand.
    pub(in crate::audit) const TABLE: u64 = 0x2000_8000;
    /// What r2 holds in it.
    pub(in crate::audit) const TOC: u64 = TABLE + 0x8000;

    /// An image of functions one after the other, and of constants.
    pub(in crate::audit) fn made(functions: &[(&str, &[u32])], constants: &[u64]) -> Image {
        let (mut bytes, mut labels) = (Vec::new(), Vec::new());
        for (name, words) in functions {
            let (address, size) = (START + bytes.len() as u64, 4 * words.len() as u64);
            labels.push(Label { name: (*name).to_owned(), address, size, local_entry: 0 });
            words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        }
        let table = constants.iter().flat_map(|word| word.to_le_bytes()).collect();
        let code = vec![Stretch { address: START, bytes }];
        Image::build(code, vec![Stretch { address: TABLE, bytes: table }], labels, Some(TOC))
    }

    #[test]
    fn a_function_is_entered_at_its_global_and_its_local_entry_only() {
        let code = vec![Stretch { address: START, bytes: vec![0; 64] }];
        let label = |name: &str, offset, size, local_entry| Label {
            name: name.to_owned(),
            address: START + offset,
            size,
            local_entry,
        };
        let labels = vec![label("one", 0, 16, 8), label("stub", 32, 0, 0), label("last", 48, 0, 0)];
        let image = Image::build(code, Vec::new(), labels, None);
        let entered = |offset| image.entered_at(START + offset).map(|function| function.name.as_str());
        assert_eq!((entered(0), entered(8), entered(4), entered(12)), (Some("one"), Some("one"), None, None));
        assert_eq!(image.named("stub").unwrap().end, START + 48, "up to the next symbol");
        assert_eq!(image.named("last").unwrap().end, START + 64, "up to the section's end");
    }

    #[test]
    fn local_entries_are_powers_of_two() {
        assert_eq!([0x00, 0x20, 0x40, 0x60, 0xc0].map(local_entry), [0, 0, 4, 8, 64]);
    }

    #[test]
    fn only_code_is_code() {
        let image = made(&[("f", &[0x4e80_0020])], &[5]);
        assert_eq!((image.word(START), image.word(START + 4)), (Some(0x4e80_0020), None));
        assert_eq!((image.word(TABLE), image.constant(TABLE), image.constant(START)), (None, Some(5), None));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(Image::parse(b"no ELF").is_err());
        let host = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(Image::parse(&host).unwrap_err(), "is not for little-endian POWER");
    }
}
