//! Groups of machines made by hand, one rule at a time.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use portcullis_hal::{DeviceId, RequesterId, Segment};
use portcullis_iommu::pci::{Acs, BusRange, PciFunction, PciKind, TopologyError, assign_groups};

const PORT_ACS: Acs = Acs::SOURCE_VALIDATION
    .union(Acs::REQUEST_REDIRECT)
    .union(Acs::COMPLETION_REDIRECT)
    .union(Acs::UPSTREAM_FORWARDING);
const DEVICE_ACS: Acs = Acs::REQUEST_REDIRECT.union(Acs::COMPLETION_REDIRECT);

fn requester(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::from_parts(bus, device, function).unwrap()
}

fn id(bus: u8, device: u8, function: u8) -> DeviceId {
    DeviceId { segment: Segment(0), requester: requester(bus, device, function) }
}

fn buses(secondary: u8, subordinate: u8) -> BusRange {
    BusRange { secondary, subordinate }
}

/// A function that is alone in its device and has no services.
fn plain(kind: PciKind, id: DeviceId) -> PciFunction {
    PciFunction { id, kind, multifunction: false, acs: Acs::empty(), alias: None }
}

fn endpoint(id: DeviceId) -> PciFunction {
    plain(PciKind::Endpoint, id)
}

/// A port that redirects.
fn good(kind: PciKind, id: DeviceId) -> PciFunction {
    PciFunction { acs: PORT_ACS, ..plain(kind, id) }
}

fn groups(functions: &[PciFunction]) -> Vec<u16> {
    let mut groups = vec![u16::MAX; functions.len()];
    let count = assign_groups(functions, &mut groups).unwrap();
    let mut seen: Vec<_> = groups.clone();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (0..count).collect::<Vec<_>>(), "numbers without gaps");
    groups
}

fn refusal(functions: &[PciFunction]) -> TopologyError {
    assign_groups(functions, &mut vec![0; functions.len()]).unwrap_err()
}

/// Two root ports; behind the first a switch with an endpoint at each of two ports, behind the second an
/// endpoint. Order: root port, root port, upstream port, two downstream ports, two endpoints, endpoint.
fn machine() -> [PciFunction; 8] {
    [
        good(PciKind::RootPort(buses(1, 4)), id(0, 1, 0)),
        good(PciKind::RootPort(buses(5, 5)), id(0, 2, 0)),
        plain(PciKind::UpstreamPort(buses(2, 4)), id(1, 0, 0)),
        good(PciKind::DownstreamPort(buses(3, 3)), id(2, 0, 0)),
        good(PciKind::DownstreamPort(buses(4, 4)), id(2, 1, 0)),
        endpoint(id(3, 0, 0)),
        endpoint(id(4, 0, 0)),
        endpoint(id(5, 0, 0)),
    ]
}

#[test]
fn g01_functions_of_a_device_share_unless_each_redirects() {
    let two = |first: Acs, second: Acs| {
        let function = |number, acs| PciFunction {
            multifunction: true,
            acs,
            ..plain(PciKind::IntegratedEndpoint, id(0, 3, number))
        };
        groups(&[function(0, first), function(2, second), plain(PciKind::IntegratedEndpoint, id(0, 4, 0))])
    };
    assert_eq!(two(Acs::empty(), Acs::empty()), [0, 0, 1]);
    assert_eq!(two(DEVICE_ACS, Acs::REQUEST_REDIRECT), [0, 0, 1], "the second reaches the first");
    assert_eq!(two(Acs::empty(), DEVICE_ACS), [0, 0, 1], "the first reaches the second");
    assert_eq!(two(DEVICE_ACS, DEVICE_ACS), [0, 1, 2]);
}

#[test]
fn g01_a_link_has_one_device_whatever_the_numbers() {
    let link = |acs| {
        let function = |id| PciFunction { acs, ..endpoint(id) };
        groups(&[
            good(PciKind::RootPort(buses(1, 2)), id(0, 1, 0)),
            function(id(1, 0, 0)),
            function(id(1, 17, 3)),
            function(id(2, 0, 1)),
        ])
    };
    assert_eq!(link(Acs::empty()), [0, 1, 1, 1], "a virtual function on the next bus, too");
    assert_eq!(link(DEVICE_ACS), [0, 1, 2, 3]);
}

#[test]
fn g01_a_switch_beside_a_function_that_redirects_nothing_shares_with_all_below() {
    let mut functions = machine().to_vec();
    functions[2].multifunction = true;
    functions.insert(3, endpoint(id(1, 0, 1)));
    assert_eq!(groups(&functions), [0, 1, 2, 2, 2, 2, 2, 2, 3]);
    functions[2].acs = DEVICE_ACS;
    functions[3].acs = DEVICE_ACS;
    assert_eq!(groups(&functions), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn g01_a_host_bridge_spoils_no_device() {
    let beside = |kind| {
        let first = PciFunction { multifunction: true, ..plain(kind, id(0, 1, 0)) };
        groups(&[first, good(PciKind::RootPort(buses(1, 1)), id(0, 1, 1)), endpoint(id(1, 0, 0))])
    };
    assert_eq!(beside(PciKind::HostBridge), [0, 1, 2]);
    assert_eq!(beside(PciKind::IntegratedEndpoint), [0, 0, 0]);
}

#[test]
fn g02_everything_behind_a_conventional_bridge_shares_with_the_bridge() {
    let isolating = PciFunction { acs: PORT_ACS | DEVICE_ACS, ..endpoint(id(3, 0, 0)) };
    let functions = [
        good(PciKind::RootPort(buses(1, 3)), id(0, 1, 0)),
        good(PciKind::RootPort(buses(4, 4)), id(0, 2, 0)),
        plain(PciKind::PcieToPciBridge(buses(2, 3)), id(1, 0, 0)),
        plain(PciKind::ConventionalDevice, id(2, 1, 0)),
        plain(PciKind::ConventionalBridge(buses(3, 3)), id(2, 2, 0)),
        isolating,
        endpoint(id(4, 0, 0)),
    ];
    assert_eq!(groups(&functions), [0, 1, 2, 2, 2, 2, 3]);
    let on_the_root_bus = [
        plain(PciKind::ConventionalBridge(buses(1, 1)), id(0, 30, 0)),
        plain(PciKind::ConventionalDevice, id(0, 31, 0)),
        plain(PciKind::ConventionalDevice, id(1, 0, 0)),
        plain(PciKind::ConventionalDevice, id(1, 1, 0)),
    ];
    assert_eq!(groups(&on_the_root_bus), [0, 1, 0, 0]);
}

#[test]
fn g03_a_port_that_does_not_redirect_joins_what_is_below_its_siblings() {
    assert_eq!(groups(&machine()), [0, 1, 2, 3, 4, 5, 6, 7]);
    for lacking in PORT_ACS {
        let mut functions = machine();
        functions[3].acs -= lacking;
        assert_eq!(groups(&functions), [0, 1, 2, 3, 3, 3, 3, 4], "without {lacking:?}");
    }
    for opening in [Acs::EGRESS_CONTROL, Acs::DIRECT_TRANSLATED] {
        let mut functions = machine();
        functions[4].acs |= opening;
        assert_eq!(groups(&functions), [0, 1, 2, 3, 3, 3, 3, 4], "with {opening:?}");
    }
}

#[test]
fn g04_isolation_takes_the_whole_path_to_the_root_complex() {
    let mut functions = machine();
    functions[0].acs = Acs::empty();
    assert_eq!(groups(&functions), [0; 8], "good ports below a bad one do not help");
    let mut other_root_bus = machine().to_vec();
    other_root_bus[0].acs = Acs::empty();
    other_root_bus.push(good(PciKind::RootPort(buses(0x81, 0x81)), id(0x80, 1, 0)));
    other_root_bus.push(endpoint(id(0x81, 0, 0)));
    assert_eq!(groups(&other_root_bus), [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
}

#[test]
fn g04_segments_have_nothing_to_do_with_each_other() {
    let mut both = machine().to_vec();
    both[0].acs = Acs::empty();
    both.extend(machine().map(|mut function| {
        function.id.segment = Segment(7);
        function
    }));
    assert_eq!(groups(&both), [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn g05_functions_with_a_common_requester_id_share() {
    let mut functions = machine();
    functions[5].alias = Some(requester(5, 0, 0));
    assert_eq!(groups(&functions), [0, 1, 2, 3, 4, 5, 6, 5], "another function's own");
    functions[5].alias = Some(requester(3, 0, 1));
    functions[7].alias = Some(requester(3, 0, 1));
    assert_eq!(groups(&functions), [0, 1, 2, 3, 4, 5, 6, 5], "one that nobody has");
    functions[7].alias = Some(requester(3, 0, 2));
    assert_eq!(groups(&functions), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn g05_a_conventional_bridge_claims_the_first_requester_id_of_its_bus() {
    let bridge = plain(PciKind::PcieToPciBridge(buses(6, 6)), id(5, 0, 0));
    assert_eq!(bridge.aliases().collect::<Vec<_>>(), [id(6, 0, 0)]);
    let mut functions = machine();
    functions[1].kind = PciKind::RootPort(buses(5, 6));
    functions[7] = bridge;
    functions[5].alias = Some(requester(6, 0, 0));
    assert_eq!(groups(&functions), [0, 1, 2, 3, 4, 5, 6, 5]);
}

#[test]
fn g06_contradicting_facts_are_refused_by_name() {
    let with = |change: fn(&mut Vec<PciFunction>)| {
        let mut functions = machine().to_vec();
        change(&mut functions);
        refusal(&functions)
    };
    assert_eq!(with(|f| f.swap(5, 6)), TopologyError::OutOfOrder { device: id(3, 0, 0) });
    assert_eq!(with(|f| f[6] = f[5]), TopologyError::OutOfOrder { device: id(3, 0, 0) });
    let leads = |secondary, subordinate| buses(secondary, subordinate);
    assert_eq!(
        with(|f| f[2].kind = PciKind::UpstreamPort(buses(1, 4))),
        TopologyError::BadBuses { device: id(1, 0, 0), buses: leads(1, 4) },
        "a bridge that leads back to itself"
    );
    assert_eq!(
        with(|f| f[1].kind = PciKind::RootPort(buses(6, 5))),
        TopologyError::BadBuses { device: id(0, 2, 0), buses: leads(6, 5) }
    );
    assert_eq!(
        with(|f| f[1].kind = PciKind::RootPort(buses(4, 5))),
        TopologyError::BusesOverlap { device: id(0, 2, 0), bus: 4 }
    );
    assert_eq!(
        with(|f| f[2].kind = PciKind::UpstreamPort(buses(2, 5))),
        TopologyError::BusesOverlap { device: id(1, 0, 0), bus: 5 },
        "more than the port above has"
    );
    assert_eq!(
        with(|f| f.retain(|function| function.id != id(2, 1, 0))),
        TopologyError::Misplaced { device: id(4, 0, 0), kind: PciKind::Endpoint },
        "no port leads to it"
    );
}

#[test]
fn g06_impossible_places_are_refused_by_name() {
    let below_conventional = [
        plain(PciKind::ConventionalBridge(buses(1, 2)), id(0, 1, 0)),
        plain(PciKind::ConventionalDevice, id(2, 0, 0)),
    ];
    assert_eq!(refusal(&below_conventional), TopologyError::UnknownBridge { device: id(2, 0, 0) });
    let mut bridge_on_a_further_bus = machine();
    bridge_on_a_further_bus[1].kind = PciKind::RootPort(buses(5, 7));
    bridge_on_a_further_bus[7] = plain(PciKind::PcieToPciBridge(buses(7, 7)), id(6, 0, 0));
    assert_eq!(refusal(&bridge_on_a_further_bus), TopologyError::UnknownBridge { device: id(6, 0, 0) });
    for (kind, at) in [
        (PciKind::DownstreamPort(buses(9, 9)), id(0, 3, 0)),
        (PciKind::UpstreamPort(buses(9, 9)), id(0, 3, 0)),
        (PciKind::RootPort(buses(9, 9)), id(5, 0, 0)),
        (PciKind::IntegratedEndpoint, id(5, 0, 0)),
    ] {
        let mut functions = machine().to_vec();
        functions.retain(|function| function.id != at);
        functions.push(plain(kind, at));
        functions.sort_by_key(|function| function.id);
        assert_eq!(refusal(&functions), TopologyError::Misplaced { device: at, kind });
    }
}

#[test]
fn g06_numbers_need_their_place_and_their_bits() {
    let functions = machine();
    assert_eq!(
        assign_groups(&functions, &mut [0; 7]),
        Err(TopologyError::SlotCount { functions: 8, slots: 7 })
    );
    assert_eq!(assign_groups(&[], &mut []), Ok(0));
}

#[test]
#[cfg_attr(miri, ignore = "65,535 functions, and nothing unsafe on the way")]
fn g06_there_are_as_many_functions_as_numbers() {
    let device = |number: u32| DeviceId {
        segment: Segment((number >> 16) as u16),
        requester: RequesterId::new(number as u16),
    };
    let many: Vec<_> = (0..65_536).map(|number| endpoint(device(number))).collect();
    assert_eq!(refusal(&many), TopologyError::TooMany { functions: 65_536 });
    let groups = groups(&many[..65_535]);
    assert_eq!(groups.last(), Some(&8191), "eight functions to a device");
}

#[test]
fn g08_a_service_that_is_not_offered_counts_only_where_it_may_be_missing() {
    let root_port = PciKind::RootPort(buses(1, 1));
    let validation = Acs::SOURCE_VALIDATION.bits();
    assert_eq!(root_port.services(validation, validation), PORT_ACS);
    assert_eq!(root_port.services(validation, 0), PORT_ACS - Acs::SOURCE_VALIDATION);
    assert_eq!(root_port.services(0, 0xffff), PORT_ACS - Acs::SOURCE_VALIDATION, "never assumed");
    let downstream = PciKind::DownstreamPort(buses(1, 1));
    assert_eq!(downstream.services(validation, validation), Acs::SOURCE_VALIDATION);
    assert_eq!(downstream.services(0x7f, 0x1d), PORT_ACS);
    let offers_both = DEVICE_ACS.bits();
    assert!(!PciKind::Endpoint.services(offers_both, 0).intersects(DEVICE_ACS), "offered and off");
    assert!(PciKind::Endpoint.services(0, 0).contains(DEVICE_ACS));
}
