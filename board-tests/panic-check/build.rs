//! Links the image without a start-up of its own; a missing symbol is an error.

fn main() {
    for argument in ["--entry=exercise", "--gc-sections", "--no-undefined"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
