//! The command that `run` is about to start, as the process that wants the lock.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rustix::process::getpid;

use super::{Child, Descendants, Program, Signals};
use crate::lock::staleness::RUN_VARIABLE;
use crate::lock::{Grant, Requester, Stored};
use crate::record::Entry;
use crate::record::owner::Owner;
use crate::sys::identity::HostIdentity;
use crate::sys::text::{self, io_message};

/// The command that is to hold a lock while it runs. Its process is made when the lock seems to be
/// free, and not before: a process that only waits is ended by signals as any other.
pub struct CommandRequester {
    program: Program,
    descendants: Descendants,
    /// Why it wants the lock, in the user's words.
    pub reason: Option<String>,
    signals: OnceCell<Rc<Signals>>,
    child: OnceCell<Child>,
    /// Of each record that was made: it may be the one that is stored.
    tokens: RefCell<Vec<String>>,
}

impl CommandRequester {
    /// Does not start anything yet.
    pub fn new(program: Program, descendants: Descendants) -> Self {
        let signals = Signals::hold_as_init().map(Rc::new).map(OnceCell::from).unwrap_or_default();
        Self {
            program,
            descendants,
            reason: None,
            signals,
            child: OnceCell::new(),
            tokens: RefCell::default(),
        }
    }

    /// The process that waits to be the command, if it was needed, for good.
    pub fn take(&mut self) -> Option<Child> {
        self.child.take()
    }

    /// The signals that are held back, if any are.
    pub fn signals(&self) -> Option<&Signals> {
        self.signals.get().map(Rc::as_ref)
    }

    /// The command, as people may read it.
    pub fn describe(&self) -> String {
        let words: Vec<String> =
            self.program.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        text::command_line(&words)
    }

    /// Makes the command's process, for an acquisition that another process has made.
    pub fn adopt(&self, grant: &Grant) -> Grant {
        self.tokens.borrow_mut().push(grant.token.clone());
        if let Err(error) = self.child() {
            tracing::error!("cannot make the process of the command: {}", io_message(&error));
        }
        grant.clone()
    }

    fn child(&self) -> io::Result<&Child> {
        if self.child.get().is_none() {
            if self.signals.get().is_none() {
                let _ = self.signals.set(Rc::new(Signals::hold()?));
            }
            let signals = self.signals.get().ok_or(io::ErrorKind::NotFound)?.clone();
            let _ = self.child.set(Child::prepare(&self.program, self.descendants, signals)?);
        }
        self.child.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Requester for CommandRequester {
    /// The command owns the lock, so that it never runs without; this process keeps it until it has
    /// released it, so that a lock that is about to be released is not taken over.
    fn entry(&self) -> io::Result<Entry> {
        let command = Owner::of(self.child()?.pid()?, &HostIdentity::here())?.identified()?;
        let run = std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty());
        let keeper = Owner::of(getpid(), &HostIdentity::here())?.identified()?;
        let entry = Entry::new(command, run, Some(self.describe()))?;
        self.tokens.borrow_mut().extend(entry.token.clone());
        Ok(Entry {
            keeper: Some((keeper.pid, keeper.instance)),
            reason: self.reason.clone(),
            ..entry
        })
    }

    fn owns(&self, _stored: &Stored, entry: &Entry) -> bool {
        entry.token.as_ref().is_some_and(|token| self.tokens.borrow().contains(token))
    }

    /// A signal that is to stop this process does so here.
    fn is_alive(&self) -> bool {
        !self.signals().is_some_and(Signals::is_ending)
            && self.child.get().is_none_or(Child::is_alive)
    }

    fn exit_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.signals().into_iter().flat_map(Signals::fds).collect()
    }
}
