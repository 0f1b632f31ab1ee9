//! Without the features for stores, the program is whole all the same. That is how Meltano installs
//! the example's mutex.

use std::path::Path;

use crate::CHECKOUT;
use crate::support::{Locks, ended};

#[test]
fn a_store_that_was_left_out_is_named_with_the_way_to_get_it() {
    let installed = "target/meltano/project/.meltano/utilities/dbtmutex/venv/bin/serializer";
    let program = Path::new(CHECKOUT).join(installed);
    let program = program.to_str().expect("UTF-8");
    let locks = Locks::new();
    for (url, feature) in [
        ("postgresql+psycopg://me:hunter2@db/x", "postgres"),
        ("mysql+pymysql://me:hunter2@db/x", "mysql"),
        ("dynamodb://x", "dynamodb"),
        ("s3://x", "object-store"),
    ] {
        for command in [
            &["lock", "-n"][..],
            &["status", "--all"],
            &["initialize", "--print-sql"],
            &["run", "true"],
        ] {
            let ended = ended(locks.command(program).args(command).env("SERIALIZER_STORE", url));
            assert_eq!(ended.code, 2, "{ended:?}");
            let how = format!("--features {feature}`");
            assert!(
                ended.stderr.contains("built without the store") && ended.stderr.contains(&how),
                "{ended:?}"
            );
            assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
        }
    }
}
