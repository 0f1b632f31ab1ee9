//! The requests to a table, and the state that an item is in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::SharedCredentialsProvider;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ReturnValue,
    ScalarAttributeType, TimeToLiveSpecification,
};
use jiff::Timestamp;

use super::aec;
use crate::store::aws::{self, Settings};
use crate::store::failure::{Cause, Failure};
use crate::store::seam::{Next, State, Write};
use crate::sys::clock::since_1970;
use crate::sys::random::jittered;

pub const FORMAT: u64 = 1;

/// It takes DynamoDB some seconds. A process that waits for longer asks again.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether it is ready.
const PAUSE: Duration = Duration::from_millis(500);

/// A key that no lock has.
const PROBE: &str = ".serializer.probe";

#[derive(Clone)]
pub struct Names {
    pub table: String,
    pub key: String,
    /// The attribute with the time at which DynamoDB may remove an item.
    pub ttl: String,
    /// Whether the table is one of AtomicExecutionControl.
    pub is_aec: bool,
}

/// Where a request is sent, and how messages call it.
pub struct Table {
    pub client: Client,
    pub server: String,
    pub name: String,
    pub names: Names,
}

pub type Item = HashMap<String, AttributeValue>;

pub fn connect(
    settings: &Settings,
    config: &SdkConfig,
    keys: &Credentials,
    names: &Names,
) -> Result<Table, Failure> {
    let Some(region) = settings.region.clone() else {
        let hint = "`region=…` in the address, `AWS_REGION`, or `region` of the profile names it";
        return Err(Failure::refused("it is not known in which region the table is", hint));
    };
    let (limit, endpoint) = (settings.timeout, settings.endpoint.clone());
    let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let server = match &endpoint {
        Some(endpoint) => format!("DynamoDB at `{endpoint}`"),
        None => format!("DynamoDB in `{region}`"),
    };
    let timeouts = TimeoutConfig::builder().connect_timeout(limit / 2).operation_timeout(limit);
    let mut config = aws_sdk_dynamodb::config::Builder::from(config)
        .credentials_provider(SharedCredentialsProvider::new(keys.clone()))
        .timeout_config(timeouts.build())
        // A write that is sent again by the SDK looks like a conflict.
        .retry_config(RetryConfig::disabled())
        .http_client(aws::http_client(settings.roots.as_deref(), is_plain)?);
    config.set_endpoint_url(endpoint);
    let (client, names) = (Client::from_conf(config.build()), names.clone());
    let name = format!("table `{}` in `{region}`", names.table);
    Ok(Table { client, server, name, names })
}

impl Table {
    /// The state of an item, strongly consistent.
    pub async fn read(&self, stored: &str) -> Result<State, Failure> {
        let request = self.client.get_item().table_name(&self.names.table).consistent_read(true);
        let answer = request.key(&self.names.key, text(stored)).send().await;
        let answer = answer.map_err(|error| self.failure(&error, "dynamodb:GetItem"))?;
        answer.item.map_or_else(|| Ok(State::default()), |item| self.state(stored, &item))
    }

    pub async fn write(&self, key: &str, seen: &State, next: &Next<'_>) -> Result<Write, Failure> {
        // A number is at least the time of the first one, should this host's clock be slow.
        let now = since_1970().max(next.number) / 1000;
        let mut attributes = vec![
            ("#version", Some(number(next.number))),
            ("#format", Some(number(FORMAT))),
            ("#changed", Some(text(Timestamp::now()))),
            ("#record", next.value.map(text)),
            ("#ttl", next.keep.map(|keep| number(now + keep.as_secs()))),
        ];
        if self.names.is_aec {
            let Some(told) = aec::attributes(next.value) else {
                return self.delete(key, seen).await;
            };
            attributes.extend(told.map(|(name, value)| (name, Some(value))));
        }
        let (mut values, mut set, mut removed) = (Item::new(), Vec::new(), Vec::new());
        for (name, value) in attributes {
            let placeholder = format!(":{}", name.trim_start_matches('#'));
            match value {
                None => removed.push(name),
                Some(_) => set.push(format!("{name} = {placeholder}")),
            }
            values.extend(value.map(|value| (placeholder, value)));
        }
        let mut update = format!("SET {}", set.join(", "));
        if !removed.is_empty() {
            update += &format!(" REMOVE {}", removed.join(", "));
        }
        let condition = condition(seen, &mut values);
        let names = self.placeholders(&format!("{update} {condition}"));
        let request = self.client.update_item().table_name(&self.names.table);
        let request =
            request.key(&self.names.key, text(key)).return_values(ReturnValue::UpdatedNew);
        let request = request.update_expression(update).condition_expression(condition);
        let request = request.set_expression_attribute_names(Some(names));
        let sent = request.set_expression_attribute_values(Some(values)).send().await;
        // The SDK takes an empty body for success.
        if sent.as_ref().is_ok_and(|answer| answer.attributes().is_none_or(HashMap::is_empty)) {
            let failure = Failure::permanent("the server does not answer as DynamoDB does");
            return Err(failure.indefinite());
        }
        self.done(sent, "dynamodb:UpdateItem")
    }

    /// What the placeholders in an expression stand for.
    pub fn placeholders(&self, expression: &str) -> HashMap<String, String> {
        let all = [
            ("#key", self.names.key.as_str()),
            ("#ttl", &self.names.ttl),
            ("#version", "version"),
            ("#format", "format"),
            ("#changed", "changed"),
            ("#record", "record"),
        ];
        let used = all.into_iter().filter(|(word, _)| expression.contains(word));
        used.map(|(word, name)| (word.to_owned(), name.to_owned())).collect()
    }

    /// All items that are ours, with their stored names, in the order of these.
    pub async fn scan(&self) -> Result<Vec<(String, State)>, Failure> {
        let request = self.client.scan().table_name(&self.names.table).consistent_read(true);
        let (mut found, mut pages) = (Vec::new(), request.into_paginator().send());
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failure(&error, "dynamodb:Scan"))?;
            // An item of another program is not worth to fail for.
            found.extend(page.items().iter().filter_map(|item| {
                let name = item.get(&self.names.key)?.as_s().ok()?.clone();
                let state = self.state(&name, item).ok()?;
                Some((name, state))
            }));
        }
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// Creates the table, and returns when it can be used; an existing one is fine. One that is
    /// being deleted is created when it is gone.
    pub async fn create(&self) -> Result<(), Failure> {
        let cannot = |_| Failure::permanent("the table's description is not complete");
        let (name, text) = (&self.names.key, ScalarAttributeType::S);
        let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(text);
        let key = KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash);
        let request = self.client.create_table().table_name(&self.names.table);
        let request = request.attribute_definitions(attribute.build().map_err(cannot)?);
        let request = request.key_schema(key.build().map_err(cannot)?);
        let request = request.billing_mode(BillingMode::PayPerRequest);
        let (begun, mut is_ours) = (Instant::now(), false);
        // Ends with the time.
        while let Err(failure) = self.read(PROBE).await {
            let is_missing = failure.cause == Cause::NotPrepared;
            if failure.cause == Cause::Permanent || !is_missing && !is_ours {
                return Err(failure);
            }
            if begun.elapsed() >= LIMIT {
                let why = format!("{} is not ready: {}", self.name, failure.why);
                return Err(Failure::transient(why));
            }
            if !is_ours {
                match request.clone().send().await {
                    Ok(_) => is_ours = true,
                    Err(error) if error.code() == Some("ResourceInUseException") => {}
                    Err(error) => {
                        let failure = self.failure(&error, "dynamodb:CreateTable");
                        let why = format!("{} does not exist, and {}", self.name, failure.why);
                        let hint = "`serializer initialize` with that permission creates it; or \
                                    the table is in another region";
                        return Err(Failure { why, ..failure }.with_hint(hint));
                    }
                }
            }
            tokio::time::sleep(jittered(PAUSE)).await;
        }
        if is_ours {
            tracing::info!("made the {}", self.name);
            self.expire().await;
        }
        Ok(())
    }

    /// Lets DynamoDB remove unused items. Without that permission they stay, which costs next to
    /// nothing.
    async fn expire(&self) {
        let (table, ttl) = (&self.names.table, &self.names.ttl);
        let setting = TimeToLiveSpecification::builder().enabled(true).attribute_name(ttl);
        let request = self.client.update_time_to_live().table_name(table);
        let request = request.set_time_to_live_specification(setting.build().ok());
        if let Err(error) = request.send().await {
            tracing::debug!("unused items will stay: {}", error.code().unwrap_or("no answer"));
        }
    }
}

/// That the item is in the state `expected`: a table that was restored counts its states again.
pub fn condition(expected: &State, values: &mut Item) -> &'static str {
    if let Some(condition) = aec::unchanged(expected, values) {
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
    values.insert(":seen".to_owned(), text(value));
    "#version = :number AND #format = :format AND #record = :seen"
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

pub fn text(text: impl ToString) -> AttributeValue {
    AttributeValue::S(text.to_string())
}

pub fn state(item: &Item) -> Result<State, Failure> {
    let text_of = |name: &str| match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => Ok(Some(text)),
        Some(_) => Err(foreign(name)),
    };
    if *text_of("format")?.ok_or_else(|| foreign("format"))? != FORMAT.to_string() {
        return Err(Failure::of_newer_version());
    }
    let number = text_of("version")?.and_then(|number| number.parse().ok());
    let number: u64 = number.ok_or_else(|| foreign("version"))?;
    let value = text_of("record")?.cloned();
    // A table that was restored may have had another state of that number.
    let version = Some(format!("{number} {}", value.as_deref().unwrap_or("")).into_bytes());
    Ok(State { version, number, value, ..State::default() })
}

/// Another program uses the table, and this key.
pub fn foreign(attribute: &str) -> Failure {
    let why = format!("what is stored there is not a lock record: its `{attribute}` differs");
    let hint = "another program has written there; name another table or lock, or delete the item";
    Failure::refused(why, hint)
}
