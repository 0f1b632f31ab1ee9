//! A panic, of the program or of a library, ends the program with one line and a defined exit code,
//! without what the panic says; and while a lease is kept, as the loss of that does.
//!
//! Each test starts this program again, which takes the part of the program that panics.

use std::process::{Command, Output, exit};
use std::thread;
use std::time::Duration;

use serializer::lease::thread::Renewing;
use serializer::lease::{LeaseGrant, OnLost};
use serializer::lock::Grant;
use serializer::panics;
use serializer::store::Location;
use serializer::sys::clock::since_boot;
use serializer::sys::poll::{is_readable, sleep};

/// What the second program is to do.
const PART: &str = "SERIALIZER_TEST_PANIC";

/// Its exit code where it should have ended otherwise.
const WRONG: i32 = 99;

const ENDED: &str = "ended what ran";

/// The output of this program as `part`, a function that the test of this name calls at once when
/// it is that.
fn as_part(test: &str, part: fn()) -> Output {
    if std::env::var_os(PART).is_some() {
        // The main thread of a program, which that of a test is not.
        panics::end_the_process();
        part();
        exit(WRONG);
    }
    let itself = std::env::current_exe().expect("this program");
    Command::new(itself)
        .args(["--exact", &format!("panics::{test}"), "--nocapture"])
        .env(PART, "1")
        .output()
        .expect("it runs")
}

/// Its exit code, and what it has said about the panic, which must be all.
fn told(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("hunter2") && !said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn is_told_in_one_line(said: &str) -> bool {
    said.starts_with("serializer: internal error at `tests/local/panics.rs:")
        && said.lines().count() == 1
}

#[test]
fn a_panic_is_told_in_one_line_without_what_it_says() {
    let output = as_part("a_panic_is_told_in_one_line_without_what_it_says", || {
        panic!("http://me:hunter2@x\nis no address")
    });
    let (code, said) = told(&output);
    assert!(code == Some(1) && is_told_in_one_line(&said), "{output:?}");
}

#[test]
fn a_panic_of_another_thread_ends_the_program_too() {
    let output = as_part("a_panic_of_another_thread_ends_the_program_too", || {
        let thread = thread::spawn(|| panic!("hunter2"));
        let _ = thread.join();
    });
    let (code, said) = told(&output);
    assert!(code == Some(1) && is_told_in_one_line(&said), "{output:?}");
}

#[test]
fn a_panic_of_the_main_thread_while_a_lease_is_kept_ends_what_runs_under_it() {
    let output =
        as_part("a_panic_of_the_main_thread_while_a_lease_is_kept_ends_what_runs_under_it", || {
            let _renewing = renewing(0, 3600, OnLost::Terminate);
            panic!("hunter2");
        });
    let (code, said) = told(&output);
    assert!(code == Some(76) && is_told_in_one_line(&said), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(ENDED), "{output:?}");
}

#[test]
fn a_panic_after_a_lease_was_kept_is_no_loss() {
    let output = as_part("a_panic_after_a_lease_was_kept_is_no_loss", || {
        drop(renewing(0, 3600, OnLost::Terminate));
        panic!("hunter2");
    });
    let (code, said) = told(&output);
    assert!(code == Some(1) && is_told_in_one_line(&said), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(ENDED), "{output:?}");
}

#[test]
fn a_lease_whose_thread_has_panicked_is_lost_and_the_store_is_not_asked_again() {
    let test = "a_lease_whose_thread_has_panicked_is_lost_and_the_store_is_not_asked_again";
    let output = as_part(test, || {
        let is_right = [OnLost::Terminate, OnLost::Warn].into_iter().all(|on_lost| {
            let renewing = renewing(0, 3600, on_lost);
            let was_good = !renewing.is_given_up() && !renewing.is_unanswered();
            thread::spawn(|| panic!("hunter2"));
            sleep(Duration::from_secs(60), &[renewing.lost_fd()]).expect("it is lost");
            let is_lost = is_readable(&renewing.lost_fd()) && renewing.is_given_up();
            let is_ours = renewing.is_unanswered() && !renewing.is_released();
            let is_why = renewing.why().starts_with("internal error at `tests/local/panics.rs:");
            was_good && is_lost && is_ours && is_why
        });
        exit(if is_right { 3 } else { WRONG });
    });
    let (code, said) = told(&output);
    assert!(code == Some(3) && said.lines().count() == 2, "{output:?}");
}

/// A lease of `lease` seconds, `age` seconds after its last renewal.
fn renewing(age: u64, lease: u64, on_lost: OnLost) -> Renewing {
    let (token, leased_at) = ("t".to_owned(), since_boot() - age * 1000);
    let grant = Grant { token, fencing: None, leased_at, run: None, is_stopped: false };
    let charge = LeaseGrant { grant, lease: Duration::from_secs(lease), is_unnamed: false };
    let location = Location::file("/nonexistent".as_ref());
    let at_worst = Box::new(|| println!("{ENDED}"));
    Renewing::start(&location, charge, None, on_lost, at_worst).expect("a thread")
}

#[test]
fn a_twelfth_of_the_lease_is_left_when_a_command_is_killed() {
    assert!(renewing(11, 12, OnLost::Terminate).kill_at() <= since_boot());
}
