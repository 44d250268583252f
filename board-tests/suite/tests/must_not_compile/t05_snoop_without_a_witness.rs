//! Coherency is enforced with a witness of a unit that can, which nobody makes by hand.
use portcullis_vtd::{Coherency, ContextSpec, SnoopControl};

fn nothing() -> ContextSpec {
    ContextSpec { address_bits: 48, coherency: Coherency::Enforced, page_limit: None }
}

fn forge() -> Coherency {
    Coherency::Enforced(SnoopControl(()))
}

fn main() {}
