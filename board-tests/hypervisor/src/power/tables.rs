//! The guest's partition-scoped tables and the hypervisor's process-scoped ones (section 5.7), in memory of their own.

use core::{cell::UnsafeCell, ptr::with_exposed_provenance_mut};

use portcullis_hal::PhysAddr;

use super::{
    GUEST_BYTES,
    radix::{self, ENTRIES, HUGE_PAGE, Kind, LARGE_PAGE, ROOT_ENTRIES, SMALL_PAGE},
};

/// Guest real address at which a device's registers appear.
pub const REGISTERS_AT: u64 = 1 << 30;
/// Most that fits there.
pub const REGISTER_BYTES: u64 = ENTRIES as u64 * SMALL_PAGE;

/// What one table covers of the second level.
const SECOND_LEVEL: u64 = 1 << 39;
/// Devices of the hypervisor, each in a second-level table of its own.
const HOST_DEVICES: usize = 4;

type Table = [u64; ENTRIES];

/// The root first, since it needs the largest alignment. All words are big-endian.
#[repr(C, align(0x10000))]
struct Tables {
    root: [u64; ROOT_ENTRIES],
    host_root: [u64; ROOT_ENTRIES],
    partition: Table,
    processes: Table,
    host_memory: Table,
    host_devices: [Table; HOST_DEVICES],
    /// Covers 512 GiB.
    upper: Table,
    memory: Table,
    registers_upper: Table,
    registers: Table,
}

struct Shared(UnsafeCell<Tables>);

// SAFETY: one CPU writes, by volatile accesses; otherwise hardware reads.
unsafe impl Sync for Shared {}

static TABLES: Shared = Shared(UnsafeCell::new(Tables {
    root: [0; ROOT_ENTRIES],
    host_root: [0; ROOT_ENTRIES],
    partition: [0; ENTRIES],
    processes: [0; ENTRIES],
    host_memory: [0; ENTRIES],
    host_devices: [[0; ENTRIES]; HOST_DEVICES],
    upper: [0; ENTRIES],
    memory: [0; ENTRIES],
    registers_upper: [0; ENTRIES],
    registers: [0; ENTRIES],
}));

fn get(table: *mut u64, entries: usize, index: usize) -> u64 {
    // SAFETY: an entry of a table inside the static.
    if index < entries { u64::from_be(unsafe { table.add(index).read_volatile() }) } else { 0 }
}

fn set(table: *mut u64, entries: usize, index: usize, entry: u64) {
    if index < entries {
        // SAFETY: an entry of a table inside the static; volatile because hardware reads it.
        unsafe { table.add(index).write_volatile(entry.to_be()) }
    }
}

macro_rules! table {
    ($name:ident) => {
        // SAFETY: inside the static; no reference is made.
        unsafe { (&raw mut (*TABLES.0.get()).$name).cast::<u64>() }
    };
}

fn address(table: *mut u64) -> u64 {
    table.expose_provenance() as u64
}

/// Maps the guest's memory from guest real 0 on, and nothing else; returns the partition table's address. The guest has
/// its process table at guest real `processes`.
pub(super) fn map_memory(memory: PhysAddr, processes: u64) -> u64 {
    let [root, upper, ..] = radix::indices(0);
    set(table!(root), ROOT_ENTRIES, root, radix::directory(address(table!(upper))));
    set(table!(upper), ENTRIES, upper, radix::directory(address(table!(memory))));
    for page in 0..GUEST_BYTES / LARGE_PAGE {
        let leaf = radix::leaf(memory.as_u64() + page * LARGE_PAGE, Kind::Memory);
        set(table!(memory), ENTRIES, page as usize, leaf);
    }
    // Entry 1 is this guest's: two words an entry.
    set(table!(partition), ENTRIES, 2, radix::partition_entry(address(table!(root))));
    set(table!(partition), ENTRIES, 3, radix::partition_processes(processes));
    address(table!(partition))
}

/// Maps the first GiB of real memory for the hypervisor, and the GiB around each of these devices' registers, each at
/// its own address; `None` when a device lies within the memory, or there are too many. Partition 0 and process 0 are
/// the hypervisor's.
pub(super) fn map_host(devices: &[PhysAddr]) -> Option<()> {
    let root = address(table!(host_root));
    let memory = radix::privileged_leaf(0, Kind::Memory);
    set(table!(host_memory), ENTRIES, 0, memory);
    set(table!(host_root), ROOT_ENTRIES, 0, radix::directory(address(table!(host_memory))));
    for (number, device) in devices.iter().enumerate() {
        let device = device.as_u64();
        (device >= SECOND_LEVEL && number < HOST_DEVICES).then_some(())?;
        map_host_device(number, device);
    }
    set(table!(processes), ENTRIES, 0, radix::process_entry(root));
    set(table!(partition), ENTRIES, 0, radix::partition_entry(root));
    set(table!(partition), ENTRIES, 1, radix::partition_processes(address(table!(processes))));
    Some(())
}

/// Devices that share half a TiB share the table of the first one.
fn map_host_device(number: usize, device: u64) {
    let [upper, index, ..] = radix::indices(device);
    let present = get(table!(host_root), ROOT_ENTRIES, upper);
    let own = table!(host_devices).wrapping_add(number * ENTRIES);
    let table = if present == 0 { own } else { with_exposed_provenance_mut(radix::next(present) as usize) };
    set(table, ENTRIES, index, radix::privileged_leaf(device & !(HUGE_PAGE - 1), Kind::Registers));
    set(table!(host_root), ROOT_ENTRIES, upper, radix::directory(address(table)));
}

/// Maps a device's registers at [`REGISTERS_AT`]; `None` when they are not whole pages, or too many. The caller
/// makes CPUs forget what they knew.
pub(super) fn map_registers(registers: PhysAddr, bytes: u64) -> Option<()> {
    let whole = registers.as_u64().is_multiple_of(SMALL_PAGE) && bytes.is_multiple_of(SMALL_PAGE);
    (whole && bytes <= REGISTER_BYTES).then_some(())?;
    let [_, upper, middle, _] = radix::indices(REGISTERS_AT);
    for page in 0..REGISTER_BYTES / SMALL_PAGE {
        let at = page * SMALL_PAGE;
        let entry = if at < bytes { radix::leaf(registers.as_u64() + at, Kind::Registers) } else { 0 };
        set(table!(registers), ENTRIES, page as usize, entry);
    }
    set(table!(registers_upper), ENTRIES, middle, radix::directory(address(table!(registers))));
    set(table!(upper), ENTRIES, upper, radix::directory(address(table!(registers_upper))));
    Some(())
}

#[cfg(test)]
mod tests {
    use core::ptr::with_exposed_provenance;

    use super::*;

    const MEMORY: PhysAddr = PhysAddr::new(0x2200_0000);
    const DEVICE: PhysAddr = PhysAddr::new(0x6_0010_0000);
    const VALID: u64 = 1 << 63;
    const LEAF: u64 = 1 << 62;
    /// The bits of an address in a directory entry and in a leaf.
    const NEXT: u64 = 0x0fff_ffff_ffff_ff00;
    const PAGE: u64 = 0x01ff_ffff_ffff_f000;

    fn the_hypervisor_reaches_memory_and_devices_at_their_own_addresses(partition: u64) {
        const FIRST: u64 = 0x6_00c3_c000_0000;
        const SECOND: u64 = FIRST + 5 * HUGE_PAGE + 0x1000;
        const ELSEWHERE: u64 = 0x6_0300_0000_0000;
        map_host(&[FIRST, SECOND, ELSEWHERE].map(PhysAddr::new)).unwrap();
        let root = entry(entry(partition, 1) & PAGE, 0) & PAGE & !(1 << 62);
        let reached = |address| walk_from(root, address).map(|(real, _)| real);
        for at in [0, 0x2000_0000, HUGE_PAGE - 1, FIRST, FIRST + 0x1234, SECOND, ELSEWHERE] {
            assert_eq!(reached(at), Some(at), "{at:#x}");
        }
        for at in [HUGE_PAGE, FIRST + HUGE_PAGE, ELSEWHERE - 1, 1 << 40] {
            assert_eq!(reached(at), None, "{at:#x}");
        }
        let (_, memory) = walk_from(root, 0).unwrap();
        let (_, device) = walk_from(root, FIRST).unwrap();
        assert_eq!(
            (memory & 0x3f, device & 0x3f),
            (0x0f, 0x2e),
            "privileged; devices are not executed or cached"
        );
        assert_eq!(map_host(&[PhysAddr::new(HUGE_PAGE)]), None);
    }

    fn entry(table: u64, index: usize) -> u64 {
        let entry = with_exposed_provenance::<u64>(table as usize).wrapping_add(index);
        // SAFETY: tables lead to tables of the static, and indices stay in them.
        u64::from_be(unsafe { entry.read_volatile() })
    }

    /// What the guest reaches at `address`, and the leaf, as hardware would find it from the partition table.
    fn walk(partition: u64, address: u64) -> Option<(u64, u64)> {
        walk_from(entry(partition, 2) & PAGE, address)
    }

    fn walk_from(mut table: u64, address: u64) -> Option<(u64, u64)> {
        let mut below = 39;
        for index in radix::indices(address) {
            let found = entry(table, index);
            if found & VALID == 0 {
                return None;
            } else if found & LEAF != 0 {
                let inside = address & ((1 << below) - 1);
                return Some(((found & PAGE) + inside, found));
            }
            (table, below) = (found & NEXT, below - 9);
        }
        None
    }

    // One test, since there is one set of tables.
    #[test]
    fn a_guest_reaches_its_memory_and_lent_registers_and_nothing_else() {
        let partition = map_memory(MEMORY, 0x30_0000);
        assert_eq!(entry(partition, 3), radix::partition_processes(0x30_0000));
        let reached = |address| walk(partition, address).map(|(real, _)| real);
        for at in [0, 8, LARGE_PAGE - 1, LARGE_PAGE, GUEST_BYTES / 2 + 5, GUEST_BYTES - 1] {
            assert_eq!(reached(at), Some(MEMORY.as_u64() + at));
        }
        let closed = [GUEST_BYTES, GUEST_BYTES + LARGE_PAGE, MEMORY.as_u64(), REGISTERS_AT, 1 << 39, 1 << 51];
        closed.iter().for_each(|at| assert_eq!(reached(*at), None, "{at:#x}"));

        assert_eq!(map_registers(DEVICE, 2 * SMALL_PAGE + 1), None);
        assert_eq!(map_registers(PhysAddr::new(0x100), SMALL_PAGE), None);
        assert_eq!(map_registers(DEVICE, REGISTER_BYTES + SMALL_PAGE), None);
        assert_eq!(reached(REGISTERS_AT), None);
        map_registers(DEVICE, REGISTER_BYTES).unwrap();
        assert_eq!(reached(REGISTERS_AT + REGISTER_BYTES - 1), Some(DEVICE.as_u64() + REGISTER_BYTES - 1));
        map_registers(DEVICE, 2 * SMALL_PAGE).unwrap();
        assert_eq!(reached(REGISTERS_AT + SMALL_PAGE + 4), Some(DEVICE.as_u64() + SMALL_PAGE + 4));
        assert_eq!(reached(REGISTERS_AT + 2 * SMALL_PAGE), None, "no longer lent");
        assert_eq!(reached(REGISTERS_AT + REGISTER_BYTES), None);
        let (_, leaf) = walk(partition, REGISTERS_AT).unwrap();
        assert_eq!(leaf, radix::leaf(DEVICE.as_u64(), Kind::Registers));
        the_hypervisor_reaches_memory_and_devices_at_their_own_addresses(partition);
    }
}
