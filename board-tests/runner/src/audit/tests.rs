//! The promises of section M, each on hand-made images.

use super::{
    elf::tests::{TABLE, made},
    review::tests::review,
    *,
};

const BLR: u32 = 0x4e80_0020;
const NOP: u32 = 0x6000_0000;
const POP_112: u32 = 0x3821_0070;

/// `stdu r1,-bytes(r1)`.
fn push(bytes: u16) -> u32 {
    0xf821_0001 | u32::from(bytes.wrapping_neg() & 0xfffc)
}

/// `bl` to a function that is `words` instructions away.
fn call(words: i32) -> u32 {
    jump(words) | 1
}

/// `b`.
fn jump(words: i32) -> u32 {
    0x4800_0000 | (words * 4).cast_unsigned() & 0x03ff_fffc
}

/// Functions by name; the audit enters `e`.
type Functions<'a> = [(&'a str, &'a [u32])];

fn audited(functions: &Functions<'_>, review: &Review, constants: &[u64]) -> Option<Audited> {
    let (image, lines, disassembler) = (made(functions, constants), Lines::none(), disassembler().unwrap());
    let subject = Subject { image: &image, lines: &lines, disassembler: &disassembler, review };
    audit_entry(&subject, &review.entry[0])
}

fn findings(functions: &Functions<'_>) -> Vec<Finding> {
    audited(functions, &review(&[]), &[]).unwrap().findings
}

fn kinds(functions: &Functions<'_>) -> Vec<Kind> {
    findings(functions).iter().map(|finding| finding.kind).collect()
}

/// `e` calls `f`, which calls a function with this name.
fn calling(name: &str) -> Vec<Finding> {
    findings(&[("e", &[call(2), BLR]), ("f", &[call(2), BLR]), (name, &[0])])
}

/// `e` calls `f`, which is these instructions and `blr`.
fn containing(words: &[u32]) -> Vec<Kind> {
    kinds(&[("e", &[call(2), BLR]), ("f", &[words, &[BLR]].concat())])
}

fn stack(functions: &Functions<'_>) -> Option<u64> {
    audited(functions, &review(&[]), &[]).unwrap().reachable.deepest().map(|(depth, _)| depth)
}

#[test]
fn clean_code_is_proved() {
    let functions: &Functions<'_> = &[
        ("e", &[push(32), call(4), NOP, 0x3821_0020, BLR]),
        ("f", &[0x0c03_0000, 0x4c00_012c, BLR]),
        // Behind no path from the entry point.
        ("core::fmt::write", &[0]),
    ];
    assert_eq!(kinds(functions), []);
    let Audited { reachable, .. } = audited(functions, &review(&[]), &[]).unwrap();
    assert_eq!((reachable.calls.node_count(), reachable.calls.edge_count()), (2, 1));
}

#[test]
fn m01_a_reachable_panic_or_trap_is_found_with_the_way_there() {
    let found = calling("core::panicking::panic_fmt");
    assert_eq!((found.len(), found[0].kind), (1, Kind::Panic));
    assert_eq!(found[0].path, ["e", "f"]);
    assert!(found[0].what.contains("core::panicking::panic_fmt"), "{}", found[0].what);
    assert_eq!(calling("__rustc::rust_begin_unwind")[0].kind, Kind::Panic);
    assert_eq!(containing(&[0x7fe0_0008]), [Kind::Panic], "trap");
    assert_eq!(containing(&[0x0c83_0000]), [Kind::Panic], "twlgti r3,0 … a trap with a condition");
    // By a jump, too: the last call of a function.
    assert_eq!(kinds(&[("e", &[jump(1)]), ("core::panicking::panic", &[0])]), [Kind::Panic]);
}

#[test]
fn m02_text_memory_and_firmware_are_out_of_reach() {
    for (name, kind) in [
        ("core::fmt::write", Kind::Formatting),
        ("_defmt_acquire", Kind::Logging),
        ("__rustc::__rust_alloc", Kind::Allocation),
        ("opal_call", Kind::Firmware),
    ] {
        let found = calling(name);
        assert_eq!(found.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [kind], "{name}");
    }
    // sc 1, mtmsrd, hrfid.
    for word in [0x4400_0022, 0x7d40_0164, 0x4c00_0224] {
        assert_eq!(containing(&[word]), [Kind::Firmware], "{word:#010x}");
    }
}

#[test]
fn m03_a_vector_or_float_instruction_is_found() {
    // lxvd2x, stvx, lfd, fadd, xxlxor, mtvsrd.
    for word in [0x7c1b_2e98, 0x7c00_19ce, 0xc817_0008, 0xfc01_102a, 0xf3ff_fcd7, 0x7c3b_0166] {
        assert_eq!(containing(&[word]), [Kind::Vector], "{word:#010x}");
    }
    // ld, stdcx., isel, ldcix.
    for word in [0xe869_0050, 0x7cc3_21ad, 0x7c86_209e, 0x7c60_26ea] {
        assert_eq!(containing(&[word]), [], "{word:#010x}");
    }
}

#[test]
fn m04_where_a_call_or_jump_leads_is_known() {
    assert_eq!(containing(&[0x7c69_03a6, 0x4e80_0421]), [Kind::Indirect], "mtctr r3; bctrl");
    assert_eq!(containing(&[0x7c69_03a6, 0x4e80_0420]), [Kind::Indirect], "mtctr r3; bctr");
    assert_eq!(containing(&[0x4e80_0021]), [Kind::Indirect], "blrl");
    assert_eq!(containing(&[0]), [Kind::Undecodable], "no instruction");
    assert_eq!(containing(&[call(-1)]), [Kind::Undecodable], "into the middle of e");
    // The linker's stub for a far call: addis r12,r2,0; ld r12,-0x8000(r12); mtctr r12; bctr.
    let stub = [0x3d82_0000, 0xe98c_8000, 0x7d89_03a6, 0x4e80_0420];
    let functions: &Functions<'_> = &[("e", &[call(2), BLR]), ("stub", &stub), ("far", &[0x7fe0_0008])];
    let far = TABLE - 0x7000 + 4 * 6;
    let Audited { findings, .. } = audited(functions, &review(&[]), &[far]).unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((findings[0].kind, findings[0].path.join(" ")), (Kind::Panic, "e stub far".to_owned()));
}

#[test]
fn m05_a_function_that_can_call_itself_is_found() {
    assert_eq!(kinds(&[("e", &[call(0), BLR])]), [Kind::Recursion]);
    // e, f, g, and by a jump f again.
    let cycle = findings(&[("e", &[call(2), BLR]), ("f", &[call(2), BLR]), ("g", &[jump(-2)])]);
    assert_eq!((cycle.len(), cycle[0].kind, cycle[0].path.join(" ")), (1, Kind::Recursion, "e f".to_owned()));
    assert!(cycle[0].what.contains('f') && cycle[0].what.contains('g'), "{}", cycle[0].what);
    // Two ways to one function are no cycle.
    assert_eq!(kinds(&[("e", &[call(3), call(2), BLR]), ("f", &[BLR])]), []);
}

#[test]
fn m06_a_loop_is_reviewed_or_found_and_a_review_of_nothing_is_found_too() {
    // nop; bdnz .-4
    let functions: &Functions<'_> = &[("e", &[call(2), BLR]), ("f", &[NOP, 0x4200_fffc, BLR])];
    let found = findings(functions);
    assert_eq!((found.len(), found[0].kind), (1, Kind::Loop));
    assert!(found[0].entry.contains(&"symbol = \"f\"".to_owned()), "{:?}", found[0].entry);
    let listed = review(&[("f", "+0x4")]);
    let proved = audited(functions, &listed, &[]).unwrap();
    assert_eq!((proved.findings.len(), stale(&listed, &[proved]).len()), (0, 0));
    let elsewhere = review(&[("f", "+0x4"), ("f", "+0x8")]);
    let out_of_date = stale(&elsewhere, &[audited(functions, &elsewhere, &[]).unwrap()]);
    assert_eq!((out_of_date.len(), out_of_date[0].kind), (1, Kind::Stale));
    assert!(out_of_date[0].what.contains("+0x8"), "{}", out_of_date[0].what);
}

#[test]
fn m07_the_deepest_path_fits_the_stack() {
    let chain = |bytes: u16| -> (Option<u64>, Vec<Kind>) {
        // e: 1024 bytes and a call of f; f: `bytes`.
        let e = [push(1024), call(4), 0x3821_0400, BLR];
        let f = [NOP, push(bytes), 0x3821_0000 | u32::from(bytes), BLR];
        let functions: &Functions<'_> = &[("e", &e), ("x", &[BLR]), ("f", &f)];
        (stack(functions), kinds(functions))
    };
    assert_eq!(chain(1024), (Some(2048), vec![]));
    assert_eq!(chain(1040), (Some(2064), vec![Kind::Stack]));
    // Two calls one after the other: the deeper counts.
    let e = [push(112), call(4), call(4), POP_112, BLR];
    assert_eq!(stack(&[("e", &e), ("f", &[BLR]), ("g", &[push(112), POP_112, BLR])]), Some(224));
    // A call after the own frame has ended.
    let e = [push(112), POP_112, jump(1)];
    assert_eq!(stack(&[("e", &e), ("g", &[push(112), POP_112, BLR])]), Some(112));
    // stdux r1,r1,r0
    let unknown: &Functions<'_> = &[("e", &[0x7c21_016a, BLR])];
    assert_eq!((stack(unknown), kinds(unknown)), (None, vec![Kind::Stack]));
}

#[test]
fn m08_what_cannot_be_audited_is_an_error_and_not_a_proof() {
    assert!(audited(&[("another", &[BLR])], &review(&[]), &[]).is_none());
    let error = Error::NoEntryPoint { symbol: "e".to_owned(), image: PathBuf::from("image") };
    assert_eq!(error.to_string(), "image has no function `e`, which the audit was to enter");
    assert!(error.advice().is_some());
    // The symbol is there, its code is not.
    assert!(audited(&[("e", &[])], &review(&[]), &[]).is_none());
    assert_eq!(kinds(&[("e", &[0])]), [Kind::Undecodable]);
}

#[test]
fn both_reports_say_what_was_found() {
    let list = review(&[("f", "+0x4")]);
    let functions: &Functions<'_> =
        &[("e", &[push(32), call(3), 0x3821_0020, BLR]), ("f", &[NOP, 0x4200_fffc, 0x7fe0_0008])];
    let audited = audited(functions, &list, &[]).unwrap();
    let text = report::text(&audited, &list);
    for part in [
        "      16      32  e\n",
        "      12       0    f\n",
        "- loop of f at +0x4: b\n",
        "e → f",
        "NOT PROVED",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let line: serde_json::Value = serde_json::from_str(&report::json(&audited, &list)).unwrap();
    assert_eq!((&line["verdict"], &line["findings"][0]["kind"]), (&"failed".into(), &"panic".into()));
    assert_eq!((&line["stack_bytes"], &line["code_bytes"]), (&32.into(), &28.into()));
    assert_eq!(line["functions"][1]["loops"][0]["bound"], "b");
}
