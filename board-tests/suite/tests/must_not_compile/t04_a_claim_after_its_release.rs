//! A claim ends with its release, and cannot be copied.
use portcullis_iommu::{Claim, ContextHandle, Driver};

fn attach_after_release<D: Driver>(mut claim: Claim<'_, D, 1, 1>, context: ContextHandle) {
    let _ = claim.release();
    let _ = claim.switch(context);
}

fn release_twice<D: Driver>(claim: Claim<'_, D, 1, 1>) {
    let _ = claim.release();
    let _ = claim.release();
}

fn copied<'i, D: Driver>(claim: &Claim<'i, D, 1, 1>) -> Claim<'i, D, 1, 1> {
    *claim
}

fn cloned<'i, D: Driver>(claim: &Claim<'i, D, 1, 1>) -> Claim<'i, D, 1, 1> {
    claim.clone()
}

fn main() {}
