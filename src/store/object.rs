//! Object stores: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage. One
//! object per key.
//!
//! An object is created if there is none (`If-None-Match: *`), and replaced only if it is still
//! what was read (`If-Match`, at Google generations). Some stores that speak S3's protocol ignore
//! conditions: each new object is used only after the store has refused two writes to it
//! (`verify`). The crate cannot delete under a condition, so nothing is deleted.

mod address;
mod azure;
mod http;
mod layout;

use std::ffi::OsStr;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tokio::time::timeout;

use self::address::Client;
pub use self::address::read as open;
use self::http::{CONDITIONS, refusal};
use self::layout::{Body, decode, encode};
use super::failure::{Cause, Failure};
use super::runtime::PrivateRuntime;
use super::seam::{Key, Kind, Next, Page, State, Store, Write, name_after};
use crate::sys::clock::since_1970;
use crate::sys::random::random_token;
use crate::sys::text::io_message;

const PAGE: usize = 1000;

/// A version that no object has, with an ETag as Azure writes it. S3 takes any, and Google compares
/// the generation.
const OTHER_VERSION: Option<&[u8]> = Some(b"\"0x8D0000000000000\"\n1");

pub struct Objects {
    bucket: String,
    /// What the names of all objects begin with.
    prefix: Path,
    kind: &'static address::Kind,
    /// For each answer.
    timeout: Duration,
    runtime: PrivateRuntime,
    client: Client,
}

/// An object as it was read, and its version.
type Seen = (Body, Vec<u8>);

impl Objects {
    /// Asks the store to `verb`, with credentials that are good for a while; `None` if the object
    /// does not exist, or is in another state than it must be.
    fn ask<T>(
        &mut self,
        verb: &str,
        ask: impl AsyncFnOnce(&dyn ObjectStore) -> object_store::Result<T>,
    ) -> Result<Option<T>, Failure> {
        let Self { bucket, kind, runtime, client, .. } = self;
        let refused = |error| refusal(verb, bucket, kind, &error).map_or(Ok(None), Err);
        let asked = async { ask(client.ready(kind).await?).await.map(Some).or_else(refused) };
        // For credentials and the store together: a holder has to know in time.
        let late = |_| Failure::transient("the store does not answer in time").indefinite();
        let limit = self.timeout * 2;
        let answer = runtime.block_on(async { timeout(limit, asked).await.map_err(late)? })?;
        answer.map_err(|failure| {
            if failure.cause == Cause::Permanent {
                client.forget();
            }
            Failure { is_indefinite: failure.is_indefinite && verb == "write", ..failure }
        })
    }

    fn path(&self, key: &Key) -> Result<Path, Failure> {
        let cannot = |_| Failure::permanent("the name cannot be one of an object");
        Path::parse(format!("{}/{}", self.prefix, encode(&key.stored_name()))).map_err(cannot)
    }

    /// Reads an object. The inner failure says that it is another program's.
    fn read(&mut self, path: &Path) -> Result<Option<Result<Seen, Failure>>, Failure> {
        self.ask("read", async |store| {
            let got = store.get(path).await?;
            let seen = version(got.meta.e_tag.clone(), got.meta.version.clone());
            Ok(Body::parse(&got.bytes().await?).map(|body| (body, seen)))
        })
    }

    /// Writes under a condition, and returns the new version; `None` if the condition does not
    /// hold.
    fn write(
        &mut self,
        path: &Path,
        seen: Option<&[u8]>,
        body: &Body,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let cannot = |error| Failure::permanent(io_message(&error).to_string());
        let payload = PutPayload::from(body.to_text(&random_token().map_err(cannot)?));
        let mode = seen.map_or(PutMode::Create, |seen| {
            let seen = String::from_utf8_lossy(seen);
            let parts = seen.split_once('\n').unwrap_or_default();
            let there = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            PutMode::Update(UpdateVersion { e_tag: there(parts.0), version: there(parts.1) })
        });
        self.ask("write", async |store| {
            let put = store.put_opts(path, payload, mode.into()).await?;
            Ok(version(put.e_tag, put.version))
        })
    }

    /// Checks that the store refuses two writes on false conditions. If it does not, only
    /// an object is overwritten that no lock has been kept in.
    fn verify(&mut self, path: &Path, body: &Body) -> Result<(), Failure> {
        for (condition, named) in [(None, "If-None-Match: *"), (OTHER_VERSION, "If-Match")] {
            if self.write(path, condition, body)?.is_some() {
                let why = format!(
                    "the store ignores the condition `{named}`: a lock could be held twice"
                );
                return Err(Failure::refused(why, CONDITIONS));
            }
        }
        Ok(())
    }
}

impl Store for Objects {
    fn get(&mut self, key: &Key) -> Result<State, Failure> {
        let path = self.path(key)?;
        let found = self.read(&path)?.transpose()?.and_then(state);
        let none = Failure::transient("the lock's object does not exist yet");
        found.ok_or(Failure { cause: Cause::NotPrepared, ..none })
    }

    fn put(&mut self, key: &Key, expected: &State, next: &Next<'_>) -> Result<Write, Failure> {
        let Some(seen) = &expected.version else { return Ok(Write::Conflict) };
        let value = next.value.map(str::to_owned);
        let body = Body { number: next.number, value, is_verified: true };
        let written = self.write(&self.path(key)?, Some(seen), &body)?;
        Ok(written.map_or(Write::Conflict, |_| Write::Done))
    }

    fn list(&mut self, kind: Kind, after: Option<&OsStr>) -> Result<Page, Failure> {
        let prefix = self.prefix.clone();
        let listed =
            self.ask("list", async |store| store.list_with_delimiter(Some(&prefix)).await)?;
        let ours = |path: Path| {
            let stored = decode(path.filename()?)?;
            Some((name_after(&stored, kind, after)?, path))
        };
        let listed = listed.into_iter().flat_map(|listed| listed.objects);
        let mut listed: Vec<_> = listed.filter_map(|object| ours(object.location)).collect();
        listed.sort();
        let next = listed.get(PAGE).map(|_| listed[PAGE - 1].0.clone());
        let mut entries = Vec::new();
        for (name, path) in listed.into_iter().take(PAGE) {
            // An object of another program is not worth to fail for.
            let found = self.read(&path)?.and_then(Result::ok).and_then(state);
            entries.extend(found.map(|state| (name, state)));
        }
        Ok(Page { entries, next })
    }

    /// Creates the object, verifies the store by it, and notes that in it. Of several processes
    /// that do so at the same time, one notes it.
    fn create_schema(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(key)?;
        let new = Body { number: since_1970(), value: None, is_verified: false };
        let found = match self.read(&path)?.transpose()? {
            None => self.write(&path, None, &new)?.map(|seen| (new, seen)),
            found => found.filter(|(body, _)| !body.is_verified),
        };
        // Another process creates it, or has verified it.
        let Some((body, seen)) = found else { return Ok(()) };
        self.verify(&path, &body)?;
        let free = Body { number: body.number + 1, value: None, is_verified: true };
        self.write(&path, Some(&seen), &free).map(drop)
    }

    fn verify_conditional_writes(&mut self, key: &Key) -> Result<(), Failure> {
        let path = self.path(key)?;
        match self.read(&path)?.transpose()? {
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

/// S3 and Azure compare the ETag, Google the generation.
fn version(e_tag: Option<String>, generation: Option<String>) -> Vec<u8> {
    format!("{}\n{}", e_tag.unwrap_or_default(), generation.unwrap_or_default()).into_bytes()
}

/// The state that an object is in, unless it is not verified yet.
fn state((Body { number, value, is_verified }, version): Seen) -> Option<State> {
    is_verified.then(|| State { version: Some(version), number, value, ..State::default() })
}
