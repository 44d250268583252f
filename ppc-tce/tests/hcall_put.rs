//! H_PUT_TCE and H_GET_TCE: one entry a call.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod guest;
mod machine;

use guest::{BIG, Guest, LIOBN, PARAMETER, SMALL, SUCCESS, calls, counted, leads_to};
use machine::{KINDS, Machine, PAGE};
use portcullis_hal::IoPageSize;
use portcullis_ppc_tce::hcall::{Reply, Why, opcode};

const READ: u64 = 1;
const WRITE: u64 = 2;

#[test]
fn d10_a_put_lets_the_device_reach_the_page_and_no_permission_takes_it_away() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        machine.store(BIG.1 + PAGE, 0x5a);
        assert!(machine.read(0x100, 0x3000).is_err());
        assert_eq!(guest.put(0x3000, BIG.0 + PAGE | READ), SUCCESS);
        assert_eq!(machine.read(0x100, 0x3000), Ok(0x5a));
        assert!(machine.write(0x100, 0x3000, 1).is_err());
        assert_eq!(counted(&guest), [1, 0, 0]);
        assert_eq!(guest.put(0x3000, BIG.0 | READ | WRITE), SUCCESS);
        assert_eq!(machine.write(0x100, 0x3000, 7), Ok(()));
        assert_eq!(machine.load(BIG.1), 7);
        assert_eq!(counted(&guest), [1, 0, 0]);
        assert_eq!(guest.put(0x3000, BIG.0), SUCCESS);
        assert!(machine.read(0x100, 0x3000).is_err());
        assert_eq!((counted(&guest), leads_to(&machine, context, 0x3000)), ([0; 3], None));
        assert_eq!(guest.get(0x3000), BIG.0, "the address bits come back");
        machine.assert_obedient();
    }
}

#[test]
fn d11_what_is_wrong_with_an_argument_is_refused_and_changes_nothing() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (_context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    let liobn = u64::from(LIOBN.0);
    let good = BIG.0 | READ;
    let wrong = [
        [liobn + 1, 0, good, 0],
        [liobn | 1 << 32, 0, good, 0],
        [liobn, 8, good, 0],
        [liobn, machine::GIB, good, 0],
        [liobn, u64::MAX << 12, good, 0],
        [liobn, 0, good | 4, 0],
        [liobn, 0, good | 0x800, 0],
        [liobn, 0, u64::MAX << 12 | READ, 0],
    ];
    for arguments in wrong {
        assert_eq!(guest.call(opcode::PUT_TCE, arguments), (PARAMETER, 0), "{arguments:x?}");
    }
    assert_eq!((guest.get(0), counted(&guest)), (0, [0; 3]));
    assert_eq!(guest.call(0x30, [0; 4]).0, guest::FUNCTION);
}

#[test]
fn d12_memory_that_is_not_registered_is_handed_over_and_refused_at_last() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let arguments = [LIOBN.0.into(), 0, SMALL.0 - PAGE | READ, 0];
    assert_eq!(guest.real(opcode::PUT_TCE, arguments), Reply::TooHard(Why::Unregistered));
    assert_eq!(guest.virt(opcode::PUT_TCE, arguments).status(), PARAMETER);
    guest::register(&machine, machine::VM, (SMALL.0 - PAGE, 0xc_0000, PAGE));
    assert_eq!(guest.put(0, SMALL.0 - PAGE | READ), SUCCESS);
}
