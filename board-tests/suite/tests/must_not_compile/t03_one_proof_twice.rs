//! A proof is used up by the attach, and cannot be copied.
use portcullis_iommu::{Claim, ContextHandle, Driver, QuiescedGroup};

fn twice<D: Driver>(claim: &mut Claim<'_, D, 1, 1>, context: ContextHandle, proof: QuiescedGroup) {
    let _ = claim.attach(context, proof);
    let _ = claim.attach(context, proof);
}

fn copied(proof: &QuiescedGroup) -> QuiescedGroup {
    *proof
}

fn main() {}
