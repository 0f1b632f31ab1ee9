//! The program.

#![deny(unsafe_code)]

use std::process::ExitCode;

/// Called before Rust's runtime starts, which ignores SIGPIPE. After that, no system call and no
/// file of `/proc` shows whether the caller ignored it, which a command of `run` has to inherit. No
/// safe means exists: std's own (`-Zon-broken-pipe`) is not stable, and a `main` of one's own is as
/// unsafe, and gets no arguments under musl.
///
/// The attribute is sound: a loader calls what stands in this section as a C function, and this one
/// reads no argument. It uses of std only files and an atomic cell, which need no runtime, and it
/// cannot panic. Other systems do not report ignored signals.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "see above")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_THE_RUNTIME: extern "C" fn() = serializer::note_ignored_signals;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    serializer::main()
}
