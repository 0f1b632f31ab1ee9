//! Which stores this program was built with. The one place that knows all of them, and all cargo features.

use std::ffi::{OsStr, OsString};

use super::Backend;
use super::remote::Failure;
use super::remote::Remote;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
use super::seam::{Key, StoreRegister, held};
use crate::store::{Scheme, StoreSettings};

/// What makes the backend of a lock, given its name and what it is called in messages.
type Open = fn(&StoreSettings, &OsStr, String) -> Result<Box<dyn Backend>, Failure>;

/// How to use a kind of store.
pub struct Engine {
    pub open: Open,
    /// The names of all locks that somebody holds.
    pub names: fn(&StoreSettings) -> Result<Vec<OsString>, Failure>,
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
                schema: None,
            }),
            #[cfg(feature = "postgres")]
            Scheme::Postgres => Ok(Self {
                open: |settings, name, location| {
                    Ok(Box::new(Remote::new(super::postgres::Table::new(settings, name)?, location)))
                },
                names: |settings| super::postgres::names(settings).map(texts),
                schema: Some(super::postgres::SCHEMA),
            }),
            #[cfg(feature = "mysql")]
            Scheme::Mysql => Ok(Self {
                open: |settings, name, location| Ok(Box::new(Remote::new(super::mysql::Table::new(settings, name)?, location))),
                names: |settings| super::mysql::names(settings).map(texts),
                schema: Some(super::mysql::SCHEMA),
            }),
            #[cfg(feature = "dynamodb")]
            Scheme::Dynamodb => Ok(Self {
                open: |settings, name, location| {
                    let store = super::dynamodb::DynamoDb::new(settings)?;
                    Ok(Box::new(Remote::new(StoreRegister::new(store, Key::lock(name)), location)))
                },
                names: |settings| held(&mut super::dynamodb::DynamoDb::new(settings)?),
                schema: None,
            }),
            #[cfg(feature = "object-store")]
            Scheme::S3 | Scheme::Azure | Scheme::Gcs => Ok(Self {
                open: |settings, name, location| {
                    let store = super::object::ObjectStore::new(settings)?;
                    Ok(Box::new(Remote::new(StoreRegister::new(store, Key::lock(name)), location)))
                },
                names: |settings| held(&mut super::object::ObjectStore::new(settings)?),
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

/// The store of an address, without connecting to it.
///
/// # Errors
/// When this program was built without it, or the settings cannot be used.
pub fn open_store(settings: &StoreSettings) -> Result<Box<dyn super::seam::Store>, Failure> {
    match settings.url.scheme() {
        #[cfg(feature = "dynamodb")]
        Scheme::Dynamodb => Ok(Box::new(super::dynamodb::DynamoDb::new(settings)?)),
        #[cfg(feature = "object-store")]
        Scheme::S3 | Scheme::Azure | Scheme::Gcs => Ok(Box::new(super::object::ObjectStore::new(settings)?)),
        scheme => Err(Failure::not_built(scheme)),
    }
}

/// Names that are texts, in stores that keep no others.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn texts(names: Vec<String>) -> Vec<OsString> {
    names.into_iter().map(Into::into).collect()
}
