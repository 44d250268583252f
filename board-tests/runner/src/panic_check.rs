//! `cargo boards panic-check`: no panic is reachable from the public API of the libraries.
//!
//! The image's panic handler calls a function that exists nowhere: it links only when the optimiser finds no
//! path to the handler. A planted panic must fail the link, or the check would prove nothing.

use crate::{
    child,
    error::Error,
    progress::{Screen, seconds, toned},
    project::Project,
    words::Tone,
};

const PACKAGE: &str = "portcullis-panic-check";
/// The symbol that the linker must miss.
const MISSING_SYMBOL: &str = "portcullis_panic_is_reachable";
const TARGETS: &[&str] = &["x86_64-unknown-none", "powerpc64le-unknown-linux-gnu"];
/// Lines of a failed link that are shown.
const SHOWN: usize = 30;

/// What came of a link.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    Linked,
    /// A panic is reachable: the lines that say so.
    PanicReachable(Vec<String>),
    /// Something else is wrong.
    Broken(Vec<String>),
}

/// Links for each target, without and with the planted panic; `true` when both go as they must.
pub(crate) fn run(project: &Project) -> Result<bool, Error> {
    let (mut passed, mut failed) = (0, 0);
    for target in TARGETS {
        for planted in [false, true] {
            let begun = std::time::Instant::now();
            let link = link(project, target, planted)?;
            let (good, text) = judge(&link, planted);
            let time = seconds(begun.elapsed());
            let tone = if good { Tone::Good } else { Tone::Bad };
            println!("{target}: {} ({time})", toned(tone, text));
            if !good {
                details(&link).iter().for_each(|line| println!("    {line}"));
            }
            *(if good { &mut passed } else { &mut failed }) += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

const fn judge(link: &Link, planted: bool) -> (bool, &'static str) {
    match (link, planted) {
        (Link::Linked, false) => (true, "no panic is reachable"),
        (Link::PanicReachable(_), true) => (true, "a planted panic is found"),
        (Link::PanicReachable(_), false) => (false, "A PANIC IS REACHABLE"),
        (Link::Linked, true) => (false, "A PLANTED PANIC WAS NOT FOUND: the check proves nothing"),
        (Link::Broken(_), _) => (false, "the image does not build"),
    }
}

fn details(link: &Link) -> Vec<String> {
    match link {
        Link::Linked => Vec::new(),
        Link::PanicReachable(lines) | Link::Broken(lines) => lines.clone(),
    }
}

fn link(project: &Project, target: &str, planted: bool) -> Result<Link, Error> {
    let screen = Screen::spinner(&format!("linking {PACKAGE} for {target}"));
    let mut command = project.cargo();
    command.args(["build", "--release", "--package", PACKAGE, "--target", target]);
    if planted {
        command.args(["--features", "planted-panic"]);
    }
    let mut lines = Vec::new();
    let status = child::run(command, |line| {
        screen.now(line.trim());
        lines.push(line.to_owned());
    })?;
    Ok(classify(status.success(), &lines))
}

fn classify(linked: bool, lines: &[String]) -> Link {
    if linked {
        return Link::Linked;
    }
    let undefined = |line: &&String| line.contains("undefined symbol");
    let telling: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("undefined symbol") || line.contains("referenced by"))
        .take(SHOWN)
        .cloned()
        .collect();
    let others = lines.iter().filter(undefined).any(|line| !line.contains(MISSING_SYMBOL));
    if telling.iter().any(|line| line.contains(MISSING_SYMBOL)) && !others {
        return Link::PanicReachable(telling);
    }
    Link::Broken(lines.iter().rev().take(SHOWN).rev().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_missing_handler_counts_as_a_panic() {
        let reachable = "error: linking failed\nrust-lld: error: undefined symbol: portcullis_panic_is_reachable\n>>> referenced by main.rs:22";
        let Link::PanicReachable(telling) = classify(false, &lines(reachable)) else { panic!("not found") };
        assert!(telling[1].contains("main.rs:22"));
        let other = reachable.replace("portcullis_panic_is_reachable", "memcpy");
        assert!(matches!(classify(false, &lines(&other)), Link::Broken(_)));
        let both = format!("{reachable}\nrust-lld: error: undefined symbol: memcpy");
        assert!(matches!(classify(false, &lines(&both)), Link::Broken(_)));
        assert!(matches!(classify(false, &lines("error[E0425]: no such thing")), Link::Broken(_)));
        assert_eq!(classify(true, &[]), Link::Linked);
    }

    #[test]
    fn a_check_that_finds_no_planted_panic_fails() {
        assert!(judge(&Link::Linked, false).0);
        assert!(!judge(&Link::Linked, true).0);
        assert!(judge(&Link::PanicReachable(Vec::new()), true).0);
        assert!(!judge(&Link::PanicReachable(Vec::new()), false).0);
        assert!(!judge(&Link::Broken(Vec::new()), true).0);
    }
}
