//! Links the program to a fixed address. At any other, the loader writes up to 150,000 pointers before `main`: a third of a
//! start of the debug build, and of the released program a tenth (docs/design.md, "Costs").

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |what: &str, value: &str| {
        var(format!("CARGO_CFG_TARGET_{what}")).is_ok_and(|found| found == value)
    };
    if is("OS", "linux") && is("ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
