//! The DMAR table and the CPUs, by way of the ACPI tables.

use core::{ptr, ptr::NonNull, slice};

use acpi::{
    AcpiHandler, AcpiResult, AcpiTable, AcpiTables, PhysicalMapping,
    madt::{Madt, MadtEntry},
    sdt::{SdtHeader, Signature},
};

use crate::boot::AcpiRoot;

/// Flag of a CPU in the MADT: it may be used (ACPI specification, 5.2.12.2).
const CPU_ENABLED: u32 = 1;

/// Memory below 4 GiB is mapped one to one for good.
#[derive(Clone, Debug)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(&self, address: usize, bytes: usize) -> PhysicalMapping<Self, T> {
        let start = NonNull::new(ptr::with_exposed_provenance_mut(address)).unwrap_or(NonNull::dangling());
        // SAFETY: the caller says that a `T` is there; the mapping exists already.
        unsafe { PhysicalMapping::new(address, start, bytes, bytes, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The DMAR table, as bytes for the driver to judge.
#[repr(transparent)]
struct DmarTable {
    header: SdtHeader,
}

// SAFETY: the type is the header that every table begins with.
unsafe impl AcpiTable for DmarTable {
    const SIGNATURE: Signature = Signature::DMAR;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// The tables.
///
/// # Safety
/// `root` must be what the loader handed over.
unsafe fn tables(root: AcpiRoot) -> AcpiResult<AcpiTables<Identity>> {
    // SAFETY: the caller says that the loader named this place.
    unsafe {
        match root {
            AcpiRoot::Rsdp(address) => AcpiTables::from_rsdp(Identity, address),
            AcpiRoot::Rsdt(address) => AcpiTables::from_rsdt(Identity, 0, address),
            AcpiRoot::Xsdt(address) => AcpiTables::from_rsdt(Identity, 2, address),
        }
    }
}

/// Calls `found` with the local APIC's number of each CPU that may be used, the boot CPU included, in
/// firmware's order.
///
/// # Safety
/// `root` must be what the loader handed over.
pub(crate) unsafe fn each_cpu(root: AcpiRoot, mut found: impl FnMut(u32)) -> AcpiResult<()> {
    // SAFETY: as for this function.
    let madt = unsafe { tables(root) }?.find_table::<Madt>()?;
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(cpu) if { cpu.flags } & CPU_ENABLED != 0 => found(cpu.apic_id.into()),
            MadtEntry::LocalX2Apic(cpu) if { cpu.flags } & CPU_ENABLED != 0 => found(cpu.x2apic_id),
            _ => {}
        }
    }
    Ok(())
}

/// Bytes of the DMAR table, which firmware leaves in place.
///
/// # Safety
/// `root` must be what the loader handed over.
pub(crate) unsafe fn dmar(root: AcpiRoot) -> AcpiResult<&'static [u8]> {
    // SAFETY: as for this function.
    let table = unsafe { tables(root) }?.find_table::<DmarTable>()?;
    let start: *const u8 = table.virtual_start().as_ptr().cast_const().cast();
    // SAFETY: the table is that long, says its header; firmware's tables stay where they are, and nobody
    // writes them.
    Ok(unsafe { slice::from_raw_parts(start, table.region_length()) })
}
