//! What the loader hands over: where the ACPI tables are, and the command line.

use core::{arch::global_asm, ffi::CStr, ptr};

use multiboot2::BootInformation;

global_asm!(include_str!("boot.s"), options(raw));

/// Bit pattern at the start of PVH's start_info.
const PVH_MAGIC: u32 = 0x336e_c578;
const ADDRESS_LIMIT: u64 = 1 << 32;

/// Start of the ACPI tables, as the loader found it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AcpiRoot {
    /// Physical address of the RSDP.
    Rsdp(usize),
    /// Physical address of the RSDT.
    Rsdt(usize),
    /// Physical address of the XSDT.
    Xsdt(usize),
}

/// What the loader handed over.
#[derive(Debug)]
pub(crate) struct BootInfo {
    pub(crate) acpi: Option<AcpiRoot>,
    pub(crate) command_line: &'static str,
}

/// PVH's start_info (Xen public interface, `arch-x86/hvm/start_info.h`), its version 0.
#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
}

impl BootInfo {
    /// Reads what lies at `address`: `magic` tells Multiboot2; PVH gives no magic in a register.
    ///
    /// # Safety
    /// Both must be what the loader left in EAX and EBX, and its structures untouched.
    pub(crate) unsafe fn read(magic: u32, address: u32) -> Option<Self> {
        if magic == multiboot2::MAGIC {
            // SAFETY: the magic number says that a Multiboot2 loader left its information there; memory
            // below 4 GiB is mapped one to one.
            return unsafe { BootInformation::load(ptr::with_exposed_provenance(address as usize)) }
                .ok()
                .map(Self::from_multiboot2);
        }
        // SAFETY: the only other loader that enters here is PVH, whose structure is at the address; the
        // magic number in it is checked before the rest is believed.
        let info = unsafe { ptr::with_exposed_provenance::<StartInfo>(address as usize).read_unaligned() };
        (info.magic == PVH_MAGIC).then(|| Self::from_pvh(info))
    }

    fn from_multiboot2(information: BootInformation<'static>) -> Self {
        let modern = information.rsdp_v2_tag().map(|tag| AcpiRoot::Xsdt(tag.xsdt_address()));
        let old = || information.rsdp_v1_tag().map(|tag| AcpiRoot::Rsdt(tag.rsdt_address()));
        let line = information.command_line_tag().and_then(|tag| tag.cmdline().ok());
        let command_line = line.map_or("", |line| {
            // SAFETY: the loader's information stays where it is: nothing of this image frees or moves it.
            unsafe { &*ptr::from_ref(line) }
        });
        Self { acpi: modern.or_else(old), command_line }
    }

    fn from_pvh(info: StartInfo) -> Self {
        let rsdp = (info.rsdp != 0 && info.rsdp < ADDRESS_LIMIT).then_some(info.rsdp as usize);
        Self { acpi: rsdp.map(AcpiRoot::Rsdp), command_line: text_at(info.command_line) }
    }
}

/// The zero-terminated text at a physical address; empty when there is none.
fn text_at(address: u64) -> &'static str {
    if address == 0 || address >= ADDRESS_LIMIT {
        return "";
    }
    // SAFETY: the loader put a zero-terminated text there; memory below 4 GiB is mapped one to one.
    unsafe { CStr::from_ptr(ptr::with_exposed_provenance(address as usize)) }.to_str().unwrap_or("")
}

/// The value of `key=value` in a command line.
pub(crate) fn option<'l>(command_line: &'l str, key: &str) -> Option<&'l str> {
    command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
