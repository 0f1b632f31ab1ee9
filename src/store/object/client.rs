//! The crate's clients, with credentials that are good for a while, and versions of objects as the
//! crate has them.

use std::sync::Arc;

use aws_credential_types::Credentials;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::azure::MicrosoftAzure;
use object_store::gcp::GoogleCloudStorage;
use object_store::{ObjectStore, StaticCredentialProvider, UpdateVersion};

use super::failures::without_credentials;
use super::kinds::{self, Kind};
use crate::store::aws::Account;
use crate::store::checks;
use crate::store::failure::Failure;
use crate::store::network::innermost;

/// A client of the crate. Not `Debug`: it holds keys.
pub enum Client {
    S3 { account: Box<Account<AmazonS3>>, bucket: Box<Bucket> },
    Azure(MicrosoftAzure),
    Gcs(GoogleCloudStorage),
}

impl Client {
    /// The client, once it has credentials; whether it `has_worked` tells what a lack of them
    /// means.
    pub async fn ready(
        &mut self,
        kind: &Kind,
        has_worked: bool,
    ) -> Result<&dyn ObjectStore, Failure> {
        let none = |error| without_credentials(kind, &error, has_worked);
        let store: &dyn ObjectStore = match self {
            Self::S3 { account, bucket } => {
                account.client(|account, _, keys| bucket.client(account, keys)).await?
            }
            Self::Azure(store) => {
                store.credentials().get_credential().await.map_err(none)?;
                store
            }
            Self::Gcs(store) => {
                store.credentials().get_credential().await.map_err(none)?;
                store
            }
        };
        Ok(store)
    }

    /// See [`Account::forget`].
    pub fn forget(&mut self) {
        if let Self::S3 { account, .. } = self {
            account.forget();
        }
    }
}

/// A bucket whose region, endpoint and credentials are found as the AWS CLI finds them.
pub struct Bucket {
    pub name: String,
    pub builder: AmazonS3Builder,
    pub is_path_style: bool,
}

impl Bucket {
    fn client(&self, account: &Account<AmazonS3>, keys: &Credentials) -> Result<AmazonS3, Failure> {
        let region = account.region.as_deref().unwrap_or("us-east-1");
        let usual = format!("https://s3.{region}.amazonaws.com");
        let mut endpoint =
            account.endpoint.as_ref().unwrap_or(&usual).trim_end_matches('/').to_owned();
        if !self.is_path_style {
            endpoint = endpoint.replacen("://", &format!("://{}.", self.name), 1);
        }
        if !checks::is_url(&endpoint) {
            let why = "the bucket cannot stand before the name of the store's host";
            let hint = "without `path_style=false` in the address, it stands behind it";
            return Err(Failure::permanent(why).with_hint(hint));
        }
        let credential = AwsCredential {
            key_id: keys.access_key_id().to_owned(),
            secret_key: keys.secret_access_key().to_owned(),
            token: keys.session_token().map(str::to_owned),
        };
        let builder = self
            .builder
            .clone()
            .with_region(region)
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        let client =
            builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential))).build();
        client.map_err(|error| unusable(&kinds::S3, &error))
    }
}

/// Settings that the crate refuses.
pub fn unusable(kind: &Kind, error: &object_store::Error) -> Failure {
    Failure::permanent(format!("settings cannot be used: {}", innermost(error)))
        .with_hint(kind.credentials)
}

/// A version that no object has, with an ETag as Azure writes it. S3 takes any, and Google compares
/// the generation.
pub const OTHER_VERSION: &[u8] = b"\"0x8D0000000000000\"\n1";

/// A version as the crate has it.
pub fn condition(version: &[u8]) -> UpdateVersion {
    let text = String::from_utf8_lossy(version);
    let (e_tag, generation) = text.split_once('\n').unwrap_or((&text, ""));
    let there = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    UpdateVersion { e_tag: there(e_tag), version: there(generation) }
}

/// S3 and Azure compare the ETag, Google the generation.
pub fn version(e_tag: Option<&str>, generation: Option<&str>) -> Vec<u8> {
    format!("{}\n{}", e_tag.unwrap_or(""), generation.unwrap_or("")).into_bytes()
}
