//! What the user sees while it runs: lines, and on a terminal a bar below them.

use std::time::Duration;

use console::{Style, style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::words::Tone;

/// Lines on standard output above a bar, which is drawn only on a terminal.
pub(crate) struct Screen {
    bar: ProgressBar,
}

impl Screen {
    /// A screen for work of unknown length.
    pub(crate) fn spinner(what: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    /// A screen for `steps` steps.
    pub(crate) fn steps(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }

    /// Says what goes on now, beside the bar.
    pub(crate) fn now(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// Prints a line that stays.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A heading.
pub(crate) fn heading(text: &str) -> String {
    style(text).bold().to_string()
}

/// `text` in the colour of its tone; plain when standard output is no terminal.
pub(crate) fn toned(tone: Tone, text: &str) -> String {
    let style = match tone {
        Tone::Plain => Style::new().bold(),
        Tone::Setting => Style::new(),
        Tone::Landed | Tone::Good => Style::new().green(),
        Tone::Stopped => Style::new().yellow(),
        Tone::Bad => Style::new().red().bold(),
    };
    style.apply_to(text).to_string()
}

/// A time as `0.42 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
