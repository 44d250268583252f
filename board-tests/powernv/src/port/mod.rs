//! The guest of the hypercall rules: what it calls is `sc 1` in HV = 0, what its devices copy goes through the bridge.

mod ground;
mod lent;
mod vcpus;

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use portcullis_hal::Iova;
use portcullis_hypervisor::power::{
    Frame,
    guest::{FREE_START, Guest},
    guest_call::{done_in_real_mode, handle_nothing_in_real_mode},
    registers::Lent,
    scenario::{LIMIT, Machine, need, stopped},
    script::{self, Op, Record},
};
use portcullis_iommu::Error;
use portcullis_ppc_tce::Generation;
use portcullis_suite::{
    Board, DmaDevice, Event, Failure,
    hcall::{
        Answer, Call, Control, Deed, Finished, GuestPort, Layout, Moment, Offers, Window, port::carry_out,
        stand::Stand,
    },
};

use self::{ground::OnBoard, vcpus::Stops};
use crate::{
    board::{Driver, PowerNv},
    hypervisor::Guests,
    server::{self, SEATS, Server, WINDOWS},
};

/// Where windows begin and where the guest's memory for the rules lies.
pub(crate) const LAYOUT: Layout = Layout { window: 0, memory: FREE_START };
/// Bytes that a device copies.
const WORD: u32 = 8;

/// What no contract names: the guest did not come back, or its call never ended.
const NO_ANSWER: Answer = Answer { status: i64::MIN, value: 0 };

type BoardStand<'s, 'a, 'b> =
    Stand<'s, 'a, OnBoard<'a, 'b>, Driver, server::Views, server::Memory, 32, 32, SEATS, WINDOWS>;

/// A guest in HV = 0, and its hypervisor.
pub(crate) struct BoardPort<'s, 'a, 'b> {
    machine: &'a Guests<'a, 'b>,
    board: &'a PowerNv<'b>,
    guest: Guest,
    server: &'s Server<'a>,
    stand: BoardStand<'s, 'a, 'b>,
    real_mode: bool,
    /// Windows exist.
    begun: bool,
    arranged: Option<(Moment, Deed)>,
    answer: Option<Answer>,
    finished: Finished,
    /// The registers of device 0, once the guest has it in its own hands.
    lent: Option<Lent>,
    /// Where the vCPUs waited when they called at once.
    stops: Stops,
}

/// The call as an operation of a script.
pub(crate) fn operation(made: Call) -> Op {
    script::call(made.opcode, &made.arguments)
}

impl<'s, 'a, 'b> BoardPort<'s, 'a, 'b> {
    /// A port on which nothing has begun. With `real_mode` calls are tried in real mode first.
    ///
    /// # Errors
    /// What the board lacks or the policy refuses.
    pub(crate) fn new(
        machine: &'a Guests<'a, 'b>,
        guest: Guest,
        server: &'s Server<'a>,
        real_mode: bool,
    ) -> Result<Self, Error> {
        let board = machine.board();
        let seat = board.iommu().seat(server::CONTROL_SEAT)?;
        let device = |number| board.device(number).map(DmaDevice::id).ok_or(Error::Full { capacity: number });
        let devices = [device(0)?, device(1)?];
        let ground = OnBoard { board, guest };
        let stand = Stand::new(ground, board.iommu(), &server.calls, seat, LAYOUT, devices)?;
        handle_nothing_in_real_mode(!real_mode);
        Ok(Self {
            machine,
            board,
            guest,
            server,
            stand,
            real_mode,
            begun: false,
            arranged: None,
            answer: None,
            finished: Finished::default(),
            lent: None,
            stops: Stops::NONE,
        })
    }

    /// Gives device 0 into the guest's own hands.
    ///
    /// # Errors
    /// The board has no device to lend.
    pub(crate) fn lend_device(&mut self) -> Result<(), Failure> {
        let (registers, bytes) = need(self.machine.device_registers(), "the board has no device to lend")?;
        // SAFETY: nobody else uses the device from here on.
        let lent = unsafe { self.guest.lend_registers(registers, bytes) };
        self.lent = Some(need(lent, "the registers are not whole pages")?);
        Ok(())
    }

    /// Lets full contexts on the first CPU reach this port while `act` runs the guest.
    fn at_work<R>(&mut self, act: impl FnOnce() -> R) -> R {
        AT_WORK.store(ptr::from_mut(self).cast(), Ordering::Release);
        let result = act();
        AT_WORK.store(ptr::null_mut(), Ordering::Release);
        result
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
        self.answer = Some(carry_out(self, deed, |port, call| port.second_calls(call)));
    }
}

/// The port whose guest has its turn; null while none has.
static AT_WORK: AtomicPtr<BoardPort<'static, 'static, 'static>> = AtomicPtr::new(ptr::null_mut());

/// Handles a rule's call, and does what the rule has arranged for the middle of it.
fn full_context(frame: &mut Frame) {
    reach_moment(Moment::HandedOver);
    server::serve(frame, || reach_moment(Moment::NextStep));
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
        match self.lent {
            Some(_) => self.load(guest).unwrap_or(0),
            None => self.guest.memory().read(guest).map_or(0, u64::from_be),
        }
    }

    fn write(&mut self, guest: u64, word: u64) {
        // What is not there reads as 0, and a rule that counts on it fails.
        match self.lent {
            Some(_) => drop(self.store(guest, word)),
            None => drop(self.guest.memory().write(guest, word.to_be())),
        }
    }

    fn copy(&mut self, device: usize, from: u64, to: u64) -> Result<(), Failure> {
        let lent = self.lent.filter(|_| device == 0);
        let device = need(self.board.device(device), "the board lacks a device")?;
        if let Some(lent) = lent {
            return self.copy_by_guest(lent, device, from, to);
        }
        device.read_memory(Iova::new(from), WORD)?;
        Ok(device.write_memory(Iova::new(to), WORD)?)
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Deafen(true) => {
                self.board.withhold_completion();
                true
            }
            // Whatever is withheld stays so: the bridge is quarantined, and this was the last rule.
            Control::Deafen(false) => true,
            of_the_control_plane => self.stand.control(of_the_control_plane),
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
        if self.board.iommu().driver().is_quarantined() { Ok(()) } else { self.stand.check() }
    }

    fn check_entry(&mut self, window: Window, entry: u64) -> Result<(), Failure> {
        if self.board.iommu().driver().is_quarantined() {
            return Ok(());
        }
        self.stand.check_entry(window, entry)
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
