//! Which stores this program was built with. The one place that knows all of them, and all cargo
//! features.

use std::sync::LazyLock;

use super::failure::{Failure, Result};
use super::seam::Store;
use crate::store::address::{Scheme, StoreSettings};

/// The version of this program, and the stores that it was built with, as they begin an address.
pub fn version() -> &'static str {
    const OBJECTS: bool = cfg!(feature = "object-store");
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let stores = [
            (Scheme::Directory, true),
            (Scheme::Postgres, cfg!(feature = "postgres")),
            (Scheme::Mysql, cfg!(feature = "mysql")),
            (Scheme::Dynamodb, cfg!(feature = "dynamodb")),
            (Scheme::S3, OBJECTS),
            (Scheme::Azure, OBJECTS),
            (Scheme::Gcs, OBJECTS),
        ];
        let names = stores.into_iter().filter(|(_, is_built_in)| *is_built_in);
        let names: Vec<_> = names.map(|(scheme, _)| scheme.name()).collect();
        format!("{}\nstores: {}", env!("CARGO_PKG_VERSION"), names.join(", "))
    });
    &TEXT
}

/// The store of an address, without connecting to it. Fails if this program was built without that
/// store, or if a setting is invalid.
pub fn open(settings: &StoreSettings) -> Result<Box<dyn Store>> {
    Ok(match settings.url.scheme {
        Scheme::Directory => Box::new(super::directory::Directory::new(settings)?),
        #[cfg(feature = "postgres")]
        Scheme::Postgres => Box::new(super::sql::Sql::<super::postgres::Postgres>::new(settings)?),
        #[cfg(feature = "mysql")]
        Scheme::Mysql => Box::new(super::sql::Sql::<super::mysql::MySql>::new(settings)?),
        #[cfg(feature = "dynamodb")]
        Scheme::Dynamodb => Box::new(super::dynamodb::DynamoDb::new(settings)?),
        #[cfg(feature = "object-store")]
        Scheme::S3 | Scheme::Azure | Scheme::Gcs => Box::new(super::object::open(settings)?),
        #[allow(unreachable_patterns, reason = "a build with all stores leaves none out")]
        scheme => {
            let why = format!("this program was built without the store `{}`", scheme.name());
            let of_objects = [Scheme::S3, Scheme::Azure, Scheme::Gcs].contains(&scheme);
            let feature = if of_objects { "object-store" } else { scheme.name() };
            let hint = format!("a wheel has all stores; or `cargo install … --features {feature}`");
            return Err(Failure::refused(why, hint));
        }
    })
}
