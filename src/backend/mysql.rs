//! Locks in MySQL and MariaDB: a row for each name.
//!
//! Every statement is a transaction of its own, and every write is conditional on the state that was read. So what is read need
//! not be the last word: where it is stale (a node of Galera without `wsrep_sync_wait`, a replica), the write is a conflict, or is
//! refused, and nothing is granted. With Galera, two writes on two nodes with the same condition are certified one after the
//! other, and the second one ends as a deadlock (1213). A node that loses the others while it commits says that it has failed, which the
//! others may have another opinion about ([`failure::may_be_done`]). `GET_LOCK` excludes nobody there, and is used for the order only
//! (`line`).

mod connection;
mod failure;
mod handshake;
mod line;
mod my_cnf;
mod options;
mod statements;
mod tls;
mod transport;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Write;
use super::key::key;
use super::remote::jittered;
use super::remote::{Cause, Failure, Register, Row};
use super::sql;
use crate::store::StoreSettings;
use crate::waiter::Waiter;
use crate::waiting::Crowd;
use connection::{Answer, Connection};
use failure::Trouble;
use line::{Line, Place};
use options::Options;
pub use statements::SCHEMA;
use statements::column;

/// How often the first in line looks at the row at first: a hand-off takes half of it, and nobody else looks.
const FIRST_LOOKS: Duration = Duration::from_millis(50);

/// And in the end. Whoever has waited for an hour does not mind a quarter of a second, and the server minds the looks.
const LAST_LOOKS: Duration = Duration::from_millis(500);

/// It has waited for so many times as long as there is between two looks.
const LOOKS_GROW: u32 = 100;

/// How often everybody looks where there is no line, or who stands beside it: times the number of those who wait.
const LOOKS: Duration = Duration::from_secs(1);

/// A row exists already.
const DUPLICATE_KEY: u16 = 1062;

/// One lock's row.
pub struct Table {
    key: String,
    settings: StoreSettings,
    /// What was read at first; read anew for every later connection, because passwords change.
    options: Option<Options>,
    connection: Option<Connection>,
    line: Line,
    crowd: Crowd,
    place: Place,
    /// Since when it has been first.
    first_since: Option<Instant>,
    /// Whether the server has lines.
    has_lines: bool,
    /// Whether somebody was first in line when the row was last read.
    is_awaited: bool,
    /// The state's number when the row was last read.
    seen: Option<u64>,
}

/// The names of all locks that somebody holds.
pub fn names(settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    let asked = Connection::open(&Options::of(settings)?).and_then(|mut connection| connection.ask(statements::NAMES));
    match asked.map_err(Failure::from) {
        Ok(answer) => {
            let names = answer.rows.iter().filter_map(|row| row.first()?.as_deref());
            Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
        }
        Err(Failure { cause: Cause::NotPrepared, .. }) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

impl Table {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        let options = Options::of(settings)?;
        let key = key(name);
        Ok(Self {
            line: Line::of(&options.database, &key),
            key,
            settings: settings.clone(),
            options: Some(options),
            connection: None,
            crowd: Crowd::default(),
            place: Place::None,
            first_since: None,
            has_lines: true,
            is_awaited: false,
            seen: None,
        })
    }

    fn connect(&mut self) -> Result<Connection, Failure> {
        let options = match self.options.take() {
            Some(options) => options,
            None => Options::of(&self.settings)?,
        };
        let mut connection = Connection::open(&options)?;
        if !connection.is_mariadb() {
            connection.ask(&statements::bounds(self.bound()))?;
        }
        Ok(connection)
    }

    /// For how long a write may wait in the server, in seconds.
    fn bound(&self) -> u64 {
        (self.settings.timeout.as_secs() / 2).max(1)
    }

    /// The connection, which must not be standing in line.
    fn connection(&mut self) -> Result<&mut Connection, Failure> {
        // What a server has closed since is found before something is sent whose answer would be missed.
        if self.connection.as_ref().is_some_and(Connection::is_stale) {
            self.disconnect();
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Asks over a connection that is free; while ours stands in line, that is another one.
    fn ask(&mut self, statement: &str) -> Result<Answer, Trouble> {
        self.hear_of_turn();
        if self.place == Place::InLine {
            return self.connect().map_err(Trouble::Unusable)?.ask(statement);
        }
        let answer = self.connection().map_err(Trouble::Unusable)?.ask(statement);
        if let Err(Trouble::Broken(_)) = answer {
            self.disconnect();
        }
        answer
    }

    /// Takes notice of the answer to having lined up, if there is one.
    fn hear_of_turn(&mut self) {
        if self.place != Place::InLine {
            return;
        }
        let Some(connection) = &mut self.connection else {
            self.place = Place::None;
            return;
        };
        match connection.answer_if_there() {
            Ok(None) => {}
            Ok(Some(answer)) => {
                self.place = if answer.number(0) == Some(1) { Place::First } else { Place::None };
                self.first_since = Some(Instant::now());
            }
            Err(trouble) => self.without_line(&trouble),
        }
    }

    /// Whether there is no room for those who only wait. A server that does not tell has room.
    fn is_crowded(&mut self) -> bool {
        let connected = self.ask(line::CONNECTED);
        let limits = self.ask(line::LIMITS);
        connected.ok().zip(limits.ok()).is_some_and(|(connected, limits)| line::is_crowded(&connected, &limits))
    }

    /// There is no place, for this reason.
    fn without_line(&mut self, trouble: &Trouble) {
        self.place = Place::None;
        match trouble {
            Trouble::Refused { code, message } => {
                tracing::debug!("no line before the lock: {} (error {code})", crate::printable::field(message));
                self.has_lines &= !line::is_unsupported(*code);
            }
            Trouble::Broken(_) | Trouble::Unusable(_) => self.disconnect(),
        }
    }

    fn read_row(&mut self) -> Result<Answer, Trouble> {
        let first = if self.has_lines { self.line.first() } else { "NULL".to_owned() };
        match self.ask(&statements::read(&self.key, &first)) {
            Err(Trouble::Refused { code, .. }) if self.has_lines && line::is_unsupported(code) => {
                self.has_lines = false;
                self.ask(&statements::read(&self.key, "NULL"))
            }
            answer => answer,
        }
    }

    /// Sleeps until one of `fds` is readable or it may be its turn.
    fn stand(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if let Some(connection) = &self.connection {
            let fds: Vec<_> = fds.iter().copied().chain([connection.fd()]).collect();
            slept(super::sleep(limit, &fds))?;
        }
        self.hear_of_turn();
        Ok(())
    }

    /// Sleeps until one of `fds` is readable or the row has changed.
    fn look_out(&mut self, deadline: Instant, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let statement = statements::version(&self.key);
        // Ends with the deadline.
        loop {
            let limit = deadline.saturating_duration_since(Instant::now());
            let waited = self.first_since.map(|since| since.elapsed()).unwrap_or_default();
            let pause = (waited / LOOKS_GROW).clamp(FIRST_LOOKS, LAST_LOOKS);
            if is_readable_within(limit.min(jittered(pause)), fds)? || limit.is_zero() {
                return Ok(());
            }
            match self.ask(&statement) {
                Ok(answer) if answer.number(0) == self.seen => {}
                // The next look tells what has happened, and what is in the way.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

impl Register for Table {
    fn read(&mut self) -> Result<Row, Failure> {
        let answer = self.read_row()?;
        let now = answer.number(column::NOW);
        if now.is_none() {
            return Err(Failure::transient("the server does not say what time it is"));
        }
        let first = answer.number(column::FIRST);
        self.is_awaited = first.is_some() && first != self.connection.as_ref().map(Connection::id);
        self.seen = answer.number(column::VERSION);
        let Some(number) = self.seen else { return Ok(Row { now, ..Row::default() }) };
        if answer.number(column::FORMAT) != u64::try_from(sql::FORMAT).ok() {
            let failure = Failure::permanent("a newer version of this program has changed the table");
            return Err(failure.with_hint("update this program"));
        }
        let text = answer.value(column::RECORD).map(|text| String::from_utf8_lossy(text).into_owned());
        Ok(Row { version: Some(number.to_string().into_bytes()), number, text, now })
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        self.hear_of_turn();
        let statement = statements::bounded(&statements::write(&self.key, seen, next, text), self.bound());
        let mut aside;
        let connection = if self.place == Place::InLine {
            aside = self.connect()?;
            &mut aside
        } else {
            // Not to be able to connect is definite: nothing was sent.
            self.connection()?
        };
        match connection.ask(&statement) {
            Ok(answer) if answer.affected == 1 => Ok(Write::Done),
            Ok(_) | Err(Trouble::Refused { code: DUPLICATE_KEY, .. }) => Ok(Write::Conflict),
            Err(trouble @ Trouble::Refused { code, .. }) if !failure::may_be_done(code) => Err(trouble.into()),
            Err(trouble) => {
                self.disconnect();
                Err(Failure::from(trouble).indefinite())
            }
        }
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let Err(refused) = self.ask(SCHEMA) else { return Ok(()) };
        // Who may not make it can use the one that somebody else has made.
        if matches!(refused, Trouble::Refused { code: 1142 | 1044 | 1290, .. }) && self.ask(statements::LOOK).is_ok() {
            return Ok(());
        }
        Err(refused.into())
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        if self.place == Place::None && self.has_lines && self.is_crowded() {
            // Who only waits leaves the rest of a server's connections to who holds a lock, and comes back for each look.
            self.disconnect();
            return slept(super::sleep(limit.min(self.crowd.pause()), fds));
        }
        if self.place == Place::None && self.has_lines {
            let statement = self.line.stand();
            let sent = self.connection().map_err(Trouble::Unusable).and_then(|connection| connection.send(&statement));
            match sent {
                Ok(()) => {
                    self.crowd.end();
                    self.place = Place::InLine;
                    // What wakes one that stands alone is not to wake one that stands behind others.
                    return Ok(());
                }
                Err(trouble) => self.without_line(&trouble),
            }
        }
        match self.place {
            Place::InLine => self.stand(limit, fds),
            Place::First => self.look_out(deadline, fds),
            Place::None => slept(super::sleep(limit.min(jittered(LOOKS)), fds)),
        }
    }

    fn watch(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        slept(super::sleep(limit.min(jittered(LOOKS)), fds))
    }

    fn is_first(&mut self) -> bool {
        self.hear_of_turn();
        match self.place {
            Place::First => true,
            Place::InLine => false,
            Place::None => !self.is_awaited,
        }
    }

    fn is_in_line(&mut self) -> bool {
        self.hear_of_turn();
        self.place == Place::InLine
    }

    fn is_kept_out(&mut self) -> bool {
        self.crowd.is_kept_out()
    }

    fn leave(&mut self) {
        self.hear_of_turn();
        // In line, the server takes the place away when it notices that nobody is there.
        let has_left = match (self.place, &mut self.connection) {
            (Place::First, Some(connection)) => connection.ask(&self.line.leave()).is_ok(),
            (place, _) => place == Place::None,
        };
        if !has_left {
            self.disconnect();
        }
        self.place = Place::None;
    }

    fn waiters(&mut self) -> Vec<Waiter> {
        if !self.has_lines {
            return Vec::new();
        }
        let statement = self.line.waiters();
        let asked = self.ask(&statement).map_err(Failure::from);
        let answer = asked.inspect_err(|failure| tracing::debug!("cannot tell who waits: {}", failure.why)).unwrap_or_default();
        let waiter = |row: &Vec<Option<Vec<u8>>>| {
            let text = |column: usize| Some(String::from_utf8_lossy(row.get(column)?.as_deref()?).into_owned());
            let label = |info: String| Waiter::parse(info.split_once("/* ")?.1.trim_end_matches(" */"));
            let told = text(0).and_then(label).unwrap_or_default();
            // An address with a port.
            let host = || Some(text(1)?.rsplit_once(':')?.0.to_owned());
            Waiter { host: told.host.or_else(host), ..told }
        };
        answer.rows.iter().map(waiter).collect()
    }

    fn repair(&self) -> &'static str {
        sql::REPAIR
    }

    fn disconnect(&mut self) {
        self.connection = None;
        self.place = Place::None;
    }
}

fn slept(slept: rustix::io::Result<()>) -> Result<(), Failure> {
    slept.map_err(|error| Failure::permanent(super::plain(&error.into()).to_string()))
}

/// Whether one of them becomes readable, or a signal comes.
fn is_readable_within(limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<bool, Failure> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    // No time at all in place of too long a one would be a loop that never sleeps.
    let Ok(limit) = Timespec::try_from(limit) else { return slept(Err(rustix::io::Errno::INVAL)).map(|()| true) };
    match poll(&mut fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => slept(Err(error)).map(|()| true),
    }
}
