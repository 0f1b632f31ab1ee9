//! What is shown while a lock is waited for: one live line, or a line in a log from time to time.

use std::env::var;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::lock::holder::held;
use crate::lock::staleness::{Held, Holding, rounded_up};
use crate::lock::waiting::{Observer, Waiting};
use crate::logging;
use crate::store::{self, Location};
use crate::sys::local_time::short;
use crate::sys::process;
use crate::sys::text::{cut, width};

const REFRESH: Duration = Duration::from_secs(1);

/// How long a log says nothing new about the same holder.
const REPEAT: Duration = Duration::from_secs(30);

/// The same further back in line than at place [`NEAR`] of a store, where each line costs
/// statements; and the poll interval of a queued waiter without a log.
const LONGEST: Duration = Duration::from_secs(60);
const NEAR: usize = 10;

/// The end of a line may be cut off in a log, but not the explanation.
const UNLIMITED: usize = 1000;

pub struct Progress {
    lock: String,
    begun: Instant,
    waiting: Waiting,
    is_live: bool,
    is_drawn: bool,
    is_silent: bool,
    has_looked_for_itself: bool,
    /// When to warn that it still waits.
    warn_at: Option<Instant>,
    /// What the last line in a log was about, and when it was written.
    told: Option<(String, Instant)>,
    is_shared: bool,
    /// After which time a log repeats itself.
    repeat: Duration,
}

impl Progress {
    /// `is_silent` leaves logs alone.
    pub fn new(lock: &Location, waiting: &Waiting, is_silent: bool) -> Self {
        // What continuous integration records is not a terminal, whatever it says.
        let may_draw = var("TERM").is_ok_and(|term| term != "dumb")
            && var("CI").unwrap_or_default().is_empty();
        let begun = Instant::now();
        Self {
            lock: lock.name(),
            begun,
            waiting: *waiting,
            is_live: may_draw
                && logging::shows_progress()
                && is_in_foreground()
                && tracing::enabled!(tracing::Level::INFO),
            is_drawn: false,
            is_silent,
            has_looked_for_itself: false,
            warn_at: waiting.warn_after.map(|after| begun + after),
            told: None,
            is_shared: lock.is_shared(),
            repeat: REPEAT,
        }
    }

    /// Removes the live line, before something else is written.
    fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            write_stderr("\r\x1b[K");
        }
    }

    /// Ends the waiting. For how long it has lasted, if a log was told that it waits.
    pub fn end(mut self) -> Option<String> {
        self.clear();
        (self.told.is_some() && !self.is_live && !self.is_silent)
            .then(|| format!(" after {}", short(self.begun.elapsed())))
    }

    /// A holder that has started us may wait for us, while we wait for it. It need not: `lock`,
    /// then a job in the background, then `unlock`.
    fn warn_of_deadlock(&mut self, holders: &[Holding]) {
        if std::mem::replace(&mut self.has_looked_for_itself, true) {
            return;
        }
        let alive = holders.iter().filter(|holding| matches!(holding.verdict, Held::Alive(_)));
        let mut owners = alive.filter_map(|holding| Some(holding.entry.as_ref()?.owner.pid));
        if let Some(pid) = owners.find(|pid| process::is_ancestor(*pid)) {
            self.clear();
            let lock = &self.lock;
            tracing::warn!(
                "possible deadlock: `{lock}` is held by pid {pid}, which started this command"
            );
        }
    }

    /// The room on a line: one that wraps could not be drawn over, and a terminal shows `^C`.
    fn columns(&self) -> usize {
        let width =
            rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let room = if width > 1 { width } else { 80 }.saturating_sub(3);
        if self.is_live { room } else { UNLIMITED }
    }

    fn draw(&mut self, message: &str) {
        write_stderr(&format!("\r\x1b[K{}", cut(message, self.columns())));
        self.is_drawn = true;
    }

    /// The lock, the place in line, and the time of this process; then shorter texts of it.
    fn own(&self, place: Option<usize>, attempt: u32) -> [String; 3] {
        let place = place.map(|place| format!("{} in line, ", ordinal(place))).unwrap_or_default();
        let limit = match (self.waiting.timeout, self.waiting.max_attempts) {
            (Some(timeout), _) => format!(" of {}", rounded_up(&timeout)),
            (None, Some(max)) => format!(", attempt {attempt} of {max}"),
            (None, None) => String::new(),
        };
        let (lock, waited) = (&self.lock, short(self.begun.elapsed()));
        let waiting = format!("waiting for `{lock}`: ");
        [format!("{waiting}{place}{waited}{limit}; "), format!("{waiting}{waited}; "), waiting]
    }

    fn is_due(&mut self, news: String) -> bool {
        let told = self.told.as_ref();
        let is_old = told.is_some_and(|(told, at)| *told == news && at.elapsed() < self.repeat);
        if !is_old {
            self.told = Some((news, Instant::now()));
        }
        self.is_live || !is_old && !self.is_silent
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `1st`, `2nd`, `3rd`, `11th`
pub fn ordinal(number: usize) -> String {
    let is_teen = (11..=13).contains(&(number % 100));
    let end = ["th", "st", "nd", "rd"].get(number % 10).filter(|_| !is_teen).unwrap_or(&"th");
    format!("{number}{end}")
}

/// Whether stderr is a terminal. A background job must not draw over what is typed.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stderr()) == Ok(rustix::process::getpgrp())
}

fn write_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

impl Observer for Progress {
    fn waiting(
        &mut self,
        holders: &[Holding],
        attempt: u32,
        place: &mut dyn FnMut() -> Option<usize>,
    ) {
        let is_late = self.warn_at.take_if(|at| *at <= Instant::now()).is_some();
        // The same acquisition, also when its lease was renewed; and what keeps it held.
        let news = holders.first().and_then(|Holding { entry, verdict, .. }| {
            let (entry, held) = (entry.as_ref()?, std::mem::discriminant(verdict));
            Some(format!("{} {:?} {held:?}", entry.owner.pid, entry.token))
        });
        let is_due = self.is_due(news.unwrap_or_default());
        if !is_due && !is_late {
            return;
        }
        let place = place();
        let is_far = self.is_shared && place > Some(NEAR);
        self.repeat = if is_far { LONGEST } else { REPEAT };
        let (owns, full) = (self.own(place, attempt), held(holders, UNLIMITED));
        if is_late {
            self.clear();
            tracing::warn!("still {}{full}", owns[0]);
        }
        // Half of a narrow line is the holder's.
        let columns = self.columns();
        let room = columns - width(&full).min(columns / 2);
        let own = owns.iter().find(|own| width(own) <= room).unwrap_or(&owns[2]);
        let own = cut(own, room);
        let message = held(holders, columns.saturating_sub(width(&own)));
        let message = own + &message;
        if self.is_live {
            self.draw(&message);
        } else if !is_late {
            tracing::info!("{message}");
        }
        self.warn_of_deadlock(holders);
    }

    fn failing(&mut self, error: &store::Error, attempt: u32) {
        if !self.is_due(error.to_string()) {
            return;
        }
        let [own, ..] = self.own(None, attempt);
        let message = format!("{own}store unreachable, retrying: {error}");
        let is_endless = self.waiting.timeout.is_none() && self.waiting.max_attempts.is_none();
        let usual = is_endless.then_some("`--timeout` limits the wait");
        match error.hint.as_deref().or(usual).map(logging::hint) {
            _ if self.is_live => self.draw(&message),
            Some(hint) => tracing::warn!("{message} (hint: {hint})"),
            None => tracing::warn!("{message}"),
        }
    }

    fn interval(&self) -> Duration {
        let tells = !self.is_silent && tracing::enabled!(tracing::Level::INFO);
        let told = self.told.as_ref().filter(|_| tells).map(|(_, when)| *when + self.repeat);
        let usual = if self.is_live { Some(Instant::now() + REFRESH) } else { told };
        let next = usual.into_iter().chain(self.warn_at).min();
        next.map_or(LONGEST, |at| at.saturating_duration_since(Instant::now()).min(LONGEST))
    }
}
