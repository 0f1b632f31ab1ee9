//! What people call things, in each of the stores.

use crate::store::Scheme;

/// For messages and hints about one kind of store.
pub struct Words {
    /// What objects are in.
    pub bucket: &'static str,
    /// How credentials are given.
    pub credentials: &'static str,
    /// What it takes to read.
    pub may_read: &'static str,
    /// What it takes to write.
    pub may_write: &'static str,
    /// What it takes to list.
    pub may_list: &'static str,
    /// How to say where the store is.
    pub elsewhere: &'static str,
}

const S3: Words = Words {
    bucket: "bucket",
    credentials: "credentials are looked for in the address (`s3://KEY:SECRET@bucket`), in `AWS_ACCESS_KEY_ID` and \
                  `AWS_SECRET_ACCESS_KEY` (with `AWS_SESSION_TOKEN`), then those of a role are asked for; profiles are not read, but \
                  `aws configure export-credentials --format env` prints what they have",
    may_read: "it takes `s3:GetObject` on the objects, and `s3:ListBucket` on the bucket, without which S3 does not tell that there is \
               no object",
    may_write: "it takes `s3:PutObject` on the objects",
    may_list: "it takes `s3:ListBucket` on the bucket",
    elsewhere: "`?region=…` and `?endpoint=…` at the end of the address, or `AWS_REGION` and `AWS_ENDPOINT_URL`, say where it is",
};

const AZURE: Words = Words {
    bucket: "container",
    credentials: "credentials are looked for in `AZURE_STORAGE_CONNECTION_STRING`, in `AZURE_STORAGE_ACCOUNT_NAME` with \
                  `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, then those of an identity are asked for",
    may_read: "it takes the role `Storage Blob Data Contributor` on the container, or a SAS for it with `sp=rcwl`",
    may_write: "it takes the role `Storage Blob Data Contributor` on the container, or a SAS for it with `sp=rcwl`",
    may_list: "it takes the role `Storage Blob Data Contributor` on the container, or a SAS for it with `sp=rcwl`",
    elsewhere: "`?account=…` or `?endpoint=…` at the end of the address, or `AZURE_STORAGE_ACCOUNT_NAME`, say where it is",
};

const GCS: Words = Words {
    bucket: "bucket",
    credentials: "credentials are looked for where `GOOGLE_APPLICATION_CREDENTIALS` says, and where `gcloud auth application-default \
                  login` leaves them; then those of the machine are asked for",
    may_read: "it takes the role `roles/storage.objectUser` on the bucket",
    may_write: "it takes the role `roles/storage.objectUser` on the bucket",
    may_list: "it takes the role `roles/storage.objectUser` on the bucket",
    elsewhere: "`?endpoint=…` at the end of the address says where it is",
};

impl Words {
    /// Of these addresses.
    pub fn of(scheme: Scheme) -> &'static Self {
        match scheme {
            Scheme::Azure => &AZURE,
            Scheme::Gcs => &GCS,
            _ => &S3,
        }
    }
}
