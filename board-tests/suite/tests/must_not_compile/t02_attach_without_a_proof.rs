//! A first attach needs the proof for the whole group.
use portcullis_iommu::{Claim, ContextHandle, Driver, pci::Quiesced};

fn nothing<D: Driver>(claim: &mut Claim<'_, D, 1, 1>, context: ContextHandle) {
    let _ = claim.attach(context);
}

fn of_one_device<D: Driver>(claim: &mut Claim<'_, D, 1, 1>, context: ContextHandle, proof: Quiesced) {
    let _ = claim.attach(context, proof);
}

fn main() {}
