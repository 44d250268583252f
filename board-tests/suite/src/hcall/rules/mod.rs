//! The rules, by the ids of `docs/contracts.md`, section D.

mod connected;
mod indirect;
mod modes;
mod outcomes;
mod put;
mod stuff;
mod windows;

use super::{guest::Guest, port::GuestPort, port::Offers};
use crate::Failure;

/// What is known of a rule without a port.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Id of the promise.
    pub id: &'static str,
    /// Its name: lower case, words joined by underscores.
    pub name: &'static str,
    /// Id, and what is tried, in words.
    pub text: &'static str,
    /// What it needs of the port.
    pub needs: Offers,
}

/// What a rule is about, for whoever runs them in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Calls alone.
    Calls,
    /// What a device reaches after calls.
    Device,
    /// Hardware tables that come and go behind a window.
    Connections,
}

impl Rule {
    /// What it is about.
    #[must_use]
    pub fn topic(&self) -> Topic {
        if self.id >= "D50" || self.needs.contains(Offers::SECOND_DEVICE) {
            Topic::Connections
        } else if self.needs.contains(Offers::DEVICE) {
            Topic::Device
        } else {
            Topic::Calls
        }
    }
}

macro_rules! rules {
    ($($id:literal $module:ident :: $name:ident $text:literal needs $needs:expr;)+) => {
        /// All rules, whatever port they need, in an order that any port can keep: only the last one leaves
        /// something behind.
        pub const RULES: &[Rule] = &[$(
            Rule { id: $id, name: stringify!($name), text: concat!($id, ": ", $text), needs: $needs },
        )+];

        fn act<P: GuestPort>(guest: &mut Guest<'_, P>, name: &str) -> Option<Result<(), Failure>> {
            match name {
                $(stringify!($name) => Some($module::$name(guest)),)+
                _ => None,
            }
        }
    };
}

const ANY: Offers = Offers::empty();
const DEVICE: Offers = Offers::DEVICE;
const TWO_DEVICES: Offers = Offers::DEVICE.union(Offers::SECOND_DEVICE);

rules! {
    "D02" windows::ioba_misaligned "an I/O bus address that is misaligned" needs ANY;
    "D02" windows::ioba_outside_the_window "an I/O bus address outside the window" needs ANY;
    "D02" windows::count_beyond_the_window "more entries than the window has left" needs ANY;
    "D02" windows::count_that_wraps "counts that wrap around the address space" needs ANY;
    "D03" windows::unknown_liobn "LIOBNs that nobody has" needs ANY;
    "D03" windows::liobn_of_another_vm "a LIOBN of another VM" needs ANY;
    "D03" windows::other_opcode "calls of other families" needs ANY;
    "D10" put::permissions "devices obey the permission bits" needs DEVICE;
    "D10" put::another_page_in_its_place "another page in the place of one" needs DEVICE;
    "D10" put::no_permission_unmaps "no permission unmaps, whatever the address bits" needs DEVICE;
    "D11" put::misaligned_address "addresses that are not page aligned" needs ANY;
    "D12" put::not_registered "memory that is not registered" needs ANY;
    "D12" put::registered_by_then "memory that is registered before virtual mode looks" needs Offers::HANDED_OVER;
    "D13" put::region_of_smaller_pages "a region with smaller pages than the IOMMU's" needs DEVICE;
    "D14" put::several_iommu_pages "a guest page of several IOMMU pages" needs DEVICE;
    "D14" connected::tables_in_step "two hardware tables behind one LIOBN" needs TWO_DEVICES;
    "D16" put::guest_form_comes_back "H_GET_TCE gives what the guest wrote" needs ANY;
    "D20" indirect::each_entry_as_put_makes_it "512 entries of a list, as H_PUT_TCE makes each" needs DEVICE;
    "D21" indirect::all_or_nothing "a bad entry leaves the whole list undone" needs ANY;
    "D22" indirect::list_too_long_or_misaligned "lists that are too long or misaligned" needs ANY;
    "D22" indirect::list_not_registered "lists in memory that is not registered" needs ANY;
    "D22" indirect::no_entries "lists of no entries" needs ANY;
    "D23" indirect::list_read_once "a list that changes after it was read" needs Offers::LIST_READ;
    "D24" outcomes::contended_entry "an entry that another CPU is changing" needs Offers::TAKEN;
    "D30" stuff::value_with_permission "H_STUFF_TCE with a permission" needs ANY;
    "D30" stuff::any_other_value_clears "H_STUFF_TCE clears, and its value comes back" needs DEVICE;
    "D31" stuff::cap_of_the_window "H_STUFF_TCE at the window's cap" needs ANY;
    "D32" stuff::newer_mapping_stays "a newer mapping behind the cursor of H_STUFF_TCE stays" needs Offers::NEXT_STEP;
    "D40" modes::handed_over_for_a_reason "real mode hands over for four reasons only" needs Offers::HANDED_OVER;
    "D41" outcomes::no_page_to_be_had "no page for tables to be had" needs Offers::STARVE;
    "D44" outcomes::memory_is_released_after_the_kill "memory is released after the kill, not before" needs DEVICE;
    "D50" connected::replay "tables connected to a populated window get its entries" needs TWO_DEVICES;
    "D51" connected::replay_is_all_or_nothing "a replay that fails leaves nothing behind" needs DEVICE;
    "D52" connected::tables_that_do_not_fit "tables that do not fit behind the window" needs DEVICE;
    "D62" connected::revoked_between_steps "a revocation between two steps of a call" needs TWO_DEVICES.union(Offers::NEXT_STEP);
    "D42" outcomes::unconfirmed_kill "a kill that hardware does not confirm" needs Offers::DEAFEN;
}

/// Runs one rule on a port made fresh, and checks afterwards what must hold after every call.
///
/// # Errors
/// What was not as promised.
pub fn run_rule<P: GuestPort>(port: &mut P, rule: &Rule) -> Result<(), Failure> {
    port.reset()?;
    let unknown = Failure { what: "no rule has this name", error: None, line: line!() };
    act(&mut Guest::new(port), rule.name).unwrap_or(Err(unknown))?;
    port.check()
}
