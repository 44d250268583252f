//! Coherency is enforced with a witness of a unit that can, which nobody makes by hand.
use portcullis_vtd::{Coherency, ContextSpec, SnoopControl};

fn nothing() -> ContextSpec {
    ContextSpec { coherency: Coherency::Enforced, ..ContextSpec::new(48) }
}

fn forge() -> Coherency {
    Coherency::Enforced(SnoopControl(()))
}

fn main() {}
