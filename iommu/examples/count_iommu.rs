//! `count_iommu OPERATION N`: N operations of the policy after a set-up that does not depend on N, so that
//! the difference of two runs under a tool that counts instructions is the price of the operations. Prints
//! nothing.
//!
//! ```console
//! $ valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/count_iommu attach 1000
//! ```

#[path = "../benches/operations/mod.rs"]
mod operations;

use std::hint::black_box;

use operations::{OPERATIONS, Repeat, perform};

struct Times(u64);

impl Repeat for Times {
    fn repeat(self, mut act: impl FnMut(u64)) {
        (0..self.0).for_each(|step| act(black_box(step)));
    }
}

fn main() -> Result<(), String> {
    let usage = || format!("count_iommu OPERATION N, with one of {OPERATIONS:?}");
    let mut words = std::env::args().skip(1);
    let (name, count) = words.next().zip(words.next()).ok_or_else(usage)?;
    let times = Times(count.parse().map_err(|_| usage())?);
    perform(&name, times).map_err(|_| usage())
}
