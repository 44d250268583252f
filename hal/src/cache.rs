//! Cache maintenance for memory that hardware reads and writes past the CPU caches.

use crate::addr::PhysRange;

/// Makes the CPU's stores visible to hardware that does not snoop.
///
/// May be called from any CPU at any time. An implementation for a machine whose IOMMU snoops may do
/// nothing in `write_back`, but `store_barrier` must always order.
pub trait CacheMaintenance {
    /// Writes back every cache line that holds part of `memory` and waits until memory has it.
    fn write_back<T>(&self, memory: &[T]);

    /// Orders all earlier loads and stores, to memory and to registers, before all later ones: a full
    /// barrier, stores before later loads included.
    fn store_barrier(&self);

    /// Writes back and invalidates all caches of the calling CPU: what a guest's WBINVD asks for.
    fn write_back_all(&self);

    /// Writes back and invalidates, in the caches of all CPUs, each line that holds part of `memory`, and
    /// waits until memory has it: what was stored before is there for devices that do not snoop, and what
    /// such devices have stored is what the next load returns. Memory that no CPU caches may be left alone.
    fn flush(&self, memory: PhysRange);

    /// The same for all memory: for more ranges than somebody had room to note. May be slow.
    fn flush_everything(&self);
}

impl<K: CacheMaintenance + ?Sized> CacheMaintenance for &K {
    fn write_back<T>(&self, memory: &[T]) {
        (**self).write_back(memory);
    }
    fn store_barrier(&self) {
        (**self).store_barrier();
    }
    fn write_back_all(&self) {
        (**self).write_back_all();
    }
    fn flush(&self, memory: PhysRange) {
        (**self).flush(memory);
    }
    fn flush_everything(&self) {
        (**self).flush_everything();
    }
}
