//! The ways in which the model breaks contract D, and the rule that notices each.

use portcullis_suite::hcall::{
    Call, Layout,
    call::{PUT_TCE, PUT_TCE_INDIRECT, STUFF_TCE},
    port::FOREIGN_LIOBN,
};

macro_rules! breakages {
    ($($(#[$doc:meta])* $name:ident turns $($rule:literal),+ red;)+) => {
        /// One defect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Breakage {
            $($(#[$doc])* $name,)+
        }

        /// Each defect, and the rules that must fail on it.
        pub const BREAKAGES: &[(Breakage, &[&str])] = &[$((Breakage::$name, &[$($rule),+]),)+];
    };
}

breakages! {
    IobaRounded turns "ioba_misaligned" red;
    IobaWrapsIntoWindow turns "ioba_outside_the_window" red;
    /// The range is checked for one entry, and the rest ignored.
    CountUnchecked turns "count_beyond_the_window" red;
    CountInWrappingBytes turns "count_that_wraps" red;
    LiobnOf32Bits turns "unknown_liobn" red;
    ForeignLiobnServed turns "liobn_of_another_vm" red;
    OpcodeOf32Bits turns "other_opcode" red;
    OtherOpcodesRefusedAsParameter turns "other_opcode" red;
    PermissionsWidened turns "permissions" red;
    /// Devices go on with what they looked up once.
    NothingKilled turns "permissions", "another_page_in_its_place", "memory_is_released_after_the_kill" red;
    AddressRounded turns "misaligned_address" red;
    Unregistered turns "not_registered" red;
    HalfRegistered turns "not_registered" red;
    NotLookedUpAgain turns "registered_by_then" red;
    /// An entry without permission takes a count that nobody returns.
    NoPermissionCounted turns "no_permission_unmaps" red;
    NoPermissionNeedsMemory turns "no_permission_unmaps", "guest_form_comes_back" red;
    AddressBitsLost turns "no_permission_unmaps", "guest_form_comes_back" red;
    RegionPagesIgnored turns "region_of_smaller_pages" red;
    FirstIommuPageOnly turns "several_iommu_pages" red;
    ListCutTo512 turns "list_too_long_or_misaligned" red;
    ListAddressRounded turns "list_too_long_or_misaligned" red;
    ListAnywhere turns "list_not_registered" red;
    CountZeroReadsList turns "no_entries" red;
    CountZeroRefused turns "no_entries" red;
    /// Entries before the bad one stay.
    UntilTheBadEntry turns "all_or_nothing" red;
    /// An error in a list ends it without being reported.
    BadEntryForgiven turns "all_or_nothing" red;
    ListReadTwice turns "list_read_once" red;
    LastEntryForgotten turns "each_entry_as_put_makes_it" red;
    ValueStripped turns "value_with_permission" red;
    ValueLost turns "any_other_value_clears" red;
    OneEntryTooMany turns "any_other_value_clears" red;
    CapIgnored turns "cap_of_the_window" red;
    CapEverywhere turns "cap_of_the_window" red;
    StartsOver turns "newer_mapping_stays" red;
    HalfDoneWithoutPages turns "no_page_to_be_had" red;
    TriesAgainWithoutPages turns "no_page_to_be_had" red;
    UnregistersMapped turns "memory_is_released_after_the_kill" red;
    LastWriterWins turns "contended_entry" red;
    ContendedAsParameter turns "contended_entry" red;
    SecondTableForgotten turns "tables_in_step" red;
    ReplaysNothing turns "replay" red;
    ReplaysAPart turns "replay_is_all_or_nothing" red;
    ConnectsAnything turns "tables_that_do_not_fit" red;
    RevokedStaysCounted turns "revoked_between_steps" red;
    HandsAllOver turns "handed_over_for_a_reason" red;
    KillTakenForDone turns "unconfirmed_kill" red;
    QuarantinedCountedOut turns "unconfirmed_kill" red;
}

impl Breakage {
    /// The call that is served in the place of the one that the guest made.
    pub fn bend(self, call: Call, layout: Layout) -> Call {
        let mut bent = call;
        let [liobn, ioba, third, count] = &mut bent.arguments;
        let window = layout.windows().into_iter().find(|window| window.liobn == *liobn);
        let is = |opcode| call.opcode == opcode;
        let counted = is(STUFF_TCE) || is(PUT_TCE_INDIRECT);
        match (self, window) {
            (Self::IobaRounded, Some(window)) => *ioba &= !(window.page_bytes() - 1),
            (Self::IobaWrapsIntoWindow, Some(window)) => {
                let bytes = window.entries << window.page_shift;
                *ioba = window.start + (ioba.wrapping_sub(window.start) & (bytes - 1));
            }
            (Self::CountUnchecked, Some(window)) if counted => {
                if let Some(first) = window.entry(*ioba, 1) {
                    *count = (*count).min(window.entries - first);
                }
            }
            (Self::CountInWrappingBytes, Some(window)) if counted => {
                let end = ioba.wrapping_add(*count << window.page_shift);
                let last = window.start.wrapping_add(window.entries << window.page_shift);
                if end.wrapping_sub(1) <= last.wrapping_sub(1) && window.entry(*ioba, 1).is_some() {
                    *count = (*count << window.page_shift) >> window.page_shift;
                }
            }
            (Self::LiobnOf32Bits, _) => *liobn &= u64::from(u32::MAX),
            (Self::ForeignLiobnServed, _) if *liobn == FOREIGN_LIOBN => *liobn = layout.main().liobn,
            (Self::OpcodeOf32Bits, _) => bent.opcode &= u64::from(u32::MAX),
            (Self::AddressRounded, Some(window)) if is(PUT_TCE) => *third &= !(window.page_bytes() - 4),
            (Self::AddressBitsLost, _) if is(PUT_TCE) && *third & 3 == 0 => *third = 0,
            (Self::ListCutTo512, _) if is(PUT_TCE_INDIRECT) => *count = (*count).min(512),
            (Self::ListAddressRounded, _) if is(PUT_TCE_INDIRECT) => *third &= !0xfff,
            (Self::LastEntryForgotten, _) if is(PUT_TCE_INDIRECT) && *count == 512 => *count -= 1,
            (Self::ValueStripped, _) if is(STUFF_TCE) => *third &= !3,
            (Self::ValueLost, _) if is(STUFF_TCE) && *third & 3 == 0 => *third = 0,
            (Self::OneEntryTooMany, Some(_)) if is(STUFF_TCE) && (1..500).contains(count) => *count += 1,
            _ => {}
        }
        bent
    }
}
