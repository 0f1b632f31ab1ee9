//! Which stores this program was built with. The one place that knows all of them, and all cargo features.

use std::ffi::{OsStr, OsString};

use super::Backend;
use super::remote::Failure;
use super::remote::Remote;
use super::seam::Store;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use super::seam::{Key, StoreRegister};
use crate::store::{Scheme, StoreSettings};

/// What makes the backend of a lock, given its name and what it is called in messages.
type Open = fn(&StoreSettings, &OsStr, String) -> Result<Box<dyn Backend>, Failure>;

/// What opens a store.
type OpenStore = fn(&StoreSettings) -> Result<Box<dyn Store>, Failure>;

/// How to use a kind of store.
pub struct Engine {
    pub open: Open,
    /// The names of all locks that somebody holds.
    pub names: fn(&StoreSettings) -> Result<Vec<OsString>, Failure>,
    /// What opens it as a store; `None` where that is not behind the seam yet.
    pub store: Option<OpenStore>,
    /// The statements that make the place where locks live; `None` where it is not made by statements.
    pub schema: Option<&'static str>,
}

impl Engine {
    /// Of these addresses; fails where this program was built without it.
    pub fn of(scheme: Scheme) -> Result<Self, Failure> {
        match scheme {
            Scheme::Directory => Ok(Self {
                open: |settings, name, location| {
                    Ok(Box::new(Remote::new(super::directory::SharedFile::new(settings, name)?, location)))
                },
                names: super::directory::names,
                store: None,
                schema: None,
            }),
            #[cfg(feature = "postgres")]
            Scheme::Postgres => Ok(Self {
                open: |settings, name, location| {
                    let store = super::postgres::Postgres::new(settings)?;
                    Ok(Box::new(Remote::new(StoreRegister::new(store, Key::lock(name)), location)))
                },
                names: super::postgres::names,
                store: Some(|settings| Ok(Box::new(super::postgres::Postgres::new(settings)?))),
                schema: Some(super::postgres::SCHEMA),
            }),
            #[cfg(feature = "mysql")]
            Scheme::Mysql => Ok(Self {
                open: |settings, name, location| {
                    let store = super::mysql::MySql::new(settings)?;
                    Ok(Box::new(Remote::new(StoreRegister::new(store, Key::lock(name)), location)))
                },
                names: super::mysql::names,
                store: Some(|settings| Ok(Box::new(super::mysql::MySql::new(settings)?))),
                schema: Some(super::mysql::SCHEMA),
            }),
            #[cfg(feature = "dynamodb")]
            Scheme::Dynamodb => Ok(Self {
                open: |settings, name, location| {
                    Ok(Box::new(Remote::new(super::dynamodb::Table::new(settings, name)?, location)))
                },
                names: |settings| super::dynamodb::names(settings).map(texts),
                store: None,
                schema: None,
            }),
            #[cfg(feature = "object-store")]
            Scheme::S3 | Scheme::Azure | Scheme::Gcs => Ok(Self {
                open: |settings, name, location| Ok(Box::new(Remote::new(super::object::Object::new(settings, name)?, location))),
                names: |settings| super::object::names(settings).map(texts),
                store: None,
                schema: None,
            }),
            #[cfg(not(feature = "postgres"))]
            Scheme::Postgres => Err(Failure::not_built(scheme)),
            #[cfg(not(feature = "mysql"))]
            Scheme::Mysql => Err(Failure::not_built(scheme)),
            #[cfg(not(feature = "dynamodb"))]
            Scheme::Dynamodb => Err(Failure::not_built(scheme)),
            #[cfg(not(feature = "object-store"))]
            Scheme::S3 | Scheme::Azure | Scheme::Gcs => Err(Failure::not_built(scheme)),
        }
    }
}

/// Names that are texts, in stores that keep no others.
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
fn texts(names: Vec<String>) -> Vec<OsString> {
    names.into_iter().map(Into::into).collect()
}
