//! Judging by a lease: whoever does not renew it in time holds the lock no longer.
//!
//! A holder counts its lease from before it has sent the renewal, and gives up before that time is over. So the lease is certainly
//! over when the store's clock has passed what the renewal says, or when somebody has watched it unchanged for as long as it
//! lasts. No two hosts' clocks are ever compared.

use std::time::Duration;

use super::{Held, Judge, Stale, Verdict};
use crate::mutex::register::Stored;
use crate::record::{Entry, Lease, Record};

/// Judges an entry with a lease, of which no renewal was seen for so long.
pub fn judge(
    judge: &dyn Judge,
    stored: &Stored,
    record: &Record,
    entry: &Entry,
    lease: Lease,
    unchanged_for: Duration,
) -> Verdict {
    let time_to = |end: u64| stored.now.map(|now| Duration::from_millis(end.saturating_sub(now)));
    let at_least = entry.until.and_then(time_to).filter(|remaining| !remaining.is_zero());
    let stale = |why: Stale| at_least.map_or(Verdict::Stale(why), |remaining| Verdict::Held(Held::AtLeast(remaining)));
    if entry.released.is_some() {
        return stale(Stale::Released);
    }
    let by_watching = lease.duration.saturating_sub(unchanged_for);
    let remaining = lease.expires.and_then(time_to).map_or(by_watching, |by_clock| by_clock.min(by_watching));
    if remaining.is_zero() {
        return stale(Stale::Expired);
    }
    match judge.judge(stored, record, entry) {
        // What is seen here proves nothing there: another machine may have the same name, ids and even boot id (containers of one
        // image, copies of a running machine). Its keeper releases it, or the lease ends.
        Verdict::Stale(_) | Verdict::Held(Held::Unknown(_) | Held::AtLeast(_)) => Verdict::Held(Held::Leased(remaining)),
        held => held,
    }
}
