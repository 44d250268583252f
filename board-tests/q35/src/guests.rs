//! What the test hypervisor needs of this image: memory of guests, control blocks, and the machine around.

use core::{
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering},
};

use portcullis_hal::{Clock, DonatedPages, PagePool, PhysAddr, PhysRange, arch::x86_64::TimeStampClock};
use portcullis_hypervisor::x86::{
    guest::layout::GUEST_BYTES,
    memory::GuestMemory,
    scenario::Machine,
    svm::{Permissions, SvmCpu},
    vcpu::TurnLimit,
    vmcb::Vmcb,
};
use portcullis_suite::{Event, Failure};

use crate::{
    board::Q35,
    boot::AcpiRoot,
    console,
    limit::Limit,
    pair::{self, Pair},
};

/// Guests at a time.
const GUESTS: usize = 2;
/// vCPUs of all guests.
const VCPUS: usize = 4;
/// Pages of nested tables, and one for their pool.
const TABLE_PAGES: usize = 64;
const GUEST_WORDS: usize = GUEST_BYTES as usize / 8;

/// Memory of guests: aligned so that large pages map it.
#[repr(C, align(0x20_0000))]
struct Layout {
    guests: [[u64; GUEST_WORDS]; GUESTS],
    tables: [[u64; 512]; TABLE_PAGES],
    blocks: [Vmcb; VCPUS],
}

struct Room {
    layout: UnsafeCell<Layout>,
    tables_taken: AtomicBool,
    blocks_taken: AtomicBool,
}

// SAFETY: only raw pointers into it are made, each to a part with one purpose; tables and blocks are given out once.
unsafe impl Sync for Room {}

static ROOM: Room = Room {
    layout: UnsafeCell::new(Layout {
        guests: [[0; GUEST_WORDS]; GUESTS],
        tables: [[0; 512]; TABLE_PAGES],
        blocks: [const { Vmcb::zeroed() }; VCPUS],
    }),
    tables_taken: AtomicBool::new(false),
    blocks_taken: AtomicBool::new(false),
};
static PERMISSIONS: Permissions = Permissions::new();

unsafe extern "C" {
    /// From the link script: the image, the end of what nothing writes, and the end of what comes from the file.
    static image_start: u64;
    static image_constant_end: u8;
    static image_file_end: u8;
}

/// The machine as scenarios with guests see it.
pub(crate) struct Guests<'a, 'b> {
    board: &'a Q35<'b>,
    clock: TimeStampClock,
    pool: PagePool<DonatedPages<'static>>,
    cpus: Pair,
}

impl<'a, 'b> Guests<'a, 'b> {
    /// To be made once: there is one pool, and one local APIC to prepare.
    ///
    /// # Errors
    /// What the machine lacks, in words.
    pub(crate) fn new(
        board: &'a Q35<'b>,
        clock: TimeStampClock,
        root: AcpiRoot,
    ) -> Result<Self, &'static str> {
        Limit::prepare().map_err(|_| "there is no local APIC to end guests")?;
        let pool = table_pool().ok_or("there are no pages for nested tables")?;
        Ok(Self { board, clock, pool, cpus: Pair::new(root) })
    }
}

/// Pages of nested tables, once.
fn table_pool() -> Option<PagePool<DonatedPages<'static>>> {
    if ROOM.tables_taken.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: a live static; no reference is made.
    let start = NonNull::new(unsafe { &raw mut (*ROOM.layout.get()).tables }.cast())?;
    let base = PhysAddr::new(start.addr().get() as u64);
    // SAFETY: static, zeroed memory, physical = virtual, given out once.
    let pages = unsafe { DonatedPages::new(start, base, TABLE_PAGES) }?;
    PagePool::new(pages).ok()
}

/// Bytes of the image from its start to a symbol.
fn bytes_to(end: *const u8) -> usize {
    end.addr() - (&raw const image_start).addr()
}

impl<'b> Machine for Guests<'_, 'b> {
    type Board = Q35<'b>;
    type Cpus = Pair;

    fn cpus(&self) -> &Pair {
        &self.cpus
    }

    fn board(&self) -> &Self::Board {
        self.board
    }

    fn registers(&self, index: usize) -> Option<PhysRange> {
        self.board.registers(index)
    }

    fn emit(&self, event: &Event<'_>) {
        console::emit(event);
    }

    fn clock(&self) -> &dyn Clock {
        &self.clock
    }

    fn limit(&self) -> impl TurnLimit {
        Limit
    }

    fn svm(&self) -> Option<SvmCpu> {
        pair::svm()
    }

    fn guest_memory(&self, index: usize) -> Option<GuestMemory> {
        (index < GUESTS).then_some(())?;
        // SAFETY: a live static; no reference is made.
        let first: *mut u64 = unsafe { &raw mut (*ROOM.layout.get()).guests }.cast();
        // SAFETY: inside the static.
        let start = NonNull::new(unsafe { first.add(index * GUEST_WORDS) })?;
        // SAFETY: static memory of that length that nothing else names.
        Some(unsafe { GuestMemory::new(start, GUEST_BYTES) })
    }

    fn control_blocks(&self) -> Option<&'static mut [Vmcb]> {
        if ROOM.blocks_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: a live static, whose blocks nothing else names; given out once.
        Some(unsafe { &mut (*ROOM.layout.get()).blocks })
    }

    fn permissions(&self) -> &'static Permissions {
        &PERMISSIONS
    }

    fn pool(&self) -> &PagePool<DonatedPages<'static>> {
        &self.pool
    }

    fn image(&self) -> (*const u64, usize) {
        (&raw const image_start, bytes_to(&raw const image_file_end).div_ceil(8))
    }

    fn digest(&self) -> u64 {
        let words = bytes_to(&raw const image_constant_end) / 8;
        (0..words).fold(0xcbf2_9ce4_8422_2325, |digest: u64, index| {
            // SAFETY: code and constants of the image, which lie from its start to there.
            let word = unsafe { (&raw const image_start).add(index).read_volatile() };
            (digest ^ word).wrapping_mul(0x100_0000_01b3)
        })
    }

    fn act(&self, _: &str) -> Option<Result<(), Failure>> {
        None
    }
}
