//! Counts of registered memory against what the tables hold.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{GIB, Machine, PAGE, Policy, VM, extent, range, spec};
use portcullis_fake::phb::PhbKind;
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova};
use portcullis_iommu::{ContextHandle, Error};
use portcullis_ppc_tce::ContextSpec;

/// Marsaglia's xorshift: repeatable, and good enough to pick numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const BIG: u64 = 0x1_0000;
/// Guest address, host address and length: neighbours in host memory, and one that only small pages map.
const REGIONS: [(u64, u64, u64); 3] =
    [(0, GIB, 40 * BIG), (GIB, GIB + 40 * BIG, 24 * BIG), (2 * GIB + PAGE, 2 * GIB, 30 * PAGE)];
/// I/O virtual addresses at which mappings begin; they are shorter than `LONGEST`.
const WINDOW: u64 = 64 * BIG;
const LONGEST: u64 = 8 * BIG;

fn guest(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).expect("a range")
}

/// Units of 4 KiB in the window that lead into each region.
fn live(iommu: &Policy, contexts: &[ContextHandle]) -> Vec<u64> {
    let mut live = vec![0; REGIONS.len()];
    for (page, &context) in
        (0..(WINDOW + LONGEST) / PAGE).flat_map(|page| contexts.iter().map(move |c| (page, c)))
    {
        let found = iommu.iova_to_phys(context, Iova::new(page * PAGE)).expect("a live context");
        let Some((phys, _)) = found else { continue };
        let leads_in = |&(_, host, bytes): &_| (host..host + bytes).contains(&phys.as_u64());
        live[REGIONS.iter().position(leads_in).expect("registered")] += 1;
    }
    live
}

fn map_any(iommu: &Policy, context: ContextHandle, numbers: &mut Numbers) -> Result<(), Error> {
    let (start, _, bytes) = REGIONS[numbers.below(3) as usize];
    let unit = [PAGE, BIG][numbers.below(2) as usize];
    let (offset, length) = (numbers.below(bytes / PAGE) * PAGE / unit * unit, (1 + numbers.below(6)) * unit);
    let iova = Iova::new(numbers.below(WINDOW / unit) * unit);
    iommu.map_guest(context, iova, guest(start + offset, length), Access::all())
}

#[test]
fn c04_whatever_is_mapped_and_unmapped_the_counts_are_what_the_tables_hold() {
    for kind in machine::KINDS {
        let machine = Machine::new(kind);
        let iommu = &machine.iommu;
        let regions = REGIONS.map(|(start, host, bytes)| {
            iommu.register_memory(VM, guest(start, bytes), extent(host, bytes)).expect("a region")
        });
        let specs = [spec(2, GIB), ContextSpec { page_size: IoPageSize::SIZE_64K, ..spec(3, GIB) }];
        let mut contexts = specs.map(|spec| machine.context(&spec));
        let (mut numbers, mut maps) = (Numbers(0x9e37_79b9_7f4a_7c15), [0; 2]);
        for _ in 0..400 {
            let which = numbers.below(2) as usize;
            match numbers.below(40) {
                0 => {
                    iommu.destroy_context(contexts[which]).expect("unused");
                    contexts[which] = machine.context(&specs[which]);
                }
                1..15 => {
                    let unit = specs[which].page_size.bytes();
                    let pages = range(numbers.below(WINDOW / unit) * unit, (1 + numbers.below(30)) * unit);
                    iommu.unmap(contexts[which], pages).expect("pages of the context");
                }
                _ => maps[which] += u32::from(map_any(iommu, contexts[which], &mut numbers).is_ok()),
            }
            let counts = regions.map(|region| iommu.region(VM, region).expect("live").mapped);
            assert_eq!(counts.as_slice(), live(iommu, &contexts));
        }
        assert!(maps.into_iter().all(|maps| maps > 5), "{maps:?}");
        for context in contexts {
            iommu.destroy_context(context).expect("unused");
        }
        assert_eq!(iommu.release_memory(VM), Ok(()));
    }
}

#[test]
fn c02_tables_of_larger_pages_refuse_a_region_of_small_ones() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&ContextSpec { page_size: IoPageSize::SIZE_64K, ..spec(3, GIB) });
    let (start, host, bytes) = REGIONS[2];
    machine.iommu.register_memory(VM, guest(start, bytes), extent(host, bytes)).expect("a region");
    let mapped = machine.iommu.map_guest(context, Iova::new(0), guest(start, 0x1_0000), Access::READ);
    assert_eq!(mapped, Err(Error::PageTooLarge { page_size: IoPageSize::SIZE_4K }));
}
