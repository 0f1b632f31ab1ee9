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
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::AttributeValue;

use super::failure::{Cause, Failure, Register, Row};
use super::key::key;
use super::looks::Looks;
use super::seam::Write;
use crate::store::StoreSettings;
use account::{Account, Place};
use options::Options;

/// A page is a megabyte. A table with more than that in it is not for locks alone, and to go through it costs money each time.
const MAX_PAGES: u32 = 100;

/// What frees a lock.
const REPAIR: &str = "deleting its item";

/// One lock's item.
pub struct Table {
    key: String,
    account: Account,
    looks: Looks,
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

impl Table {
    /// Asks nobody yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        Ok(Self { key: key(name), account: Account::new(Options::new(settings)?), looks: Looks::paid() })
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
        self.looks.sleep(limit, fds)
    }

    fn leave(&mut self) {
        self.looks.end();
    }

    fn disconnect(&mut self) {
        self.account.disconnect();
    }

    fn repair(&self) -> &'static str {
        REPAIR
    }
}
