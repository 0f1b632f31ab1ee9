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
mod layout;

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload};
use tokio::time::timeout;

use self::address::{Access, Options};
use self::client::{Client, condition, other_version, version};
use self::connector::Shared;
use self::failures::{CONDITIONS, Question, Refusal, refusal};
use self::layout::{Body, Content, MAX_BODY, decode, encode, foreign};
use super::aws::{Account, innermost};
use super::failure::{Cause, Failure};
use super::key::kind_and_name;
use super::plain;
use super::retry::since_1970;
use super::runtime::PrivateRuntime;
use super::seam::Write;
use super::seam::{Key, Kind, Next, Page, State, Store};
use crate::record::random_token;
use crate::store::StoreSettings;

/// So many objects are read for a page of a list.
const PAGE: usize = 1000;

/// A bucket with an object per key.
pub struct ObjectStore {
    options: Options,
    shared: Arc<Shared>,
    runtime: PrivateRuntime,
    account: Option<Account>,
    client: Option<Client>,
    /// Whether it has refused to delete an object in another state.
    obeys_deletes: bool,
}

/// An object as it was read, and its version; `None` without one.
type Found<T> = Option<(T, Vec<u8>)>;

impl ObjectStore {
    /// Does not connect yet.
    ///
    /// # Errors
    /// When the address or other settings cannot be used.
    pub fn new(settings: &StoreSettings) -> Result<Self, Failure> {
        let options = Options::of(settings)?;
        let shared = Shared::new(options.timeout, options.roots.clone());
        let runtime = PrivateRuntime::default();
        Ok(Self { options, shared, runtime, account: None, client: None, obeys_deletes: false })
    }

    /// Asks the store, with credentials that are good for a while.
    fn ask<T>(&mut self, question: Question, ask: impl AsyncFnOnce(&Client) -> object_store::Result<T>) -> Result<T, Refusal> {
        let Self { options, shared, runtime, account, client, .. } = self;
        let answer = runtime.block_on(async {
            if let Access::S3 { wanted, .. } = &options.access {
                let account = match account {
                    Some(account) => account,
                    None => account.insert(Account::find(wanted, "S3", false).await?),
                };
                if options.is_signed() && account.renew(options.timeout).await? {
                    *client = None;
                }
            }
            let client = match client {
                Some(client) => client,
                None => client.insert(Client::new(options, account.as_ref(), shared)?),
            };
            shared.take_last();
            // Credentials first, then the store.
            let answer = timeout(options.timeout * 2, ask(client)).await;
            let unusual = |error| innermost(&error);
            answer.map_or(Err(None), |answer| answer.map_err(|error| Some(unusual(error)))).map_err(|error| {
                let unusual = || error.unwrap_or_else(|| "no answer in time".to_owned());
                refusal(question, options.hints, &options.bucket, shared.take_last(), unusual)
            })
        })?;
        if let Err(Refusal::Failed(Failure { cause: Cause::Permanent, .. })) = answer {
            // What is wrong with the credentials may be put right meanwhile.
            (self.account, self.client) = (None, None);
        }
        answer
    }

    fn path(&self, key: &Key) -> Result<Path, Failure> {
        self.path_of(&key.stored_name())
    }

    fn path_of(&self, stored: &str) -> Result<Path, Failure> {
        let (prefix, name) = (&self.options.prefix, encode(stored));
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let cannot = |_| Failure::permanent("the address's prefix cannot be part of an object's name");
        Path::parse(path).map_err(cannot)
    }

    /// The bytes of an object, and its version.
    fn fetch(&mut self, path: &Path) -> Result<Found<Vec<u8>>, Failure> {
        let got = self.ask(Question::Read, async |client| {
            let got = client.store().get(path).await?;
            let seen = version(got.meta.e_tag.as_deref(), got.meta.version.as_deref());
            Ok((got.bytes().await?.into(), seen))
        });
        match got {
            Ok(found) => Ok(Some(found)),
            Err(Refusal::Missing) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    fn read(&mut self, path: &Path) -> Result<Found<Body>, Failure> {
        let Some((bytes, seen)) = self.fetch(path)? else { return Ok(None) };
        if bytes.len() > MAX_BODY {
            return Err(foreign());
        }
        Ok(Some((Body::parse(&bytes)?, seen)))
    }

    /// Writes under a condition, and returns the new version.
    fn write(&mut self, path: &Path, seen: Option<&[u8]>, body: &Body) -> Result<Vec<u8>, Refusal> {
        let payload = PutPayload::from(body.to_text(&token()?));
        let (question, mode) = match seen {
            None => (Question::Create, PutMode::Create),
            Some(seen) => (Question::Replace, PutMode::Update(condition(seen))),
        };
        let put = async |client: &Client| client.store().put_opts(path, payload, mode.into()).await;
        let put = self.ask(question, put)?;
        Ok(version(put.e_tag.as_deref(), put.version.as_deref()))
    }

    /// Checks that the store refuses two writes whose conditions do not hold. If it does not, only an object is
    /// overwritten that no lock has been kept in.
    fn verify(&mut self, path: &Path, seen: &[u8], body: &Body) -> Result<(), Failure> {
        for (condition, named) in [(None, "If-None-Match: *"), (Some(other_version(seen)), "If-Match")] {
            match self.write(path, condition.as_deref(), body) {
                Err(Refusal::Conflict) => {}
                Ok(_) => {
                    let why = format!("the store ignores the condition `{named}`: two holders could have a lock");
                    return Err(Failure::permanent(why).with_hint(CONDITIONS));
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok(())
    }

    /// Checks once, by an object of its own, that the store does not delete what has changed.
    fn verify_deletes(&mut self) -> Result<(), Failure> {
        if self.obeys_deletes {
            return Ok(());
        }
        let path = self.path_of(".probe")?;
        let seen = match self.read(&path)? {
            // Left by a process that was killed, or may not delete.
            Some((_, seen)) => seen,
            None => self.write(&path, None, &Body { number: since_1970(), content: Content::Unverified })?,
        };
        match self.delete(&path, &other_version(&seen)) {
            Err(Refusal::Conflict) => {}
            Ok(()) => {
                let why = "the store ignores the condition `If-Match` of a deletion: it could delete a lock";
                return Err(Failure::permanent(why).with_hint("docs/stores.md tells how to remove old objects"));
            }
            Err(refusal) => return Err(refusal.into()),
        }
        // It was there all the time, so that the refusal was one of the condition.
        self.delete(&path, &seen)?;
        self.obeys_deletes = true;
        Ok(())
    }

    fn delete(&mut self, path: &Path, seen: &[u8]) -> Result<(), Refusal> {
        let shared = Arc::clone(&self.shared);
        self.ask(Question::Delete, async |client| client.delete(path, seen, &shared).await)
    }
}

impl Store for ObjectStore {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let path = self.path(key)?;
        let found = self.read(&path)?;
        found
            .and_then(state)
            .ok_or_else(|| Failure { cause: Cause::NotPrepared, ..Failure::transient("the lock's object does not exist yet") })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let Some(seen) = &expected.version else { return Ok(Write::Conflict) };
        let content = next.value.map_or(Content::Free, |value| Content::Held(value.to_owned()));
        let path = self.path(key)?;
        done(self.write(&path, Some(seen), &Body { number: next.number, content }).map(drop))
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let cannot = |_| Failure::permanent("the address's prefix cannot be part of an object's name");
        let prefix = Path::parse(&self.options.prefix).map_err(cannot)?;
        let prefix = Some(prefix).filter(|path| !path.as_ref().is_empty());
        let listed = self.ask(Question::List, async |client| client.store().list_with_delimiter(prefix.as_ref()).await);
        let listed = match listed {
            Ok(listed) => listed.objects,
            Err(Refusal::Missing) => Vec::new(),
            Err(refusal) => return Err(refusal.into()),
        };
        let name = |path: &Path| {
            let stored = decode(path.filename()?)?;
            let (found, name) = kind_and_name(&stored);
            (found == kind).then(|| OsString::from(name))
        };
        let listed = listed.into_iter().filter_map(|object| Some((name(&object.location)?, object.location)));
        let mut listed: Vec<_> = listed.filter(|(name, _)| after.is_none_or(|after| name.as_os_str() > after)).collect();
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
        let path = self.path(key)?;
        done(self.delete(&path, seen))
    }

    /// Creates the object, verifies the store by it, and notes that in it. Of several processes that do so at the
    /// same time, one notes it.
    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(key)?;
        let place = Body { number: since_1970(), content: Content::Unverified };
        let (seen, number) = match self.read(&path)? {
            None => match self.write(&path, None, &place) {
                Ok(seen) => (seen, place.number),
                Err(Refusal::Conflict) => return Ok(()),
                Err(refusal) => return Err(refusal.into()),
            },
            Some((Body { number, content: Content::Unverified }, seen)) => (seen, number),
            Some(_) => return Ok(()),
        };
        self.verify(&path, &seen, &place)?;
        let verified = Body { number: number + 1, content: Content::Free };
        done(self.write(&path, Some(&seen), &verified).map(drop)).map(drop)
    }

    fn verify_conditional_writes(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(key)?;
        match self.read(&path)? {
            Some((Body { content: Content::Held(_), .. }, _)) | None => Ok(()),
            Some((body, seen)) => self.verify(&path, &seen, &body),
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

fn token() -> Result<String, Failure> {
    random_token().map_err(|error| Failure::permanent(format!("cannot draw a token: {}", plain(&error.into()))))
}

/// The state that an object is in, unless it is not verified yet.
fn state((Body { number, content }, version): (Body, Vec<u8>)) -> Option<State> {
    let value = match content {
        Content::Unverified => return None,
        Content::Free => None,
        Content::Held(value) => Some(value),
    };
    Some(State { version: Some(version), number, value, ..State::default() })
}

/// How a conditional write ended. An object that is gone has changed.
fn done(written: Result<(), Refusal>) -> Result<Write, Failure> {
    match written {
        Ok(()) => Ok(Write::Done),
        Err(Refusal::Conflict | Refusal::Missing) => Ok(Write::Conflict),
        Err(Refusal::Failed(failure)) => Err(failure),
    }
}
