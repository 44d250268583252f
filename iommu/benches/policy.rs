//! What the policy itself costs, over a driver that does next to nothing. `count_iommu` counts the
//! instructions of the same operations.

mod operations;

use criterion::Criterion;
use operations::{OPERATIONS, Repeat, perform};

struct Timed<'c>(&'c mut Criterion, &'static str);

impl Repeat for Timed<'_> {
    fn repeat(self, mut act: impl FnMut(u64)) {
        let mut step = 0;
        self.0.bench_function(self.1, |bencher| {
            bencher.iter(|| {
                act(step);
                step += 1;
            });
        });
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for operation in OPERATIONS {
        perform(operation, Timed(&mut criterion, operation)).expect("it is in the list");
    }
    criterion.final_summary();
}
