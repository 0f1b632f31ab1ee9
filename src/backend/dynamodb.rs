//! DynamoDB: an item per key.
//!
//! Reads are strongly consistent, and every write is conditional on the item's number and value, which DynamoDB decides
//! in one place and in one order. There is no clock that its users share, and no wake-up; each poll costs money.
//!
//! All attributes are named by placeholders, because DynamoDB reserves many words.

mod answers;
mod options;
mod table;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::SharedCredentialsProvider;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::operation::update_item::UpdateItemOutput;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use jiff::Timestamp;

use self::options::Options;
use super::aws::Account;
use super::failure::{Cause, Failure};
use super::key::kind_and_name;
use super::retry::since_1970;
use super::runtime::PrivateRuntime;
use super::seam::Write;
use super::seam::{Key, Kind, Next, Page, State, Store};
use crate::store::StoreSettings;

/// A page is a megabyte. A larger table is not for locks alone, and to scan it costs money each time.
const MAX_PAGES: u32 = 100;

/// The number of the state.
const VERSION: &str = "version";
/// The value; missing without one.
const RECORD: &str = "record";
/// What the attributes mean.
const FORMAT: &str = "format";
/// When it was written, for people.
const CHANGED: &str = "changed";

/// The format that is written.
const CURRENT_FORMAT: u8 = 1;

/// A table with an item per key.
pub struct DynamoDb {
    options: Options,
    runtime: PrivateRuntime,
    account: Option<Account>,
    client: Option<Client>,
}

/// Whom a request is sent to, and how messages call it.
struct Table<'a> {
    client: &'a Client,
    options: &'a Options,
    region: &'a str,
    endpoint: Option<&'a str>,
}

impl DynamoDb {
    /// Does not connect yet.
    ///
    /// # Errors
    /// When the address or other settings cannot be used.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let options = Options::new(settings)?;
        Ok(Self { options, runtime: PrivateRuntime::default(), account: None, client: None })
    }

    /// Asks the table, with credentials that are good for a while.
    fn ask<T>(&mut self, ask: impl AsyncFnOnce(&Table<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let Self { options, runtime, account, client } = self;
        let wanted = &options.wanted;
        let answer = runtime.block_on(async {
            let account = match account {
                Some(account) => account,
                None => account.insert(Account::find(wanted, "DynamoDB", true).await?),
            };
            if account.renew(wanted.timeout).await? {
                *client = None;
            }
            let client = match client {
                Some(client) => client,
                None => client.insert(connect(account, options)?),
            };
            let Some(region) = account.region.as_deref() else {
                let hint = "`region=…` in the address, `AWS_REGION`, or `region` of the profile names it";
                let failure = Failure::permanent("it is not known in which region the table is");
                return Err(failure.with_hint(hint));
            };
            ask(&Table { client, options, region, endpoint: account.endpoint.as_deref() }).await
        })?;
        if answer.as_ref().is_err_and(|failure| failure.cause == Cause::Permanent) {
            // What is wrong with the credentials may be put right meanwhile.
            (self.account, self.client) = (None, None);
        }
        answer
    }
}

fn connect(account: &Account, options: &Options) -> Result<Client, Failure> {
    let none = || Failure::permanent("there are no credentials for AWS");
    let credentials = account.credentials.clone().ok_or_else(none)?;
    let timeout = options.wanted.timeout;
    let timeouts = TimeoutConfig::builder().connect_timeout(timeout / 2).operation_timeout(timeout);
    let mut config = aws_sdk_dynamodb::config::Builder::from(&account.config)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .timeout_config(timeouts.build())
        // A write that is sent again by the SDK looks like a conflict.
        .retry_config(RetryConfig::disabled());
    config.set_endpoint_url(account.endpoint.clone());
    // Its own: the one that finds credentials keeps the time limits of its first user, a metadata service.
    config.set_http_client(Some(super::aws::http_client(options.wanted.roots.as_deref())?));
    Ok(Client::from_conf(config.build()))
}

impl Table<'_> {
    /// The state of an item, strongly consistent.
    async fn read(&self, stored: &str) -> Result<State, Failure> {
        let request = self.client.get_item().table_name(&self.options.table).consistent_read(true);
        let request = request.key(&self.options.key, AttributeValue::S(stored.to_owned()));
        let answer = request.send().await.map_err(|error| self.failure(&error, "dynamodb:GetItem"))?;
        answer.item.as_ref().map_or_else(|| Ok(State::default()), state)
    }

    async fn write(&self, stored: String, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let (mut set, mut remove) = (vec!["#version = :next", "#format = :current", "#changed = :changed"], vec![]);
        let mut names = HashMap::from([("#changed", CHANGED), ("#ttl", &*self.options.ttl)]);
        let mut values = HashMap::from([
            (":next", number(next.number)),
            (":current", number(CURRENT_FORMAT.into())),
            (":changed", AttributeValue::S(Timestamp::now().to_string())),
        ]);
        // A number is at least the time of the first one, should this host's clock be slow.
        let now = since_1970().max(next.number) / 1000;
        match next.keep {
            Some(keep) => {
                set.push("#ttl = :ttl");
                values.insert(":ttl", number(now + keep.as_secs()));
            }
            None => remove.push("#ttl"),
        }
        match next.value {
            Some(value) => {
                set.push("#record = :value");
                values.insert(":value", AttributeValue::S(value.to_owned()));
            }
            None => remove.push("#record"),
        }
        let update = [("SET", set), ("REMOVE", remove)].into_iter().filter(|(_, parts)| !parts.is_empty());
        let update: Vec<_> = update.map(|(word, parts)| format!("{word} {}", parts.join(", "))).collect();
        names.extend([("#version", VERSION), ("#format", FORMAT), ("#record", RECORD)]);
        let condition = self.condition(expected, &mut names, &mut values);
        let request = self.client.update_item().table_name(&self.options.table).update_expression(update.join(" "));
        let request = request.key(&self.options.key, AttributeValue::S(stored));
        let request = request.set_expression_attribute_names(Some(owned(names)));
        let request = request.set_expression_attribute_values(Some(owned(values))).condition_expression(condition);
        let sent = request.return_values(ReturnValue::UpdatedNew).send().await;
        // A server that answers anything with 200 is not DynamoDB: the SDK takes an empty body for success.
        let is_confirmed =
            |answer: &UpdateItemOutput| answer.attributes().and_then(|new| new.get(VERSION)) == Some(&number(next.number));
        if sent.as_ref().is_ok_and(|answer| !is_confirmed(answer)) {
            return Err(Failure::permanent("the server does not answer as DynamoDB does").indefinite());
        }
        self.done(sent, "dynamodb:UpdateItem")
    }

    async fn delete(&self, stored: String, expected: &State) -> Result<Write, Failure> {
        let mut names = HashMap::from([("#version", VERSION), ("#format", FORMAT), ("#record", RECORD)]);
        let mut values = HashMap::new();
        let condition = self.condition(expected, &mut names, &mut values);
        let request = self.client.delete_item().table_name(&self.options.table);
        let request = request.key(&self.options.key, AttributeValue::S(stored));
        let request = request.set_expression_attribute_names(Some(owned(names)));
        let request = request.set_expression_attribute_values(Some(owned(values))).condition_expression(condition);
        self.done(request.send().await, "dynamodb:DeleteItem")
    }

    /// That the item is in the state `expected`: a table that was restored counts its states again.
    fn condition<'a>(
        &'a self,
        expected: &State,
        names: &mut HashMap<&'static str, &'a str>,
        values: &mut HashMap<&'static str, AttributeValue>,
    ) -> &'static str {
        if expected.version.is_none() {
            // Every item has the key.
            names.insert("#key", &self.options.key);
            return "attribute_not_exists(#key)";
        }
        values.insert(":number", number(expected.number));
        values.insert(":format", number(CURRENT_FORMAT.into()));
        match &expected.value {
            Some(value) => {
                values.insert(":seen", AttributeValue::S(value.clone()));
                "#version = :number AND #format = :format AND #record = :seen"
            }
            None => "#version = :number AND #format = :format AND attribute_not_exists(#record)",
        }
    }

    /// All items that are ours, with their stored names, in the order of these.
    async fn scan(&self) -> Result<Vec<(String, State)>, Failure> {
        let (mut found, mut after) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let names = [("#key", &*self.options.key), ("#version", VERSION), ("#record", RECORD), ("#format", FORMAT)];
            let request = self.client.scan().table_name(&self.options.table).consistent_read(true);
            let request = request.set_exclusive_start_key(after);
            let request = request.set_expression_attribute_names(Some(owned(names)));
            let request = request.projection_expression("#key, #version, #record, #format");
            let request = request.filter_expression("attribute_exists(#version) AND attribute_exists(#format)");
            let page = request.send().await.map_err(|error| self.failure(&error, "dynamodb:Scan"))?;
            // An item of another program is not worth to fail for.
            found.extend(page.items.unwrap_or_default().into_iter().filter_map(|mut item| {
                let AttributeValue::S(name) = item.remove(&self.options.key)? else { return None };
                Some((name, state(&item).ok()?))
            }));
            after = page.last_evaluated_key.filter(|key| !key.is_empty());
            if after.is_none() {
                found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                return Ok(found);
            }
        }
        let failure = Failure::permanent(format!("{self} holds more than {MAX_PAGES} MB"));
        Err(failure.with_hint("name the locks, or give locks a table of their own"))
    }
}

impl Store for DynamoDb {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        self.ask(async |table| table.read(&key.stored_name()).await)
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        self.ask(async |table| table.write(key.stored_name(), expected, next).await)
    }

    /// One page with all, because a scan has no order.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let found = self.ask(async |table| table.scan().await)?;
        let entries = found.into_iter().filter_map(|(stored, state)| {
            let (found, name) = kind_and_name(&stored);
            let name = OsString::from(name);
            (found == kind && after.is_none_or(|after| name.as_os_str() > after)).then_some((name, state))
        });
        Ok(Page { entries: entries.collect(), next: None })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        if expected.version.is_none() {
            return Ok(Write::Conflict);
        }
        self.ask(async |table| table.delete(key.stored_name(), expected).await)
    }

    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        self.ask(async |table| table.create().await)
    }

    fn disconnect(&mut self) {
        // The client and its credentials stay; its connections go with the runtime.
        self.runtime.shut_down();
    }

    fn repair(&self) -> &'static str {
        "deleting its item"
    }

    /// By the items' TTL.
    fn expires(&self) -> bool {
        true
    }
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn owned<V: Into<W>, W>(map: impl IntoIterator<Item = (&'static str, V)>) -> HashMap<String, W> {
    map.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// The state that an item is in.
fn state(item: &HashMap<String, AttributeValue>) -> Result<State, Failure> {
    let text_of = |name: &str| match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => Ok(Some(text)),
        Some(_) => Err(foreign(name)),
    };
    if *text_of(FORMAT)?.ok_or_else(|| foreign(FORMAT))? != CURRENT_FORMAT.to_string() {
        let failure = Failure::permanent("a newer version of this program has written it");
        return Err(failure.with_hint("use that version here, too"));
    }
    let number: u64 = text_of(VERSION)?.and_then(|number| number.parse().ok()).ok_or_else(|| foreign(VERSION))?;
    let value = text_of(RECORD)?.cloned();
    // A table that was restored may have had another state of that number.
    let version = Some(format!("{number} {}", value.as_deref().unwrap_or("")).into_bytes());
    Ok(State { version, number, value, ..State::default() })
}

/// Another program uses the table, and this key.
fn foreign(attribute: &str) -> Failure {
    let why = format!("the item of that key is not a lock: its `{attribute}` is not what a lock has");
    Failure::permanent(why)
        .with_hint("another program has written there; another table, another name of the lock, or deleting its item helps")
}

#[cfg(test)]
#[path = "dynamodb/tests.rs"]
mod tests;
