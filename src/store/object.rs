//! Object stores: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage. One
//! object per key.
//!
//! An object is created if there is none (`If-None-Match: *`), and replaced only if it is still
//! what was read (`If-Match`, at Google generations). Some stores that speak S3's protocol ignore
//! conditions: each new object is used only after the store has refused two writes to it
//! (`verify`). The crate cannot delete under a condition, so nothing is deleted. There is no clock
//! that all hosts read, and no wake-up; each poll costs money.

mod address;
mod answer;
mod azure;
mod client;
mod connector;
mod failures;
mod kinds;
mod layout;

use std::ffi::OsStr;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use tokio::time::timeout;

use self::address::Options;
use self::client::{Client, OTHER_VERSION, condition, version};
use self::failures::{CONDITIONS, refusal};
use self::layout::{Body, decode, encode};
use super::failure::{Cause, Failure};
use super::key::name_after;
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, State, Store, Write};
use crate::store::address::StoreSettings;
use crate::sys::clock::since_1970;
use crate::sys::random::random_token;
use crate::sys::text::io_message;

/// So many objects are read for a page of a list.
const PAGE: usize = 1000;

/// A bucket with an object per key.
pub struct Objects {
    options: Options,
    runtime: PrivateRuntime,
    client: Client,
    /// Whether there have been credentials.
    has_worked: bool,
}

/// An object as it was read, and its version.
type Seen<T> = (T, Vec<u8>);

impl Objects {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let (options, client) = address::read(settings)?;
        Ok(Self { options, runtime: PrivateRuntime::default(), client, has_worked: false })
    }

    /// Asks the store to `verb`, with credentials that are good for a while; `None` if the object
    /// does not exist, or is in another state than it must be.
    fn ask<T>(
        &mut self,
        verb: &str,
        ask: impl AsyncFnOnce(&dyn ObjectStore) -> object_store::Result<T>,
    ) -> Result<Option<T>, Failure> {
        let Self { options, runtime, client, has_worked } = self;
        let asked = async {
            let store = client.ready(options.kind, *has_worked).await?;
            *has_worked = true;
            ask(store)
                .await
                .map(Some)
                .or_else(|error| refusal(verb, options, &error).map_or(Ok(None), Err))
        };
        // For credentials and the store together: a holder has to know in time.
        let late = |_| Failure::transient("the store does not answer in time").indefinite();
        let limit = options.timeout * 2;
        let answer = runtime.block_on(async { timeout(limit, asked).await.map_err(late)? })?;
        answer.map_err(|failure| {
            if failure.cause == Cause::Permanent {
                client.forget();
            }
            Failure { is_indefinite: failure.is_indefinite && verb == "write", ..failure }
        })
    }

    fn path(&self, stored: &str) -> Result<Path, Failure> {
        let cannot = |_| Failure::permanent("the name cannot be one of an object");
        Path::parse(format!("{}/{}", self.options.prefix, encode(stored))).map_err(cannot)
    }

    /// The bytes of an object.
    fn fetch(&mut self, path: &Path) -> Result<Option<Seen<Vec<u8>>>, Failure> {
        self.ask("read", async |store| {
            let got = store.get(path).await?;
            let seen = version(got.meta.e_tag.as_deref(), got.meta.version.as_deref());
            Ok((got.bytes().await?.into(), seen))
        })
    }

    fn read(&mut self, path: &Path) -> Result<Option<Seen<Body>>, Failure> {
        let Some((bytes, seen)) = self.fetch(path)? else { return Ok(None) };
        Ok(Some((Body::parse(&bytes)?, seen)))
    }

    /// Writes under a condition, and returns the new version; `None` if the condition does not
    /// hold.
    fn write(
        &mut self,
        path: &Path,
        seen: Option<&[u8]>,
        body: &Body,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let nonce = random_token();
        let nonce = nonce.map_err(|error| {
            Failure::permanent(format!("cannot draw a token: {}", io_message(&error.into())))
        })?;
        let payload = PutPayload::from(body.to_text(&nonce));
        let mode = seen.map_or(PutMode::Create, |seen| PutMode::Update(condition(seen)));
        let put =
            self.ask("write", async |store| store.put_opts(path, payload, mode.into()).await)?;
        Ok(put.map(|put| version(put.e_tag.as_deref(), put.version.as_deref())))
    }

    /// Checks that the store refuses two writes whose conditions do not hold. If it does not, only
    /// an object is overwritten that no lock has been kept in.
    fn verify(&mut self, path: &Path, body: &Body) -> Result<(), Failure> {
        for (condition, named) in [(None, "If-None-Match: *"), (Some(OTHER_VERSION), "If-Match")] {
            if self.write(path, condition, body)?.is_some() {
                let why = format!(
                    "the store ignores the condition `{named}`: two holders could have a lock"
                );
                return Err(Failure::permanent(why).with_hint(CONDITIONS));
            }
        }
        Ok(())
    }
}

impl Store for Objects {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let path = self.path(&key.stored_name())?;
        let none = || Failure {
            cause: Cause::NotPrepared,
            ..Failure::transient("the lock's object does not exist yet")
        };
        self.read(&path)?.and_then(state).ok_or_else(none)
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let Some(seen) = &expected.version else { return Ok(Write::Conflict) };
        let body =
            Body { number: next.number, value: next.value.map(str::to_owned), is_verified: true };
        let path = self.path(&key.stored_name())?;
        let written = self.write(&path, Some(seen), &body)?;
        Ok(written.map_or(Write::Conflict, |_| Write::Done))
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let prefix = self.options.prefix.clone();
        let listed =
            self.ask("list", async |store| store.list_with_delimiter(Some(&prefix)).await)?;
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

    /// Creates the object, verifies the store by it, and notes that in it. Of several processes
    /// that do so at the same time, one notes it.
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

    /// By a lifecycle rule.
    fn expires(&self) -> bool {
        true
    }
}

/// The state that an object is in, unless it is not verified yet.
fn state((Body { number, value, is_verified }, version): Seen<Body>) -> Option<State> {
    is_verified.then(|| State { version: Some(version), number, value, ..State::default() })
}
