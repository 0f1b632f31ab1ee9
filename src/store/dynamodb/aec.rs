//! `layout=aec`: keys in a table of the Python library AtomicExecutionControl, which goes on using
//! it.
//!
//! The library's scripts read `status_execution` and `updated_at`, so each write sets them. An item
//! without a record is the library's, and is converted to one. The library's own rule applies: a
//! run counts as ended when its `updated_at` is 20 minutes old, by the local clock.
//! `docs/coming-from-aec.md` has the attributes.

use aws_sdk_dynamodb::types::AttributeValue;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::table::{Item, Table, condition, foreign, state, text};
use crate::record::run::{End, Rule, Run};
use crate::record::{Outcome, Record};
use crate::store::failure::{Cause, Failure};
use crate::store::seam::{Kind, State, Write};
use crate::sys::clock::since_1970;
use crate::sys::local_time::zone;

/// How long the library counts a run as live, in milliseconds.
const VALID_FOR: u64 = 20 * 60 * 1000;

/// Prefix of the version of an item that the library wrote.
const AEC: &str = "aec\n";

const FINISHED: &str = "FINISHED";
const FAILED: &str = "FAILED";

pub fn is_named(layout: Option<String>) -> Result<bool, Failure> {
    match layout.as_deref() {
        None => Ok(false),
        Some("aec") => Ok(true),
        Some(_) => Err(Failure::permanent("unsupported `layout`; expected `aec`")),
    }
}

/// Refuses locks: the library would read them as keys.
pub fn check(kind: Kind) -> Result<(), Failure> {
    let refused = Failure::permanent("`layout=aec` is only for keys that run once");
    let hint = "use `once`, `forget`, or `--once` with `lock`, `unlock`, `wait` and `status`; \
                locks need another table";
    if kind == Kind::Once {
        Ok(())
    } else {
        Err(Failure { cause: Cause::Unusable, ..refused.with_hint(hint) })
    }
}

/// The library's attributes of a record; `None` for a record without a run.
pub fn attributes(record: Option<&str>) -> Option<[(&'static str, AttributeValue); 3]> {
    let record = Record::parse(record?.as_bytes()).ok()?;
    let (entry, run) = record.last_run()?;
    let status = match entry.released {
        None => "IN_PROGRESS",
        Some(Outcome::Succeeded) => FINISHED,
        Some(_) => FAILED,
    };
    let now = written(Timestamp::now());
    let created =
        i64::try_from(run.began).ok().and_then(|began| Timestamp::from_millisecond(began).ok());
    let created = created.map_or_else(|| now.clone(), written);
    let told =
        [("status_execution", status.to_owned()), ("created_at", created), ("updated_at", now)];
    Some(told.map(|(name, value)| (name, text(value))))
}

/// A time as the library writes it, but always with six digits, which the library needs to read it.
fn written(time: Timestamp) -> String {
    time.to_zoned(zone()).strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

fn state_of(key: &str, item: &Item) -> Result<State, Failure> {
    if item.contains_key("format") {
        return state(item);
    }
    let text_of = |name: &str| {
        item.get(name).and_then(|value| value.as_s().ok()).ok_or_else(|| foreign(name))
    };
    let time_of = |name: &str| read(text_of(name)?, zone()).ok_or_else(|| foreign(name));
    let (status, updated_at, updated) =
        (text_of("status_execution")?, text_of("updated_at")?, time_of("updated_at")?);
    // After a deletion, the script's last write makes an item without `created_at`.
    let since = time_of("created_at").unwrap_or(updated).min(updated);
    let [began, at] =
        [since, updated].map(|time| u64::try_from(time.as_millisecond()).unwrap_or(0));
    let outcome = match status.as_str() {
        FINISHED => Some("succeeded"),
        FAILED => Some("failed"),
        _ => None,
    };
    let end = |how: &str| End { at, number: 1, how: how.to_owned(), code: None };
    let ends = outcome.into_iter().map(end).collect();
    let run =
        Run { key: key.to_owned(), number: 1, began, rule: Rule::default(), ends, task: None };
    let run = serde_json::to_string(&run).map_err(|_| foreign("status_execution"))?;
    let now = since_1970();
    // An expired lease leaves no mark, because the library's holder would not read it.
    let expires = Some(at + VALID_FOR).filter(|expires| *expires > now).unwrap_or(0);
    let released = outcome.map(|word| format!("released={word}\n")).unwrap_or_default();
    let lease = format!("lease={VALID_FOR} {expires} {at}");
    let begin = format!("1\n\nv=3\nboot=?\nsince={since}\ncommand=AtomicExecutionControl\n");
    let record = format!("{begin}{lease}\n{released}once={run}\n");
    let version = Some(format!("{AEC}{updated_at}\n{status}").into_bytes());
    Ok(State { version, value: Some(record), now: Some(now), ..State::default() })
}

/// A local time of the library. A time that occurs twice is the later one, so no run ends too
/// early.
fn read(text: &str, zone: TimeZone) -> Option<Timestamp> {
    let time: DateTime = text.parse().ok()?;
    Some(zone.to_ambiguous_zoned(time).later().ok()?.timestamp())
}

/// The condition that the library's item is unchanged, if `expected` is the state of one.
pub fn unchanged(expected: &State, values: &mut Item) -> Option<&'static str> {
    let seen = std::str::from_utf8(expected.version.as_deref()?).ok()?.strip_prefix(AEC)?;
    let (updated_at, status) = seen.split_once('\n')?;
    for (name, seen) in [(":at", updated_at), (":was", status)] {
        values.insert(name.to_owned(), text(seen));
    }
    Some("attribute_not_exists(#format) AND updated_at = :at AND status_execution = :was")
}

impl Table {
    /// The state of the item of `key`, in either layout.
    pub fn state(&self, key: &str, item: &Item) -> Result<State, Failure> {
        if self.names.is_aec { state_of(key, item) } else { state(item) }
    }

    /// Deletes an item, because the library reads any item as a run.
    pub async fn delete(&self, stored: &str, expected: &State) -> Result<Write, Failure> {
        let mut values = Item::new();
        let condition = condition(expected, &mut values);
        let values = Some(values).filter(|values| !values.is_empty());
        let request = self.client.delete_item().table_name(&self.names.table);
        let request = request.key(&self.names.key, text(stored)).condition_expression(condition);
        let request = request.set_expression_attribute_names(Some(self.placeholders(condition)));
        let request = request.set_expression_attribute_values(values);
        self.done(request.send().await, "dynamodb:DeleteItem")
    }
}
