use std::time::Duration;

use super::{Access, Credentials, Options};
use crate::backend::failure::Failure;
use crate::backend::network::tls::Roots;
use crate::store::{StoreSettings, StoreUrl};

fn read(url: &str, variables: &[(&str, &str)]) -> Result<Options, Failure> {
    let url = StoreUrl::parse(url).expect(url);
    let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) };
    let variable = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    Options::read(&settings, &variable)
}

fn read_well(url: &str, variables: &[(&str, &str)]) -> Options {
    read(url, variables).unwrap_or_else(|failure| panic!("{url}: {}", failure.why))
}

#[test]
fn the_addresses_of_meltano_s_state_backends_are_understood() {
    let options = read_well("s3://AKIA123:wJal/rX+x%2Fy@my-bucket/meltano/state/", &[]);
    assert_eq!((options.bucket.as_str(), options.prefix.as_str()), ("my-bucket", "meltano/state"));
    let Access::S3 { keys: Some(keys), .. } = options.access else { panic!("keys") };
    assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("AKIA123", "wJal/rX+x/y", None));
    for url in ["azure://states/meltano", "az://states/meltano", "gs://states/meltano", "s3://states//meltano"] {
        let options = read_well(url, &[("AZURE_STORAGE_CONNECTION_STRING", "AccountName=shop;AccountKey=a==")]);
        assert_eq!((options.bucket.as_str(), options.prefix.as_str()), ("states", "meltano"), "{url}");
    }
    assert_eq!(read_well("s3://bucket", &[]).prefix, "");
}

#[test]
fn meltano_s_settings_are_used_where_the_address_says_nothing() {
    let variables = [
        ("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "id"),
        ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "secret"),
        ("MELTANO_STATE_BACKEND_S3_ENDPOINT_URL", "http://minio:9000"),
        ("MELTANO_STATE_BACKEND_AZURE_CONNECTION_STRING", "AccountName=shop;AccountKey=a=="),
    ];
    let Access::S3 { keys: Some(keys), endpoint, .. } = read_well("s3://b", &variables).access else { panic!("keys") };
    assert_eq!((keys.id.as_str(), endpoint.as_deref()), ("id", Some("http://minio:9000")));
    // As in Meltano, whose settings come before what its address says.
    let Access::S3 { keys: Some(keys), .. } = read_well("s3://other:x@b", &variables).access else { panic!("keys") };
    assert_eq!(keys.id, "id");
    let url = "s3://other:x@b?access_key_id=own&secret_access_key=x";
    let Access::S3 { keys: Some(keys), .. } = read_well(url, &variables).access else { panic!("keys") };
    assert_eq!(keys.id, "own");
    assert!(read("s3://other:x@b", &variables[..1]).is_err_and(|failure| failure.why.contains("only one")));
    let Access::Azure(account) = read_well("azure://c", &variables).access else { panic!("an account") };
    assert_eq!((account.name().as_deref(), account.key.as_deref()), (Some("shop"), Some("a==")));
    // Another account's key is of no use.
    let Access::Azure(account) = read_well("azure://c?account=other", &variables).access else { panic!("an account") };
    assert_eq!((account.name().as_deref(), account.key), (Some("other"), None));
}

#[test]
fn meltano_s_settings_for_google_are_a_path_or_what_would_be_there_and_not_both() {
    let path = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_PATH", "/key.json");
    let old = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS", "/old.json");
    let json = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON", "{}");
    let credentials = |url: &str, variables: &[(&str, &str)]| match read(url, variables)?.access {
        Access::Gcs { credentials, .. } => Ok::<_, Failure>(credentials),
        _ => panic!("Google"),
    };
    for (url, variables, expected) in [
        ("gs://b", &[path, old][..], "/key.json"),
        ("gs://b", &[old], "/old.json"),
        ("gs://b?application_credentials=/own.json", &[path, json], "/own.json"),
    ] {
        assert!(matches!(credentials(url, variables), Ok(Some(Credentials::File(path))) if path == expected), "{expected}");
    }
    assert!(matches!(credentials("gs://b", &[json]), Ok(Some(Credentials::Json(text))) if text == "{}"));
    assert!(credentials("gs://b", &[path, json]).is_err());
    for text in ["hunter2", "\"hunter2\"", "{hunter2}"] {
        let failure = credentials("gs://b", &[(json.0, text)]).err().expect(text);
        assert!(failure.why.contains("no JSON object") && !failure.why.contains("hunter2"), "{}", failure.why);
    }
}

#[test]
fn options_say_where_the_store_is() {
    let url = "s3://b/p?region=eu-central-1&endpoint=https://s3.example:9000&path-style=false&ca=/etc/ca.pem";
    let options = read_well(url, &[("AWS_CA_BUNDLE", "/other.pem")]);
    assert_eq!(options.roots, Roots::File("/etc/ca.pem".into()));
    let Access::S3 { keys: None, region, endpoint, is_path_style, .. } = options.access else { panic!("no keys") };
    assert_eq!((region.as_deref(), endpoint.as_deref()), (Some("eu-central-1"), Some("https://s3.example:9000")));
    assert!(!is_path_style);
}

#[test]
fn what_cannot_be_used_is_named_and_nothing_secret_with_it() {
    for (url, part) in [
        ("s3://b?regoin=x", "`regoin`"),
        ("gs://b?region=x", "`region`"),
        ("s3://hunter2@b/p", "without its secret"),
        ("s3://hunter2:@b/p", "without its secret"),
        ("azure://me:hunter2@c/p", "a user"),
        ("s3:///p", "no bucket"),
        ("s3://b:1/p", "no name of one"),
        ("s3://b,c/p", "no name of one"),
        ("s3://b/../p", "prefix"),
        ("s3://b?path_style=hunter2", "path_style"),
        ("s3://b?access_key_id=hunter2", "only one"),
        ("s3://a b/p", "no name of one"),
        ("s3://b?region=eu west", "region"),
        ("s3://b?endpoint=nonsense", "no address of a server"),
        ("s3://b?endpoint=ftp://hunter2", "no address of a server"),
        ("s3://b?endpoint=http://", "no address of a server"),
        ("s3://b?endpoint=http://h:99999", "no address of a server"),
        ("s3://b?endpoint=http://999.1.1.1", "no address of a server"),
        ("s3://b?endpoint=http://xn--a", "no address of a server"),
        ("gs://b?endpoint=http://a b", "no address of a server"),
        ("azure://c?account=a/b", "account"),
        ("s3://hunter2%0A:x@b/p", "characters that no key has"),
        ("s3://a:x@b/p?session_token=hunter2%20", "characters that no key has"),
    ] {
        let failure = read(url, &[]).err().expect(url);
        assert!(failure.why.contains(part) && !failure.why.contains("hunter2"), "{url}: {}", failure.why);
    }
}

#[test]
fn what_the_environment_says_is_looked_at_before_it_is_used() {
    let nonsense = ["AWS_ENDPOINT_URL", "AWS_METADATA_ENDPOINT", "AZURE_AUTHORITY_HOST", "AZURE_MSI_ENDPOINT", "GOOGLE_BASE_URL"];
    let others = [
        ("AWS_REGION", "eu west"),
        ("AWS_SESSION_TOKEN", "hunter2\nx"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/a b"),
        ("AZURE_TENANT_ID", "a b"),
        ("GCE_METADATA_HOST", "h\n"),
        // The crate reads it by itself, and sends it as it is.
        ("IDENTITY_HEADER", "hunter2\n"),
    ];
    for (name, value) in nonsense.map(|name| (name, "nonsense")).into_iter().chain(others) {
        let own = |prefix: &str| name.starts_with(prefix);
        let url = if own("AWS_") {
            "s3://b"
        } else if own("G") {
            "gs://b"
        } else {
            "azure://c?account=a"
        };
        let failure = read(url, &[(name, value)]).err().expect(name);
        assert!(failure.why.contains(name) && !failure.why.contains("hunter2"), "{}", failure.why);
        // Other clouds' are no business of this one.
        let other = if own("AWS_") { "gs://b" } else { "s3://b" };
        read_well(other, &[(name, value)]);
    }
}

#[test]
fn the_line_end_of_a_mounted_secret_is_not_taken_for_a_part_of_it() {
    read_well(
        "s3://b",
        &[("AWS_ACCESS_KEY_ID", "AKIA\n"), ("AWS_REGION", "eu-west-1\r\n"), ("AWS_ENDPOINT_URL", "http://a:1\n")],
    );
    let variables =
        [("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "id\n"), ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "x\n")];
    let Access::S3 { keys: Some(keys), .. } = read_well("s3://b", &variables).access else { panic!("keys") };
    assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("id", "x"));
}

#[test]
fn a_container_s_agent_is_asked_only_where_nobody_else_can_listen() {
    let agent = |variables: &[(&str, &str)]| match read("s3://b", variables)?.access {
        Access::S3 { agent, .. } => Ok::<_, Failure>(agent),
        _ => panic!("S3"),
    };
    let is_asked = |url: &str| agent(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)]).is_ok_and(|agent| agent.is_some());
    for url in ["http://169.254.170.23/v1/credentials", "http://127.0.0.1:51679/", "http://[::1]/?a=b", "https://a.example/"] {
        assert!(is_asked(url), "{url}");
    }
    for url in ["http://a.example/", "http://169.254.169.254/", "nonsense", "ftp://127.0.0.1/"] {
        assert!(!is_asked(url), "{url}");
    }
    let relative = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x");
    let found = agent(&[relative]).map_err(|failure| failure.why).expect("an address").expect("an agent");
    assert_eq!(found.url.to_string(), "http://169.254.170.2/v2/x");
    for other in [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "x")] {
        assert!(agent(&[relative, other]).is_ok_and(|agent| agent.is_none()));
    }
}
