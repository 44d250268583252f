//! Firmware's side of the bridge: calls with the arguments and results that OPAL has.

use super::{FakePhb, PhbEvent, State};

const SUCCESS: i64 = 0;
const PARAMETER: i64 = -1;
const HARDWARE: i64 = -6;

/// Firmware calls for one bridge.
#[derive(Clone)]
pub struct Opal {
    pub(super) phb: FakePhb,
}

impl State {
    /// Counts a call; whether this is the one that shall fail.
    fn call_fails(&mut self) -> bool {
        self.firmware_calls += 1;
        self.failing_call == Some(self.firmware_calls)
    }

    fn set_tve(&mut self, window_id: u16, tve: u64) {
        let (pe, window) = (window_id >> 1, (window_id & 1) as u8);
        self.tvt[usize::from(window_id)] = tve;
        let event =
            if tve == 0 { PhbEvent::WindowUnset { pe, window } } else { PhbEvent::WindowSet { pe, window } };
        self.events.push(event);
    }
}

impl Opal {
    /// Lets the `n`th call from now on fail with a hardware error; 1 is the next one.
    pub fn fail_call(&self, n: u64) {
        let mut state = self.phb.state();
        state.failing_call = Some(state.firmware_calls + n);
    }

    /// Puts a function into a PE.
    #[must_use]
    pub fn set_pe(&self, pe: u64, bdfn: u64) -> i64 {
        let mut state = self.phb.state();
        if state.call_fails() {
            return HARDWARE;
        }
        if pe >= u64::from(state.kind.pes()) || bdfn > 0xffff {
            return PARAMETER;
        }
        state.rtt.insert(bdfn as u16, pe as u16);
        state.events.push(PhbEvent::PeSet { rid: bdfn as u16, pe: pe as u16 });
        SUCCESS
    }

    /// Sets a TVE; a table of 0 bytes clears it and the other numbers do not count.
    #[must_use]
    pub fn map_pe_dma_window(
        &self,
        pe: u64,
        window_id: u16,
        levels: u16,
        table: u64,
        table_bytes: u64,
        page_bytes: u64,
    ) -> i64 {
        let mut state = self.phb.state();
        if state.call_fails() {
            return HARDWARE;
        }
        if pe >= u64::from(state.kind.pes()) || u64::from(window_id >> 1) != pe {
            return PARAMETER;
        }
        if table_bytes == 0 {
            state.set_tve(window_id, 0);
            return SUCCESS;
        }
        let page_shift = u64::from(page_bytes.trailing_zeros());
        let known = page_bytes.is_power_of_two() && state.kind.page_shifts().contains(&page_shift);
        if !(1..=5).contains(&levels) || !table_bytes.is_power_of_two() || table_bytes < 4096 || !known {
            return PARAMETER;
        }
        let size = u64::from(table_bytes.trailing_zeros()) - 11;
        let tve = (table >> 12) << 16 | (u64::from(levels) - 1) << 13 | size << 8 | (page_shift - 11);
        state.set_tve(window_id, tve);
        SUCCESS
    }

    /// Writes a TVE as it is, past all checks: what some earlier system may have left.
    pub fn set_tve(&self, window_id: u16, tve: u64) {
        self.phb.state().set_tve(window_id, tve);
    }

    /// The PE state table's words of a frozen PE.
    #[must_use]
    pub fn freeze_status(&self, pe: u16) -> Option<[u64; 2]> {
        self.phb.state().pest.get(&pe).copied()
    }

    /// Lets a frozen PE go on.
    #[must_use]
    pub fn freeze_clear(&self, pe: u16) -> i64 {
        self.phb.state().pest.remove(&pe);
        SUCCESS
    }
}
