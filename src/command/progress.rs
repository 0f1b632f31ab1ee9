//! What is shown while a lock is waited for: one live line, or a line in a log from time to time.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::lock::holder::listed;
use crate::lock::staleness::{Held, Holding};
use crate::lock::waiting::{Observer, Waiting};
use crate::store;
use crate::sys::process;

/// How often the live line is drawn.
const REFRESH: Duration = Duration::from_secs(1);

/// How long a log says nothing new about the same holder.
const REPEAT: Duration = Duration::from_secs(30);

/// How often a log is asked for news.
const NEVER: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub struct Progress {
    max_attempts: Option<NonZeroU32>,
    is_live: bool,
    is_drawn: bool,
    is_silent: bool,
    has_looked_for_itself: bool,
    /// When to warn that it still waits.
    warn_at: Option<Instant>,
    /// What the last line in a log was about, and when it was written.
    told: Option<(String, Instant)>,
}

impl Progress {
    /// `is_silent` leaves logs alone.
    pub fn new(waiting: &Waiting, is_silent: bool) -> Self {
        let is_live = io::stderr().is_terminal()
            && is_in_foreground()
            && tracing::enabled!(tracing::Level::INFO);
        let warn_at = waiting.warn_after.map(|after| Instant::now() + after);
        Self { max_attempts: waiting.max_attempts, is_live, is_silent, warn_at, ..Self::default() }
    }

    /// Removes the live line, before something else is written.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            write_stderr("\r\x1b[K");
        }
    }

    /// A holder that has started us may wait for us, while we wait for it. It need not: `lock`,
    /// then a job in the background, then `unlock`.
    fn warn_of_deadlock(&mut self, holders: &[Holding]) {
        if std::mem::replace(&mut self.has_looked_for_itself, true) {
            return;
        }
        let is_alive = |holding: &&Holding| matches!(holding.verdict, Held::Alive(_));
        let mut owners = holders
            .iter()
            .filter(is_alive)
            .filter_map(|holding| Some(holding.entry.as_ref()?.owner.pid));
        if let Some(pid) = owners.find(|pid| process::is_ancestor(*pid)) {
            self.clear();
            tracing::warn!(
                "possible deadlock: the lock is held by pid {pid}, which started this command"
            );
        }
    }

    fn draw(&mut self, message: &str) {
        // A line that wraps could not be drawn over. Room for the `^C` that a terminal shows.
        let width =
            rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let room = if width > 1 { width } else { 80 }.saturating_sub(3);
        let mut line: String = message.chars().take(room).collect();
        if line.len() < message.len() {
            line.pop();
            line.push('…');
        }
        write_stderr(&format!("\r\x1b[K{line}"));
        self.is_drawn = true;
    }

    fn count(&self, attempt: u32) -> String {
        let max = self.max_attempts.map(|max| format!(" of {max}")).unwrap_or_default();
        format!("attempt {attempt}{max}")
    }

    /// Whether to write a line about this.
    fn is_due(&mut self, news: String) -> bool {
        let is_old =
            self.told.as_ref().is_some_and(|(told, when)| *told == news && when.elapsed() < REPEAT);
        if !is_old {
            self.told = Some((news, Instant::now()));
        }
        self.is_live || !is_old && !self.is_silent
    }
}

/// A background job must not draw over what is typed.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stderr())
        .is_ok_and(|foreground| foreground.as_raw_pid() == nix::unistd::getpgrp().as_raw())
}

fn write_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

impl Observer for Progress {
    fn waiting(&mut self, holders: &[Holding], attempt: u32) {
        if self.warn_at.take_if(|at| *at <= Instant::now()).is_some() {
            self.clear();
            tracing::warn!("still waiting for {}, {}", listed(holders, true), self.count(attempt));
        }
        // The same acquisition, also when its lease was renewed.
        let holder = holders.first().and_then(|holding| holding.entry.as_ref());
        let acquisition = holder.map(|entry| format!("{} {:?}", entry.owner.pid, entry.token));
        if !self.is_due(acquisition.unwrap_or_default()) {
            return;
        }
        let message = format!("waiting for {}, {}", listed(holders, true), self.count(attempt));
        if self.is_live {
            self.draw(&message);
        } else {
            tracing::info!("{message}");
        }
        self.warn_of_deadlock(holders);
    }

    fn failing(&mut self, error: &store::Error, attempt: u32) {
        if !self.is_due("outage".to_owned()) {
            return;
        }
        let message = format!("trying again: {error}, {}", self.count(attempt));
        match &error.hint {
            _ if self.is_live => self.draw(&message),
            Some(hint) => tracing::warn!("{message} (hint: {hint})"),
            None => tracing::warn!("{message}"),
        }
    }

    fn interval(&self) -> Duration {
        let usual = if self.is_live { REFRESH } else { NEVER };
        self.warn_at.map_or(usual, |at| at.saturating_duration_since(Instant::now()).min(usual))
    }
}
