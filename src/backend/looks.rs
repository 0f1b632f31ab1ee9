//! How often a waiter polls a store without wake-ups.
//!
//! The interval depends on the time waited alone: a holder that renews its lease changes what is stored, but not how long others
//! have to wait.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::retry::jittered;
use super::{plain, sleep};

/// An interval is one part in so many of the time waited.
const SHARE: u32 = 10;

/// The polls of one waiter.
pub struct Looks {
    /// The shortest interval.
    first: Duration,
    /// The longest interval, unless the waiter makes an attempt earlier (after a second, by default).
    last: Duration,
    since: Option<Instant>,
}

impl Looks {
    /// Polls with intervals between `first` and `last`.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, since: None }
    }

    /// Sleeps until the next poll, at most `limit`, or until one of `fds` is readable.
    pub fn sleep(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        sleep(self.pause_after(waited, limit), fds)
            .map_err(|error| Failure::permanent(format!("cannot sleep: {}", plain(&error.into()))))
    }

    /// Waits no more.
    pub fn end(&mut self) {
        self.since = None;
    }

    fn pause_after(&self, waited: Duration, limit: Duration) -> Duration {
        let pause = (waited / SHARE).clamp(self.first, self.last);
        // A poll just before one that is due anyway would be one too many.
        if limit <= pause * 5 / 4 { limit } else { jittered(pause) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Looks;

    /// How many polls a waiter makes within so many seconds, with an attempt every `sleep` seconds.
    fn polls(looks: &Looks, time: u64, sleep: u64) -> usize {
        let (mut waited, mut due, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        // Ends with the time: no pause is empty, and none is longer than the waiter wants.
        while waited < Duration::from_secs(time) {
            count += 1;
            if waited >= due {
                due = waited + Duration::from_secs(sleep);
            }
            let pause = looks.pause_after(waited, due - waited);
            assert!(!pause.is_zero() && pause <= (due - waited).min(Duration::from_millis(12_500)), "{pause:?}");
            waited += pause;
        }
        count
    }

    #[test]
    fn waiting_costs_what_is_documented() {
        let paid = Looks::new(Duration::from_millis(100), Duration::from_secs(10));
        let directory = Looks::new(Duration::from_millis(50), Duration::from_secs(1));
        for (looks, time, sleep, expected) in [
            (&paid, 3600, 1, 3600..3650),
            (&directory, 3600, 1, 3600..3650),
            (&paid, 3600, 2, 1800..1850),
            (&paid, 3600, 10, 360..450),
            (&paid, 3600, 3600, 360..450),
            (&paid, 1, 1, 8..15),
        ] {
            let polls = polls(looks, time, sleep);
            assert!(expected.contains(&polls), "{polls} in {time} s, with an attempt every {sleep} s");
        }
    }
}
