//! Locks in DynamoDB: an item for each name.
//!
//! Reads are strongly consistent, and every write is conditional on the item's number and on what is stored, which DynamoDB
//! decides in one place and in one order. There is no clock that its users share: a lease is over when it has been watched for
//! that long without a renewal, by whoever waits. Nobody is told of changes, and there is no line: those who wait look again and again,
//! and each look costs money.

mod account;
mod creation;
mod failures;
mod item;
mod options;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::AttributeValue;

use super::key::key;
use super::remote::{Cause, Failure, Register, Row, jittered};
use super::{Write, plain, sleep};
use crate::store::StoreSettings;
use account::{Account, Place};
use options::Options;

/// How often to look at first: short steps follow each other quickly.
const FIRST_LOOKS: Duration = Duration::from_millis(100);

/// And in the end, unless the next attempt is due earlier: that is after a second if nobody says otherwise.
const LAST_LOOKS: Duration = Duration::from_secs(10);

/// It has waited for so many times as long as there is between two looks.
const LOOKS_GROW: u32 = 10;

/// A page is a megabyte. A table with more than that in it is not for locks alone, and to go through it costs money each time.
const MAX_PAGES: u32 = 100;

/// What frees a lock.
const REPAIR: &str = "deleting its item";

/// One lock's item.
pub struct Table {
    key: String,
    account: Account,
    /// Since when it waits.
    waits_since: Option<Instant>,
}

/// The names of all locks that somebody holds.
pub fn names(settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    let listed = Account::new(Options::new(settings)?).ask(list);
    match listed {
        Err(Failure { cause: Cause::NotPrepared, .. }) => Ok(Vec::new()),
        listed => listed,
    }
}

async fn list(client: &Client, options: &Options, place: &Place) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let mut request = client.scan().table_name(&options.table).consistent_read(true).set_exclusive_start_key(after);
        request = request.projection_expression("#key").filter_expression(item::IS_HELD);
        for (placeholder, attribute) in item::HELD_NAMES.into_iter().chain([("#key", options.key.as_str())]) {
            request = request.expression_attribute_names(placeholder, attribute);
        }
        let page = request.send().await.map_err(|error| failures::of(&error, "dynamodb:Scan", place))?;
        let keys = page.items.unwrap_or_default().into_iter().filter_map(|mut item| item.remove(&options.key));
        names.extend(keys.filter_map(|key| if let AttributeValue::S(name) = key { Some(name) } else { None }));
        after = page.last_evaluated_key.filter(|key| !key.is_empty());
        if after.is_none() {
            names.sort_unstable();
            return Ok(names);
        }
    }
    Err(Failure::permanent(format!("the {} holds more than {MAX_PAGES} MB", place.table()))
        .with_hint("name the locks, or give locks a table of their own"))
}

/// What is there now, strongly consistent.
async fn read_item(client: &Client, options: &Options, place: &Place, key: &str) -> Result<Row, Failure> {
    let request = client.get_item().table_name(&options.table).consistent_read(true);
    let answer = request.key(&options.key, AttributeValue::S(key.to_owned())).send().await;
    let answer = answer.map_err(|error| failures::of(&error, "dynamodb:GetItem", place))?;
    answer.item.as_ref().map_or_else(|| Ok(Row::default()), item::row)
}

/// How long to sleep between two looks.
fn pause_after(waited: Duration) -> Duration {
    (waited / LOOKS_GROW).clamp(FIRST_LOOKS, LAST_LOOKS)
}

impl Table {
    /// Asks nobody yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        Ok(Self { key: key(name), account: Account::new(Options::new(settings)?), waits_since: None })
    }
}

impl Register for Table {
    fn read(&mut self) -> Result<Row, Failure> {
        let Self { key, account, .. } = self;
        account.ask(async |client, options, place| read_item(client, options, place, key).await)
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let Self { key, account, .. } = self;
        account.ask(async |client, options, place| {
            let request = client.update_item().table_name(&options.table).key(&options.key, AttributeValue::S(key.clone()));
            match item::write(request, options, seen, next, text).send().await {
                Ok(_) => Ok(Write::Done),
                Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(Write::Conflict),
                Err(error) => Err(failures::of_write(&error, "dynamodb:UpdateItem", place)),
            }
        })
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.account.ask(creation::prepare)
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let waited = self.waits_since.get_or_insert_with(Instant::now).elapsed();
        sleep(limit.min(jittered(pause_after(waited))), fds).map_err(|error| Failure::permanent(plain(&error.into()).to_string()))
    }

    fn leave(&mut self) {
        self.waits_since = None;
    }

    fn disconnect(&mut self) {
        self.account.disconnect();
    }

    fn repair(&self) -> &'static str {
        REPAIR
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::pause_after;

    /// How many looks there are while it waits for so long.
    fn looks(time: Duration, at_most: Duration) -> usize {
        let next = |waited: &Duration| Some(*waited + pause_after(*waited).min(at_most));
        std::iter::successors(Some(Duration::ZERO), next).take_while(|waited| *waited < time).count()
    }

    #[test]
    fn waiting_costs_what_is_documented() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        assert_eq!(looks(second, second), 10);
        assert!((3600..3650).contains(&looks(hour, second)), "{}", looks(hour, second));
        assert!((360..420).contains(&looks(hour, Duration::from_secs(10))), "{}", looks(hour, Duration::from_secs(10)));
        assert_eq!(looks(hour, hour), looks(hour, Duration::from_secs(10)));
    }
}
