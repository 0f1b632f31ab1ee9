//! For how long something that lapses has been seen unchanged, by this host's own clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::register::{Stored, Version};
use crate::record::{Entry, Record};

/// Since when what was looked at has not changed.
#[derive(Debug, Default)]
pub struct Watched {
    register: Option<(Version, Instant)>,
    /// By token: the number of renewals, and since when.
    leases: HashMap<String, (u64, Instant)>,
}

impl Watched {
    /// Remembers what was just loaded.
    pub fn see(&mut self, stored: &Stored) {
        let now = Instant::now();
        if self.register.as_ref().is_none_or(|(version, _)| *version != stored.version) {
            self.register = Some((stored.version.clone(), now));
        }
        let entries = stored.content.record().map(Record::entries).unwrap_or_default();
        let mut leases = HashMap::new();
        for (token, renewals) in entries.iter().filter_map(lease_of) {
            let seen = self.leases.get(token).filter(|(seen, _)| *seen == renewals);
            leases.insert(token.to_owned(), seen.copied().unwrap_or((renewals, now)));
        }
        self.leases = leases;
    }

    /// For how long an entry's lease was not renewed, or without an entry, the register has not changed; given when what was loaded
    /// last was asked for: what it said may have been older than the answer, but not than the question.
    pub fn unchanged_for(&self, entry: Option<&Entry>, asked: Instant) -> Duration {
        let since = match entry {
            None => self.register.as_ref().map(|(_, since)| *since),
            Some(entry) => lease_of(entry).and_then(|(token, _)| self.leases.get(token)).map(|(_, since)| *since),
        };
        since.map_or(Duration::ZERO, |since| asked.saturating_duration_since(since))
    }
}

fn lease_of(entry: &Entry) -> Option<(&str, u64)> {
    Some((entry.token.as_deref()?, entry.lease?.renewals))
}
