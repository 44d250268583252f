//! A guest: its memory, its nested tables, and what it finds in its memory when it begins.

use portcullis_hal::{PagePool, PhysAddr, TableMemory};

use super::{
    backend::Start,
    caching::{MemoryType, Tables, mtrr::Run},
    guest::layout::{
        DESCRIPTORS, GUEST_BYTES, IMAGE, INTERRUPTS, OWN_BYTES, TABLES, TASK, VCPUS, own, stack_end,
    },
    memory::GuestMemory,
    npt::{Mapping, NestedTables, NptError},
};

/// None, the kernel's code and data (selectors 8 and 0x10), a program's code and data (0x1b and 0x23).
const SEGMENTS: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff];
/// Present, writable, for programs too.
const TABLE: u64 = 7;
const LARGE_PAGE: u64 = TABLE | 1 << 7;
/// PCD and PWT: for the last GiB below 4 GiB, where devices are.
const UNCACHED: u64 = 3 << 3;
const DEVICES: u64 = 3 << 30;
/// Present, 64-bit interrupt gate, kernel's code (AMD64 manual, volume 2, 4.8.4).
const GATE: u64 = 0x8e << 40 | 8 << 16;
const EXCEPTIONS: u64 = 32;
const TRAP_BYTES: u64 = 16;
/// Last byte of a task state segment without a map of ports.
const TASK_LIMIT: u32 = 103;

/// The image that a guest gets a copy of: words and where its code for guests lies.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// First of its words, at [`IMAGE`].
    pub start: *const u64,
    /// Words of its part that comes from a file.
    pub words: usize,
    /// Address of the guest's first instruction.
    pub entry: u64,
    /// Address of the guest's entries for exceptions.
    pub traps: u64,
}

/// Why a guest cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmError {
    /// Its nested tables.
    Tables(NptError),
    /// Something does not fit its memory.
    TooLarge,
    /// There are no such many vCPUs.
    NoSuchVcpu(u64),
}

impl From<NptError> for VmError {
    fn from(error: NptError) -> Self {
        Self::Tables(error)
    }
}

/// One guest.
#[derive(Debug)]
pub struct Vm<'p, M: TableMemory> {
    memory: GuestMemory,
    tables: NestedTables<'p, M>,
    entry: u64,
}

impl<'p, M: TableMemory> Vm<'p, M> {
    /// A guest that has this memory, cleared, with a copy of the image in it, and nothing else.
    ///
    /// # Errors
    /// [`VmError`].
    ///
    /// # Safety
    /// The image's words must be readable.
    pub unsafe fn new(pool: &'p PagePool<M>, memory: GuestMemory, image: &Image) -> Result<Self, VmError> {
        let mut tables = NestedTables::new(pool)?;
        tables.map(0, memory.address(), memory.bytes(), Mapping::Memory(MemoryType::WriteBack))?;
        let vm = Self { memory, tables, entry: image.entry };
        // SAFETY: promised by the caller.
        unsafe { vm.fill(image) }.ok_or(VmError::TooLarge)?;
        Ok(vm)
    }

    /// Its memory.
    #[must_use]
    pub const fn memory(&self) -> GuestMemory {
        self.memory
    }

    /// Physical address of its nested tables.
    #[must_use]
    pub const fn nested_root(&self) -> u64 {
        self.tables.root()
    }

    /// How its page at guest-physical `at` is mapped.
    #[must_use]
    pub fn mapping(&self, at: u64) -> Option<Mapping> {
        self.tables.translate(at).map(|(_, mapping)| mapping)
    }

    /// Lends a device's registers, at their own address.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn lend(&mut self, registers: PhysAddr, bytes: u64) -> Result<(), NptError> {
        self.tables.map(registers.as_u64(), registers, bytes, Mapping::Registers)
    }

    /// Takes lent registers back. The vCPUs must forget their translations before their next turn.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn take_back(&mut self, registers: PhysAddr, bytes: u64) -> Result<(), NptError> {
        self.tables.unmap(registers.as_u64(), bytes)
    }

    /// Where vCPU `number` begins.
    ///
    /// # Errors
    /// [`VmError::NoSuchVcpu`].
    pub const fn start(&self, number: u64) -> Result<Start, VmError> {
        if number >= VCPUS {
            return Err(VmError::NoSuchVcpu(number));
        }
        Ok(Start {
            instruction: self.entry,
            stack: stack_end(number),
            tables: TABLES,
            descriptors: (DESCRIPTORS, 8 * SEGMENTS.len() as u32 - 1),
            interrupts: (INTERRUPTS, 16 * EXCEPTIONS as u32 - 1),
            task: (own(number) + TASK, TASK_LIMIT),
            own: own(number),
        })
    }

    /// # Safety
    /// The image's words must be readable.
    unsafe fn fill(&self, image: &Image) -> Option<()> {
        let memory = self.memory;
        for at in (0..memory.bytes()).step_by(8) {
            memory.write(at, 0)?;
        }
        (IMAGE + image.words as u64 * 8 <= memory.bytes().min(GUEST_BYTES)).then_some(())?;
        for word in 0..image.words {
            // SAFETY: promised by the caller. Some of it may change meanwhile: nothing that a guest needs.
            let value = unsafe { image.start.add(word).read_volatile() };
            memory.write(IMAGE + word as u64 * 8, value)?;
        }
        fill_tables(memory)?;
        fill_descriptors(memory, image.traps)
    }
}

impl<M: TableMemory> Tables for Vm<'_, M> {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn retype(&self, run: Run) -> Result<(), NptError> {
        self.tables.retype(run)
    }
}

/// The guest's own page tables: the low 4 GiB one to one.
fn fill_tables(memory: GuestMemory) -> Option<()> {
    let [level4, level3, level2] = [TABLES, TABLES + 0x1000, TABLES + 0x2000];
    memory.write(level4, level3 | TABLE)?;
    for gib in 0..4 {
        memory.write(level3 + gib * 8, (level2 + gib * 0x1000) | TABLE)?;
    }
    for page in 0..4 * 512 {
        let at = page << 21;
        let attributes = if at < DEVICES { LARGE_PAGE } else { LARGE_PAGE | UNCACHED };
        memory.write(level2 + page * 8, at | attributes)?;
    }
    Some(())
}

/// Descriptor tables, and the vCPUs' task state segments: where exceptions of programs have their stack.
fn fill_descriptors(memory: GuestMemory, traps: u64) -> Option<()> {
    for (index, segment) in SEGMENTS.into_iter().enumerate() {
        memory.write(DESCRIPTORS + index as u64 * 8, segment)?;
    }
    for vector in 0..EXCEPTIONS {
        let entry = traps + vector * TRAP_BYTES;
        let low = entry & 0xffff | GATE | (entry >> 16 & 0xffff) << 48;
        memory.write(INTERRUPTS + vector * 16, low)?;
        memory.write(INTERRUPTS + vector * 16 + 8, entry >> 32)?;
    }
    for vcpu in 0..VCPUS {
        // RSP0, at offset 4 of the segment: the end of the vCPU's page, far below 4 GiB.
        memory.write(own(vcpu) + TASK, (own(vcpu) + OWN_BYTES) << 32)?;
    }
    Some(())
}
