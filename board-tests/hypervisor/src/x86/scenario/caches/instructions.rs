//! What WBINVD, WBNOINVD and INVD of a guest do, from before it has a device until after.

use portcullis_iommu::{Because, Coherency, ContextHandle};
use portcullis_suite::{
    Board, Event, Failure,
    scenario::stage::{self, Owned},
};

use super::{BOOT, SECOND, Ward};
use crate::x86::{
    caching::CacheInstruction,
    guest::{
        layout::FREE,
        script::{Op, What},
    },
    scenario::{Machine, Stage, ensure, no_call, outcome, pair::Cpus},
};

const KINDS: [(What, CacheInstruction); 3] = [
    (What::Wbinvd, CacheInstruction::Wbinvd),
    (What::Wbnoinvd, CacheInstruction::Wbnoinvd),
    (What::Invd, CacheInstruction::Invd),
];
/// WBINVDs that are measured one by one.
const SINGLES: u64 = 200;
/// What the guest asks the scenario to do between two instructions.
const ATTACH: u64 = 1;
const DETACH: u64 = 2;
/// The device, by its index on the board.
const DEVICE: usize = 0;

/// Whether instructions are to be real.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Skipped,
    Flushed,
}

/// X16, X17, X29.
pub(in super::super) fn svm_wbinvd_by_notice<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let (machine, policy) = (stage.machine, stage.policy()?);
    ensure(machine.cpus().start(), "there is no second CPU")?;
    let (ward, other) = (Ward::new(stage, 0)?, Ward::new(stage, 1)?);
    let start = ward.notice(machine)?.epoch;
    stage.step("guests without a device execute WBINVD, WBNOINVD and INVD");
    each_is(stage, &ward, Expected::Skipped)?;
    each_is(stage, &other, Expected::Skipped)?;
    let skip = measure(stage, &ward, "WBINVD that is skipped, least of 200")?;
    stage.step("a device is claimed for the first one");
    let group = policy.group(DEVICE)?;
    policy.iommu().grant(ward.vm, group)?;
    let mut claim = policy.claim(DEVICE, ward.vm, group)?;
    ward.expect(machine, Coherency::Coherent, start)?;
    each_is(stage, &ward, Expected::Skipped)?;
    let epoch = goes_past_the_caches(stage, [&ward, &other], &mut claim, start)?;
    let flush = measure(stage, &ward, "WBINVD that is a flush on one CPU, least of 200")?;
    machine.emit(&Event::Measured {
        what: "a flush for a skip",
        value: flush * 100 / skip.max(1),
        unit: "%",
    });
    stage.step("the device is taken from the first guest");
    policy.detach(&mut claim, DEVICE)?;
    ward.notice_changed(machine)?;
    ward.expect(machine, Coherency::Coherent, epoch + 1)?;
    each_is(stage, &ward, Expected::Skipped)?;
    stale(stage, &ward, &mut claim)?;
    policy.release(claim, DEVICE, ward.vm)?;
    other.expect(machine, Coherency::Coherent, 0)?;
    ensure(other.shared.counts.flushed.total() == 0, "a guest without a device had a flush")
}

/// The device is attached to an enforcing context if there can be one, to one that is not, and to another such. Gives the
/// epoch that stands then.
fn goes_past_the_caches<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    [ward, other]: [&Ward<'m>; 2],
    claim: &mut Owned<'m, M::Board>,
    start: u32,
) -> Result<u32, Failure> {
    let (machine, mut epoch) = (stage.machine, start);
    let policy = policy(machine);
    let enforcing = enforcing(machine, ward)?;
    if let Some(context) = enforcing {
        stage.step("the device is attached where hardware keeps its DMA coherent");
        policy.attach(claim, DEVICE, context)?;
        ward.expect(machine, Coherency::Coherent, epoch)?;
        each_is(stage, ward, Expected::Skipped)?;
    }
    stage.step("the device is attached where nothing does");
    let because = if enforcing.is_some() { Because::NotEnforced } else { Because::NoSnoopControl };
    let flushing = Coherency::NonCoherent { because };
    let plain = || policy.iommu().create_context(ward.vm, &machine.board().spec());
    let (one, another) = (plain()?, plain()?);
    attach(machine, ward, claim, one, flushing, &mut epoch)?;
    each_is(stage, ward, Expected::Flushed)?;
    each_is(stage, other, Expected::Skipped)?;
    stage.step("the device gets another context, which is as bad");
    policy.attach(claim, DEVICE, another)?;
    ward.expect(machine, flushing, epoch)?;
    each_is(stage, ward, Expected::Flushed)?;
    if let Some(context) = enforcing {
        stage.step("the device is attached where hardware keeps its DMA coherent, and goes back");
        attach(machine, ward, claim, context, Coherency::Coherent, &mut epoch)?;
        each_is(stage, ward, Expected::Skipped)?;
        attach(machine, ward, claim, another, flushing, &mut epoch)?;
        each_is(stage, ward, Expected::Flushed)?;
    }
    Ok(epoch)
}

/// The policy of a board whose devices the host knows of.
fn policy<M: Machine>(machine: &M) -> stage::Stage<'_, M::Board> {
    stage::Stage { board: machine.board() }
}

/// A context that makes DMA coherent; `None` on a machine without snoop control.
fn enforcing<M: Machine>(machine: &M, ward: &Ward<'_>) -> Result<Option<ContextHandle>, Failure> {
    let board = machine.board();
    let Ok(spec) = board.coherent_spec() else { return Ok(None) };
    Ok(Some(board.iommu().create_context(ward.vm, &spec)?))
}

/// Attaches the device, which changes the notice.
fn attach<'m, M: Machine>(
    machine: &'m M,
    ward: &Ward<'_>,
    claim: &mut Owned<'m, M::Board>,
    context: ContextHandle,
    verdict: Coherency,
    epoch: &mut u32,
) -> Result<(), Failure> {
    policy(machine).attach(claim, DEVICE, context)?;
    ward.notice_changed(machine)?;
    *epoch += 1;
    ward.expect(machine, verdict, *epoch)
}

/// Each instruction, after the guest ran on both CPUs.
fn each_is<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    ward: &Ward<'m>,
    expected: Expected,
) -> Result<(), Failure> {
    // The first turn under a notice may flush for the nested tables.
    ward.runs_here(stage, &[], &mut no_call)?;
    let (cpus, counts) = (stage.machine.cpus(), &ward.shared.counts);
    let real = u64::from(expected == Expected::Flushed);
    for (what, kind) in KINDS {
        ward.runs_on_second(stage)?;
        let seen = || {
            let counted = [counts.flushed.count(kind), counts.skipped.count(kind)];
            ([BOOT, SECOND].map(|cpu| cpus.flushes(cpu)), counted, counts.failed.total())
        };
        let ([boot, second], [flushed, skipped], failed) = seen();
        ward.runs_here(stage, &[Op(What::Store, FREE, 1), Op(what, 0, 0)], &mut no_call)?;
        let (flushes, counted, failures) = seen();
        ensure(flushes == [boot + real, second + real], "other CPUs flushed than those where the guest ran")?;
        ensure(counted == [flushed + real, skipped + 1 - real], "a cache instruction was counted otherwise")?;
        ensure(failures == failed, "a cache instruction was not obeyed")?;
    }
    Ok(())
}

fn measure<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    ward: &Ward<'m>,
    what: &'static str,
) -> Result<u64, Failure> {
    ward.runs_here(stage, &[Op(What::LeastWbinvd, SINGLES, 0)], &mut no_call)?;
    let value = outcome(ward.guest.memory(), 0)?.value;
    stage.machine.emit(&Event::Measured { what, value, unit: "ticks" });
    Ok(value)
}

/// The notice changes while the guest is stopped between two instructions.
fn stale<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    ward: &Ward<'m>,
    claim: &mut Owned<'m, M::Board>,
) -> Result<(), Failure> {
    stage.step("the device comes and goes between two instructions of the guest");
    let (machine, policy) = (stage.machine, policy(stage.machine));
    let context = policy.iommu().create_context(ward.vm, &machine.board().spec())?;
    let count = |kind| [ward.shared.counts.skipped.count(kind), ward.shared.counts.flushed.count(kind)];
    let before = KINDS.map(|(_, kind)| count(kind));
    let mut changed = Ok(());
    for (what, _) in KINDS {
        let [instruction, attach, detach] =
            [Op(what, 0, 0), Op(What::Report, ATTACH, 0), Op(What::Report, DETACH, 0)];
        ward.runs_here(stage, &[instruction, attach, instruction, detach, instruction], &mut |call| {
            let [wanted, ..] = call.arguments;
            let result = match wanted {
                ATTACH => policy.attach(claim, DEVICE, context),
                _ => policy.detach(claim, DEVICE),
            };
            if let Err(failure) = result.and_then(|()| ward.notice_changed(machine)) {
                changed = Err(failure);
            }
            0
        })?;
    }
    changed?;
    let after = KINDS.map(|(_, kind)| count(kind));
    let expected = before.map(|[skipped, flushed]| [skipped + 2, flushed + 1]);
    ensure(after == expected, "a notice that changed between two instructions was not obeyed")
}
