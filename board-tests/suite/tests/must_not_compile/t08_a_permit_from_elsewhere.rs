//! Drivers obey the policy alone.
use portcullis_hal::DeviceId;
use portcullis_iommu::{Driver, Permit};

fn literal<D: Driver>(driver: &D, members: &[DeviceId]) {
    let _ = driver.block(&Permit(()), members);
}

fn constructor<D: Driver>(driver: &D, members: &[DeviceId]) {
    let _ = driver.block(&Permit::new(), members);
}

fn none<D: Driver>(driver: &D, members: &[DeviceId]) {
    let _ = driver.block(members);
}

fn main() {}
