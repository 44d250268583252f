//! Mistakes that the compiler finds. What it says is kept beside each file; after a change of compiler, or
//! of a signature, `TRYBUILD=overwrite cargo test -p portcullis-suite --test does_not_compile` renews it:
//! look whether the error is still about the mistake.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use trybuild::TestCases;

fn refused(file: &str) {
    TestCases::new().compile_fail(format!("tests/must_not_compile/{file}.rs"));
}

#[test]
fn t01_no_attach_without_a_claim() {
    refused("t01_attach_without_a_claim");
}

#[test]
fn t02_no_first_attach_without_a_proof() {
    refused("t02_attach_without_a_proof");
}

#[test]
fn t03_no_proof_is_used_twice() {
    refused("t03_one_proof_twice");
}

#[test]
fn t04_no_claim_outlives_its_release() {
    refused("t04_a_claim_after_its_release");
}

#[test]
fn t05_no_snoop_control_without_a_witness() {
    refused("t05_snoop_without_a_witness");
}

#[test]
fn t06_no_address_for_another() {
    refused("t06_address_types_mixed_up");
}

#[test]
fn t07_no_mapping_of_a_bare_address() {
    refused("t07_map_of_a_bare_address");
}

#[test]
fn t08_no_permit_from_elsewhere() {
    refused("t08_a_permit_from_elsewhere");
}

#[test]
fn t09_no_proof_made_by_hand() {
    refused("t09_proofs_made_by_hand");
}

#[test]
fn t10_what_the_others_leave_out_compiles() {
    TestCases::new().pass("tests/must_compile/t10_what_the_others_leave_out.rs");
}
