//! Which stores this program was built with. The one place that knows all of them, and all cargo
//! features.

use std::sync::LazyLock;

use super::failure::Failure;
use super::seam::Store;
use crate::store::address::{Scheme, StoreSettings};

/// The version of this program, and the stores that it was built with, as they begin an address.
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let features = [
            ("file", true),
            ("postgres", cfg!(feature = "postgres")),
            ("mysql", cfg!(feature = "mysql")),
            ("dynamodb", cfg!(feature = "dynamodb")),
            ("object-store", cfg!(feature = "object-store")),
        ];
        let is_built_in = |scheme: &Scheme| features.contains(&(scheme.feature(), true));
        let names: Vec<_> = Scheme::all().filter(is_built_in).map(Scheme::name).collect();
        format!("{}\nstores: {}", env!("CARGO_PKG_VERSION"), names.join(", "))
    });
    &TEXT
}

/// The store of an address, without connecting to it.
///
/// # Errors
/// When this program was built without it, or the settings cannot be used.
pub fn open(settings: &StoreSettings) -> Result<Box<dyn Store>, Failure> {
    Ok(match settings.url.scheme() {
        Scheme::Directory => Box::new(super::directory::Directory::new(settings)?),
        #[cfg(feature = "postgres")]
        Scheme::Postgres => Box::new(super::sql::Sql::<super::postgres::Postgres>::new(settings)?),
        #[cfg(feature = "mysql")]
        Scheme::Mysql => Box::new(super::sql::Sql::<super::mysql::MySql>::new(settings)?),
        #[cfg(feature = "dynamodb")]
        Scheme::Dynamodb => Box::new(super::dynamodb::DynamoDb::new(settings)?),
        #[cfg(feature = "object-store")]
        Scheme::S3 | Scheme::Azure | Scheme::Gcs => {
            Box::new(super::object::Objects::new(settings)?)
        }
        #[allow(unreachable_patterns, reason = "a build with all stores leaves none out")]
        scheme => {
            let hint = format!(
                "`cargo install … --features {}`, or a released wheel, which has all stores",
                scheme.feature()
            );
            let why = format!("this program was built without the store `{}`", scheme.name());
            return Err(Failure::permanent(why).with_hint(hint));
        }
    })
}
