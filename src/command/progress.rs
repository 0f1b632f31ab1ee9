//! What is shown while a lock is waited for: on a terminal one live line, elsewhere a line from time to time.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::backend;
use crate::holder::listed;
use crate::process;
use crate::verdict::{Held, Holding};
use crate::waiting::Observer;

/// How often the live line is drawn.
const REFRESH: Duration = Duration::from_secs(1);

/// How long a log says nothing new about the same holder.
const REPEAT: Duration = Duration::from_secs(30);

/// How often a log is asked for news.
const NEVER: Duration = Duration::from_secs(3600);

/// A holder, and its acquisition.
type Acquisition = (Pid, Option<String>);

#[derive(Default)]
pub struct Progress {
    max_attempts: Option<NonZeroU32>,
    is_live: bool,
    is_drawn: bool,
    is_silent: bool,
    has_looked_for_itself: bool,
    /// What the last line in a log was about, and when it was written.
    told: Option<(Option<Acquisition>, Instant)>,
    /// When a log last said that the store does not answer.
    failed: Option<Instant>,
}

impl Progress {
    /// `is_silent` leaves logs alone.
    pub fn new(max_attempts: Option<NonZeroU32>, is_silent: bool) -> Self {
        let is_live = io::stderr().is_terminal() && is_in_foreground() && tracing::enabled!(tracing::Level::INFO);
        Self { max_attempts, is_live, is_silent, ..Self::default() }
    }

    /// Removes the live line, before something else is written.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            write_stderr("\r\x1b[K");
        }
    }

    /// A holder that has started us may wait for us, while we wait for it. It need not: `lock`, then a job in
    /// the background, then `unlock`.
    fn warn_of_deadlock(&mut self, holders: &[Holding]) {
        if std::mem::replace(&mut self.has_looked_for_itself, true) {
            return;
        }
        let is_alive = |holding: &&Holding| matches!(holding.verdict, Held::Alive(_));
        let mut owners = holders.iter().filter(is_alive).filter_map(|holding| Some(holding.entry.as_ref()?.owner.pid));
        if let Some(pid) = owners.find(|pid| process::is_ancestor(*pid)) {
            self.clear();
            tracing::warn!("possible deadlock: the lock is held by pid {pid}, which started this command");
        }
    }

    fn draw(&mut self, message: &str) {
        // A line that wraps could not be drawn over. Room for the `^C` that a terminal shows.
        let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
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
}

/// A background job must not draw over what is typed.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stderr()).is_ok_and(|foreground| foreground.as_raw_pid() == nix::unistd::getpgrp().as_raw())
}

fn write_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

impl Observer for Progress {
    fn waiting(&mut self, holders: &[Holding], attempt: u32) {
        // The same holder, also when its lease was renewed.
        let holder = holders.first().and_then(|holding| holding.entry.as_ref());
        let holder = holder.map(|entry| (entry.owner.pid, entry.token.clone()));
        let is_old_news = self.told.as_ref().is_some_and(|(told, when)| *told == holder && when.elapsed() < REPEAT);
        if !self.is_live && (is_old_news || self.is_silent) {
            return;
        }
        let message = format!("waiting for {}, {}", listed(holders, true), self.count(attempt));
        if self.is_live {
            self.draw(&message);
        } else {
            tracing::info!("{message}");
            self.told = Some((holder, Instant::now()));
        }
        self.warn_of_deadlock(holders);
    }

    fn failing(&mut self, error: &backend::Error, attempt: u32) {
        let message = format!("trying again: {error}, {}", self.count(attempt));
        if self.is_live {
            self.draw(&message);
        } else if !self.is_silent && self.failed.is_none_or(|told| told.elapsed() >= REPEAT) {
            match error.hint.as_deref().filter(|_| self.failed.is_none()) {
                Some(hint) => tracing::warn!("{message} (hint: {hint})"),
                None => tracing::warn!("{message}"),
            }
            self.failed = Some(Instant::now());
        }
    }

    fn interval(&self) -> Duration {
        if self.is_live { REFRESH } else { NEVER }
    }
}
