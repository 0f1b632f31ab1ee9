//! How often whoever waits looks, in stores that tell nobody of changes.
//!
//! It goes by the time waited alone: a holder that renews its lease changes what is stored, but not how long others will have to wait.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::remote::{Failure, jittered};
use super::{plain, sleep};

/// It has waited for so many times as long as there is between two looks.
const GROW: u32 = 10;

/// The looks of one that waits.
pub struct Looks {
    /// Between two looks at first: short steps follow each other quickly.
    first: Duration,
    /// And in the end, unless whoever waits wants to look earlier: after a second, if nobody says otherwise.
    last: Duration,
    since: Option<Instant>,
}

impl Looks {
    /// With so long between two of them, at first and in the end.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, since: None }
    }

    /// Sleeps until the next look, at most `limit`, or until one of `fds` is readable.
    ///
    /// # Errors
    /// When it cannot sleep.
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
        let pause = (waited / GROW).clamp(self.first, self.last);
        // A look just before one that is due anyway would be one too many.
        if limit <= pause * 5 / 4 { limit } else { jittered(pause) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Looks;

    /// How many looks there are while it waits for so long, if it makes an attempt every `sleep`.
    fn looks(looks: &Looks, time: Duration, sleep: Duration) -> usize {
        let (mut waited, mut due, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        // Ends with the time: no pause is nothing.
        while waited < time {
            count += 1;
            if waited >= due {
                due = waited + sleep;
            }
            waited += looks.pause_after(waited, due - waited);
        }
        count
    }

    #[test]
    fn waiting_costs_what_is_documented() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let in_an_hour = |pace: &Looks, sleep| looks(pace, hour, Duration::from_secs(sleep));
        let paid = Looks::new(Duration::from_millis(100), Duration::from_secs(10));
        let directory = Looks::new(Duration::from_millis(50), second);
        for pace in [&paid, &directory] {
            assert!((3600..3650).contains(&in_an_hour(pace, 1)), "{}", in_an_hour(pace, 1));
        }
        assert!((1800..1850).contains(&in_an_hour(&paid, 2)), "{}", in_an_hour(&paid, 2));
        assert!((360..450).contains(&in_an_hour(&paid, 10)), "{}", in_an_hour(&paid, 10));
        // Longer attempts change nothing.
        assert!((360..450).contains(&in_an_hour(&paid, 3600)), "{}", in_an_hour(&paid, 3600));
        assert!((8..15).contains(&looks(&paid, second, second)), "{}", looks(&paid, second, second));
    }

    #[test]
    fn nobody_sleeps_for_longer_than_it_wants_to() {
        let paid = Looks::new(Duration::from_millis(100), Duration::from_secs(10));
        for (waited, limit) in [(0, 10), (0, 1000), (30_000, 1000), (600_000, 10_000), (600_000, 12_500), (600_000, 60_000)] {
            let pause = paid.pause_after(Duration::from_millis(waited), Duration::from_millis(limit));
            assert!(pause <= Duration::from_millis(limit.min(12_500)), "{waited} {limit}: {pause:?}");
        }
    }
}
