//! Cache maintenance for memory that hardware reads past the CPU caches.

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
}
