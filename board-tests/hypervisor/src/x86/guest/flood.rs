//! The programs that drive an `edu` device which was lent to the guest.

use core::ptr::NonNull;

use portcullis_hal::{
    DeviceId, Iova, RequesterId, Segment,
    arch::x86_64::{MmioRegisters, TimeStampClock},
};
use portcullis_suite::{DmaDevice, edu::Edu};

use super::{
    confined,
    dma::{ARRIVAL, BYTES, Record, SOURCE},
    hypercall::exit,
    probe,
};

/// At least as many ticks in a microsecond as any counter's: limits are then no shorter than they should be.
const MEGAHERTZ: u32 = 6000;

type Device = Edu<MmioRegisters, TimeStampClock>;

/// The device that was lent, with the source's content in its own buffer; ends the program without it.
fn loaded() -> Device {
    let told = |record: Record| probe::load(record.address()).value;
    let address = core::ptr::with_exposed_provenance_mut(told(Record::Registers) as usize);
    let Some(base) = NonNull::new(address) else { exit(1) };
    // SAFETY: the guest's tables map device registers one to one, and nothing else in the guest uses these.
    let registers = unsafe { MmioRegisters::new(base, told(Record::Length) as usize) };
    // The guest does not know its device's number, and needs none.
    let id = DeviceId { segment: Segment(0), requester: RequesterId::new(0) };
    let device = Edu::new(id, registers, TimeStampClock::new(MEGAHERTZ));
    if device.read_memory(Iova::new(SOURCE), BYTES).is_err() {
        exit(2);
    }
    device
}

fn begin(device: &Device, number: u64) {
    if device.begin_write(Iova::new(ARRIVAL), BYTES).is_err() {
        exit(3);
    }
    probe::store(Record::Writes.address(), number);
}

/// Has the device copy the source to the target, and ends when it has.
pub(super) fn copy() {
    if loaded().write_memory(Iova::new(ARRIVAL), BYTES).is_err() {
        exit(4);
    }
}

/// Has the device write the target for ever.
pub(super) fn flood() -> ! {
    let device = loaded();
    let mut number = 0;
    loop {
        number += 1;
        begin(&device, number);
        while device.is_busy() {
            core::hint::spin_loop();
        }
    }
}

/// Dies of a triple fault while the device writes.
pub(super) fn die() -> ! {
    begin(&loaded(), 1);
    confined::triple_fault()
}
