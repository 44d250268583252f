//! Modes and replies.

use super::spec::{Status, TOO_HARD};

mod sealed {
    pub trait Sealed {}
}

/// Where a call runs: the same source, two instances.
pub trait Mode: sealed::Sealed {
    /// Whether nobody comes after it: then it provides what is missing, and waits a little.
    const FINAL: bool;
}

/// In real mode, in the guest's exit: nothing is allocated, nothing is waited for but hardware, and what cannot be done
/// is handed over.
#[derive(Clone, Copy, Debug)]
pub enum RealMode {}

/// In the hypervisor's full context.
#[derive(Clone, Copy, Debug)]
pub enum VirtualMode {}

impl sealed::Sealed for RealMode {}
impl sealed::Sealed for VirtualMode {}

impl Mode for RealMode {
    const FINAL: bool = false;
}

impl Mode for VirtualMode {
    const FINAL: bool = true;
}

/// Why a call goes on in virtual mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Why {
    /// A table page is missing.
    NeedPages,
    /// Another CPU has what the call needs.
    Contended,
    /// A page is not registered, or of smaller pages than the hardware tables need.
    Unregistered,
    /// The call dealt with as many entries as one step may. The cursor stands where the next one goes on.
    Budget,
}

impl Why {
    /// What it comes to when nobody can help.
    const fn at_last(self) -> Status {
        match self {
            Self::NeedPages => Status::NotEnoughResources,
            Self::Contended | Self::Budget => Status::Busy,
            Self::Unregistered => Status::Parameter,
        }
    }
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "a guest waits for it, or the call has to go on"]
pub enum Reply {
    /// Finished: for the guest's r3 and, after H_GET_TCE, r4.
    Done {
        /// What goes into r3.
        status: Status,
        /// What H_GET_TCE found, else 0.
        value: u64,
    },
    /// Not finished: the hypervisor makes the same call again in virtual mode. There it means that a step was done
    /// ([`Why::Budget`]), or could not be ([`Why::Contended`]), and that the call goes on when it is made once more.
    TooHard(Why),
}

impl Reply {
    /// The number for r3; [`TOO_HARD`] when the call is not finished.
    #[inline]
    #[must_use]
    pub const fn status(self) -> i64 {
        match self {
            Self::Done { status, .. } => status.as_i64(),
            Self::TooHard(_) => TOO_HARD,
        }
    }
}

/// Why a call ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// With this status.
    Refused(Status),
    /// For a reason that virtual mode may be able to help with.
    Lacking(Why),
    /// Partly done: goes on from the cursor, in whatever mode.
    Unfinished(Why),
}

impl Stop {
    pub(super) const PARAMETER: Self = Self::Refused(Status::Parameter);

    /// The reply of a call that ended so.
    #[inline]
    pub(super) const fn reply<M: Mode>(self) -> Reply {
        match self {
            Self::Refused(status) => done(status),
            Self::Lacking(why) if M::FINAL => done(why.at_last()),
            Self::Lacking(why) | Self::Unfinished(why) => Reply::TooHard(why),
        }
    }
}

/// A finished call without a value.
#[inline]
pub(super) const fn done(status: Status) -> Reply {
    Reply::Done { status, value: 0 }
}
