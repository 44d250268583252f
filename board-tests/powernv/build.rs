//! Links the image as skiboot runs it: in place, at the address it is loaded to.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if let Ok(folder) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-arg-bins=-T{folder}/link.ld");
    }
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
