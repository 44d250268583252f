//! What a rule needs of a hypervisor with a guest.

use bitflags::bitflags;

use super::call::{Answer, Call, PARAMETER, SUCCESS};
use crate::{Event, Failure};

/// A guest that makes hypercalls, with devices behind its windows, and its hypervisor, from which the rules ask a few
/// favours. Every wait in it is bounded.
pub trait GuestPort {
    /// What of this the port can do.
    fn offers(&self) -> Offers;

    /// Where windows and memory of the guest are.
    fn layout(&self) -> Layout;

    /// Everything as a guest finds it: all windows of the layout without entries, device 0 behind [`Layout::main`] through
    /// tables of 4 KiB pages that have no level but the root, device 1 behind none; memory of the layout
    /// registered; nothing arranged. A port that cannot undo an unconfirmed kill says so by failing.
    ///
    /// # Errors
    /// What the hypervisor could not do.
    fn reset(&mut self) -> Result<(), Failure>;

    /// The guest makes a call on its first virtual CPU.
    fn call(&mut self, call: Call) -> Answer;

    /// Reads the big-endian word at a guest address of the layout's memory.
    fn read(&mut self, guest: u64) -> u64;

    /// Writes it.
    fn write(&mut self, guest: u64, word: u64);

    /// Device `device` copies the 8 bytes at `from` to `to`, both I/O bus addresses of the window that it is behind. A
    /// transfer that is blocked is no failure, and does not hinder the next one; a device whose read was blocked may
    /// write what it read before.
    ///
    /// # Errors
    /// The device did not do its part.
    fn copy(&mut self, device: usize, from: u64, to: u64) -> Result<(), Failure>;

    /// The hypervisor does something; `false` when that was refused, and then nothing changed.
    fn control(&mut self, control: Control) -> bool;

    /// Arranges that `deed` is done at the next `moment` of a call, once.
    fn arrange(&mut self, moment: Moment, deed: Deed);

    /// Whether what was arranged has been done, and then what came of it: the answer of the call, or
    /// H_SUCCESS. Forgets what was not done.
    fn arranged(&mut self) -> Option<Answer>;

    /// Units of 4 KiB that are counted as mapped, over all memory of the guest.
    fn counted(&mut self) -> u64;

    /// Checks what must hold after every call: counts are what the hardware tables hold, no entry leads outside
    /// registered memory of the guest, hardware holds what the owner's view and the guest forms say.
    ///
    /// # Errors
    /// What does not hold.
    fn check(&mut self) -> Result<(), Failure>;

    /// Checks the same for one entry of a window, as far as that is cheaper.
    ///
    /// # Errors
    /// What does not hold.
    fn check_entry(&mut self, window: Window, entry: u64) -> Result<(), Failure>;

    /// Requester ID of a device, for the host to read.
    fn requester(&self, device: usize) -> u16;

    /// How calls ended up to now.
    fn finished(&self) -> Finished;

    /// Tells the host.
    fn emit(&mut self, event: &Event<'_>);

    /// Tells a number of calls.
    fn tell(&mut self, what: &'static str, calls: u64) {
        self.emit(&Event::Measured { what, value: calls, unit: "calls" });
    }
}

bitflags! {
    /// What a port can do, and a rule needs, beyond calls and memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offers: u32 {
        /// Device 0 copies.
        const DEVICE = 1;
        /// So does device 1, and can stand behind a window too.
        const SECOND_DEVICE = 1 << 1;
        /// [`Control::Starve`].
        const STARVE = 1 << 2;
        /// [`Control::Deafen`]: hardware that confirms kills; PHB3 does not.
        const DEAFEN = 1 << 3;
        /// [`Moment::ListRead`].
        const LIST_READ = 1 << 4;
        /// [`Moment::HandedOver`]: calls are tried in real mode first.
        const HANDED_OVER = 1 << 5;
        /// [`Moment::NextStep`].
        const NEXT_STEP = 1 << 6;
        /// [`Moment::Taken`].
        const TAKEN = 1 << 7;
        /// Nothing more, but less: a device takes so long that a rule looks through it at fewer places.
        const SLOW_DEVICE = 1 << 8;
    }
}

/// When something is done in the middle of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The list of an H_PUT_TCE_INDIRECT has been read.
    ListRead,
    /// Real mode has handed the call over.
    HandedOver,
    /// A step of the call is done, and the next one has not begun.
    NextStep,
    /// The call has taken its entries, and not given them up.
    Taken,
}

/// What is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The second virtual CPU makes this call.
    Call(Call),
    /// Guest memory at this address becomes this word.
    Write(u64, u64),
    /// The hypervisor does this.
    Control(Control),
}

/// Does what was arranged; `second_calls` is how the second virtual CPU calls.
pub fn carry_out<P: GuestPort>(
    port: &mut P,
    deed: Deed,
    second_calls: impl FnOnce(&mut P, Call) -> Answer,
) -> Answer {
    let done = match deed {
        Deed::Call(call) => return second_calls(port, call),
        Deed::Write(guest, word) => {
            port.write(guest, word);
            true
        }
        Deed::Control(control) => port.control(control),
    };
    Answer { status: if done { SUCCESS } else { PARAMETER }, value: 0 }
}

/// What a hypervisor does at the request of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Gives the device new, empty tables with pages of `page_shift` bits over the bytes of the window, and
    /// connects them behind it. The device must be behind no window.
    Connect {
        /// Number of the device.
        device: usize,
        /// The window's number.
        liobn: u64,
        /// log2 of an IOMMU page's bytes.
        page_shift: u8,
    },
    /// Takes the device from behind its window: it reaches nothing.
    Disconnect {
        /// Number of the device.
        device: usize,
    },
    /// Revokes the guest's ownership of the device.
    Revoke {
        /// Number of the device.
        device: usize,
    },
    /// Registers memory.
    Register(Area),
    /// Ends the registration.
    Unregister(Area),
    /// From now on no page for tables is free, neither for views nor for hardware; with `false` those of before
    /// are again.
    Starve(bool),
    /// From now on hardware confirms no kill, or does again.
    Deafen(bool),
}

/// How calls ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// In real mode.
    pub real: u64,
    /// Handed over to virtual mode.
    pub handed_over: u64,
}

/// Guest memory of whole 4 KiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First guest-physical address.
    pub guest: u64,
    /// Length.
    pub bytes: u64,
    /// log2 of the page that the region has once registered.
    pub page_shift: u8,
}

/// A window of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its number.
    pub liobn: u64,
    /// First I/O bus address.
    pub start: u64,
    /// Entries, a power of two.
    pub entries: u64,
    /// log2 of the guest's page.
    pub page_shift: u8,
    /// Entries that one H_STUFF_TCE may name.
    pub stuff_cap: Option<u32>,
}

/// Where things are; each port has it in some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// First I/O bus address of all windows but the topmost.
    pub window: u64,
    /// First address, a multiple of 64 KiB, of [`MEMORY_BYTES`] of guest memory that the rules use.
    pub memory: u64,
}

/// Guest memory that the rules use.
pub const MEMORY_BYTES: u64 = 0x5_0000;
/// Entries that one step of H_STUFF_TCE may deal with, in every window.
pub const BUDGET: u32 = 128;
/// A number that no window has.
pub const NO_LIOBN: u64 = 0x7777;
/// The number of a window that another VM has, and the guest has not.
pub const FOREIGN_LIOBN: u64 = 0x1000_0005;

impl Layout {
    /// The window that most rules use: 1024 pages of 4 KiB.
    #[must_use]
    pub const fn main(self) -> Window {
        self.at_start(0x1000_0001, 1024, 12, None)
    }

    /// As many bytes in pages of 64 KiB.
    #[must_use]
    pub const fn coarse(self) -> Window {
        self.at_start(0x1000_0002, 64, 16, None)
    }

    /// As [`main`](Self::main), with PAPR's cap of H_STUFF_TCE.
    #[must_use]
    pub const fn capped(self) -> Window {
        self.at_start(0x1000_0003, 1024, 12, Some(512))
    }

    /// The last 16 pages of the address space. No hardware reaches it, so nothing stands behind it.
    #[must_use]
    pub const fn topmost(self) -> Window {
        Window { liobn: 0x1000_0004, start: !0xffff, entries: 16, page_shift: 12, stuff_cap: None }
    }

    /// All windows that the guest has.
    #[must_use]
    pub const fn windows(self) -> [Window; 4] {
        [self.main(), self.coarse(), self.capped(), self.topmost()]
    }

    const fn at_start(self, liobn: u64, entries: u64, page_shift: u8, stuff_cap: Option<u32>) -> Window {
        Window { liobn, start: self.window, entries, page_shift, stuff_cap }
    }

    /// Registered memory of two pages of 64 KiB.
    #[must_use]
    pub const fn plain(self) -> Area {
        Area { guest: self.memory, bytes: 0x2_0000, page_shift: 16 }
    }

    /// Registered memory that ends in the middle of its second page of 64 KiB, so that it has smaller pages.
    #[must_use]
    pub const fn small(self) -> Area {
        Area { guest: self.memory + 0x2_0000, bytes: 0x1_8000, page_shift: 15 }
    }

    /// Memory of the guest that is not registered: one page of 64 KiB.
    #[must_use]
    pub const fn wild(self) -> Area {
        Area { guest: self.memory + 0x4_0000, bytes: 0x1_0000, page_shift: 16 }
    }
}

impl Area {
    /// Guest address of 4 KiB page `number`.
    #[must_use]
    pub const fn page(self, number: u64) -> u64 {
        self.guest + (number << 12)
    }

    /// Whether all of these bytes lie in it.
    #[must_use]
    pub const fn holds(self, guest: u64, bytes: u64) -> bool {
        let Some(offset) = guest.checked_sub(self.guest) else { return false };
        bytes <= self.bytes && offset <= self.bytes - bytes
    }
}

impl Window {
    /// I/O bus address of an entry; wraps behind the topmost window.
    #[must_use]
    pub const fn ioba(self, entry: u64) -> u64 {
        self.start.wrapping_add(entry << self.page_shift)
    }

    /// Bytes of a page.
    #[must_use]
    pub const fn page_bytes(self) -> u64 {
        1 << self.page_shift
    }

    /// The first of `count` entries from `ioba` on, when all of them lie in the window.
    #[must_use]
    pub const fn entry(self, ioba: u64, count: u64) -> Option<u64> {
        let Some(offset) = ioba.checked_sub(self.start) else { return None };
        let entry = offset >> self.page_shift;
        let inside = count <= self.entries && entry <= self.entries - count;
        if inside && offset & (self.page_bytes() - 1) == 0 { Some(entry) } else { None }
    }
}
