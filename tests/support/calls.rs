//! The system calls of a program, for tests that disturb one after another.

use std::collections::{BTreeMap, BTreeSet};

/// The first call of Rust's own start, which checks that stdin, stdout and stderr are open. What
/// comes before is the dynamic loader's: the same in every program, and over before anything of
/// this one has begun.
const FIRST_OF_ITS_OWN: &str = "poll([{fd=0,";

/// Calls that change nothing but the process that makes them: memory, signals, a look at something,
/// and what its end closes, too.
const LOOKS: &str = "access brk close fstat fstatfs getcwd getdents64 geteuid getpid getppid \
                     getrandom gettid getuid lseek madvise mmap mprotect mremap munmap newfstatat \
                     pread64 read readlink readlinkat rt_sigaction rt_sigprocmask sigaltstack \
                     statx";

/// Whether a kill before this call leaves the same behind as one after it.
fn only_looks(name: &str, call: &str) -> bool {
    LOOKS.split(' ').any(|look| look == name)
        || name == "openat" && call.contains("O_RDONLY") && !call.contains("O_CREAT")
}

/// The program's own calls in what strace has written, by name: their numbers, as `when=` counts
/// them in each thread.
pub fn own_calls(trace: &str) -> BTreeMap<String, BTreeSet<usize>> {
    calls_to_disturb(trace, "")
}

/// Those among them for which `inject=NAME:INJECTION` shows something: an error does for each. A
/// kill is the same before all calls between one change and the next; the end is a change.
pub fn calls_to_disturb(trace: &str, injection: &str) -> BTreeMap<String, BTreeSet<usize>> {
    assert!(trace.contains(FIRST_OF_ITS_OWN), "where does the program begin? {trace}");
    let mut made: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut own: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let mut has_begun = false;
    for line in trace.lines() {
        // With `-f`, the thread comes first.
        let call = line.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let thread = &line[..line.len() - call.len()];
        let call = call.trim_start();
        let Some((name, _)) = call.split_once('(').filter(|(name, _)| !name.contains(' ')) else {
            continue;
        };
        has_begun |= call.starts_with(FIRST_OF_ITS_OWN);
        let number = made.entry((thread, name)).or_default();
        *number += 1;
        if has_begun && !(injection.starts_with("signal=KILL") && only_looks(name, call)) {
            own.entry(name.to_owned()).or_default().insert(*number);
        }
    }
    own
}

/// So many of them from the first one on, and back from the last one.
pub fn ends(numbers: &BTreeSet<usize>, most: usize) -> Vec<usize> {
    let count = numbers.len();
    let is_at_an_end = |place: usize| place < most || place + most >= count;
    numbers
        .iter()
        .enumerate()
        .filter(|(place, _)| is_at_an_end(*place))
        .map(|(_, number)| *number)
        .collect()
}
