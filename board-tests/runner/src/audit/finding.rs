//! What an audit objects to.

use serde::Serialize;

/// Why code must not run in real mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A panic, or a trap that can be taken.
    Panic,
    /// Text is made.
    Formatting,
    /// Something is logged.
    Logging,
    /// Memory is allocated.
    Allocation,
    /// Firmware is called, or the machine state is changed.
    Firmware,
    /// Vector, VSX or floating point.
    Vector,
    /// A call or jump to where a register points.
    Indirect,
    /// A function calls itself, perhaps through others.
    Recursion,
    /// A loop that is not on the reviewed list.
    Loop,
    /// More stack than allowed, or an amount that cannot be told.
    Stack,
    /// Bytes that are no known instruction, or a jump into the middle of something.
    Undecodable,
    /// An entry of the reviewed list that matches nothing.
    Stale,
}

impl Kind {
    /// In words, after "found:".
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Panic => "a panic or trap is reachable",
            Self::Formatting => "formatting is reachable",
            Self::Logging => "logging is reachable",
            Self::Allocation => "allocation is reachable",
            Self::Firmware => "a firmware call or a change of the machine state is reachable",
            Self::Vector => "a vector or floating-point instruction is reachable",
            Self::Indirect => "an indirect call or jump table is reachable",
            Self::Recursion => "recursion",
            Self::Loop => "a loop that nobody reviewed",
            Self::Stack => "too much stack, or an unknown amount",
            Self::Undecodable => "code that cannot be followed",
            Self::Stale => "a review that matches no loop",
        }
    }

    /// What to do about it.
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::Panic => "use get(), checked_*() or let-else in the place of what can panic",
            Self::Formatting | Self::Logging => "return an error value; let the virtual-mode caller tell it",
            Self::Allocation => "let the caller donate the memory beforehand",
            Self::Firmware => "hand the call over to virtual mode (H_TOO_HARD)",
            Self::Vector => {
                "copy small values field by field; build the code without the vector facilities \
                 (-Ctarget-feature=-vsx,-altivec)"
            }
            Self::Indirect => {
                "take a type parameter in the place of `dyn` or a function pointer; turn a dense `match` into \
                 an array lookup or a chain of `if`"
            }
            Self::Recursion => "write it as a loop with a bound",
            Self::Loop => {
                "find what bounds it; if it is small, add the entry above with that bound to the reviewed list"
            }
            Self::Stack => "keep large values in memory donated beforehand, and pass references",
            Self::Undecodable => "end the code before data, and jump only to the beginnings of functions",
            Self::Stale => "remove the entry, or correct its symbol and line",
        }
    }
}

/// One objection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) kind: Kind,
    /// What it is, where it is.
    pub(super) what: String,
    /// The calls that lead to it, from the entry point.
    pub(super) path: Vec<String>,
    /// A line of the reviewed list that would settle it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) entry: Vec<String>,
}

/// An objection within one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objection {
    pub(super) kind: Kind,
    pub(super) address: u64,
    pub(super) what: String,
}
