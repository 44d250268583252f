//! Where a guest finds what: guest-physical addresses, which its own tables map one to one.

/// Four tables for the low 4 GiB: level 4, level 3, and four of level 2.
pub const TABLES: u64 = 0x1000;
/// The global descriptor table.
pub const DESCRIPTORS: u64 = 0x7000;
/// The interrupt descriptor table.
pub const INTERRUPTS: u64 = 0x8000;
/// What the hypervisor hands to the program, in as many bytes as there are up to [`OWN`].
pub const ARGUMENTS: u64 = 0x9000;
/// A page for each vCPU: its block that GS leads to, and its task state segment.
pub const OWN: u64 = 0x1_0000;
/// Bytes of a vCPU's page.
pub const OWN_BYTES: u64 = 0x1000;
/// From a vCPU's page to its task state segment.
pub const TASK: u64 = 0x800;
/// Stacks of the vCPUs.
pub const STACKS: u64 = 0x2_0000;
/// Bytes of a stack.
pub const STACK_BYTES: u64 = 0x1_0000;
/// vCPUs that there is room for.
pub const VCPUS: u64 = 8;
/// Where the copy of the image begins: where the image itself does.
pub const IMAGE: u64 = 1 << 20;
/// First address that neither the image's copy nor the hypervisor uses.
pub const FREE: u64 = 8 << 20;
/// Bytes of a guest's memory.
pub const GUEST_BYTES: u64 = 16 << 20;

const _: () =
    assert!(STACKS + VCPUS * STACK_BYTES <= IMAGE && OWN + VCPUS * OWN_BYTES <= STACKS, "no overlap");

/// End of the stack of a vCPU.
#[must_use]
pub const fn stack_end(vcpu: u64) -> u64 {
    STACKS + (vcpu + 1) * STACK_BYTES
}

/// Page of a vCPU.
#[must_use]
pub const fn own(vcpu: u64) -> u64 {
    OWN + vcpu * OWN_BYTES
}
