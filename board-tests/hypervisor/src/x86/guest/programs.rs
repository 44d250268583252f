//! What a guest can be told to run, by number.

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// A program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum Program {
            $($(#[$doc])* $name = $number,)+
        }

        impl Program {
            /// The program with this number.
            #[must_use]
            pub const fn numbered(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

programs! {
    /// Loads, stores, hypercalls, and what a hypercall takes.
    Runs = 1,
    /// Carries out a [script](super::script).
    Script = 2,
    /// Reads a disk.
    Disk = 3,
    /// Meets the [same program](super::meets) of another guest.
    Meets = 8,
    /// Counts in one word, for ever.
    Counts = 9,
    /// Has an `edu` device [copy](super::dma).
    Copies = 10,
    /// Has it write for ever.
    Floods = 11,
    /// Dies while it writes.
    DiesUnderDma = 12,
}
