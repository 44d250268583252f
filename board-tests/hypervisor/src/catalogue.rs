//! What the test hypervisor can show, for the host that boots it.

use portcullis_suite::{Requires, Scenario};

macro_rules! catalogue {
    ($($name:ident shows [$($promise:literal),+] needs $requires:expr;)+) => {
        /// All scenarios with guests.
        pub const SCENARIOS: &[Scenario] = &[$(
            Scenario { name: stringify!($name), promises: &[$($promise),+], requires: $requires },
        )+];
    };
}

catalogue! {
    guest_runs shows ["V01", "V02"] needs Requires::GUEST;
    guest_registers_survive shows ["V03"] needs Requires::GUEST;
    guest_is_confined shows ["V04", "V05"] needs Requires::GUEST;
    two_vcpus_overlap shows ["V06"] needs Requires::GUEST;
    guest_drives_a_device shows ["V07"] needs Requires::GUEST;
    hcall_rules shows ["D02", "D03", "D11", "D12", "D16", "D21", "D22", "D30", "D31", "D32", "D40", "D42"]
        needs Requires::GUEST;
    hcall_device_rules shows ["D10", "D13", "D14", "D20", "D30", "D44"] needs Requires::GUEST;
    hcall_connection_rules shows ["D14", "D50", "D51", "D52", "D62"] needs Requires::GUEST;
    hcall_rules_in_virtual_mode
        shows ["D02", "D03", "D11", "D12", "D16", "D21", "D22", "D30", "D31", "D32", "D42"]
        needs Requires::GUEST;
    hcall_device_rules_in_virtual_mode shows ["D10", "D13", "D14", "D20", "D30", "D44"] needs Requires::GUEST;
    hcall_connection_rules_in_virtual_mode shows ["D14", "D50", "D51", "D52", "D62"] needs Requires::GUEST;
    hcall_driver shows ["D10", "D16", "D20", "D30", "V07"] needs Requires::GUEST;
    hcall_two_vcpus shows ["D60", "V06"] needs Requires::GUEST;
    hcall_revoked_while_calling shows ["D60", "D62"] needs Requires::GUEST;
    hcall_connected_while_calling shows ["D60", "D61"] needs Requires::GUEST;
    hcall_driver_in_virtual_mode shows ["D10", "D16", "D20", "D30", "V07"] needs Requires::GUEST;
    hcall_two_vcpus_in_virtual_mode shows ["D60"] needs Requires::GUEST;
    hcall_revoked_while_calling_in_virtual_mode shows ["D60", "D62"] needs Requires::GUEST;
    hcall_connected_while_calling_in_virtual_mode shows ["D60", "D61"] needs Requires::GUEST;
    hcall_hostile_guest_in_virtual_mode shows ["D67"] needs Requires::GUEST;
    hcall_cost shows ["D40"] needs Requires::GUEST;
    hcall_hostile_guest shows ["D67"] needs Requires::GUEST;
    svm_guest_runs shows ["X01", "X02"] needs Requires::SVM;
    svm_guest_is_confined shows ["X03", "X04", "X05", "X06", "X08", "X09"] needs Requires::SVM;
    svm_guest_is_ended_at_its_limit shows ["X07"] needs Requires::SVM;
    svm_guest_reads_its_disk shows ["X30", "X31"] needs Requires::SVM.union(Requires::DISK);
    svm_guest_rogue_dma shows ["X32", "X33"] needs Requires::SVM.union(Requires::FAULT_LOG);
    svm_guests_overlap shows ["X40"] needs Requires::SVM.union(Requires::SECOND_CPU);
    svm_two_vcpus_are_confined shows ["X41"] needs Requires::SVM.union(Requires::SECOND_CPU);
    svm_wbinvd_by_notice shows ["X16", "X17", "X29"] needs Requires::SVM.union(Requires::SECOND_CPU);
    svm_memory_types_by_notice shows ["X21", "X23", "X27"] needs Requires::SVM;
    svm_guests_drive_devices_at_once shows ["X44"] needs Requires::SVM.union(Requires::SECOND_CPU);
    svm_handover_under_dma shows ["X42"] needs Requires::SVM.union(Requires::SECOND_CPU);
    svm_guest_dies_under_dma shows ["X43"] needs Requires::SVM.union(Requires::SECOND_CPU);
    guest_is_served_in_virtual_mode shows ["V08"] needs Requires::GUEST.union(Requires::RADIX);
    second_cpu_answers shows ["X10", "X11", "X12", "X13"] needs Requires::SECOND_CPU;
}
