//! DynamoDB: an item per key.
//!
//! Reads are strongly consistent, and every write is conditional on the item's number and value,
//! which DynamoDB decides in one place and in one order. There is no clock that its users share,
//! and no wake-up; each poll costs money.
//!
//! An item has its `version`, the number of the state; `record`, the value, if there is one;
//! `format`, what the attributes mean; and `changed`, when it was written, for people. Expressions
//! name them by placeholders, because DynamoDB reserves many words.

mod aec;
mod answers;
mod table;

use std::collections::HashMap;
use std::ffi::OsStr;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::SharedCredentialsProvider;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::operation::update_item::UpdateItemOutput;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use jiff::Timestamp;

use super::aws::{self, Account};
use super::checks;
use super::failure::{Cause, Failure};
use super::key::name_after;
use super::network::decoded;
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::clock::since_1970;

/// The format that is written.
const FORMAT: u64 = 1;

/// A table with an item per key.
pub struct DynamoDb {
    names: Names,
    runtime: PrivateRuntime,
    account: Account<Table>,
}

/// How the table and its attributes are called.
#[derive(Clone)]
struct Names {
    table: String,
    /// The table's key.
    key: String,
    /// By whose time DynamoDB may remove an item.
    ttl: String,
    /// Whether the table is one of AtomicExecutionControl.
    is_aec: bool,
}

/// Where a request is sent, and how messages call it.
struct Table {
    client: Client,
    server: String,
    region: String,
    names: Names,
}

impl DynamoDb {
    /// Reads the address; does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let address =
            checks::address(settings, &["endpoint", "key", "layout", "profile", "region", "ttl"])?;
        let table = decoded(&address.hosts)?;
        if table.is_empty() || !address.path.is_empty() {
            let failure = Failure::permanent("the address does not name a table, and only that");
            return Err(failure.with_hint("`dynamodb://TABLE?region=REGION`"));
        }
        let key = address.option("key").unwrap_or_else(|| "name".to_owned());
        let ttl = address.option("ttl").unwrap_or_else(|| "expires_at".to_owned());
        let is_aec = aec::is_named(address.option("layout"))?;
        // An access key stands where other addresses have a user.
        let login = address.user.clone().zip(address.password.clone());
        let keys = login.map(|(id, secret)| aws::keys(id, secret, None));
        let account = Account::new("DynamoDB", &address, settings.timeout, keys, None)?;
        let names = Names { table, key, ttl, is_aec };
        Ok(Self { names, runtime: PrivateRuntime::default(), account })
    }

    /// Asks the table, with credentials that are good for a while.
    fn ask<T>(
        &mut self,
        ask: impl AsyncFnOnce(&Table) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Self { names, runtime, account } = self;
        let connect = |account: &_, config: &_, keys: &_| connect(account, config, keys, names);
        let answer = runtime.block_on(async { ask(account.client(connect).await?).await })?;
        answer.inspect_err(|failure| {
            if failure.cause == Cause::Permanent {
                account.forget();
            }
        })
    }
}

fn connect(
    account: &Account<Table>,
    config: &SdkConfig,
    keys: &Credentials,
    names: &Names,
) -> Result<Table, Failure> {
    let Some(region) = account.region.clone() else {
        let hint = "`region=…` in the address, `AWS_REGION`, or `region` of the profile names it";
        return Err(
            Failure::permanent("it is not known in which region the table is").with_hint(hint)
        );
    };
    let endpoint = account.endpoint.as_ref().map(|endpoint| format!("DynamoDB at `{endpoint}`"));
    let is_plain =
        account.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(account.timeout / 2)
        .operation_timeout(account.timeout);
    let mut config = aws_sdk_dynamodb::config::Builder::from(config)
        .credentials_provider(SharedCredentialsProvider::new(keys.clone()))
        .timeout_config(timeouts.build())
        // A write that is sent again by the SDK looks like a conflict.
        .retry_config(RetryConfig::disabled())
        // Its own: the one that finds credentials keeps the time limits of its first user, a
        // metadata service.
        .http_client(aws::http_client(account.roots.as_deref(), is_plain)?);
    config.set_endpoint_url(account.endpoint.clone());
    let server = endpoint.unwrap_or_else(|| format!("DynamoDB in `{region}`"));
    Ok(Table { client: Client::from_conf(config.build()), server, region, names: names.clone() })
}

impl Table {
    /// The state of an item, strongly consistent.
    async fn read(&self, stored: &str) -> Result<State, Failure> {
        let request = self.client.get_item().table_name(&self.names.table).consistent_read(true);
        let request = request.key(&self.names.key, AttributeValue::S(stored.to_owned()));
        let answer =
            request.send().await.map_err(|error| self.failure(&error, "dynamodb:GetItem"))?;
        answer.item.as_ref().map_or_else(|| Ok(State::default()), |item| self.state(stored, item))
    }

    async fn write(
        &self,
        stored: String,
        expected: &State,
        next: &Next<'_>,
    ) -> Result<Write, Failure> {
        // A number is at least the time of the first one, should this host's clock be slow.
        let now = since_1970().max(next.number) / 1000;
        let (mut values, mut set, mut removed) = (HashMap::new(), Vec::new(), Vec::new());
        if self.names.is_aec {
            let Some(told) = aec::attributes(next.value) else {
                return self.delete(stored, expected).await;
            };
            for (name, value) in told {
                set.push(format!("{name} = :{name}"));
                values.insert(format!(":{name}"), value);
            }
        }
        for (name, value) in [
            ("version", Some(number(next.number))),
            ("format", Some(number(FORMAT))),
            ("changed", Some(AttributeValue::S(Timestamp::now().to_string()))),
            ("record", next.value.map(|value| AttributeValue::S(value.to_owned()))),
            ("ttl", next.keep.map(|keep| number(now + keep.as_secs()))),
        ] {
            match value {
                Some(value) => {
                    set.push(format!("#{name} = :{name}"));
                    values.insert(format!(":{name}"), value);
                }
                None => removed.push(format!("#{name}")),
            }
        }
        let remove = if removed.is_empty() {
            String::new()
        } else {
            format!(" REMOVE {}", removed.join(", "))
        };
        let update = format!("SET {}{remove}", set.join(", "));
        let condition = condition(expected, &mut values);
        let request = self.client.update_item().table_name(&self.names.table);
        let request = request.key(&self.names.key, AttributeValue::S(stored));
        let request = request
            .set_expression_attribute_names(Some(self.names(&format!("{update} {condition}"))));
        let request = request.set_expression_attribute_values(Some(values));
        let request = request.update_expression(update).condition_expression(condition);
        let sent = request.return_values(ReturnValue::UpdatedNew).send().await;
        // A server that answers anything with 200 is not DynamoDB: the SDK takes an empty body for
        // success.
        let is_confirmed = |answer: &UpdateItemOutput| {
            answer.attributes().and_then(|new| new.get("version")) == Some(&number(next.number))
        };
        if sent.as_ref().is_ok_and(|answer| !is_confirmed(answer)) {
            return Err(
                Failure::permanent("the server does not answer as DynamoDB does").indefinite()
            );
        }
        self.done(sent, "dynamodb:UpdateItem")
    }

    /// What the placeholders in an expression stand for.
    fn names(&self, expression: &str) -> HashMap<String, String> {
        let words = expression.split(|c: char| c != '#' && !c.is_ascii_lowercase());
        let names = words.filter_map(|word| match word.strip_prefix('#')? {
            "key" => Some((word, &*self.names.key)),
            "ttl" => Some((word, &*self.names.ttl)),
            name => Some((word, name)),
        });
        names.map(|(word, name)| (word.to_owned(), name.to_owned())).collect()
    }

    /// All items that are ours, with their stored names, in the order of these.
    async fn scan(&self) -> Result<Vec<(String, State)>, Failure> {
        let attributes =
            "#key, #version, #record, #format, status_execution, created_at, updated_at";
        let is_ours = "attribute_exists(#version) AND attribute_exists(#format)";
        let is_ours =
            if self.names.is_aec { "attribute_exists(status_execution)" } else { is_ours };
        let request = self.client.scan().table_name(&self.names.table).consistent_read(true);
        let request = request.set_expression_attribute_names(Some(self.names(attributes)));
        let request = request.projection_expression(attributes);
        let request = request.filter_expression(is_ours);
        let (mut found, mut pages) = (Vec::new(), request.into_paginator().send());
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failure(&error, "dynamodb:Scan"))?;
            // An item of another program is not worth to fail for.
            found.extend(page.items.unwrap_or_default().into_iter().filter_map(|mut item| {
                let AttributeValue::S(name) = item.remove(&self.names.key)? else { return None };
                let state = self.state(&name, &item).ok()?;
                Some((name, state))
            }));
        }
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }
}

/// That the item is in the state `expected`: a table that was restored counts its states again.
fn condition(expected: &State, values: &mut HashMap<String, AttributeValue>) -> &'static str {
    if let Some(condition) = aec::condition(expected, values) {
        return condition;
    }
    if expected.version.is_none() {
        // Every item has the key.
        return "attribute_not_exists(#key)";
    }
    values.insert(":number".to_owned(), number(expected.number));
    values.insert(":format".to_owned(), number(FORMAT));
    let Some(value) = &expected.value else {
        return "#version = :number AND #format = :format AND attribute_not_exists(#record)";
    };
    values.insert(":seen".to_owned(), AttributeValue::S(value.clone()));
    "#version = :number AND #format = :format AND #record = :seen"
}

impl Store for DynamoDb {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let (stored, asked) = (self.names.stored(key)?, since_1970());
        let state = self.ask(async |table| table.read(&stored).await)?;
        Ok(State { now: state.now.map(|now| now.min(asked)), ..state })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let stored = self.names.stored(key)?;
        self.ask(async |table| table.write(stored, expected, next).await)
    }

    /// One page with all, because a scan has no order.
    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let prefix = if self.names.is_aec { aec::check(kind).map(|()| kind.prefix())? } else { "" };
        let found = self.ask(async |table| table.scan().await)?;
        let name = |stored: String| name_after(&format!("{prefix}{stored}"), kind, after);
        let entries = found.into_iter().filter_map(|(stored, state)| Some((name(stored)?, state)));
        Ok(Page { entries: entries.collect(), next: None })
    }

    fn create_schema(&mut self, _key: &Key) -> Result<(), Failure> {
        if self.names.is_aec {
            return Err(aec::no_table(&self.names.table));
        }
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

/// The state that an item is in.
fn state(item: &HashMap<String, AttributeValue>) -> Result<State, Failure> {
    let text_of = |name: &str| match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => Ok(Some(text)),
        Some(_) => Err(foreign(name)),
    };
    if *text_of("format")?.ok_or_else(|| foreign("format"))? != FORMAT.to_string() {
        return Err(Failure::of_newer_version());
    }
    let number: u64 = text_of("version")?
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| foreign("version"))?;
    let value = text_of("record")?.cloned();
    // A table that was restored may have had another state of that number.
    let version = Some(format!("{number} {}", value.as_deref().unwrap_or("")).into_bytes());
    Ok(State { version, number, value, ..State::default() })
}

/// Another program uses the table, and this key.
fn foreign(attribute: &str) -> Failure {
    Failure::permanent(format!(
        "what is stored there is not a lock record: its `{attribute}` is not what a lock has"
    ))
    .with_hint(
        "another program has written there; another table, another name of the lock, or deleting \
         its item helps",
    )
}
