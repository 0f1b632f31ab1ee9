use std::time::Duration;

use super::{Access, Options};
use crate::store::{StoreSettings, StoreUrl};

#[test]
fn an_address_that_cannot_be_used_is_refused_without_its_secret() {
    for (text, why) in [
        ("gs://b?region=x", "`region`"),
        ("s3://hunter2@b/p", "without its secret"),
        ("s3://hunter2:@b/p", "without its secret"),
        ("azure://me:hunter2@c/p", "a user"),
        ("s3:///p", "no bucket"),
        ("s3://b:1/p", "not a valid name"),
        ("s3://b%2Fc/p", "not a valid name"),
        ("s3://b/%2E%2E/p", "prefix"),
        ("s3://b?path_style=hunter2", "path_style"),
        ("s3://b?access_key_id=hunter2", "only one"),
        ("s3://b?access_key_id=hunter2&secret_access_key=x&profile=etl", "both"),
        ("gs://b?endpoint=ftp://hunter2", "not the URL of a server"),
        ("azure://c?account=a/b", "account"),
    ] {
        let url = StoreUrl::parse(text).expect(text);
        let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) };
        let failure = Options::of(&settings).err().expect(text);
        assert!(failure.why.contains(why) && !failure.why.contains("hunter2"), "{text}: {}", failure.why);
    }
}

#[test]
fn the_secret_of_a_key_may_be_in_the_password_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a/b\n").expect("it can be written");
    let url = StoreUrl::parse("s3://AKIA@b/p").expect("an address");
    let settings = StoreSettings { url, password_file: Some(file.path().to_owned()), timeout: Duration::from_secs(5) };
    let Ok(Options { access: Access::S3 { wanted, .. }, .. }) = Options::of(&settings) else { panic!("it is refused") };
    assert_eq!(wanted.keys, Some(("AKIA".to_owned(), "a/b".to_owned(), None)));
}
