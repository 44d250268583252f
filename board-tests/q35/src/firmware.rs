//! The DMAR table, by way of the ACPI tables.

use core::{ptr, ptr::NonNull, slice};

use acpi::{
    AcpiHandler, AcpiResult, AcpiTable, AcpiTables, PhysicalMapping,
    sdt::{SdtHeader, Signature},
};

use crate::boot::AcpiRoot;

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

/// Bytes of the DMAR table, which firmware leaves in place.
///
/// # Safety
/// `root` must be what the loader handed over.
pub(crate) unsafe fn dmar(root: AcpiRoot) -> AcpiResult<&'static [u8]> {
    // SAFETY: the caller says that the loader named this place.
    let tables = unsafe {
        match root {
            AcpiRoot::Rsdp(address) => AcpiTables::from_rsdp(Identity, address),
            AcpiRoot::Rsdt(address) => AcpiTables::from_rsdt(Identity, 0, address),
            AcpiRoot::Xsdt(address) => AcpiTables::from_rsdt(Identity, 2, address),
        }
    }?;
    let table = tables.find_table::<DmarTable>()?;
    let start: *const u8 = table.virtual_start().as_ptr().cast_const().cast();
    // SAFETY: the table is that long, says its header; firmware's tables stay where they are, and nobody
    // writes them.
    Ok(unsafe { slice::from_raw_parts(start, table.region_length()) })
}
