//! Links the program that tests start, thousands of times, to a fixed address. At any other, the loader would write 150,000
//! pointers before `main`, which is a third of such a start.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_debug = var("PROFILE").is_ok_and(|profile| profile == "debug");
    let is = |what: &str, value: &str| var(format!("CARGO_CFG_TARGET_{what}")).is_ok_and(|found| found == value);
    if is_debug && is("OS", "linux") && is("ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
