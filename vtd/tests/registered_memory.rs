//! Counts of registered memory against what the tables hold.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{LARGE, Machine, PAGE, Policy, VM, extent, range, spec};
use portcullis_fake::vtd::VtdConfig;
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova};
use portcullis_iommu::{ContextHandle, Error, RegionHandle};

/// Marsaglia's xorshift: repeatable, and good enough to pick numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A multiple of a page or of a large page.
    fn place(&mut self, large: u64) -> u64 {
        if self.below(2) == 0 { self.below(large) * LARGE } else { self.below(large * 512) * PAGE }
    }
}

/// Guest address, host address and length. Neighbours in host memory, the last of no large page.
const REGIONS: [(u64, u64, u64); 4] = [
    (0, 1 << 32, 4 * LARGE),
    (1 << 32, (1 << 32) + 4 * LARGE, 2 * LARGE),
    (4 * LARGE, (1 << 32) + 6 * LARGE, LARGE),
    (1 << 33, (1 << 32) + 7 * LARGE, 100 * PAGE),
];
/// I/O virtual addresses in use.
const WINDOW: u64 = 12 * LARGE;

fn guest(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).unwrap()
}

fn register(iommu: &Policy) -> Vec<RegionHandle> {
    let register = |&(start, host, bytes): &(u64, u64, u64)| {
        iommu.register_memory(VM, guest(start, bytes), extent(host, bytes)).unwrap()
    };
    REGIONS.iter().map(register).collect()
}

/// Pages of the window that lead into each region.
fn live(iommu: &Policy, contexts: &[ContextHandle]) -> Vec<u64> {
    let mut live = vec![0; REGIONS.len()];
    for (page, &context) in (0..WINDOW / PAGE).flat_map(|page| contexts.iter().map(move |c| (page, c))) {
        let Some((physical, _)) = iommu.iova_to_phys(context, Iova::new(page * PAGE)).unwrap() else {
            continue;
        };
        let leads_in = |&(_, host, bytes): &_| (host..host + bytes).contains(&physical.as_u64());
        live[REGIONS.iter().position(leads_in).unwrap()] += 1;
    }
    live
}

/// Large pages in the lower half, small ones above: a place that once had small pages keeps them.
fn map_any(iommu: &Policy, context: ContextHandle, numbers: &mut Numbers) -> Result<(), Error> {
    let (start, _, bytes) = REGIONS[numbers.below(4) as usize];
    let large = numbers.below(3) == 0;
    let unit = if large { LARGE } else { PAGE };
    let offset = numbers.below(bytes / PAGE) * PAGE / unit * unit;
    let length = (1 + numbers.below(if large { 3 } else { 600 })) * unit;
    let iova = if large { numbers.below(4) * LARGE } else { 7 * LARGE + numbers.place(3) };
    iommu.map_guest(context, Iova::new(iova), guest(start + offset, length), Access::all())
}

fn sequence(config: VtdConfig, seed: u64, rounds: u64) {
    let machine = Machine::new(config);
    let iommu = machine.iommu();
    let regions = register(&iommu);
    let mut contexts = [0; 2].map(|_| iommu.create_context(VM, &spec(39)).unwrap());
    let mut numbers = Numbers(seed);
    let (mut maps, mut split) = (0, 0);
    for _ in 0..rounds {
        let which = numbers.below(2) as usize;
        match numbers.below(50) {
            0 => {
                iommu.destroy_context(contexts[which]).unwrap();
                contexts[which] = iommu.create_context(VM, &spec(39)).unwrap();
            }
            1..15 => {
                let unmapped = range(numbers.place(10), numbers.place(2) + PAGE);
                split += u32::from(iommu.unmap(contexts[which], unmapped).is_err());
            }
            _ => maps += u32::from(map_any(&iommu, contexts[which], &mut numbers).is_ok()),
        }
        let counts: Vec<_> = regions.iter().map(|&region| iommu.region(VM, region).unwrap().mapped).collect();
        assert_eq!(counts, live(&iommu, &contexts));
    }
    assert!(maps > 20 && split > 0, "{maps} maps, {split} unmaps would have split a page");
    for context in contexts {
        iommu.destroy_context(context).unwrap();
    }
    assert_eq!(iommu.release_memory(VM), Ok(()));
}

#[test]
fn c04_whatever_is_mapped_and_unmapped_the_counts_are_what_the_tables_hold() {
    sequence(VtdConfig::default(), 0x9e37_79b9_7f4a_7c15, 400);
}

#[test]
fn c04_counts_are_what_the_tables_hold_where_hardware_does_not_snoop() {
    sequence(VtdConfig { coherent: false, ..VtdConfig::default() }, 0x1234_5678_9abc_def1, 200);
}
