//! The scenarios on the hardware models: a named test for each board and scenario that it can show.
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "tests document themselves by their names; this is no library"
)]

mod device;
mod machine;
mod model_board;
mod named;
mod queue_device;
mod tce_board;
mod vtd_board;

use libtest_mimic::{Arguments, Trial};
use model_board::boards;
use named::take_named;
use portcullis_suite::SCENARIOS;

fn main() {
    let mut trials = vec![Trial::test("every_scenario_runs_on_some_model", every_scenario_runs)];
    for board in boards() {
        for scenario in SCENARIOS.iter().filter(|scenario| board.offers.contains(scenario.requires)) {
            let name = format!("{}::{}", board.name, scenario.name);
            trials.push(Trial::test(name, move || Ok(board.run(scenario)?)));
        }
    }
    let arguments = take_named(std::env::args().collect(), &mut trials);
    libtest_mimic::run(&Arguments::from_iter(arguments), trials).exit();
}

fn every_scenario_runs() -> Result<(), libtest_mimic::Failed> {
    let boards = boards();
    let idle = SCENARIOS
        .iter()
        .filter(|scenario| !boards.iter().any(|board| board.offers.contains(scenario.requires)));
    let names: Vec<_> = idle.map(|scenario| scenario.name).collect();
    if names.is_empty() { Ok(()) } else { Err(format!("no model board shows {names:?}").into()) }
}
