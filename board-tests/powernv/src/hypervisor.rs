//! What the test hypervisor needs of this image.

use core::ptr::NonNull;

use portcullis_hal::PhysAddr;
use portcullis_hypervisor::power::{cpu, guest::Guest, memory::GuestMemory, scenario::Machine};
use portcullis_suite::{Event, Failure};

use crate::{board::PowerNv, console, hypercalls, image, opal, pci::Function, tree::Tree};

unsafe extern "C" {
    /// First byte of the guest's memory, from the link script.
    static mut guest_memory: u8;
}

/// The machine with its other CPUs.
pub(crate) struct Guests<'t, 'b> {
    tree: &'t Tree,
    board: &'t PowerNv<'b>,
    /// The first edu.
    device: Option<&'t Function>,
}

impl<'t, 'b> Guests<'t, 'b> {
    pub(crate) const fn new(tree: &'t Tree, board: &'t PowerNv<'b>, device: Option<&'t Function>) -> Self {
        Self { tree, board, device }
    }

    /// The machine without its CPUs.
    pub(crate) const fn board(&self) -> &'t PowerNv<'b> {
        self.board
    }
}

impl Machine for Guests<'_, '_> {
    fn emit(&self, event: &Event<'_>) {
        console::emit(event);
    }

    fn guest_memory(&self) -> Option<GuestMemory> {
        let start = NonNull::new(&raw mut guest_memory)?;
        // SAFETY: the link script sets this block aside, and nothing else names it.
        unsafe { GuestMemory::new(start) }
    }

    fn device_registers(&self) -> Option<(PhysAddr, u64)> {
        self.device.map(|device| (PhysAddr::new(device.registers), device.bytes as u64))
    }

    fn start_cpu(&self, index: usize) -> Result<(), i64> {
        let this = cpu::number();
        let mut others = self.tree.cpus().filter(|server| *server != this);
        let other = index.checked_sub(1).and_then(|index| others.nth(index));
        match opal::start_cpu(other.ok_or(0)?) {
            0 => Ok(()),
            status => Err(status),
        }
    }

    fn digest(&self) -> u64 {
        image::digest()
    }

    fn act(&self, guest: Guest, name: &str) -> Option<Result<(), Failure>> {
        hypercalls::act(self, guest, name)
    }
}
