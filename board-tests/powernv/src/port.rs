//! The guest of the hypercall rules: what it calls is `sc 1` in HV = 0, what its devices copy goes through the bridge.

use core::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
    time::Duration,
};

use portcullis_hal::{Clock, ConfigSpace, DmaExtent, Iova, arch::powerpc64::TimeBaseClock};
use portcullis_hypervisor::power::{
    Frame,
    guest::{FREE_START, Guest},
    guest_call::{done_in_real_mode, handle_nothing_in_real_mode},
    scenario::{LIMIT, ensure, need, present, stopped},
    script::{self, Op, Record, calls},
    second::{self, SECOND},
};
use portcullis_iommu::{Claim, ContextHandle, EntryDriver, Error, QuiescedGroup, pci::Method};
use portcullis_ppc_tce::Generation;
use portcullis_suite::{
    Board, DmaDevice, Event, Failure,
    hcall::{
        Answer, Area, Call, Control, Deed, Finished, GuestPort, Layout, Moment, Offers, Window,
        call::{PARAMETER, SUCCESS},
        stand::{self, Ground, Stand},
    },
};

use crate::{
    board::{Driver, PowerNv},
    server::{self, SEATS, Server, WINDOWS},
};

/// Where windows begin and where the guest's memory for the rules lies.
pub(crate) const LAYOUT: Layout = Layout { window: 0, memory: FREE_START };
/// How long devices may take to end their DMA.
const QUIESCE_LIMIT: Duration = Duration::from_millis(500);
/// 512 MHz on these processors.
const TICKS_A_MICROSECOND: u64 = 512;
/// How long the second CPU may stand still.
const STILL_LIMIT: Duration = Duration::from_millis(50);
/// Bytes that a device copies.
const WORD: u32 = 8;
/// PCI's command register, and its bit that lets a function do DMA (PCI Local Bus Specification 3.0, 6.2.2).
const COMMAND: u16 = 4;
const BUS_MASTER: u32 = 1 << 2;

/// What no contract names: the guest did not come back, or its call never ended.
const NO_ANSWER: Answer = Answer { status: i64::MIN, value: 0 };

/// The board below the hypervisor's control plane.
pub(crate) struct OnBoard<'a, 'b> {
    board: &'a PowerNv<'b>,
    guest: Guest,
}

impl Ground for OnBoard<'_, '_> {
    fn clock(&self) -> impl Clock + '_ {
        TimeBaseClock
    }

    fn extent(&self, area: Area) -> Option<DmaExtent> {
        self.guest.memory().extent()?.part(area.guest, area.bytes)
    }

    /// Lets the devices go on, too: edu keeps no orders.
    fn quiesce<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        claim: &Claim<'_, D, GROUPS, CONTEXTS, CPUS>,
    ) -> Result<QuiescedGroup, Error> {
        let config = self.board.config_space();
        let proof = claim.quiesce(&config, &TimeBaseClock, Method::BusMasterOff, QUIESCE_LIMIT)?;
        for device in (0..stand::DEVICES).filter_map(|number| self.board.device(number)) {
            let command = config.read32(device.id(), COMMAND) & 0xffff;
            config.write32(device.id(), COMMAND, command | BUS_MASTER);
        }
        Ok(proof)
    }
}

type BoardStand<'s, 'a, 'b> =
    Stand<'s, 'a, OnBoard<'a, 'b>, Driver, server::Views, server::Memory, 32, 32, SEATS, WINDOWS>;

/// A guest in HV = 0, and its hypervisor.
pub(crate) struct BoardPort<'s, 'a, 'b> {
    board: &'a PowerNv<'b>,
    guest: Guest,
    server: &'s Server<'a>,
    stand: BoardStand<'s, 'a, 'b>,
    real_mode: bool,
    /// Windows exist.
    begun: bool,
    arranged: Option<(Moment, Deed)>,
    answer: Option<Answer>,
    /// When the hypervisor began and ended what was arranged last.
    deed: [Duration; 2],
    finished: Finished,
}

impl<'s, 'a, 'b> BoardPort<'s, 'a, 'b> {
    /// A port on which nothing has begun. With `real_mode` calls are tried in real mode first.
    ///
    /// # Errors
    /// What the board lacks or the policy refuses.
    pub(crate) fn new(
        board: &'a PowerNv<'b>,
        guest: Guest,
        server: &'s Server<'a>,
        real_mode: bool,
    ) -> Result<Self, Error> {
        let seat = board.iommu().seat(server::CONTROL_SEAT)?;
        let device = |number| board.device(number).map(DmaDevice::id).ok_or(Error::Full { capacity: number });
        let devices = [device(0)?, device(1)?];
        let ground = OnBoard { board, guest };
        let stand = Stand::new(ground, board.iommu(), &server.calls, seat, LAYOUT, devices)?;
        handle_nothing_in_real_mode(!real_mode);
        let (arranged, answer, deed, finished) = (None, None, [Duration::ZERO; 2], Finished::default());
        Ok(Self { board, guest, server, stand, real_mode, begun: false, arranged, answer, deed, finished })
    }

    /// The guest.
    pub(crate) const fn guest(&self) -> Guest {
        self.guest
    }

    /// The context of a device that is behind a window.
    #[track_caller]
    pub(crate) fn context(&self, device: usize) -> Result<ContextHandle, Failure> {
        let (_, context) = need(self.stand.behind(device), "the device is behind no window")?;
        Ok(context)
    }

    /// Lets full contexts on the first CPU reach this port while `act` runs the guest.
    fn at_work<R>(&mut self, act: impl FnOnce() -> R) -> R {
        AT_WORK.store(ptr::from_mut(self).cast(), Ordering::Release);
        let result = act();
        AT_WORK.store(ptr::null_mut(), Ordering::Release);
        result
    }

    /// Both vCPUs carry out the script that `of` has for each; what is arranged for [`Moment::HandedOver`] is done
    /// when vCPU 0 calls REPORT.
    pub(crate) fn run_both<S: IntoIterator<Item = Op>>(
        &mut self,
        of: impl Fn(usize) -> S,
    ) -> Result<(), Failure> {
        let guest = self.guest;
        let loaded = stopped(guest.load(SECOND, of(SECOND)))?;
        let run = || {
            second::run_beside(guest, loaded, server::full_context, LIMIT, || {
                guest.run_script(of(0), reported, LIMIT)
            })
        };
        let (theirs, ours) = present(self.at_work(run))?;
        stopped(ours)?;
        stopped(theirs)
    }

    /// When the hypervisor began and ended what was arranged last, in ticks of the time base: less, by a microsecond
    /// at each end.
    pub(crate) const fn deed(&self) -> [u64; 2] {
        let [begun, ended] = self.deed;
        [(begun.as_micros() as u64 + 1) * TICKS_A_MICROSECOND, ended.as_micros() as u64 * TICKS_A_MICROSECOND]
    }

    /// vCPU 0 carries out a script to its end.
    #[track_caller]
    pub(crate) fn run(&self, script: impl IntoIterator<Item = Op>) -> Result<(), Failure> {
        stopped(self.guest.run_script(script, server::full_context, LIMIT))
    }

    /// What came of an operation of a vCPU's last script.
    #[track_caller]
    pub(crate) fn outcome(&self, vcpu: usize, index: usize) -> Result<Record, Failure> {
        need(self.guest.outcome(vcpu, index), "a script has fewer operations")
    }

    /// The other virtual CPU, which has no turn now, calls.
    fn second_calls(&self, call: Call) -> Answer {
        // SAFETY: the second CPU runs no guest while a rule has the first one's.
        unsafe { self.server.finish(1, call.opcode, call.arguments) }
            .map_or(NO_ANSWER, |(status, value)| Answer { status, value })
    }

    /// Does what was arranged, if it was for this moment.
    fn reach_moment(&mut self, moment: Moment) {
        let Some((_, deed)) = self.arranged.take_if(|(when, _)| *when == moment) else { return };
        let done = match deed {
            Deed::Call(call) => {
                self.answer = Some(self.second_calls(call));
                return;
            }
            Deed::Write(guest, word) => {
                self.write(guest, word);
                true
            }
            Deed::Control(control) => {
                let begun = TimeBaseClock.now();
                let done = self.control(control);
                self.deed = [begun, TimeBaseClock.now()];
                done
            }
        };
        self.answer = Some(Answer { status: if done { SUCCESS } else { PARAMETER }, value: 0 });
    }

    /// Checks each 4 KiB page of the window that a device is behind; returns how many lead somewhere.
    fn check_window(&self, window: Window, context: ContextHandle) -> Result<u64, Failure> {
        (0..window.entries).map(|entry| self.check_pages(window, context, entry)).sum()
    }

    /// The same for one entry.
    fn check_pages(&self, window: Window, context: ContextHandle, entry: u64) -> Result<u64, Failure> {
        let ioba = window.ioba(entry);
        let form = self.second_calls(Call::get(window.liobn, ioba)).value;
        let mut live = 0;
        for offset in (0..window.page_bytes()).step_by(0x1000) {
            live += u64::from(self.stand.check_page(context, ioba + offset, form, offset)?.is_some());
        }
        Ok(live)
    }

    /// The windows that devices are behind, with their contexts.
    fn behind(&self) -> impl Iterator<Item = (Window, ContextHandle)> {
        (0..stand::DEVICES).filter_map(|number| self.stand.behind(number))
    }
}

/// The port whose guest has its turn; null while none has.
static AT_WORK: AtomicPtr<BoardPort<'static, 'static, 'static>> = AtomicPtr::new(ptr::null_mut());

/// Handles a rule's call, and does what the rule has arranged for the middle of it.
fn full_context(frame: &mut Frame) {
    reach_moment(Moment::HandedOver);
    server::serve(frame, || reach_moment(Moment::NextStep));
}

/// Handles what a script calls on the first CPU, and does what is arranged when the guest reports.
fn reported(frame: &mut Frame) {
    if frame.opcode() == calls::REPORT {
        await_a_call_of_the_second();
        reach_moment(Moment::HandedOver);
        frame.set_status(SUCCESS as u64);
    } else {
        server::full_context(frame);
    }
}

/// Waits for a while until the second CPU handles a call: a host that is busy lets it stand still at times.
fn await_a_call_of_the_second() {
    let (begun, handled) = (TimeBaseClock.now(), done_in_real_mode(SECOND));
    while done_in_real_mode(SECOND) == handled && TimeBaseClock.now().saturating_sub(begun) < STILL_LIMIT {
        spin_loop();
    }
}

fn reach_moment(moment: Moment) {
    // SAFETY: `at_work` keeps the port in place while its guest has its turn, and uses it no other way until then.
    if let Some(port) = unsafe { AT_WORK.load(Ordering::Acquire).as_mut() } {
        port.reach_moment(moment);
    }
}

impl GuestPort for BoardPort<'_, '_, '_> {
    fn offers(&self) -> Offers {
        let mut offers = Offers::DEVICE | Offers::SECOND_DEVICE | Offers::NEXT_STEP | Offers::SLOW_DEVICE;
        offers.set(Offers::HANDED_OVER, self.real_mode);
        offers.set(Offers::DEAFEN, self.board.generation() != Generation::Phb3);
        offers
    }

    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn reset(&mut self) -> Result<(), Failure> {
        if self.begun {
            self.stand.end()?;
        }
        self.begun = true;
        self.stand.begin()
    }

    fn call(&mut self, call: Call) -> Answer {
        let (guest, before) = (self.guest, done_in_real_mode(0));
        let script = [script::call(call.opcode, &call.arguments)];
        let ended = self.at_work(|| guest.run_script(script, full_context, LIMIT));
        if done_in_real_mode(0) == before {
            self.finished.handed_over += 1;
        } else {
            self.finished.real += 1;
        }
        if let Err(stop) = ended {
            defmt::error!("the guest's call: {}", defmt::Debug2Format(&stop));
        }
        match guest.outcome(0, 0) {
            Some(outcome) if ended.is_ok() => Answer { status: outcome.status as i64, value: outcome.result },
            _ => NO_ANSWER,
        }
    }

    fn read(&mut self, guest: u64) -> u64 {
        self.guest.memory().read(guest).map_or(0, u64::from_be)
    }

    fn write(&mut self, guest: u64, word: u64) {
        // What is not there reads as 0, and a rule that counts on it fails.
        let _ = self.guest.memory().write(guest, word.to_be());
    }

    fn copy(&mut self, device: usize, from: u64, to: u64) -> Result<(), Failure> {
        let device = need(self.board.device(device), "the board lacks a device")?;
        device.read_memory(Iova::new(from), WORD)?;
        Ok(device.write_memory(Iova::new(to), WORD)?)
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Connect { device, liobn, page_shift } => self.stand.connect(device, liobn, page_shift),
            Control::Disconnect { device } => self.stand.disconnect(device),
            Control::Revoke { device } => self.stand.revoke(device),
            Control::Register(area) => self.stand.register(area),
            Control::Unregister(area) => self.stand.unregister(area),
            Control::Starve(_) => false,
            Control::Deafen(true) => {
                self.board.withhold_completion();
                true
            }
            // Whatever is withheld stays so: the bridge is quarantined, and this was the last rule.
            Control::Deafen(false) => true,
        }
    }

    fn arrange(&mut self, moment: Moment, deed: Deed) {
        self.answer = None;
        self.arranged = Some((moment, deed));
    }

    fn arranged(&mut self) -> Option<Answer> {
        self.arranged = None;
        self.answer.take()
    }

    fn counted(&mut self) -> u64 {
        self.stand.counted().unwrap_or(u64::MAX)
    }

    /// Once a kill was not confirmed, counts say what devices may reach, and tables are not asked.
    fn check(&mut self) -> Result<(), Failure> {
        if self.board.iommu().driver().is_quarantined() {
            return Ok(());
        }
        let live: u64 = self
            .behind()
            .map(|(window, context)| self.check_window(window, context))
            .sum::<Result<_, _>>()?;
        ensure(self.counted() == live, "counts are not the entries that hardware tables hold")
    }

    fn check_entry(&mut self, window: Window, entry: u64) -> Result<(), Failure> {
        if self.board.iommu().driver().is_quarantined() {
            return Ok(());
        }
        let mut contexts = self.behind().filter(|(behind, _)| *behind == window);
        contexts.try_for_each(|(_, context)| self.check_pages(window, context, entry).map(drop))
    }

    fn requester(&self, device: usize) -> u16 {
        self.board.device(device).map_or(0, |device| device.id().requester.as_u16())
    }

    fn finished(&self) -> Finished {
        self.finished
    }

    fn emit(&mut self, event: &Event<'_>) {
        self.board.emit(event);
    }
}
