//! Object stores: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage. One object per key.
//!
//! An object is created if there is none (`If-None-Match: *`), and replaced or deleted only if it is still what was
//! read (`If-Match`, at Google generations). Some stores that speak S3's protocol ignore conditions: each new object is
//! used only after the store has refused two writes to it (`verify`), and objects are purged only by a store that has
//! refused to delete one.
//!
//! There is no clock that all hosts read, and no wake-up; each poll costs money.

mod address;
mod answer;
mod azure;
mod client;
mod connector;
mod failures;
mod kinds;
mod layout;

use std::ffi::OsStr;

use aws_credential_types::Credentials;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload};
use tokio::time::timeout;

use self::address::{Access, Options};
use self::client::{Client, OTHER_VERSION, condition, version};
use self::failures::{CONDITIONS, refusal, without_credentials};
use self::layout::{Body, decode, encode};
use super::aws::Account;
use super::failure::{Cause, Failure};
use super::key::name_after;
use super::plain;
use super::retry::since_1970;
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, State, Store, Write};
use crate::record::random_token;
use crate::store::StoreSettings;

/// So many objects are read for a page of a list.
const PAGE: usize = 1000;

/// A bucket with an object per key.
pub struct ObjectStore {
    options: Options,
    runtime: PrivateRuntime,
    account: Option<Account>,
    client: Option<Client>,
    /// Whether there have been credentials.
    has_worked: bool,
    /// Whether it has refused to delete an object in another state.
    obeys_deletes: bool,
}

/// An object as it was read, and its version.
type Seen<T> = (T, Vec<u8>);

impl ObjectStore {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let (options, runtime) = (Options::of(settings)?, PrivateRuntime::default());
        Ok(Self { options, runtime, account: None, client: None, has_worked: false, obeys_deletes: false })
    }

    /// Asks the store to `verb`, with credentials that are good for a while; `None` if the object does not exist, or is in
    /// another state than it must be.
    fn ask<T>(&mut self, verb: &str, ask: impl AsyncFnOnce(&Client) -> object_store::Result<T>) -> Result<Option<T>, Failure> {
        let Self { options, runtime, account, client, has_worked, .. } = self;
        let answer = runtime.block_on(async {
            let connect = |account: &Account, keys: &Credentials| Client::new(options, Some((account, keys)));
            let client = match (&options.access, client) {
                (Access::S3 { wanted, .. }, client) => Account::client((account, client), wanted, "S3", connect).await?,
                (_, Some(client)) => client,
                (_, client) => client.insert(Client::new(options, None)?),
            };
            let asked = async {
                client.prepare().await.map_err(|error| without_credentials(options.kind, &error, *has_worked))?;
                *has_worked = true;
                ask(client).await.map(Some).or_else(|error| refusal(verb, options, &error).map_or(Ok(None), Err))
            };
            // For credentials and the store together: a holder has to know in time.
            let late = || Failure::transient("the store does not answer in time").indefinite();
            timeout(options.timeout * 2, asked).await.unwrap_or_else(|_| Err(late()))
        })?;
        let changes = matches!(verb, "write" | "delete");
        let answer = answer.map_err(|failure| Failure { is_indefinite: failure.is_indefinite && changes, ..failure });
        if answer.as_ref().is_err_and(|failure| failure.cause == Cause::Permanent) {
            // What is wrong with the credentials may be put right meanwhile.
            (self.account, self.client) = (None, None);
        }
        answer
    }

    fn path(&self, stored: &str) -> Result<Path, Failure> {
        let cannot = |_| Failure::permanent("the name cannot be one of an object");
        Path::parse(format!("{}/{}", self.options.prefix, encode(stored))).map_err(cannot)
    }

    /// The bytes of an object.
    fn fetch(&mut self, path: &Path) -> Result<Option<Seen<Vec<u8>>>, Failure> {
        self.ask("read", async |client| {
            let got = client.store().get(path).await?;
            let seen = version(got.meta.e_tag.as_deref(), got.meta.version.as_deref());
            Ok((got.bytes().await?.into(), seen))
        })
    }

    fn read(&mut self, path: &Path) -> Result<Option<Seen<Body>>, Failure> {
        let Some((bytes, seen)) = self.fetch(path)? else { return Ok(None) };
        Ok(Some((Body::parse(&bytes)?, seen)))
    }

    /// Writes under a condition, and returns the new version; `None` if the condition does not hold.
    fn write(&mut self, path: &Path, seen: Option<&[u8]>, body: &Body) -> Result<Option<Vec<u8>>, Failure> {
        let nonce = random_token();
        let nonce = nonce.map_err(|error| Failure::permanent(format!("cannot draw a token: {}", plain(&error.into()))))?;
        let payload = PutPayload::from(body.to_text(&nonce));
        let mode = seen.map_or(PutMode::Create, |seen| PutMode::Update(condition(seen)));
        let put = self.ask("write", async |client| client.store().put_opts(path, payload, mode.into()).await)?;
        Ok(put.map(|put| version(put.e_tag.as_deref(), put.version.as_deref())))
    }

    /// Checks that the store refuses two writes whose conditions do not hold. If it does not, only an object is
    /// overwritten that no lock has been kept in.
    fn verify(&mut self, path: &Path, body: &Body) -> Result<(), Failure> {
        for (condition, named) in [(None, "If-None-Match: *"), (Some(OTHER_VERSION), "If-Match")] {
            if self.write(path, condition, body)?.is_some() {
                let why = format!("the store ignores the condition `{named}`: two holders could have a lock");
                return Err(Failure::permanent(why).with_hint(CONDITIONS));
            }
        }
        Ok(())
    }

    /// Checks once, by an object of its own, that the store does not delete what has changed.
    fn verify_deletes(&mut self) -> Result<(), Failure> {
        if self.obeys_deletes {
            return Ok(());
        }
        let path = self.path(".probe")?;
        let changed = || Failure::transient("another process has changed it at the same moment");
        let seen = match self.read(&path)? {
            // Left by a process that was killed, or may not delete.
            Some((_, seen)) => seen,
            None => self.write(&path, None, &Body::free(since_1970(), false))?.ok_or_else(changed)?,
        };
        if self.delete(&path, OTHER_VERSION)?.is_some() {
            let why = "the store ignores the condition `If-Match` of a deletion: it could delete a lock";
            return Err(Failure::permanent(why).with_hint("docs/stores.md tells how to remove old objects"));
        }
        // It was there all the time, so that the refusal was one of the condition.
        self.delete(&path, &seen)?.ok_or_else(changed)?;
        self.obeys_deletes = true;
        Ok(())
    }

    fn delete(&mut self, path: &Path, seen: &[u8]) -> Result<Option<()>, Failure> {
        self.ask("delete", async |client| client.delete(path, seen).await)
    }
}

impl Store for ObjectStore {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let path = self.path(&key.stored_name())?;
        let none = || Failure { cause: Cause::NotPrepared, ..Failure::transient("the lock's object does not exist yet") };
        self.read(&path)?.and_then(state).ok_or_else(none)
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let Some(seen) = &expected.version else { return Ok(Write::Conflict) };
        let body = Body { number: next.number, value: next.value.map(str::to_owned), is_verified: true };
        let path = self.path(&key.stored_name())?;
        let written = self.write(&path, Some(seen), &body)?;
        Ok(written.map_or(Write::Conflict, |_| Write::Done))
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let prefix = self.options.prefix.clone();
        let listed = self.ask("list", async |client| client.store().list_with_delimiter(Some(&prefix)).await)?;
        let listed = listed.into_iter().flat_map(|listed| listed.objects).filter_map(|object| {
            let stored = decode(object.location.filename()?)?;
            Some((name_after(&stored, kind, after)?, object.location))
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort();
        let next = listed.get(PAGE).map(|_| listed[PAGE - 1].0.clone());
        let mut entries = Vec::new();
        for (name, path) in listed.into_iter().take(PAGE) {
            let Some((bytes, seen)) = self.fetch(&path)? else { continue };
            // An object of another program is not worth to fail for.
            let Ok(body) = Body::parse(&bytes) else { continue };
            entries.extend(state((body, seen)).map(|state| (name, state)));
        }
        Ok(Page { entries, next })
    }

    fn purge(&mut self, key: &Key, expected: &State) -> Result<Write, Failure> {
        let Some(seen) = &expected.version else { return Ok(Write::Conflict) };
        self.verify_deletes()?;
        let path = self.path(&key.stored_name())?;
        Ok(self.delete(&path, seen)?.map_or(Write::Conflict, |()| Write::Done))
    }

    /// Creates the object, verifies the store by it, and notes that in it. Of several processes that do so at the
    /// same time, one notes it.
    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(&key.stored_name())?;
        let place = Body::free(since_1970(), false);
        let (seen, number) = match self.read(&path)? {
            None => match self.write(&path, None, &place)? {
                Some(seen) => (seen, place.number),
                None => return Ok(()),
            },
            Some((Body { number, is_verified: false, .. }, seen)) => (seen, number),
            Some(_) => return Ok(()),
        };
        self.verify(&path, &place)?;
        self.write(&path, Some(&seen), &Body::free(number + 1, true)).map(drop)
    }

    fn verify_conditional_writes(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(&key.stored_name())?;
        match self.read(&path)? {
            Some((body, _)) if body.value.is_none() => self.verify(&path, &body),
            _ => Ok(()),
        }
    }

    fn disconnect(&mut self) {
        // The client and its credentials stay; their connections go with the runtime.
        self.runtime.shut_down();
    }

    fn repair(&self) -> &'static str {
        "deleting its object"
    }

    /// By a lifecycle rule. To read all objects at a release would take seconds.
    fn expires(&self) -> bool {
        true
    }
}

/// The state that an object is in, unless it is not verified yet.
fn state((Body { number, value, is_verified }, version): Seen<Body>) -> Option<State> {
    is_verified.then(|| State { version: Some(version), number, value, ..State::default() })
}
