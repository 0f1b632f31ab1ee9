//! Locks in object stores: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage. An object for each name.
//!
//! An object is made if there is none (`If-None-Match: *`) and replaced if it is still what was read (`If-Match`), and never removed: so
//! its number never goes back, and a write that arrives late finds that its condition does not hold any more. All rests on the store's
//! keeping to conditions, and some that speak S3's protocol ignore them. So a new object is not used before it has been tried out
//! ([`Object::try_out`]).
//!
//! There is no clock that all hosts read, and nobody tells of changes: leases are watched, and who waits looks now and then, which costs
//! money.

mod answer;
mod azure;
mod body;
mod credentials;
mod environment;
mod failure;
mod http;
mod name;
mod options;
mod store;
mod wire;
mod words;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

use self::body::{Body, MAX_BODY, State, foreign};
use self::failure::{CONDITIONS, Question, Refusal};
use self::store::Store;
use super::failure::{Cause, Failure, Register, Row};
use super::key::key;
use super::looks::Looks;
use super::network::tls;
use super::{Write, plain};
use crate::record::random_token;
use crate::store::StoreSettings;

/// How certificates are spoken of.
const WORDS: tls::Words = tls::Words {
    roots: "`?ca=…` at the end of the address, or `AWS_CA_BUNDLE`, names a file with the certificate of whoever signed the server's",
    key: "",
};

/// One lock's object.
pub struct Object {
    path: Path,
    store: Store,
    looks: Looks,
}

/// The names of all locks that somebody holds.
pub fn names(settings: &StoreSettings) -> Result<Vec<String>, Failure> {
    let mut store = Store::new(settings)?;
    let prefix = store.prefix()?;
    let listed = store.ask(Question::List, async |client| client.list_with_delimiter(prefix.as_ref()).await);
    let listed = match listed {
        Ok(listed) => listed,
        Err(Refusal::Missing) => return Ok(Vec::new()),
        Err(refusal) => return Err(unexpected(refusal)),
    };
    let mut names = Vec::new();
    for object in listed.objects {
        let Some(name) = object.location.filename().and_then(name::decode) else { continue };
        // What is there beside locks is not worth to fail for.
        if let Ok(Some((Body { state: State::Held(_), .. }, _))) = read(&mut store, &object.location) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Object {
    /// Does not connect yet.
    pub fn new(settings: &StoreSettings, name: &OsStr) -> Result<Self, Failure> {
        let store = Store::new(settings)?;
        Ok(Self { path: store.path(&name::encode(&key(name)))?, store, looks: Looks::paid() })
    }

    /// Writes under a condition, and tells which state that has made.
    fn put(&mut self, mode: PutMode, body: &Body) -> Result<Vec<u8>, Refusal> {
        let question = if matches!(mode, PutMode::Create) { Question::Create } else { Question::Replace };
        let nonce =
            random_token().map_err(|error| Failure::permanent(format!("cannot draw a token: {}", plain(&error.into()))))?;
        let payload = PutPayload::from(body.to_text(&nonce));
        let Self { path, store, .. } = self;
        let put = store.ask(question, async |client| client.put_opts(path, payload, mode.into()).await)?;
        Ok(version(put.e_tag.as_deref(), put.version.as_deref()))
    }

    /// Tries whether the store refuses what it has to refuse. Where it does not, nothing but the place of a lock is overwritten that
    /// nobody has ever held.
    fn try_out(&mut self, seen: &[u8], body: &Body) -> Result<(), Failure> {
        let ignored = |header: &str| {
            let failure =
                Failure::permanent(format!("the store ignores the condition `{header}`, so that two could hold a lock"));
            failure.with_hint(CONDITIONS)
        };
        match self.put(PutMode::Create, body) {
            Err(Refusal::Conflict) => {}
            Ok(_) => return Err(ignored("If-None-Match: *")),
            Err(refusal) => return Err(unexpected(refusal)),
        }
        match self.put(PutMode::Update(update(&other_version(seen))), body) {
            Err(Refusal::Conflict) => Ok(()),
            Ok(_) => Err(ignored("If-Match")),
            Err(refusal) => Err(unexpected(refusal)),
        }
    }
}

impl Register for Object {
    fn read(&mut self) -> Result<Row, Failure> {
        let found = read(&mut self.store, &self.path)?;
        match found {
            None | Some((Body { state: State::New, .. }, _)) => Err(not_prepared()),
            Some((Body { number, state }, version)) => {
                let text = if let State::Held(text) = state { Some(text) } else { None };
                Ok(Row { version: Some(version), number, text, now: None })
            }
        }
    }

    fn write(&mut self, seen: &Row, next: u64, text: Option<&str>) -> Result<Write, Failure> {
        let Some(seen) = &seen.version else { return Ok(Write::Conflict) };
        let state = text.map_or(State::Free, |text| State::Held(text.to_owned()));
        match self.put(PutMode::Update(update(seen)), &Body { number: next, state }) {
            Ok(_) => Ok(Write::Done),
            // Somebody has removed it, or written.
            Err(Refusal::Conflict | Refusal::Missing) => Ok(Write::Conflict),
            Err(Refusal::Failed(failure)) => Err(failure),
        }
    }

    /// Makes the object, tries the store out by it, and says in it that this was done. Of several that do so at the same time, one says it.
    fn prepare(&mut self) -> Result<(), Failure> {
        let place = Body { number: first_number(), state: State::New };
        let (seen, number) = match read(&mut self.store, &self.path)? {
            None => match self.put(PutMode::Create, &place) {
                Ok(seen) => (seen, place.number),
                Err(Refusal::Conflict) => return Ok(()),
                Err(refusal) => return Err(unexpected(refusal)),
            },
            Some((Body { number, state: State::New }, seen)) => (seen, number),
            Some(_) => return Ok(()),
        };
        self.try_out(&seen, &place)?;
        match self.put(PutMode::Update(update(&seen)), &Body { number: number + 1, state: State::Free }) {
            Ok(_) | Err(Refusal::Conflict | Refusal::Missing) => Ok(()),
            Err(Refusal::Failed(failure)) => Err(failure),
        }
    }

    fn prove(&mut self) -> Result<(), Failure> {
        match read(&mut self.store, &self.path)? {
            // Who is tried out is free: otherwise somebody else does the same at this moment.
            Some((body @ Body { state: State::Free | State::New, .. }, seen)) => self.try_out(&seen, &body),
            Some(_) | None => Ok(()),
        }
    }

    fn wait(&mut self, limit: Duration, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.looks.sleep(limit, fds)
    }

    fn leave(&mut self) {
        self.looks.end();
    }

    fn repair(&self) -> &'static str {
        "deleting its object"
    }

    fn disconnect(&mut self) {
        self.store.disconnect();
    }
}

/// What an object says, and which state that is; `None` where there is none.
fn read(store: &mut Store, path: &Path) -> Result<Option<(Body, Vec<u8>)>, Failure> {
    let got = store.ask(Question::Read, async |client| {
        let got = client.get(path).await?;
        let seen = version(got.meta.e_tag.as_deref(), got.meta.version.as_deref());
        Ok((got.bytes().await?, seen))
    });
    match got {
        Ok((bytes, _)) if bytes.len() > MAX_BODY => Err(foreign()),
        Ok((bytes, seen)) => Ok(Some((Body::parse(&bytes)?, seen))),
        Err(Refusal::Missing) => Ok(None),
        Err(refusal) => Err(unexpected(refusal)),
    }
}

fn not_prepared() -> Failure {
    Failure { cause: Cause::NotPrepared, ..Failure::transient("the lock's object has not been made yet") }
}

fn unexpected(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Failed(failure) => failure,
        // Looking again tells.
        Refusal::Missing | Refusal::Conflict => Failure::transient("somebody else has changed it at the same moment"),
    }
}

/// S3 and Azure go by the ETag, Google by the generation.
fn version(e_tag: Option<&str>, generation: Option<&str>) -> Vec<u8> {
    format!("{}\n{}", e_tag.unwrap_or(""), generation.unwrap_or("")).into_bytes()
}

fn update(version: &[u8]) -> UpdateVersion {
    let text = String::from_utf8_lossy(version);
    let (e_tag, generation) = text.split_once('\n').unwrap_or((&text, ""));
    let there = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    UpdateVersion { e_tag: there(e_tag), version: there(generation) }
}

/// One that looks alike and is not this: another last digit in each of its parts.
fn other_version(version: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(version);
    let other = |part: &str| match part.rfind(|c: char| c.is_ascii_hexdigit()) {
        Some(at) => format!("{}{}{}", &part[..at], if &part[at..=at] == "1" { '2' } else { '1' }, &part[at + 1..]),
        None => part.to_owned(),
    };
    text.split('\n').map(other).collect::<Vec<_>>().join("\n").into_bytes()
}

/// A little less than what the first acquisition would begin with.
fn first_number() -> u64 {
    super::failure::since_1970()
}

#[cfg(test)]
mod tests {
    use super::{other_version, update, version};

    #[test]
    fn what_a_condition_is_tried_with_looks_like_a_version_and_is_another() {
        for (e_tag, generation, expected) in [
            (Some("\"5f0c\""), None, "\"5f01\"\n"),
            (Some("\"0x8DC1\""), Some(""), "\"0x8DC2\"\n"),
            (Some("CJ0="), Some("1763798400123"), "CJ1=\n1763798400121"),
        ] {
            let seen = version(e_tag, generation);
            let other = other_version(&seen);
            assert_eq!(String::from_utf8_lossy(&other), expected);
            assert_ne!(update(&seen).e_tag, update(&other).e_tag);
        }
    }
}
