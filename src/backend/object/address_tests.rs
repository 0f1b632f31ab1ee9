use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use super::{Access, Options};
use crate::backend::failure::Failure;
use crate::store::{StoreSettings, StoreUrl};

type Variables<'a> = &'a [(&'a str, &'a str)];

fn read(url: &str, variables: Variables<'_>) -> Result<Options, Failure> {
    let url = StoreUrl::parse(url).expect(url);
    let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) };
    let all = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Options::read(&settings, all.collect())
}

fn access(url: &str, variables: Variables<'_>) -> Access {
    read(url, variables).unwrap_or_else(|failure| panic!("{url}: {}", failure.why)).access
}

/// The ID of the key and the endpoint.
fn s3(url: &str, variables: Variables<'_>) -> [Option<String>; 2] {
    let Access::S3 { wanted, .. } = access(url, variables) else { panic!("S3") };
    [wanted.keys.map(|(id, ..)| id), wanted.endpoint]
}

fn azure(url: &str, variables: Variables<'_>) -> MicrosoftAzureBuilder {
    let Access::Azure(builder) = access(url, variables) else { panic!("Azure") };
    *builder
}

fn google(url: &str, variables: Variables<'_>) -> GoogleCloudStorageBuilder {
    let Access::Gcs(builder) = access(url, variables) else { panic!("Google") };
    *builder
}

const CONNECTION: (&str, &str) = ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=shop;AccountKey=a==");

#[test]
fn no_variable_replaces_the_bucket_of_the_address() {
    let variables = ["AWS_BUCKET", "AWS_BUCKET_NAME", "GOOGLE_BUCKET", "GOOGLE_BUCKET_NAME", "AZURE_CONTAINER_NAME"];
    let variables: Vec<_> = variables.map(|name| (name, "other")).into_iter().chain([CONNECTION]).collect();
    for url in ["s3://AKIA:a/b@locks/a/b/", "gs://locks//a/b", "az://locks/a/b", "azure://locks/a/b"] {
        let options = read(url, &variables).unwrap_or_else(|failure| panic!("{url}: {}", failure.why));
        let bucket = match &options.access {
            Access::S3 { builder, .. } => builder.get_config_value(&AmazonS3ConfigKey::Bucket),
            Access::Azure(builder) => builder.get_config_value(&AzureConfigKey::ContainerName),
            Access::Gcs(builder) => builder.get_config_value(&GoogleConfigKey::Bucket),
        };
        assert_eq!((options.bucket.as_str(), bucket.as_deref(), options.prefix.as_ref()), ("locks", Some("locks"), "a/b"));
    }
}

#[test]
fn the_address_comes_before_other_settings_and_keys_are_not_mixed() {
    let variables = [
        ("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "id\n"),
        ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "secret"),
        ("MELTANO_STATE_BACKEND_S3_ENDPOINT_URL", "http://minio:9000"),
    ];
    let own = "access_key_id=own&secret_access_key=x";
    for (url, variables, expected) in [
        ("s3://b".to_owned(), &variables[..], [Some("id"), Some("http://minio:9000")]),
        // As in Meltano, its settings come before the login of its address.
        ("s3://other:x@b".to_owned(), &variables, [Some("id"), Some("http://minio:9000")]),
        ("s3://other:x@b".to_owned(), &[], [Some("other"), None]),
        (format!("s3://other:x@b?{own}&endpoint=http://a"), &variables, [Some("own"), Some("http://a")]),
    ] {
        let found = s3(&url, variables);
        assert_eq!(found.each_ref().map(Option::as_deref), expected, "{url}");
    }
    assert!(read("s3://other:x@b", &variables[..1]).is_err_and(|failure| failure.why.contains("only one")));
}

#[test]
fn connection_strings_say_where_an_account_is_and_how_to_use_it() {
    use AzureConfigKey::{AccessKey, AccountName, EncryptionKey, Endpoint, SasKey};
    let usual = "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=a+b/c==;EndpointSuffix=core.windows.net";
    let signed = "BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=2&sig=a%3D";
    let shop = Some("https://shop.blob.core.windows.net");
    for (url, text, expected) in [
        ("azure://c", usual, [Some("shop"), shop, Some("a+b/c=="), None]),
        ("azure://c", signed, [Some("shop"), shop, None, Some("sv=2&sig=a%3D")]),
        // Another account's endpoint and key are of no use.
        ("azure://c?account=other&sas_token=x", usual, [Some("other"), None, None, Some("x")]),
    ] {
        let variables = [(CONNECTION.0, text), ("AZURE_STORAGE_ACCOUNT_KEY", "z=="), ("AZURE_STORAGE_ENCRYPTION_KEY", "e==")];
        let builder = azure(url, &variables);
        let found = [AccountName, Endpoint, AccessKey, SasKey].map(|key| builder.get_config_value(&key));
        assert_eq!(found.each_ref().map(Option::as_deref), expected, "{url} {text}");
        assert_eq!(builder.get_config_value(&EncryptionKey).as_deref(), Some("e=="));
    }
}

#[test]
fn meltano_s_settings_for_google_come_before_google_s_own() {
    use GoogleConfigKey::{ApplicationCredentials as Path, ServiceAccount as Other, ServiceAccountKey as Json};
    let path = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_PATH", "/key.json");
    let old = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS", "/old.json");
    let json = ("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON", "{}");
    let other = ("GOOGLE_SERVICE_ACCOUNT", "/other.json");
    for (url, variables, expected) in [
        ("gs://b", &[path, old, other][..], [Some("/key.json"), None, None]),
        ("gs://b", &[old], [Some("/old.json"), None, None]),
        ("gs://b", &[json, other], [None, Some("{}"), None]),
        ("gs://b", &[other], [None, None, Some("/other.json")]),
        ("gs://b?application_credentials=/own.json", &[path, json], [Some("/own.json"), None, None]),
    ] {
        let builder = google(url, variables);
        let found = [Path, Json, Other].map(|key| builder.get_config_value(&key));
        assert_eq!(found.each_ref().map(Option::as_deref), expected, "{url} {variables:?}");
    }
}

#[test]
fn settings_that_cannot_be_used_are_refused_without_their_secrets() {
    let json = "MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON";
    let path = "MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_PATH";
    for (url, variables, part) in [
        ("gs://b?region=x", &[][..], "`region`"),
        ("s3://hunter2@b/p", &[], "without its secret"),
        ("s3://hunter2:@b/p", &[], "without its secret"),
        ("azure://me:hunter2@c/p", &[], "a user"),
        ("s3:///p", &[], "no bucket"),
        ("s3://b:1/p", &[], "not a valid name"),
        ("s3://b%2Fc/p", &[], "not a valid name"),
        ("s3://b/%2E%2E/p", &[], "prefix"),
        ("s3://b?path_style=hunter2", &[], "path_style"),
        ("s3://b?access_key_id=hunter2", &[], "only one"),
        ("s3://b?access_key_id=hunter2&secret_access_key=x&profile=etl", &[], "both"),
        ("gs://b?endpoint=ftp://hunter2", &[], "not the URL of a server"),
        ("azure://c?account=a/b", &[], "account"),
        ("azure://c", &[(CONNECTION.0, "AccountKey=hunter2")], "no storage account"),
        ("azure://c", &[(CONNECTION.0, "a=b;hunter2")], "not valid"),
        ("gs://b", &[(json, "{}"), (path, "/hunter2")], "both"),
        ("gs://b", &[(json, "\"hunter2\"")], "not a JSON object"),
        ("gs://b", &[(json, "{hunter2}")], "not a JSON object"),
    ] {
        let failure = read(url, variables).err().expect(url);
        let is_said = failure.why.contains(part);
        assert!(is_said && !failure.why.contains("hunter2"), "{url}: {}", failure.why);
    }
}
