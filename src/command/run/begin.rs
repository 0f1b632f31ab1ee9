//! From the request for a lock to the first instruction of the command.

use std::time::{Duration, Instant};

use rustix::process::getpid;

use super::Run;
use crate::command::ended::{LONGER, locked, say};
use crate::command::progress::Progress;
use crate::error::Error;
use crate::lease::LeaseGrant;
use crate::lease::thread::Renewing;
use crate::lock::requester::Requester;
use crate::lock::{self, Acquired, Grant};
use crate::record::Outcome;
use crate::run::Child;
use crate::run::lookup::cannot_run;
use crate::run::termination::end_tree;

impl Run<'_> {
    /// Acquires the lock, unless it is not needed.
    pub(super) fn acquire(&mut self) -> Result<Option<Grant>, Error> {
        let (job, name) = (self.job, self.job.lock.name());
        if let Some((grant, ..)) = &job.handed_over {
            return Ok(Some(self.requester.adopt(grant)));
        }
        let is_silent = job.is_flock && !job.is_verbose;
        let mut progress = Progress::new(&job.lock, &job.waiting, is_silent);
        let begun = Instant::now();
        let acquired =
            self.mutex.acquire(&self.requester, &job.request, &job.waiting, &mut progress);
        let waited_for = progress.end();
        let is_said = job.is_verbose || waited_for.is_some();
        let at_once = || format!(" after {:.1?}", begun.elapsed());
        let after = waited_for
            .or_else(|| (job.is_flock && job.is_verbose).then(at_once))
            .unwrap_or_default();
        let command = self.requester.describe();
        match acquired {
            Ok(Acquired::NotNeeded(done)) => {
                match done {
                    _ if job.request.claim.is_some() => {
                        tracing::debug!("another scheduler was faster")
                    }
                    Some(run) => tracing::info!("skipped `{command}`: {}", run.is_done()),
                    None => tracing::info!(
                        "skipped `{command}`: another process has just completed it under \
                         `{name}`"
                    ),
                }
                Ok(None)
            }
            Ok(acquired) => {
                let granted = acquired.granted().map(|(grant, from)| {
                    let owner = format!("`{command}`");
                    let line = locked(&job.lock, &owner, (begun, &after), from);
                    say(is_said || from.is_some() && !job.is_flock, &line);
                    grant.clone()
                });
                // The command's process is new.
                let held = || Error::failed(format!("cannot lock `{name}`: it is locked already"));
                granted.map(Some).ok_or_else(held)
            }
            Err(lock::Error::Absent) => Err(self.give_up()),
            Err(lock::Error::Entry(error)) => Err(cannot_run(self.program, &error)),
            Err(error) => Err(Error::mutex("lock", &job.lock, error)),
        }
    }

    /// Begins to renew the lease, if there is one.
    pub(super) fn renew(&mut self, grant: &mut Grant) -> Result<Option<Renewing>, Error> {
        let Some(lease) = self.job.request.lease else { return Ok(None) };
        let refreshed = self.mutex.refresh(grant, lease);
        refreshed.map_err(|error| {
            let lost = Error::mutex("keep", &self.job.lock, error);
            lost.during(&format!("did not start `{}`", self.shown))
        })?;
        let is_bound = self.job.descendants.end_with_the_lock;
        let at_worst = move || drop(is_bound.then(|| end_tree(getpid(), 0)));
        let charge =
            LeaseGrant { grant: grant.clone(), lease, is_unnamed: self.job.handed_over.is_some() };
        let idle = Some(self.mutex.register.connection());
        match Renewing::start(&self.job.lock, charge, idle, self.job.on_lost, Box::new(at_worst)) {
            Ok(renewing) => Ok(Some(renewing)),
            Err(error) => {
                self.give_back()?;
                let cannot = format!("cannot keep the lease of `{}`", self.job.lock.name());
                Err(Error::io(cannot, &error))
            }
        }
    }

    /// Lets the command run.
    pub(super) fn start(
        &mut self,
        grant: &Grant,
        renewing: Option<&Renewing>,
    ) -> Result<Child, Error> {
        // If this process was stopped meanwhile, it has not renewed anything.
        if renewing.is_some_and(Renewing::is_given_up) {
            drop(self.requester.take());
            self.mutex.patience = Duration::ZERO;
            let _ = self.release(Outcome::Unknown.into());
            let lost =
                Error::lost(&self.job.lock, "its lease expired before it could be renewed", &[]);
            return Err(lost.during(&format!("did not start `{}`", self.shown)).with_hint(LONGER));
        }
        if self.requester.is_alive()
            && let Some(mut child) = self.requester.take()
        {
            match child.start(self.variables(grant)) {
                Ok(()) => return Ok(child),
                Err(error) => tracing::debug!("cannot start it: {error}"),
            }
        }
        self.give_back()?;
        Err(self.give_up())
    }

    /// What the command finds in its environment.
    fn variables(&self, grant: &Grant) -> Vec<(String, String)> {
        let token = grant.fencing.map(|number| ("FENCING_TOKEN", number.to_string()));
        let run = grant.run.map(|number| ("TRY", number.to_string()));
        let key = run
            .as_ref()
            .map(|_| ("ONCE_KEY", self.job.lock.key().name.to_string_lossy().into_owned()));
        let all = token.into_iter().chain(run).chain(key);
        all.map(|(name, value)| (format!("SERIALIZER_{name}"), value)).collect()
    }
}
