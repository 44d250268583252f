//! What a guest's WBINVD must do.

/// Whether DMA through a context goes through the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Coherency {
    /// Hardware makes it so, whatever the device asks for.
    Coherent,
    /// A device may go past the caches.
    NonCoherent {
        /// Why.
        because: Because,
    },
}

/// Why DMA may go past the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Because {
    /// A unit of the context cannot control it.
    NoSnoopControl,
    /// The context was made without it.
    NotEnforced,
}
