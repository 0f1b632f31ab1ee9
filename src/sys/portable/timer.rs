//! A timer that a thread polls.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::sys::clock::{since_1970, since_boot};
use crate::sys::poll::is_readable;
use crate::sys::{locked, quietly};

/// The poll interval: the clock may be set, and may continue while the host sleeps.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Timer(PipeReader, Arc<Mutex<Option<u64>>>);

impl Timer {
    pub fn new() -> io::Result<Self> {
        Self::of(since_boot)
    }

    pub fn of_wall_clock() -> io::Result<Self> {
        Self::of(since_1970)
    }

    fn of(clock: fn() -> u64) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        let when = Arc::new(Mutex::new(None));
        let weak = Arc::downgrade(&when);
        quietly("timer", move || {
            // Ends with the timer.
            while let Some(when) = weak.upgrade() {
                let mut when = locked(&when);
                if when.take_if(|when| *when <= clock()).is_some() {
                    let _ = writer.write_all(&[0]);
                }
                drop(when);
                thread::sleep(POLL);
            }
        })?;
        Ok(Self(reader, when))
    }

    pub fn set(&self, when: u64) -> io::Result<()> {
        let mut pending = locked(&self.1);
        *pending = Some(when);
        // The pipe has at most one byte.
        if is_readable(&self.0) { (&self.0).read_exact(&mut [0]) } else { Ok(()) }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
