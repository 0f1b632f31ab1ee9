use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use super::{Access, Options};
use crate::backend::aws::Wanted;
use crate::backend::failure::Failure;
use crate::store::{StoreSettings, StoreUrl};

type Environment<'a> = &'a [(&'a str, &'a str)];

fn read(url: &str, variables: Environment<'_>) -> Result<Options, Failure> {
    let url = StoreUrl::parse(url).expect(url);
    let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) };
    let all = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Options::read(&settings, all.collect())
}

fn read_well(url: &str, variables: Environment<'_>) -> Options {
    read(url, variables).unwrap_or_else(|failure| panic!("{url}: {}", failure.why))
}

fn s3(url: &str, variables: Environment<'_>) -> Wanted {
    let Access::S3 { wanted, .. } = read_well(url, variables).access else { panic!("S3") };
    wanted
}

fn key_id(wanted: &Wanted) -> Option<&str> {
    wanted.keys.as_ref().map(|(id, ..)| id.as_str())
}

fn azure(url: &str, variables: Environment<'_>) -> MicrosoftAzureBuilder {
    let Access::Azure(builder) = read_well(url, variables).access else { panic!("Azure") };
    *builder
}

fn google(url: &str, variables: Environment<'_>) -> GoogleCloudStorageBuilder {
    let Access::Gcs(builder) = read_well(url, variables).access else { panic!("Google") };
    *builder
}

const CONNECTION: (&str, &str) = ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=shop;AccountKey=a==");

#[test]
fn the_addresses_of_meltano_s_state_backends_are_understood() {
    let options = read_well("s3://AKIA123:wJal/rX+x%2Fy@my-bucket/meltano/state/", &[]);
    assert_eq!((options.bucket.as_str(), options.prefix.as_ref()), ("my-bucket", "meltano/state"));
    let Access::S3 { wanted, .. } = options.access else { panic!("S3") };
    assert_eq!(wanted.keys, Some(("AKIA123".to_owned(), "wJal/rX+x/y".to_owned(), None)));
    for url in ["azure://states/meltano", "az://states/meltano", "gs://states/meltano", "s3://states//meltano"] {
        let options = read_well(url, &[CONNECTION]);
        assert_eq!((options.bucket.as_str(), options.prefix.as_ref()), ("states", "meltano"), "{url}");
    }
    assert_eq!(read_well("s3://bucket", &[]).prefix.as_ref(), "");
}

#[test]
fn meltano_s_settings_are_used_where_the_address_says_nothing() {
    let variables = [
        ("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "id"),
        ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "secret"),
        ("MELTANO_STATE_BACKEND_S3_ENDPOINT_URL", "http://minio:9000"),
        ("MELTANO_STATE_BACKEND_AZURE_CONNECTION_STRING", "AccountName=shop;AccountKey=a=="),
    ];
    let wanted = s3("s3://b", &variables);
    assert_eq!((key_id(&wanted), wanted.endpoint.as_deref()), (Some("id"), Some("http://minio:9000")));
    // As in Meltano, its settings come before its address.
    assert_eq!(key_id(&s3("s3://other:x@b", &variables)), Some("id"));
    let url = "s3://other:x@b?access_key_id=own&secret_access_key=x";
    assert_eq!(key_id(&s3(url, &variables)), Some("own"));
    let one = read("s3://other:x@b", &variables[..1]);
    assert!(one.is_err_and(|failure| failure.why.contains("only one")));
    let value = |url: &str, key| azure(url, &variables).get_config_value(&key);
    assert_eq!(value("azure://c", AzureConfigKey::AccountName).as_deref(), Some("shop"));
    assert_eq!(value("azure://c", AzureConfigKey::AccessKey).as_deref(), Some("a=="));
    // Another account's key is of no use.
    let other = "azure://c?account=other";
    assert_eq!(value(other, AzureConfigKey::AccountName).as_deref(), Some("other"));
    assert_eq!(value(other, AzureConfigKey::AccessKey), None);
}

#[test]
fn connection_strings_say_where_an_account_is_and_how_to_use_it() {
    use AzureConfigKey::{AccessKey, AccountName, Endpoint, SasKey};
    let shop = "https://shop.blob.core.windows.net";
    for (text, key, sas) in [
        (
            "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=a+b/c==;EndpointSuffix=core.windows.net",
            Some("a+b/c=="),
            None,
        ),
        ("BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=2&sig=a%3D", None, Some("sv=2&sig=a%3D")),
    ] {
        let builder = azure("azure://c", &[("AZURE_STORAGE_CONNECTION_STRING", text), ("AZURE_STORAGE_ACCOUNT_KEY", "other==")]);
        let value = |key| builder.get_config_value(&key);
        assert_eq!((value(AccountName).as_deref(), value(Endpoint).as_deref()), (Some("shop"), Some(shop)));
        assert_eq!((value(AccessKey).as_deref(), value(SasKey).as_deref()), (key, sas));
    }
    for text in ["hunter2", "AccountKey=hunter2", "a=b;hunter2"] {
        let failure = read("azure://c", &[("AZURE_STORAGE_CONNECTION_STRING", text)]).err().expect(text);
        assert!(!failure.why.contains("hunter2"), "{}", failure.why);
    }
}

#[test]
fn meltano_s_settings_for_google_are_a_path_or_its_content_and_not_both() {
    let path = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_PATH", "/key.json");
    let old = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS", "/old.json");
    let json = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON", "{}");
    for (url, variables, expected) in [
        ("gs://b", &[path, old][..], "/key.json"),
        ("gs://b", &[old], "/old.json"),
        ("gs://b?application_credentials=/own.json", &[path, json], "/own.json"),
    ] {
        let found = google(url, variables).get_config_value(&GoogleConfigKey::ApplicationCredentials);
        assert_eq!(found.as_deref(), Some(expected));
    }
    // The variables of Google's own tools come later.
    let other = ("GOOGLE_SERVICE_ACCOUNT", "/other.json");
    let builder = google("gs://b", &[json, other]);
    assert_eq!(builder.get_config_value(&GoogleConfigKey::ServiceAccountKey).as_deref(), Some("{}"));
    assert_eq!(builder.get_config_value(&GoogleConfigKey::ServiceAccount), None);
    assert!(read("gs://b", &[path, json]).is_err());
    for text in ["hunter2", "\"hunter2\"", "{hunter2}"] {
        let failure = read("gs://b", &[(json.0, text)]).err().expect(text);
        let is_said = failure.why.contains("not a JSON object");
        assert!(is_said && !failure.why.contains("hunter2"), "{}", failure.why);
    }
}

#[test]
fn options_say_where_the_store_is() {
    let url = "s3://b/p?region=eu-central-1&endpoint=https://s3.example:9000&path-style=false&ca=/etc/ca.pem&profile=etl";
    let options = read_well(url, &[("AWS_CA_BUNDLE", "/other.pem")]);
    assert_eq!(options.roots.as_deref(), Some("/etc/ca.pem".as_ref()));
    let Access::S3 { wanted, is_path_style, .. } = options.access else { panic!("S3") };
    assert_eq!(wanted.region.as_deref(), Some("eu-central-1"));
    assert_eq!(wanted.endpoint.as_deref(), Some("https://s3.example:9000"));
    assert_eq!((wanted.profile.as_deref(), wanted.keys.is_none(), is_path_style), (Some("etl"), true, false));
}

#[test]
fn no_variable_replaces_the_bucket_of_the_address() {
    let variables = ["AWS_BUCKET", "AWS_BUCKET_NAME", "GOOGLE_BUCKET", "GOOGLE_BUCKET_NAME", "AZURE_CONTAINER_NAME"];
    let variables: Vec<_> = variables.map(|name| (name, "other")).into_iter().chain([CONNECTION]).collect();
    let Access::S3 { builder, .. } = read_well("s3://locks/p", &variables).access else { panic!("S3") };
    assert_eq!(builder.get_config_value(&AmazonS3ConfigKey::Bucket).as_deref(), Some("locks"));
    let builder = google("gs://locks/p", &variables);
    assert_eq!(builder.get_config_value(&GoogleConfigKey::Bucket).as_deref(), Some("locks"));
    let builder = azure("az://locks/p", &variables);
    assert_eq!(builder.get_config_value(&AzureConfigKey::ContainerName).as_deref(), Some("locks"));
}

#[test]
fn settings_for_encryption_at_rest_are_passed_on() {
    let variables = [
        ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"),
        ("AWS_SSE_KMS_KEY_ID", "arn:aws:kms:x\n"),
        ("AWS_ENDPOINT_URL", "http://minio:9000"),
    ];
    let Access::S3 { builder, .. } = read_well("s3://b", &variables).access else { panic!("S3") };
    let value = |name: &str| builder.get_config_value(&name.parse::<AmazonS3ConfigKey>().expect(name));
    assert_eq!(value("aws_server_side_encryption").as_deref(), Some("aws:kms"));
    assert_eq!(value("aws_sse_kms_key_id").as_deref(), Some("arn:aws:kms:x"));
    // Where the store is, is found otherwise.
    assert_eq!(value("aws_endpoint_url"), None);
    let url = "azure://c?account=a&account_key=a==";
    let key = azure(url, &[("AZURE_STORAGE_ENCRYPTION_KEY", "a==")]).get_config_value(&AzureConfigKey::EncryptionKey);
    assert_eq!(key.as_deref(), Some("a=="));
}

#[test]
fn an_address_that_cannot_be_used_is_refused_without_its_secret() {
    let invalid = "not a valid name";
    let endpoint = "not the URL of a server";
    for (url, part) in [
        ("s3://b?regoin=x", "`regoin`"),
        ("gs://b?region=x", "`region`"),
        ("s3://hunter2@b/p", "without its secret"),
        ("s3://hunter2:@b/p", "without its secret"),
        ("azure://me:hunter2@c/p", "a user"),
        ("s3:///p", "no bucket"),
        ("s3://b:1/p", invalid),
        ("s3://b,c/p", invalid),
        ("s3://b%2Fc/p", invalid),
        ("s3://b/%2E%2E/p", "prefix"),
        ("s3://b?path_style=hunter2", "path_style"),
        ("s3://b?access_key_id=hunter2", "only one"),
        ("s3://b?access_key_id=hunter2&secret_access_key=x&profile=etl", "both"),
        ("s3://a b/p", "not valid"),
        ("s3://b?endpoint=nonsense", endpoint),
        ("s3://b?endpoint=ftp://hunter2", endpoint),
        ("s3://b?endpoint=http://", endpoint),
        ("s3://b?endpoint=http://h:99999", endpoint),
        ("s3://b?endpoint=http://999.1.1.1", endpoint),
        ("s3://b?endpoint=http://xn--a", endpoint),
        ("gs://b?endpoint=http://a b", endpoint),
        ("azure://c?account=a/b", "account"),
    ] {
        let failure = read(url, &[]).err().expect(url);
        let is_said = failure.why.contains(part);
        assert!(is_said && !failure.why.contains("hunter2"), "{url}: {}", failure.why);
    }
}

#[test]
fn the_line_end_of_a_mounted_secret_is_cut() {
    let variables = [
        ("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "id\n"),
        ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "x\r\n"),
        ("AWS_REGION", "eu-west-1\n"),
        ("AWS_ENDPOINT_URL", "http://a:1\n"),
    ];
    assert_eq!(s3("s3://b", &variables).keys, Some(("id".to_owned(), "x".to_owned(), None)));
}
