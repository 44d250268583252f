//! What skiboot's device tree says of the machine.

use fdt::{Fdt, node::FdtNode};
use portcullis_ppc_tce::{Generation, PeNumber};

/// Bytes of host-bridge registers that the driver uses.
const REGISTER_BYTES: usize = 0x1000;

/// The device tree.
pub(crate) struct Tree {
    fdt: Fdt<'static>,
}

/// A stretch of the CPU's addresses that the bridge passes on as 32-bit PCI memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// First address on PCI.
    pub(crate) pci: u32,
    /// First address for the CPU.
    pub(crate) cpu: u64,
    /// Length.
    pub(crate) bytes: u64,
}

/// One host bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phb {
    /// `ibm,opal-phbid`.
    pub(crate) id: u64,
    pub(crate) generation: Generation,
    /// Address of its registers.
    pub(crate) registers: u64,
    pub(crate) register_bytes: usize,
    pub(crate) pe_count: u16,
    pub(crate) reserved_pe: PeNumber,
    pub(crate) window: Window,
    /// Address of the PE state table.
    pub(crate) pest: Option<u64>,
}

impl Tree {
    /// The tree at `start`, or `None` when there is none.
    ///
    /// # Safety
    /// `start` must be what the boot protocol passed on, and nothing may write there any more.
    pub(crate) unsafe fn at(start: *const u8) -> Option<Self> {
        // SAFETY: a tree or null, says the caller.
        unsafe { Fdt::from_ptr(start) }.ok().map(|fdt| Self { fdt })
    }

    /// What follows `name=` on the command line.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let line = self.fdt.find_node("/chosen")?.property("bootargs")?.as_str()?;
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// All host bridges that firmware has brought up.
    pub(crate) fn phbs(&self) -> impl Iterator<Item = Phb> {
        self.fdt.all_nodes().filter_map(phb)
    }
}

impl Tree {
    /// The numbers that firmware knows the CPUs by.
    pub(crate) fn cpus(&self) -> impl Iterator<Item = u64> {
        self.fdt.all_nodes().filter_map(|node| {
            (node.property("device_type")?.as_str()? == "cpu").then_some(())?;
            cell(node, "reg", 0).map(u64::from)
        })
    }
}

fn phb(node: FdtNode<'_, '_>) -> Option<Phb> {
    let works = node.property("status").is_none_or(|status| status.as_str() == Some("okay"));
    if !node.name.starts_with("pciex@") || !works {
        return None;
    }
    let mut compatible = node.compatible()?.all();
    let generation = compatible.find_map(|name| match name {
        "ibm,power8-pciex" => Some(Generation::Phb3),
        "ibm,power9-pciex" => Some(Generation::Phb4),
        "ibm,power10-pciex" => Some(Generation::Phb5),
        _ => None,
    })?;
    Some(Phb {
        id: cells(node, "ibm,opal-phbid", 0)?,
        generation,
        registers: cells(node, "reg", 0)?,
        register_bytes: REGISTER_BYTES.min(cells(node, "reg", 2)? as usize),
        pe_count: u16::try_from(cell(node, "ibm,opal-num-pes", 0)?).ok()?,
        reserved_pe: PeNumber(u16::try_from(cell(node, "ibm,opal-reserved-pe", 0)?).ok()?),
        window: window(node)?,
        pest: cells(node, "ibm,opal-pest-table", 0),
    })
}

/// `ranges`: flags, PCI address, CPU address, length. skiboot's first is the 32-bit window.
fn window(node: FdtNode<'_, '_>) -> Option<Window> {
    const MEMORY_32: u32 = 0x0200_0000;
    (cell(node, "ranges", 0)? == MEMORY_32).then_some(())?;
    Some(Window {
        pci: cell(node, "ranges", 2)?,
        cpu: cells(node, "ranges", 3)?,
        bytes: cells(node, "ranges", 5)?,
    })
}

/// The 32-bit cell at index `index` of a property.
fn cell(node: FdtNode<'_, '_>, name: &str, index: usize) -> Option<u32> {
    let bytes = node.property(name)?.value.get(index * 4..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The two cells from index `index`, as one number.
fn cells(node: FdtNode<'_, '_>, name: &str, index: usize) -> Option<u64> {
    Some(u64::from(cell(node, name, index)?) << 32 | u64::from(cell(node, name, index + 1)?))
}
