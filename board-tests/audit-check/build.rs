//! Links the image without a start-up of its own.

fn main() {
    for argument in ["--entry=audit_check_entry", "--gc-sections", "--no-undefined"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
