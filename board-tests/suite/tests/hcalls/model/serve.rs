//! How the model serves a call.

use portcullis_suite::hcall::{
    Answer, Area, Call, GuestPort, Moment,
    call::{
        BUSY, FUNCTION, GET_TCE, HARDWARE, LIST_ENTRIES, NOT_ENOUGH_RESOURCES, PARAMETER, PUT_TCE,
        PUT_TCE_INDIRECT, STUFF_TCE, SUCCESS,
    },
    port::BUDGET,
};

use super::{Breakage, Model};

/// Entries of a window that one table holds.
const TABLE: u64 = 256;

fn done(status: i64) -> Answer {
    Answer { status, value: 0 }
}

impl Model {
    /// Serves a call: its answer, and whether real mode would have handed it over.
    pub fn serve(&mut self, call: Call) -> (Answer, bool) {
        let call = self.breakage.map_or(call, |breakage| breakage.bend(call, self.layout));
        let list = self.copy_list(call);
        let (mut answer, mut handed_over) = (self.judge(call, &list), false);
        if answer.status == PARAMETER && self.wants_memory(call, &list) {
            handed_over = true;
            self.reach_moment(Moment::HandedOver);
            if !self.breaks(Breakage::NotLookedUpAgain) {
                answer = self.judge(call, &list);
            }
        }
        if answer.status != SUCCESS || call.opcode == GET_TCE {
            self.fail_halfway(call, &list);
            return (answer, handed_over);
        }
        if call.opcode == PUT_TCE_INDIRECT {
            self.reach_moment(Moment::ListRead);
        }
        let (answer, late) = self.change(call, &list);
        (answer, handed_over || late)
    }

    /// The words of a list where the guest has memory for it.
    fn copy_list(&mut self, call: Call) -> Vec<u64> {
        let [_, _, list, count] = call.arguments;
        if call.opcode != PUT_TCE_INDIRECT || list < self.layout.memory || list > u64::MAX - 0x1000 {
            return vec![0; LIST_ENTRIES as usize];
        }
        (0..count.min(LIST_ENTRIES)).map(|number| self.read(list + number * 8)).collect()
    }

    fn words<'l>(call: Call, list: &'l [u64]) -> impl FnMut(u64) -> u64 + 'l {
        let [_, _, start, _] = call.arguments;
        move |guest| list.get((guest - start) as usize / 8).copied().unwrap_or_default()
    }

    fn judge(&self, call: Call, list: &[u64]) -> Answer {
        let answer = self.oracle.judge(call, Self::words(call, list));
        let [_, _, third, count] = call.arguments;
        let placed = self.oracle.place(call);
        let widened = match self.breakage {
            Some(Breakage::OtherOpcodesRefusedAsParameter) if answer.status == FUNCTION => {
                return done(PARAMETER);
            }
            Some(Breakage::CountZeroRefused) if call.opcode == PUT_TCE_INDIRECT && count == 0 => {
                return done(PARAMETER);
            }
            Some(Breakage::CountZeroReadsList) if call.opcode == PUT_TCE_INDIRECT && count == 0 => {
                return self.oracle.judge(Call { arguments: with_count(call, 1), ..call }, |_| 0);
            }
            Some(Breakage::CapEverywhere) if call.opcode == STUFF_TCE && count > LIST_ENTRIES => {
                return done(PARAMETER);
            }
            Some(Breakage::NoPermissionNeedsMemory) if call.opcode == PUT_TCE && third & 3 == 0 => {
                return self.oracle.judge(Call { arguments: with_third(call, third | 1), ..call }, |_| 0);
            }
            Some(Breakage::CapIgnored) => call.opcode == STUFF_TCE && third & 3 == 0,
            Some(Breakage::Unregistered) => call.opcode == PUT_TCE && third.trailing_zeros() < 2,
            Some(Breakage::HalfRegistered) => {
                call.opcode == PUT_TCE && self.layout.small().holds(third & !3, 1)
            }
            Some(Breakage::RegionPagesIgnored) => {
                let page_shift = 16;
                let small = Area { page_shift, ..self.layout.small() };
                call.opcode == PUT_TCE && small.holds(third & !3, 0x1_0000)
            }
            Some(Breakage::ListAnywhere) => call.opcode == PUT_TCE_INDIRECT && third & 0xfff == 0,
            Some(Breakage::BadEntryForgiven) => call.opcode == PUT_TCE_INDIRECT && count <= LIST_ENTRIES,
            _ => false,
        };
        if widened && placed.is_some() { done(SUCCESS) } else { answer }
    }

    /// Whether a refused call lacks nothing but memory.
    fn wants_memory(&self, call: Call, list: &[u64]) -> bool {
        let Some((index, _, count)) = self.oracle.place(call) else { return false };
        let page = self.layout.windows()[index].page_bytes();
        let shaped = |tce: u64| tce & 3 == 0 || tce & (page - 1) & !3 == 0;
        match call.opcode {
            PUT_TCE => shaped(call.arguments[2]),
            PUT_TCE_INDIRECT => {
                let good = call.arguments[2] & 0xfff == 0 && count <= LIST_ENTRIES;
                good && list.iter().take(count as usize).all(|&tce| shaped(tce))
            }
            _ => false,
        }
    }

    /// What a defective hypervisor leaves of a list that it refused.
    fn fail_halfway(&mut self, call: Call, list: &[u64]) {
        if !self.breaks(Breakage::UntilTheBadEntry) || call.opcode != PUT_TCE_INDIRECT {
            return;
        }
        let [liobn, ioba, _, _] = call.arguments;
        let Some((index, _, count)) = self.oracle.place(call).filter(|(.., count)| *count <= LIST_ENTRIES)
        else {
            return;
        };
        let page = self.layout.windows()[index].page_bytes();
        for number in 0..count {
            let put = Call::put(liobn, ioba + number * page, list[number as usize]);
            if self.judge(put, &[]).status != SUCCESS {
                return;
            }
            self.commit(put, &[]);
        }
    }

    /// Makes the changes of a call that is good: in steps, if there is something to do in between.
    fn change(&mut self, call: Call, list: &[u64]) -> (Answer, bool) {
        let Some((index, first, count)) = self.oracle.place(call) else { return (done(SUCCESS), false) };
        if self
            .taken
            .is_some_and(|(at, start, length)| at == index && first < start + length && start < first + count)
            && !self.breaks(Breakage::LastWriterWins)
        {
            let status = if self.breaks(Breakage::ContendedAsParameter) { PARAMETER } else { BUSY };
            return (done(status), true);
        }
        let missing = self.missing(call, index, first, count, list);
        if !missing.is_empty() && self.starved {
            if self.breaks(Breakage::HalfDoneWithoutPages) {
                self.commit(call, list);
            }
            let lies = self.breaks(Breakage::TriesAgainWithoutPages);
            return (done(if lies { SUCCESS } else { NOT_ENOUGH_RESOURCES }), true);
        }
        let late = !missing.is_empty();
        self.provided.extend(missing);
        self.taken = Some((index, first, count));
        if self.devices.iter().any(|device| device.window.is_some_and(|w| w.liobn == call.arguments[0])) {
            self.reach_moment(Moment::Taken);
        }
        self.taken = None;
        if call.opcode == STUFF_TCE && count > u64::from(BUDGET) {
            return (self.in_steps(call), true);
        }
        let again = self.breaks(Breakage::ListReadTwice);
        let list = if again { self.copy_list(call) } else { list.to_vec() };
        (self.commit(call, &list), late)
    }

    /// Tables that are missing for a call.
    fn missing(&self, call: Call, index: usize, first: u64, count: u64, list: &[u64]) -> Vec<(usize, u64)> {
        let needs = match call.opcode {
            PUT_TCE_INDIRECT => list.iter().take(count as usize).any(|&tce| tce != 0),
            _ => call.arguments[2] != 0,
        };
        let tables = first / TABLE..(first + count).div_ceil(TABLE);
        let all = tables.filter(|_| needs && count > 0).map(|table| (index, table));
        all.filter(|table| !self.provided.contains(table)).collect()
    }

    fn in_steps(&mut self, call: Call) -> Answer {
        let [liobn, ioba, value, count] = call.arguments;
        let page = self.oracle.place(call).map_or(0, |(index, ..)| self.layout.windows()[index].page_bytes());
        let mut at = 0;
        while at < count {
            let step = (count - at).min(u64::from(BUDGET));
            let answer = self.commit(Call::stuff(liobn, ioba + at * page, value, step), &[]);
            if answer.status != SUCCESS {
                return answer;
            }
            at += step;
            if at < count && matches!(self.arranged, Some((Moment::NextStep, _))) {
                self.reach_moment(Moment::NextStep);
                at = if self.breaks(Breakage::StartsOver) { 0 } else { at };
            }
        }
        done(SUCCESS)
    }

    /// Changes view and hardware tables, kills, counts out.
    fn commit(&mut self, call: Call, list: &[u64]) -> Answer {
        let Some((index, first, count)) = self.oracle.place(call) else { return done(SUCCESS) };
        let before: Vec<_> = (first..first + count).map(|entry| self.oracle.form(index, entry)).collect();
        self.oracle.commit(call, Self::words(call, list));
        let units = 1 << (self.layout.windows()[index].page_shift - 12);
        let mut killed = Vec::new();
        for (entry, old) in (first..).zip(before) {
            let new = self.oracle.form(index, entry);
            self.change_tables(index, entry, new);
            if old & 3 != 0 {
                killed.push((old & !3, units));
            }
            if new & 3 == 0 && call.opcode == PUT_TCE && self.breaks(Breakage::NoPermissionCounted) {
                self.leaked += 1;
            }
        }
        self.kill(killed)
    }

    fn change_tables(&mut self, index: usize, entry: u64, form: u64) {
        let window = self.layout.windows()[index];
        let forgets_second = self.breaks(Breakage::SecondTableForgotten);
        for (number, device) in self.devices.iter_mut().enumerate() {
            if device.window != Some(window) || number == 1 && forgets_second {
                continue;
            }
            match form & 3 {
                0 => drop(device.table.remove(&entry)),
                _ => drop(device.table.insert(entry, form)),
            }
        }
    }

    /// Devices forget what they looked up; without a confirmation what they may still reach stays counted.
    fn kill(&mut self, pages: Vec<(u64, u64)>) -> Answer {
        if self.deaf && !pages.is_empty() && !self.breaks(Breakage::KillTakenForDone) {
            if !self.breaks(Breakage::QuarantinedCountedOut) {
                self.kept.extend(pages);
            }
            return done(HARDWARE);
        }
        for device in self.devices.iter_mut().filter(|_| self.breakage != Some(Breakage::NothingKilled)) {
            device.forget();
        }
        done(SUCCESS)
    }
}

fn with_count(call: Call, count: u64) -> [u64; 4] {
    let [liobn, ioba, third, _] = call.arguments;
    [liobn, ioba, third, count]
}

fn with_third(call: Call, third: u64) -> [u64; 4] {
    let [liobn, ioba, _, count] = call.arguments;
    [liobn, ioba, third, count]
}
