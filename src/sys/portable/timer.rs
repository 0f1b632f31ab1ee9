//! A timer that a thread polls.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::clock::{since_1970, since_boot};
use crate::sys::poll::is_readable;
use crate::sys::quietly;

/// The poll interval: the clock may be set, and may continue while the host sleeps.
const POLL: Duration = Duration::from_millis(50);

/// Becomes readable at a given time.
#[derive(Debug)]
pub struct Timer(PipeReader, Arc<Mutex<State>>);

/// The writing end of the pipe, and the time at which to write to it.
#[derive(Debug)]
struct State(PipeWriter, Option<u64>);

impl Timer {
    /// Not readable yet.
    pub fn new() -> io::Result<Self> {
        Self::of(since_boot)
    }

    /// The same by the clock that can be set, in milliseconds since 1970.
    pub fn of_wall_clock() -> io::Result<Self> {
        Self::of(since_1970)
    }

    fn of(clock: fn() -> u64) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let state = Arc::new(Mutex::new(State(writer, None)));
        let weak = Arc::downgrade(&state);
        quietly("timer", move || {
            // Ends with the timer.
            while let Some(state) = weak.upgrade() {
                let mut state = lock(&state);
                if state.1.take_if(|when| *when <= clock()).is_some() {
                    let _ = state.0.write_all(&[0]);
                }
                drop(state);
                thread::sleep(POLL);
            }
        })?;
        Ok(Self(reader, state))
    }

    /// Makes the timer readable at `when`, in milliseconds since boot, and not before; soon if that
    /// has passed.
    pub fn set(&self, when: u64) -> io::Result<()> {
        let mut state = lock(&self.1);
        state.1 = Some(when);
        // The pipe has at most one byte.
        if is_readable(&self.0) { (&self.0).read_exact(&mut [0]) } else { Ok(()) }
    }

    /// Becomes readable at the set time.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
