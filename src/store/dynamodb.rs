//! DynamoDB: an item per key.
//!
//! Reads are strongly consistent, and every write is conditional on the item's number and value,
//! which DynamoDB decides in one place and in one order.
//!
//! An item has its `version`, the number of the state; `record`, the value, if there is one;
//! `format`, what the attributes mean; and `changed`, when it was written, for people. Expressions
//! name them by placeholders, because DynamoDB reserves many words.

mod aec;
mod answers;
mod table;

use std::ffi::OsStr;

use self::table::{Names, Table, connect};
use super::aws::{self, Account};
use super::checks;
use super::failure::{Cause, Failure};
use super::network::decoded;
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, State, Store, Write, name_after};
use crate::store::address::StoreSettings;
use crate::sys::clock::since_1970;

pub struct DynamoDb {
    names: Names,
    runtime: PrivateRuntime,
    account: Account<Table>,
}

impl DynamoDb {
    /// Reads the address; does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let address = checks::address(settings, "endpoint key layout profile region ttl")?;
        let table = decoded(&address.hosts)?;
        if table.is_empty() || !address.path.is_empty() {
            let why = "the address does not name a table, and only that";
            return Err(Failure::refused(why, "`dynamodb://TABLE?region=REGION`"));
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

    fn stored(&self, key: &Key) -> Result<String, Failure> {
        if !self.names.is_aec {
            return Ok(key.stored_name());
        }
        aec::check(key.kind).map(|()| key.name.to_string_lossy().into_owned())
    }

    /// Asks the table, with credentials that are good for a while.
    fn ask<T>(
        &mut self,
        ask: impl AsyncFnOnce(&Table) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Self { names, runtime, account } = self;
        let connect = |settings: &_, config: &_, keys: &_| connect(settings, config, keys, names);
        let answer = runtime.block_on(async { ask(account.client(connect).await?).await })?;
        answer.inspect_err(|failure| {
            if failure.cause == Cause::Permanent {
                account.forget();
            }
        })
    }
}

impl Store for DynamoDb {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let (stored, asked) = (self.stored(key)?, since_1970());
        let state = self.ask(async |table| table.read(&stored).await)?;
        Ok(State { now: state.now.map(|now| now.min(asked)), ..state })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let stored = self.stored(key)?;
        self.ask(async |table| table.write(&stored, expected, next).await)
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
            let why = format!("table `{}` does not exist", self.names.table);
            let hint = "check the name and the `region` (the library's default is eu-west-1)";
            return Err(Failure::refused(why, hint));
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
